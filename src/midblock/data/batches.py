"""Batches of prompts of like length, padded on the right, under a budget of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from midblock.base import MidblockError, unknown
from midblock.data.encode import TokenizedPrompt

IGNORED = -100  # the label that torch's and transformers' losses pass over

REGIONS = ("all", "prompt", "answer")


@dataclass(frozen=True, eq=False)
class Batch:
    """B prompts, padded on the right to the longest one's T tokens.

    Attributes:
        index: the samples' positions in their ExampleSet.
        input_ids: token ids; the pad id behind a prompt's end.
        attention_mask: 1 on real tokens, 0 on padding.
        answer_mask: True on the real tokens of the completion.
    """

    index: Int[Tensor, "B"]
    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    answer_mask: Bool[Tensor, "B T"]

    def region(self, name: str) -> Bool[Tensor, "B T"]:
        """Mark the real tokens of a region: "all" of the sample, its "prompt" or its "answer".

        Raises:
            MidblockError: for another name.
        """
        real = self.attention_mask.bool()
        if name not in REGIONS:
            raise unknown("region", name, REGIONS)
        before = self.answer_mask.cumsum(1) == 0  # what a template writes behind the answer is neither
        return {"all": real, "prompt": real & before, "answer": self.answer_mask}[name]

    def labels(self) -> Int[Tensor, "B T"]:
        """The input ids on the completion's tokens, -100 elsewhere; not shifted, as transformers' models want them."""
        return self.input_ids.masked_fill(~self.answer_mask, IGNORED)

    def start(self, tokens: int) -> "Batch":
        """The first tokens of the first prompt alone, to try something on."""
        cut = (tensor[:1, :tokens] for tensor in (self.input_ids, self.attention_mask, self.answer_mask))
        return Batch(self.index[:1], *cut)

    def repeated(self, times: int) -> "Batch":
        """All prompts so many times over, one whole copy behind the other."""
        each = (tensor.repeat(times, 1) for tensor in (self.input_ids, self.attention_mask, self.answer_mask))
        return Batch(self.index.repeat(times), *each)

    def to(self, device: torch.device | str) -> "Batch":
        moved = (tensor.to(device) for tensor in (self.index, self.input_ids, self.attention_mask, self.answer_mask))
        return Batch(*moved)


def make_batches(prompts: Sequence[TokenizedPrompt], *, batch_tokens: int = 1024, pad_id: int = 0) -> list[Batch]:
    """Group prompts by length, longest first, so that little is padded and a lack of memory shows at once.

    Args:
        prompts: the samples; each lands in exactly one batch, equal lengths in the order of their indices.
        batch_tokens: most tokens a batch may hold, padding included (B·T); a longer prompt gets a batch of its own.
        pad_id: token id behind a prompt's end; masked, so any will do.

    Raises:
        MidblockError: when the budget is not positive.
    """
    if batch_tokens < 1:
        raise MidblockError(f"a budget of {batch_tokens} tokens per batch holds nothing", hint="try 1024")
    groups: list[list[TokenizedPrompt]] = []
    for prompt in sorted(prompts, key=lambda prompt: (-len(prompt.input_ids), prompt.index)):
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0].input_ids) <= batch_tokens:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return [_pad(group, pad_id) for group in groups]


def _pad(group: Sequence[TokenizedPrompt], pad_id: int) -> Batch:
    """Stack prompts, the longest first."""
    width = len(group[0].input_ids)
    lengths = torch.tensor([len(prompt.input_ids) for prompt in group])[:, None]
    starts = torch.tensor([prompt.answer_start for prompt in group])[:, None]
    stops = torch.tensor([prompt.answer_end for prompt in group])[:, None]
    position = torch.arange(width)[None, :]
    real = position < lengths
    rows = [[*prompt.input_ids, *[pad_id] * (width - len(prompt.input_ids))] for prompt in group]
    return Batch(
        index=torch.tensor([prompt.index for prompt in group]),
        input_ids=torch.tensor(rows),
        attention_mask=real.long(),
        answer_mask=real & (position >= starts) & (position < stops),
    )
