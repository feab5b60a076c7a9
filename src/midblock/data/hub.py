"""Datasets on the Hugging Face hub: the papers' sets by short name, and any other by its id."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midblock.base import MidblockError
from midblock.data.records import Record, Records


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
    dataset = _load(name, source)
    if len(dataset) == 0:
        raise MidblockError(f"{name}: split {source.split!r} holds no rows")

    def take(at: Sequence[int], columns: Collection[str] | None = None) -> list[Record]:
        names = [name for name in dataset.column_names if columns is None or name in columns]
        return list(dataset.select_columns(names).select(list(at)))

    return Records(name, source.split, tuple(dataset.column_names), len(dataset), take, source.layout)


def _load(name: str, source: HubSet) -> Any:
    try:
        import datasets
        from datasets.exceptions import DatasetNotFoundError, DatasetsError
    except ImportError as error:
        what = f"{name} is a hub dataset, and the package `datasets` is not installed"
        raise MidblockError(what, hint='pip install "midblock[hub]", or give a local .jsonl or .parquet') from error
    try:
        return datasets.load_dataset(source.hub_id, source.config, split=source.split)
    except DatasetNotFoundError as error:
        hint = "check the name; a private or gated one wants `hf auth login` first"
        raise MidblockError(f"{name}: {_first_line(error)}", hint=hint) from error
    except ConnectionError as error:
        hint = (
            "download it where there is a network and give the .jsonl or .parquet file, or point HF_HOME at a cache "
            "that holds it; builtin:gsm_symbolic needs no network"
        )
        raise MidblockError(f"{name}: cannot reach the hub for dataset {source.hub_id}", hint=hint) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        hint = "write org/name@config to choose a configuration, --split to choose a split"
        raise MidblockError(f"{name}: {_first_line(error)}", hint=hint) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
