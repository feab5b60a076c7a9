"""Datasets on the Hugging Face hub: the papers' sets by short name, and any other by its id."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.base.hub import hub_answers
from midblock.base.json_file import shown
from midblock.base.plain_file import check_plain_file
from midblock.data.records import Record, Records

LETTERS = 300  # of a library's reason


@dataclass(frozen=True)
class HubSet:
    """Where a named set lives.

    Attributes:
        hub_id: "org/name" on the hub.
        config: the configuration there; None for the only one.
        split: the split read when none is asked for.
        layout: a name of `LAYOUTS`; None to recognise it by its columns.
    """

    hub_id: str
    config: str | None
    split: str
    layout: str | None = None


HUB_SETS: Mapping[str, HubSet] = {
    "alpaca": HubSet("tatsu-lab/alpaca", None, "train", "instruction/input/output"),
    "gsm8k": HubSet("openai/gsm8k", "main", "test", "question/answer"),
    "humaneval": HubSet("openai/openai_humaneval", None, "test", "humaneval"),
    "ifeval": HubSet("google/IFEval", None, "train", "prompt"),
    "mmlu": HubSet("cais/mmlu", "all", "test", "mmlu"),
    "mt_bench": HubSet("HuggingFaceH4/mt_bench_prompts", None, "train", "prompt"),
    "toxigen": HubSet("toxigen/toxigen-data", "annotated", "test", "text"),
    "wikitext": HubSet("Salesforce/wikitext", "wikitext-2-raw-v1", "test", "wikitext"),
}


def read_hub(name: str, source: HubSet) -> Records:
    """Download a dataset (or find it in the cache), without ever running code it brings.

    Args:
        name: what errors call it.
        source: where it is; `hub_id` may also be a local folder laid out like a hub dataset.

    Raises:
        MidblockError: when `datasets` is not installed, the hub cannot be reached, or there is no such dataset,
            configuration or split; it says what to do.
    """
    dataset, outside = _load(name, source)
    if len(dataset) == 0:
        raise MidblockError(f"{name}: split {source.split!r} holds no rows")

    def take(at: Sequence[int], columns: Collection[str] | None = None) -> list[Record]:
        names = [name for name in dataset.column_names if columns is None or name in columns]
        return list(dataset.select_columns(names).select(list(at)))

    columns, notes = tuple(dataset.column_names), _notes(name, outside)
    return Records(name, source.split, columns, len(dataset), take, source.layout, notes)


def _load(name: str, source: HubSet) -> tuple[Any, list[str]]:
    """The split, and the files of a local folder that lie outside it."""
    try:
        import datasets
        from datasets.exceptions import DatasetNotFoundError
    except ImportError as error:
        what = f"{name} is a hub dataset, and the package `datasets` is not installed"
        raise MidblockError(what, hint='pip install "midblock[hub]", or give a local .jsonl or .parquet') from error
    local = Path(source.hub_id).is_dir()
    try:
        with offline(datasets) if not local and not _answers(source) else nullcontext():
            outside = _outside(datasets, source) if local else []
            return datasets.load_dataset(source.hub_id, source.config, split=source.split), outside
    except DatasetNotFoundError as error:
        hint = "check the name; a private or gated one wants `hf auth login` first"
        raise MidblockError(f"{name}: {_first_line(error)}", hint=hint) from error
    except ConnectionError as error:
        hint = (
            "download it where there is a network and give the .jsonl or .parquet file, or point HF_HOME at a cache "
            "that holds it; builtin:gsm_symbolic needs no network"
        )
        raise MidblockError(f"{name}: cannot reach the hub for dataset {source.hub_id}", hint=hint) from error
    except MidblockError:
        raise
    except Exception as error:  # whatever a stranger's files make the readers of a dozen formats say
        hint = "write org/name@config to choose a configuration, --split to choose a split"
        raise MidblockError(f"{name}: {_first_line(error)}", hint=hint) from error


def _answers(source: HubSet) -> bool:
    return hub_answers(lambda hub, seconds: hub.dataset_info(source.hub_id, timeout=seconds))


@contextmanager
def offline(datasets: Any) -> Iterator[None]:
    """Let `datasets` look into its cache alone, which it else does after half a minute."""
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _outside(datasets: Any, source: HubSet) -> list[str]:
    """Files that a folder's own card, or a link in it, has read from elsewhere; each is a plain file.

    Raises:
        MidblockError: one is a pipe or a device.
    """
    builder, folder = datasets.load_dataset_builder(source.hub_id, source.config), Path(source.hub_id)
    files = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
    outside = []
    for file in files:
        if "://" in file:
            outside.append(file)
            continue
        check_plain_file(Path(file))
        if not Path(file).resolve().is_relative_to(folder.resolve()):
            outside.append(file)
    return outside


def _notes(name: str, outside: list[str]) -> tuple[str, ...]:
    if not outside:
        return ()
    more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
    return (f"The dataset folder {name} has files read that lie outside it: {shown(outside[0])}{more}.",)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:LETTERS] or type(error).__name__
