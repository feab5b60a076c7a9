"""Two checkpoints of a family on disk, and what transformers itself makes of them, text by text, without padding.

Nothing here asks midblock: these are the numbers that it has to find.
"""

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

EOS = 2
# Longer than every window of the zoo, and of different lengths, so that batches hold padding.
ROWS = [
    {"question": f"{n} and {3 * n + 1}{' and one more' * (n % 3)}?", "answer": f"makes {4 * n + 1 + n % 3}"}
    for n in range(6)
]
NUMBERED = re.compile(r"(.*?)\.(\d+)\.")
TOWER = re.compile("vision|visual")


@dataclass(frozen=True)
class Row:
    """What a model says of one text.

    Attributes:
        states: mean over the text's tokens of every hidden state that the model hands out, each (D,).
        lens: log-probabilities of the next token at four positions, (4, V).
        losses: of the answer's tokens, the end of the text last.
    """

    states: Sequence[Tensor]
    lens: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Pair:
    """`base` and `tuned` in `folder`, `rows.jsonl` beside them.

    Attributes:
        family: the name it has in the zoo.
        kind: their class.
        models: both, read from disk, as a user would.
    """

    family: str
    folder: Path
    kind: type[nn.Module]
    models: dict[str, nn.Module]

    @classmethod
    def write(cls, family: str, folder: Path, base: nn.Module, tuned: nn.Module) -> "Pair":
        """Save both, each with a tokenizer, and the questions."""
        for name, model in {"base": base, "tuned": tuned}.items():
            model.save_pretrained(folder / name)  # type: ignore[operator]
            make_tokenizer().save_pretrained(folder / name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        made = cls(family, folder, type(base), {})
        made.models.update({name: made.load(made.path(name)) for name in ("base", "tuned")})
        return made

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def data(self) -> str:
        return self.path("rows.jsonl")

    def load(self, path: str) -> nn.Module:
        """A checkpoint as transformers reads it, of the pair's own class."""
        kinds = [
            json.loads((Path(folder) / "config.json").read_text())["model_type"] for folder in (self.path("base"), path)
        ]
        assert kinds[0] == kinds[1], f"the checkpoint of a {kinds[0]} has become one of a {kinds[1]}"
        return self.kind.from_pretrained(path, dtype=torch.float32).eval()  # type: ignore[attr-defined]

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """Both models' rows."""
        return {name: rows(model) for name, model in self.models.items()}

    @cached_property
    def depth(self) -> int:
        """L, the number of decoder blocks."""
        return blocks(self.models["base"])[1]

    def exchanged(self, block: int) -> nn.Module:
        """The base with one block's weights taken from the tuned model."""
        base, theirs = copy.deepcopy(self.models["base"]), dict(self.models["tuned"].named_parameters())
        inside = in_block(base, block)
        with torch.no_grad():
            for name, weight in base.named_parameters():
                if name in inside:
                    weight.copy_(theirs[name])
        return base


def as_causal(pair: Pair, path: str) -> nn.Module:
    """A checkpoint as AutoModelForCausalLM opens it; of a kind that it does not know, the whole."""
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    except ValueError:
        return pair.load(path)


def blocks(model: nn.Module) -> tuple[str, int]:
    """The dotted path of the list of decoder blocks, and how many there are: the list with the most parameters."""
    numbered = [match for name, _ in model.named_parameters() if (match := NUMBERED.match(name))]
    found = [match for match in numbered if not TOWER.search(match[1])]
    ((path, _),) = Counter(match[1] for match in found).most_common(1)
    return path, len({match[2] for match in found if match[1] == path})


def in_block(model: nn.Module, block: int) -> set[str]:
    """The parameters of a decoder block, by name."""
    return {name for name, _ in model.named_parameters() if name.startswith(f"{blocks(model)[0]}.{block}.")}


def distance(base: nn.Module, tuned: nn.Module, block: int | None = None) -> float:
    """Norm of the difference of two models' parameters, in one block or in all."""
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    names = before if block is None else in_block(base, block)
    squares = [(after[name] - before[name]).detach().double().square().sum() for name in names]
    return math.sqrt(float(torch.stack(squares).sum()))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; nothing is put before or after a text."""
    words = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


@cache
def texts() -> tuple[tuple[list[int], int], ...]:
    """Each text's tokens, and where its answer begins."""
    tokenizer = make_tokenizer()
    starts = [f"{row['question']}\n" for row in ROWS]
    whole = [tokenizer(start + row["answer"])["input_ids"] for start, row in zip(starts, ROWS, strict=True)]
    return tuple((ids, len(tokenizer(start)["input_ids"])) for ids, start in zip(whole, starts, strict=True))


def rows(model: nn.Module) -> list[Row]:
    """A model's rows for all texts."""
    return [_row(model, ids, start) for ids, start in texts()]


def _row(model: nn.Module, ids: list[int], start: int) -> Row:
    ended, length = [*ids, EOS], len(ids)
    with torch.no_grad():
        out: Any = model(input_ids=torch.tensor([ended]), use_cache=False, output_hidden_states=True)
    logs = out.logits[0].double().log_softmax(-1)
    at = [max(1, math.ceil(quarter * length / 4)) - 1 for quarter in range(1, 5)]
    losses = torch.stack([-logs[place - 1, ended[place]] for place in range(start, length + 1)])
    return Row([state[0, :length].double().mean(0) for state in out.hidden_states], logs[at], losses)


def norms(own: Sequence[Row]) -> list[float]:
    """Mean length of a text's mean state, at every hidden state that transformers hands out."""
    return [_mean_norm(layer) for layer in zip(*(row.states for row in own), strict=True)]


def changes(base: Sequence[Row], tuned: Sequence[Row]) -> list[float]:
    """Mean distance between the two models' mean states, at every hidden state."""
    apart = [[y - x for x, y in zip(a.states, b.states, strict=True)] for a, b in zip(base, tuned, strict=True)]
    return [_mean_norm(layer) for layer in zip(*apart, strict=True)]


def _mean_norm(layer: Sequence[Tensor]) -> float:
    return float(torch.stack(list(layer)).norm(dim=-1).mean())


def kl(base: Sequence[Row], tuned: Sequence[Row]) -> float:
    """KL(base‖tuned) of the next token, the mean over texts."""
    each = [(a.lens.exp() * (a.lens - b.lens)).sum(-1).mean() for a, b in zip(base, tuned, strict=True)]
    return float(torch.stack(each).mean())


def nll(own: Sequence[Row], ended: bool) -> float:
    """Mean loss of the answers' tokens, with or without the end of the text."""
    return float(torch.cat([row.losses if ended else row.losses[:-1] for row in own]).mean())
