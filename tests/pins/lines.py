"""A folder as lines of text, a list for each thing worth a pin, and two such lists compared line by line.

What changes from run to run or from machine to machine is left out: times, memory, versions, platforms, hashes of
weights (another CPU rounds otherwise), and the inside of tokenizers. Of pages headings and marked places are kept.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file

HIDDEN = "…"
PLACE = "<here>"
VOLATILE = re.compile(
    r"(^|\.)(seconds|peak_memory_mb|peak_memory_gb|tokens_per_second|started|weight_hash|base_hash|tuned_hash"
    r"|transformers_version|peft_version|midblock|versions\..*|platform\..*|the weights of .*|inputs\.the files .*)$"
)
HASH = re.compile(r"SHA-256 [0-9a-f]+")
VERSIONS = re.compile(r"(midblock|transformers|torch|peft|trl) \d+\.\d[\w.+]*")
OUTLINE = re.compile(r"<(h[1-4])\b[^>]*>(.*?)</\1>|<(?:section|figure|div)\b[^>]*\bid=\"([^\"]+)\"", re.S)
NUMBER = re.compile(r"-?(\d+\.\d*(e[+-]?\d+)?|nan|inf)", re.I)  # integers are compared as text
TABLES = ("layers.csv", "scores.csv", "comparisons.csv", "forgetting.csv", "necessity.csv")  # in Parquet once more
MEASURED = ("seconds", "peak_memory_gb")  # columns of tables
WHOLE_RUNS = re.compile(r"trials/[^/]+/[^/]+/")  # run folders of verbs that have pins of their own
ONLY_NAMED = ("tokenizer.json", "tokenizer_config.json", *TABLES)

# Relative and absolute tolerance by what a line says, the first that fits: another CPU's kernels round float32
# otherwise. Each is some times what ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE, or another CPU, changes.
TOLERANCES = (
    (re.compile(r"\.precision_floor"), (0.5, 1e-3)),  # bfloat16 against float32
    (re.compile(r"[._](change|gap_closed|null|error)|agreement|gini|^error"), (1e-4, 5e-6)),  # of numbers much larger
    (re.compile(r"[._ ](low|high)\b|detectable"), (5e-4, 1e-8)),  # ends of intervals: what divides by little
    (re.compile(r"\bpart\b|(base|tuned)_difference|advice_swap|scores\.\d"), (5e-4, 1e-8)),  # of losses much larger
    (re.compile(r"condition_number|intrinsic_dimension"), (5e-4, 1e-6)),  # jackknives of what divides by little
    (re.compile(r"\ttorch\."), (1e-4, 1e-4)),  # a tensor after some steps of Adam
    (re.compile(""), (1e-5, 1e-9)),
)


def pins(folder: Path) -> dict[str, list[str]]:
    """Everything that is pinned of a folder, as lines of text, by file."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = {"files": [str(file.relative_to(folder)) for file in files]}
    for file in files:
        if WHOLE_RUNS.search(file.relative_to(folder).as_posix()):
            continue
        lines = _lines(file)
        if lines is not None:
            here = str(folder.parent)
            found[str(file.relative_to(folder))] = [line.replace(here, PLACE) for line in lines]
    return found


def _lines(file: Path) -> list[str] | None:
    if file.name in ONLY_NAMED:
        return None
    match file.suffix:
        case ".parquet":
            return _table(pd.read_parquet(file))
        case ".csv":
            return _table(pd.read_csv(file, keep_default_na=False, na_values=[""]))
        case ".json":
            return list(_leaves(json.loads(file.read_text(encoding="utf-8"))))
        case ".jsonl":
            rows = [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()]
            return list(_leaves(rows))
        case ".safetensors":
            return [_tensor(name, tensor) for name, tensor in sorted(load_file(file).items())]
        case ".html":
            found = OUTLINE.finditer(file.read_text(encoding="utf-8"))
            return [f"#{match[3]}" if match[3] else f"{match[1]} {' '.join(match[2].split())}" for match in found]
        case ".yaml" | ".py" | ".md":
            text = VERSIONS.sub(rf"\1 {HIDDEN}", HASH.sub(f"SHA-256 {HIDDEN}", file.read_text(encoding="utf-8")))
            return text.split("\n")
        case ".png":  # see `verbs.sketched`
            return file.read_text(encoding="utf-8").split("\n")
    return None


def _table(frame: pd.DataFrame) -> list[str]:
    """A head and a line for each row; fields are separated by tabs."""
    frame = frame.drop(columns=[name for name in MEASURED if name in frame])
    columns = [
        [_number(each) for each in frame[name]]
        if pd.api.types.is_float_dtype(frame[name])
        else [str(each) for each in frame[name]]
        for name in frame
    ]
    return ["\t".join(map(str, frame.columns)), *("\t".join(row) for row in zip(*columns, strict=True))]


def _leaves(value: Any, path: str = "") -> Iterator[str]:
    """`path<tab>value` for every value in a nest of objects and lists."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from _leaves(each, f"{path}.{key}" if path else str(key))
    elif VOLATILE.search(path):
        yield f"{path}\t{HIDDEN}"
    elif isinstance(value, float):
        yield f"{path}\t{_number(value)}"
    else:
        yield f"{path}\t{json.dumps(value, ensure_ascii=False)}"


def _tensor(name: str, tensor: torch.Tensor) -> str:
    """Shape, type, size, and a cosine with something fixed: another order of the same numbers shows."""
    values = tensor.double().flatten()
    norm = values.norm().item()
    fixed = torch.cos(torch.arange(len(values), dtype=torch.float64))
    cosine = (values @ fixed).item() / max(norm * fixed.norm().item(), 1e-30)
    return "\t".join((name, str(list(tensor.shape)), str(tensor.dtype), _number(norm), _number(cosine)))


def _number(value: float) -> str:
    text = f"{value:.8g}"
    return text if NUMBER.fullmatch(text) else re.sub(r"(?=e|$)", ".0", text, count=1)


def differences(was: Sequence[str], now: Sequence[str], aspect: str) -> list[str]:
    """What a reader needs to see of two lists of lines; empty where they agree."""
    if aspect == "run.json":  # the order in which a run learned its facts says nothing
        was, now = sorted(was), sorted(now)
    before, after = ([_text(line) for line in lines] for lines in (was, now))
    if before != after:
        gone, new = Counter(before) - Counter(after), Counter(after) - Counter(before)
        said = [f"- {line}" for line in was if gone[_text(line)]] + [f"+ {line}" for line in now if new[_text(line)]]
        return said or [f"the same {len(was)} lines in another order"]
    head = was[0].split("\t") if was and "\t" in was[0] else []
    return [said for old, new in zip(was, now, strict=True) for said in _apart(old, new, aspect, head)]


def _text(line: str) -> str:
    """The line without its numbers."""
    return "\t".join("#" if NUMBER.fullmatch(field) else field for field in line.split("\t"))


def _apart(old: str, new: str, aspect: str, head: Sequence[str]) -> Iterator[str]:
    named = aspect.endswith((".parquet", ".csv"))  # where the first line names the columns
    fields = list(zip(old.split("\t"), new.split("\t"), strict=True))
    row = " ".join(field for field, _ in fields if field and not NUMBER.fullmatch(field))
    for place, (before, after) in enumerate(fields):
        column = f" {head[place]}" if named else ""
        relative, absolute = next(close for pattern, close in TOLERANCES if pattern.search(f"{old}\t{column}"))
        if before != after and not math.isclose(float(before), float(after), rel_tol=relative, abs_tol=absolute):
            yield f"{row}:{column} was {before}, is {after}"
