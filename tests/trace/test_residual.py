import accelerate
import pytest
import torch

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.trace import run_backbone, watch

IDS = torch.tensor([[5, 9, 120, 33, 7, 250], [4, 4, 17, 201, 299, 3]])


def trace(model, layers, ids=IDS):
    anatomy, seen = Anatomy.of(model), []
    with watch(anatomy, layers, lambda layer, states: seen.append((layer, states))):
        run_backbone(anatomy, ids)
    return dict(seen), [layer for layer, _ in seen]


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_layers_are_transformers_hidden_states(family, pico):
    model = pico(family)
    total = model.config.num_hidden_layers
    with torch.inference_mode():
        # transformers hands out the last block's state after the final norm
        expected = model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    before = hooks(model)  # transformers leaves its own
    seen, order = trace(model, range(-1, total + 1))
    assert hooks(model) == before
    assert order == list(range(-1, total + 1))
    assert torch.equal(seen[-1], expected[0])
    for layer in range(total - 1):
        assert torch.equal(seen[layer], expected[layer + 1])
    assert torch.equal(seen[total], expected[-1])
    with torch.inference_mode():
        assert torch.equal(Anatomy.of(model).final_norm(seen[total - 1]), expected[-1])


def test_padding_on_the_right_never_matters(family, pico):
    model = pico(family)
    alone, _ = trace(model, [-1, 1, 3], IDS[:1, :4])
    padded, _ = trace(model, [-1, 1, 3], torch.cat([IDS[:1, :4], torch.zeros(1, 5, dtype=torch.long)], dim=1))
    for layer, states in alone.items():
        torch.testing.assert_close(padded[layer][:, :4], states, rtol=1e-4, atol=1e-5)


def test_only_the_chosen_layers_are_seen(pico):
    assert trace(pico("llama"), [2, 0])[1] == [0, 2]


def test_a_layer_that_is_not_there(pico):
    anatomy = Anatomy.of(pico("llama"))
    for layer in (4, -2):
        with pytest.raises(MidblockError, match=f"layer {layer} is not there; the model has layers -1 to 3"):  # noqa: SIM117
            with watch(anatomy, [0, layer], lambda layer, states: None):
                pass
    assert hooks(anatomy.backbone) == 0


def test_hooks_go_when_the_pass_fails(pico):
    model = pico("gpt2")

    def refuse(layer, states):
        raise RuntimeError(f"stop at {layer}")

    with pytest.raises(RuntimeError, match="stop at 1"), watch(Anatomy.of(model), [1, 3], refuse):
        run_backbone(Anatomy.of(model), IDS)
    assert hooks(model) == 0


def test_a_layer_that_no_pass_reached(pico):
    anatomy = Anatomy.of(pico("llama"))
    with (
        pytest.raises(MidblockError, match="never reached layer 1"),
        watch(anatomy, [1, 2], lambda layer, states: None),
    ):
        pass


def test_the_pass_leaves_no_graph_and_the_model_as_it_was(pico):
    model = pico("mixtral")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen, _ = trace(model, [0])
    assert not seen[0].requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_offloaded_model_gives_the_same_states(pico):
    expected, _ = trace(pico("llama"), range(-1, 4))
    offloaded = accelerate.cpu_offload(pico("llama"), execution_device="cpu")
    assert {value.device.type for value in offloaded.parameters()} == {"meta"}
    seen, _ = trace(offloaded, range(-1, 4))
    assert all(torch.equal(seen[layer], expected[layer]) for layer in range(-1, 4))
