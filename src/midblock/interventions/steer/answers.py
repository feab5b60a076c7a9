"""What models write after the held-out prompts: the tuned model's answers to be scored, and texts side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from midblock.base import MidblockError, Progress
from midblock.checkpoints import Anatomy, Pair, Variant
from midblock.data import TokenizedPrompt, TokenizedSet
from midblock.evaluation.encoded_prompts import EncodedPrompt, encode_prompts, stop_tokens
from midblock.evaluation.generate import answer_text, continue_ids
from midblock.interventions.answering import Answers
from midblock.interventions.steer.effect import Vectors
from midblock.interventions.steer.kept import KeptValues
from midblock.interventions.steer.settings import SteerSettings, alpha_label
from midblock.interventions.steer.steering import amounts_to_add, steered
from midblock.runs.reading import check_ids


@dataclass
class Writing:
    """Greedy answers to the held-out prompts.

    Attributes:
        heldout: the prompts that are judged.
    """

    pair: Pair
    heldout: Answers
    settings: SteerSettings
    kept: KeptValues
    progress: Progress

    @cached_property
    def prompts(self) -> list[EncodedPrompt]:
        return encode_prompts(self.heldout.examples, self.heldout.tokenizer, self.settings.template)

    @cached_property
    def tuned_ids(self) -> list[tuple[int, ...]]:
        """What the tuned model writes, to the token that ends it."""
        return self._write("answers", self.pair.tuned[0], self.prompts)

    def answers(self) -> TokenizedSet:
        """The held-out prompts with the tuned model's answers, on exactly the ids that were read and written.

        Empty answers are left out.

        Raises:
            MidblockError: no answer has a word, or one has a token that the base does not know.
        """
        stop = self._stop(self.pair.tuned[0])
        made = [
            TokenizedPrompt(index, (*prompt.input_ids, *ids), len(prompt.input_ids))
            for index, (prompt, ids) in enumerate(zip(self.prompts, self.tuned_ids, strict=True))
            if ids and ids[0] not in stop
        ]
        if not made:
            what = f"{self.pair.tuned[0].name} answers none of the {len(self.prompts)} prompts: it ends at once"
            raise MidblockError(what, hint="see --data and --template")
        tokens = TokenizedSet(tuple(made), self.settings.template, 0, (), ())
        check_ids(tokens, self.pair)
        return tokens

    def notes(self, answers: TokenizedSet) -> list[str]:
        """What a reader must know of the answers: how many were empty, or cut."""
        name, stop, made, found = self.pair.tuned[0].name, self._stop(self.pair.tuned[0]), answers.prompts, []
        if empty := len(self.prompts) - len(made):
            found.append(f"{empty} of {len(self.prompts)} answers of {name} were empty: left out.")
        if cut := sum(prompt.input_ids[-1] not in stop for prompt in made):
            found.append(f"{cut} of {len(made)} answers of {name} were cut at {self.settings.max_new_tokens} tokens.")
        return found

    def texts(self, vectors: Vectors, blocks: Sequence[int]) -> list[dict[str, Any]]:
        """The first few held-out prompts, answered by base, tuned model, and the base steered with each α."""
        count = min(self.settings.num_texts, len(self.prompts))
        if not count:
            return []
        amounts = amounts_to_add({block: vectors[block] for block in blocks}, self.settings.adding)
        tuned = self._read(self.pair.tuned[0], self.tuned_ids[:count])
        base = self._base_texts("text-base", count)
        by_alpha = {}
        for alpha in self.settings.alpha:
            with_alpha = f"text-{alpha!r}"
            by_alpha[alpha_label(alpha)] = self._base_texts(with_alpha, count, amounts, alpha)
        return [
            {
                "prompt": example.prompt,
                "base": base[index],
                "tuned": tuned[index],
                "steered": {label: texts[index] for label, texts in by_alpha.items()},
            }
            for index, example in enumerate(self.heldout.examples.examples[:count])
        ]

    def _base_texts(self, name: str, count: int, amounts: Vectors | None = None, alpha: float = 0.0) -> list[str]:
        base = self.pair.base
        if amounts is None:
            return self._read(base, self._write(name, base, self.prompts[:count]))

        def steer() -> list[tuple[int, ...]]:
            with steered(Anatomy.of(base.model), amounts, alpha):
                return self._continue(base, self.prompts[:count])

        return self._read(base, self._kept(name, steer))

    def _write(self, name: str, variant: Variant, prompts: Sequence[EncodedPrompt]) -> list[tuple[int, ...]]:
        return self._kept(name, lambda: self._continue(variant, prompts))

    def _kept(self, name: str, make: Callable[[], list[tuple[int, ...]]]) -> list[tuple[int, ...]]:
        return [tuple(ids) for ids in self.kept.value(name, make)]

    def _continue(self, variant: Variant, prompts: Sequence[EncodedPrompt]) -> list[tuple[int, ...]]:
        return continue_ids(
            variant.model,
            self.heldout.tokenizer,
            prompts,
            stop=self._stop(variant),
            max_new_tokens=self.settings.max_new_tokens,
            progress=self.progress,
        )

    def _stop(self, variant: Variant) -> list[int]:
        return stop_tokens(variant.model, self.heldout.tokenizer, self.settings.template)

    def _read(self, variant: Variant, written: Sequence[Sequence[int]]) -> list[str]:
        tokenizer, stop = self.heldout.tokenizer, self._stop(variant)
        return [
            answer_text(tokenizer, prompt, ids, stop)
            for prompt, ids in zip(self.prompts[: len(written)], written, strict=True)
        ]
