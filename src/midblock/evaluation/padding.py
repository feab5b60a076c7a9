"""Padding before a prompt: the id that fills up, and whether a model writes otherwise behind it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from midblock.base import MidblockError
from midblock.checkpoints import device_of
from midblock.evaluation.encoded_prompts import EncodedPrompt
from midblock.evaluation.own_generate import generated, pad_left, plain_generation
from midblock.runs.lending import evaluating

# Last tokens of a prompt, and tokens of padding before them, at least and at most, that show whether padding shows.
PROBED, PADDED, MOST_PADDED = 16, 9, 512
# Of the predictions' size: in float32 rounding makes at most 3e-6 of it in any family, padding that shows 6e-2 or more.
ROUNDING = 1e-3


def padding_of(tokenizer: PreTrainedTokenizerBase, stop: Sequence[int]) -> int:
    """The id that fills batches up."""
    return next((token for token in (tokenizer.pad_token_id, *stop) if isinstance(token, int)), 0)


def padding_shows(model: nn.Module, prompts: Sequence[EncodedPrompt], padding: int, width: int = PADDED) -> bool:
    """Whether a model writes otherwise behind padding than without: its state is no attention that a mask ends.

    Asked of the model itself, by the predictions of two tokens in a row behind the shortest prompt's end. Cost: two
    forward passes over it, two over a token, and the padding.

    Args:
        padding: the id that fills up.
        width: how much of it is put before the prompt, as far as that says more: 9 to 512 tokens.

    Raises:
        MidblockError: the model does not write at all.
    """
    ids = min((prompt.input_ids for prompt in prompts), key=len)[-PROBED:]
    alone = _predictions(model, [ids], padding)
    try:
        padded = _predictions(model, [ids, (padding,) * max(PADDED, min(width, MOST_PADDED)) + ids], padding)
    except MidblockError:
        return True  # it takes no padding
    allowed = max(ROUNDING, 4 * torch.finfo(next(model.parameters()).dtype).eps)
    return not bool((padded - alone).norm() <= allowed * alone.norm())


def _predictions(model: nn.Module, rows: Sequence[tuple[int, ...]], padding: int) -> Float64[Tensor, "2 V"]:
    """The centred logits of two tokens in a row behind the first of the rows."""
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=2,
        min_new_tokens=2,
        pad_token_id=padding,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    device = device_of(model.get_input_embeddings())  # type: ignore[operator]
    input_ids, mask = pad_left(rows, padding)
    inputs = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
    with evaluating(model), plain_generation(model):
        written = generated(model, generation_config=settings, **inputs)
    logits = torch.stack([each[0] for each in written.logits]).cpu().double()
    return logits - logits.mean(-1, keepdim=True)
