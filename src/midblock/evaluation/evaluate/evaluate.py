"""`evaluate`: does it help? Models on tasks, compared on the same items, and what tuning made them forget.

Cost: generating; of a resumed run what is missing. Described in docs/evaluate.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midblock.base import MidblockError, Progress, divide, unknown
from midblock.base.seal import fingerprint
from midblock.checkpoints import LoadSettings, Pair, Variant, load_models, quiet_transformers
from midblock.data import Example, encode_renderable, load_dataset, local_places, tokenizer_difference
from midblock.evaluation.encoded_prompts import EncodedPrompt, encode_prompts
from midblock.evaluation.evaluate.result import Evaluation
from midblock.evaluation.evaluate.settings import EvaluateSettings, split_names
from midblock.evaluation.evaluate.work import Evaluating
from midblock.evaluation.generate import check_fits
from midblock.evaluation.task import Task
from midblock.evaluation.tasks import open_task
from midblock.runs.lending import lent
from midblock.runs.reading import COMPARED_TEXTS
from midblock.runs.request import draft_of
from midblock.runs.run import Bench, Outcome, Ready, carry_out
from midblock.runs.where import Where

TRIES = "lower --batch-tokens, or try --dtype bfloat16 or --device-map auto"
FEWEST = 2  # items


def evaluate(
    models: Pair | str | Sequence[str],
    tasks: str | Sequence[str] | None = None,
    *,
    reference: str | None = None,
    loading: Mapping[str, Any] | None = None,
    **options: Any,
) -> Evaluation:
    """Score models on tasks and compare them item by item.

    Args:
        models: references of models, the first one the base that adapters go on; or a `Pair`. They may differ in size.
        tasks: names of tasks, one by one or comma-separated.
        reference: the model that others are compared with where that is asked for (forgetting, `compare="reference"`),
            by the name tables give it or its reference; the first one when left out.
        loading: fields of `LoadSettings`, where models are yet to be loaded.
        **options: fields of `EvaluateSettings`, and of `Where`: `output_dir`, `resume`, `overwrite`, …

    Raises:
        MidblockError: an unknown task (the nearest is named), one whose items have no answers, or anything else the
            user can mend.

    Example:
        >>> found = evaluate([base, tuned], "exact_match:" + data, num_samples=8, max_new_tokens=4)
        >>> found.scores.model.tolist()
        ['base', 'sft']
        >>> found.comparisons.verdict.tolist()
        ['the evidence does not say']
    """
    if tasks is not None:
        options["tasks"] = tasks
    for name in {"tasks", "target"} & options.keys():
        options[name] = tuple(split_names(options[name]))  # one way to write them, so that runs are known again
    where, settings = divide(options, Where, EvaluateSettings)
    pair = models if isinstance(models, Pair) else open_models(models, loading or {})
    chosen = _chosen(pair, reference)
    draft = draft_of(
        "evaluate",
        pair,
        None,
        settings,
        pair.base.loading,
        sources=[place for data in _data(settings) for place in local_places(data)],
        models={**_named(pair), **({"reference": reference} if reference else {})},
    )
    made: list[Evaluation] = []

    def prepare(progress: Progress) -> Ready:
        drawn = [_open(name, settings) for name in settings.task_names]
        tokenizers = tokenizers_of(pair, settings.template)
        _check_askable(pair, drawn, tokenizers, settings)
        general, examples, facts = _general(pair, tokenizers[chosen.name], settings)
        work = Evaluating(pair, drawn, settings, chosen, tokenizers, general)

        def measure(bench: Bench) -> Outcome:
            with bench.phase("evaluate"), quiet_transformers():
                outcome, evaluation = work.run(bench)
            made.append(evaluation)
            return outcome

        inputs = {f"the items of {task.name}": fingerprint([item.id for item in task.items]) for task in drawn}
        told = {"tasks": ", ".join(settings.task_names), "template": settings.template, **facts}
        listed = [{"name": task.name, "metric": task.metric, "rule": task.rule, **dict(task.facts)} for task in drawn]
        notes = [*pair.notes(), *_template_notes(pair, tokenizers), *_overlap(drawn, examples)]
        return Ready(draft.decided(inputs), measure, {"seed": settings.seed, "data": told, "tasks": listed}, notes)

    with lent(pair, tries=TRIES):
        done = carry_out(draft, prepare, where, share=True)
    if made:
        return made[0]
    if done.folder is None:
        raise MidblockError("nothing was evaluated in this process")
    return Evaluation.read(done.folder)


def open_models(models: str | Sequence[str], loading: Mapping[str, Any]) -> Pair:
    """Open models, which may differ in size, one or several."""
    references = [models] if isinstance(models, str) else list(models)
    if not references:
        raise MidblockError("no model is given", hint="midblock evaluate MODEL [MODEL…] --tasks …")
    return load_models(*references, alike=False, **LoadSettings.of(dict(loading)).__dict__)


def tokenizers_of(pair: Pair, template: str) -> dict[str, Any]:
    """Each model's own tokenizer, the base's where it ships none; for a chat template, the first one that has it."""
    found = {variant.name: pair.other_tokenizers.get(variant.name, pair.tokenizer) for variant in pair}
    if template == "chat":
        able = next((each for each in found.values() if each.chat_template), None)
        found = {name: each if each.chat_template or able is None else able for name, each in found.items()}
    return found


def _template_notes(pair: Pair, tokenizers: Mapping[str, Any]) -> list[str]:
    own = {variant.name: pair.other_tokenizers.get(variant.name, pair.tokenizer) for variant in pair}
    return [
        f"{name} brings no chat template: another model's was used, with its tokenizer."
        for name, each in tokenizers.items()
        if each is not own[name]
    ]


def _chosen(pair: Pair, reference: str | None) -> Variant:
    if reference is None:
        return pair.base
    for variant in pair:
        if reference in (variant.name, variant.reference):
            return variant
    raise unknown("reference", reference, [variant.name for variant in pair])


def _named(pair: Pair) -> dict[str, Any]:
    tuned = [variant.reference for variant in pair.tuned]
    return {"base": pair.base.reference, **({"tuned": tuned} if tuned else {})}


def _data(settings: EvaluateSettings) -> list[str]:
    """What may be files: what stands behind tasks' colons, the general texts, and tasks for lm-eval."""
    behind = [name.partition(":")[2] for name in settings.task_names]
    return [each for each in (*behind, settings.general or "", settings.include_path or "") if each]


def _open(name: str, settings: EvaluateSettings) -> Task:
    task = open_task(name, settings.num_samples, settings.seed, settings.split, settings, settings.skip)
    if len(task.items) < FEWEST:
        raise MidblockError(f"{name} has {len(task.items)} item(s)", hint="two at least can be compared")
    return task


def _check_askable(
    pair: Pair, tasks: Sequence[Task], tokenizers: Mapping[str, Any], settings: EvaluateSettings
) -> None:
    """Raise MidblockError for prompts that a model cannot be given, before any model is loaded."""
    for task in (task for task in tasks if task.generates):
        known: dict[int, list[EncodedPrompt]] = {}
        for variant in pair:
            tokenizer = tokenizers[variant.name]
            try:
                if id(tokenizer) not in known:
                    known[id(tokenizer)] = encode_prompts(task.examples, tokenizer, settings.template)
                check_fits(variant.config, known[id(tokenizer)], settings.max_new_tokens)
            except MidblockError as error:
                raise MidblockError(f"{task.name}: {error.what}", hint=error.hint) from error


def _overlap(tasks: Sequence[Task], general: Sequence[Example]) -> list[str]:
    """A note on general texts that are asked as tasks, too: what is told of them is told of the tasks."""
    asked = {item.example.prompt for task in tasks for item in task.items}
    both = sum(example.prompt in asked for example in general)
    return [f"{both} of the {len(general)} general texts are prompts of the tasks, too: they are not held out."] * bool(
        both
    )


def _general(
    pair: Pair, tokenizer: Any, settings: EvaluateSettings
) -> tuple[list[Sequence[int]] | None, Sequence[Example], dict[str, Any]]:
    """Ids of the general texts, the texts, and what is recorded of them; None where predictions are not compared.

    Raises:
        MidblockError: there is nothing to compare with, models that read text as other tokens, or the data cannot be
            read.
    """
    if settings.general is None:
        return None, (), {}
    if not pair.tuned:
        raise MidblockError("--general compares predictions, and there is one model", hint="give two")
    examples = load_dataset(settings.general, num_samples=settings.general_samples, seed=settings.seed)
    texts = [example.text for example in examples][:COMPARED_TEXTS]
    for name, other in pair.other_tokenizers.items():
        if difference := tokenizer_difference(pair.tokenizer, other, texts):
            what = f"the tokenizers of the base and of {name} differ: {difference}"
            raise MidblockError(what, hint="leave out --general: predictions over other tokens cannot be compared")
    _, tokens = encode_renderable(examples, tokenizer, template="raw", max_length=settings.max_length, min_tokens=2)
    facts = {"general": settings.general, "general_hash": examples.content_hash}
    return [prompt.input_ids for prompt in tokens.prompts], examples.examples, facts
