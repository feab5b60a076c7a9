import pytest
import torch

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.data import TokenizedPrompt, make_batches
from midblock.trace import reduce_batch

IDS = [(5, 9, 120, 33), (4, 17, 201), (8, 8, 9, 10, 11)]


def batch():
    prompts = [TokenizedPrompt(index, ids, len(ids) - 1) for index, ids in zip((7, 3, 11), IDS, strict=True)]
    return make_batches(prompts)[0]


def total(states, mask):
    return (states * mask.unsqueeze(-1)).sum(1)


def count(states, mask):
    return mask.sum(1).to(states.dtype)


def test_each_layer_becomes_a_row_a_prompt(pico):
    model, given = pico("qwen3"), batch()
    reduced = reduce_batch("m", Anatomy.of(model), given, given.region("all"), [-1, 1, 3], {"sum": total, "n": count})
    assert reduced.index.tolist() == given.index.tolist() == [11, 7, 3]
    assert set(reduced.rows) == {(name, layer) for name in ("sum", "n") for layer in (-1, 1, 3)}
    assert reduced.rows["n", 1].tolist() == [5, 4, 3]
    alone = model(input_ids=torch.tensor([IDS[0]]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(reduced.rows["sum", 1][1], alone[2].sum(1)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reduced.rows["sum", 3][1], alone[3].sum(1)[0], rtol=1e-4, atol=1e-5)


def test_the_mask_says_which_tokens_count(pico):
    given = batch()
    anatomy = Anatomy.of(pico("llama"))
    reduced = reduce_batch("m", anatomy, given, given.region("answer"), [0], {"n": count})
    assert reduced.rows["n", 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("bad", "where"), [(float("nan"), "layer 1"), (float("inf"), "layer 1")])
def test_activations_that_are_no_numbers_name_model_layer_and_prompt(pico, bad, where):
    model, given = pico("llama"), batch()
    # Only token 17, which prompt 3 alone has, goes wrong, and only from block 1 on.
    hook = model.model.layers[1].register_forward_hook(
        lambda module, args, output: output.masked_fill((given.input_ids == 17).unsqueeze(-1), bad)
    )
    with pytest.raises(MidblockError, match=rf"^sft: NaN or Inf in the activations of {where} \(first in prompt 3\)"):
        reduce_batch("sft", Anatomy.of(model), given, given.region("all"), range(-1, 4), {"sum": total})
    hook.remove()


def test_a_broken_embedding_is_called_so(pico):
    model, given = pico("llama"), batch()
    with torch.no_grad():
        model.model.embed_tokens.weight[120] = float("nan")
    with pytest.raises(MidblockError, match=r"activations of the embedding \(first in prompt 7\)"):
        reduce_batch("base", Anatomy.of(model), given, given.region("all"), range(-1, 4), {"sum": total})


def test_what_does_not_count_may_be_anything(pico):
    model, given = pico("llama"), batch()
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = float("nan")  # the padding
    rows = reduce_batch("base", Anatomy.of(model), given, given.region("all"), [-1], {"n": count}).rows
    assert rows["n", -1].tolist() == [5, 4, 3]


class OnMps(torch.Tensor):
    """A tensor that says it is on Apple's GPU."""

    device = torch.device("mps")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_states_leave_mps_before_they_are_reduced(pico):
    model, given = pico("llama"), batch()
    expected = reduce_batch("m", Anatomy.of(model), given, given.region("all"), [3], {"sum": total}).rows
    model.model.norm.register_forward_hook(lambda module, args, output: output.as_subclass(OnMps))
    rows = reduce_batch("m", Anatomy.of(model), given, given.region("all"), [3], {"sum": total}).rows
    assert type(rows["sum", 3]) is torch.Tensor
    assert torch.equal(rows["sum", 3], expected["sum", 3])
