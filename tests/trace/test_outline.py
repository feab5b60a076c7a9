"""How blocks are called, found without their weights: what the model itself calls them with, or one clear line."""

import pytest
import torch

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.trace import check_stream, record_calls, run_backbone
from midblock.trace.outline import Outline, Shared, same_calls

IDS = torch.arange(3, 20)[None]


def test_calls_are_those_of_the_model_itself(family, pico):
    anatomy = Anatomy.of(pico(family))
    with record_calls(anatomy, (0,)) as own:
        run_backbone(anatomy, IDS)
    outline = Outline.of(anatomy, IDS, "m")
    found = outline.record(IDS)
    assert same_calls(found, own)
    assert torch.equal(found.entering[0], own.entering[0])
    assert not outline.hands_on
    check_stream(anatomy, IDS, "m")  # nothing of it stays in the model


def given_by_states(module, args, kwargs):
    """A block whose positions hang on what the block below put out."""
    cosine, sine = kwargs["position_embeddings"]
    return args, {**kwargs, "position_embeddings": (cosine + args[0].mean(), sine)}


def test_what_hangs_on_the_blocks_below_is_refused(pico):
    anatomy = Anatomy.of(pico("llama"))
    hook = anatomy.blocks[1].register_forward_pre_hook(given_by_states, with_kwargs=True)
    with pytest.raises(MidblockError, match="m cannot be run block by block: what its blocks are given") as told:
        Outline.of(anatomy, IDS, "m")
    assert "without --max-memory" in str(told.value)
    hook.remove()
    Outline.of(anatomy, IDS, "m")


@pytest.mark.parametrize("where", ["between", "before the norm", "behind the norm"])
def test_something_beside_the_blocks_is_refused(pico, where):
    anatomy = Anatomy.of(pico("llama"))
    module = {"between": anatomy.blocks[1], "before the norm": anatomy.final_norm, "behind the norm": anatomy.backbone}
    if where == "behind the norm":
        anatomy.backbone.register_forward_hook(lambda module, args, output: (output[0] * 2,))
    else:
        change = lambda module, args: (args[0] * 2, *args[1:])  # noqa: E731
        module[where].register_forward_pre_hook(change)
    with pytest.raises(MidblockError, match="m cannot be run block by block"):
        Outline.of(anatomy, IDS, "m")


def test_equal_tables_of_many_batches_are_kept_once(pico):
    outline = Outline.of(Anatomy.of(pico("llama")), IDS, "m")
    shared = Shared()
    one, other = (shared.of(outline.record(ids)) for ids in (IDS, IDS + 1))
    tables = {id(each) for calls in (one, other) for call in calls.calls for each in call.kwargs["position_embeddings"]}
    assert len(tables) == 2  # cosine and sine
    assert same_calls(one, other)
