"""Early exit: every depth reads what transformers' hidden states say, and a model cut off answers from there."""

import pytest
import torch
from transformers import GenerationConfig, LlamaModel

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.data import TokenizedPrompt, make_batches
from midblock.evaluation import Targets, exact_match
from midblock.interventions.probe.exits import Exits, cut_off

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def batch():
    given = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [TokenizedPrompt(n, tuple(ids[: 12 - 3 * n]), 3) for n, ids in enumerate(given)]
    return make_batches(rows)[0]


def exits(model, batch, layers=range(-1, 3), region="answer", vocabulary=300):
    found = {}
    targets = Targets.of(batch, region)
    Exits("sft", Anatomy.of(model), batch, targets, layers, vocabulary, found.__setitem__).score()
    return targets, found


def head_on(model, states):
    anatomy = Anatomy.of(model)
    return anatomy.logits(states)


@torch.no_grad()
def test_each_depth_is_what_the_hidden_states_say(family, pico, batch):
    model = pico(family)
    targets, found = exits(model, batch)
    assert list(found) == [-1, 0, 1, 2]
    output = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, output_hidden_states=True
    )
    norm = Anatomy.of(model).final_norm
    for layer in range(-1, 3):
        # transformers norms the last one itself
        normed = output.hidden_states[layer + 1] if layer == 2 else norm(output.hidden_states[layer + 1])
        logits = head_on(model, normed)[targets.where].double()
        nll = -logits.log_softmax(-1)[torch.arange(len(targets.tokens)), targets.tokens]
        torch.testing.assert_close(found[layer].nll, nll, rtol=0, atol=1e-4)
        assert found[layer].right.tolist() == (logits.argmax(-1) == targets.tokens).tolist()
    own = output.logits[targets.where].double()
    assert found[2].right.tolist() == (own.argmax(-1) == targets.tokens).tolist()
    loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels()).loss
    assert float(found[2].nll.mean()) == pytest.approx(float(loss), abs=1e-5)


def test_only_the_layers_asked_for(pico, batch):
    _, found = exits(pico("llama"), batch, layers=[1])
    assert list(found) == [1]
    with pytest.raises(MidblockError, match="layer 4 is not there"):
        exits(pico("llama"), batch, layers=[4])


class ScaledLlama(LlamaModel):
    """A llama that does something more behind its final norm."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * 1.01
        return output


def test_something_behind_the_final_norm_is_told(pico, batch):
    model = pico("llama")
    scaled = ScaledLlama(model.config).eval()
    scaled.load_state_dict(model.model.state_dict())
    model.model = scaled
    exits(model, batch, layers=[0, 1])  # only the last depth can be compared with the model's own
    with pytest.raises(MidblockError, match=r"^sft: the final norm model\.norm, put on its last block, does not"):
        exits(model, batch)


def test_a_likelihood_that_is_no_number(pico, batch):
    model = pico("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    with pytest.raises(
        MidblockError, match=r"^sft: the likelihood read off layer 1 is not finite \(first in prompt 0\)"
    ):
        exits(model, batch)
    assert not any(block._forward_hooks for block in model.model.layers)


@torch.no_grad()
def decode_by_hand(model, layer, steps):
    """Greedy answers without a cache, from the states behind one block."""
    ids = IDS
    for _ in range(steps):
        states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[layer + 1]
        normed = states if layer == len(Anatomy.of(model)) - 1 else Anatomy.of(model).final_norm(states)
        ids = torch.cat([ids, head_on(model, normed)[:, -1:].argmax(-1)], 1)
    return ids


def generate(model, steps):
    settings = GenerationConfig(do_sample=False, max_new_tokens=steps, pad_token_id=0)
    model.generation_config = GenerationConfig()
    return model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), generation_config=settings)


SLIDING = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
MODELS = {
    "llama": {},
    "gpt2": {},
    "gemma3": {"num_hidden_layers": 4, "layer_types": SLIDING, "sliding_window": 4},
    "gemma2": {"num_hidden_layers": 4, "layer_types": SLIDING[::-1], "sliding_window": 4},
    "falcon_rw": {},
    "bloom": {},
    "opt": {},
    "mixtral": {},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_cut_off_answers_as_its_exits(pico, name):
    model = pico(name, **MODELS[name])
    total = len(Anatomy.of(model))
    whole = generate(model, 5)
    for layer in range(total):
        with cut_off(Anatomy.of(model), layer) as away:
            assert away == total - 1 - layer
            found = generate(model, 5)
        assert torch.equal(found, decode_by_hand(model, layer, 5)), layer
        assert torch.equal(found, whole) == (layer == total - 1)


def test_the_model_comes_back_whatever_happens(family, pico):
    model = pico(family)
    before = [(name, id(part)) for name, part in (*model.named_modules(), *model.named_parameters())]
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    with pytest.raises(KeyboardInterrupt), cut_off(Anatomy.of(model), 0):
        raise KeyboardInterrupt
    assert before == [(name, id(part)) for name, part in (*model.named_modules(), *model.named_parameters())]
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, logits)


@pytest.mark.parametrize("layer", [-1, 3])
def test_no_such_block(pico, layer):
    with (
        pytest.raises(MidblockError, match=f"cannot end behind block {layer}; it has 0 to 2"),
        cut_off(Anatomy.of(pico("llama")), layer),
    ):
        pass


def test_cut_off_behind_the_last_block_is_the_whole_model(taught, tokenizer, sums):
    model = taught[1]
    whole = exact_match(model, tokenizer, sums, max_new_tokens=8)
    with cut_off(Anatomy.of(model), 2):
        assert exact_match(model, tokenizer, sums, max_new_tokens=8).outputs == whole.outputs
    with cut_off(Anatomy.of(model), 0):
        assert exact_match(model, tokenizer, sums, max_new_tokens=8).outputs != whole.outputs
