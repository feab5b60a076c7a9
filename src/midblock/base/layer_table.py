"""LayerTable: every number midblock measures, one a row, the noun that all later rooms read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.base.errors import MidblockError, unknown
from midblock.base.frame_files import write_frame
from midblock.base.names import BASE
from midblock.base.plain_file import check_plain_file
from midblock.base.quoting import cell_text, printable
from midblock.base.states import MEASURED, NOT_DEFINED
from midblock.base.table_rules import COLUMNS, MOST_ROWS, TEXTS, checked_frame

if TYPE_CHECKING:
    import pandas as pd

LARGEST_CSV = 500_000_000  # bytes


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One estimate.

    Attributes:
        model: variant the value is about: "base", or a tuned model's name (for pair metrics, the tuned one).
        layer: -1 the embedding, 0…L-1 the decoder blocks, L the final norm's output or the head's weight.
        blocks: L, the number of decoder blocks; it turns `layer` into the column `depth` = (layer + 1) / L.
        metric: a name of `midblock.metrics.METRICS`, or one of them with a suffix (".null", ".precision_floor", …).
        value: the estimate; `low` and `high` bound its 95 % interval where one is defined.
        n: number of samples it rests on (prompts, not tokens; tensors' entries for weights).
        dataset: dataset reference, empty for weight metrics; in a table it is printable, as models' names are.
        module: "residual", or the weight's role in its block.
        state: a word of `midblock.base.states`: what the evidence says of the value.
    """

    model: str
    layer: int
    blocks: int
    metric: str
    value: float
    n: int
    low: float = float("nan")
    high: float = float("nan")
    dataset: str = ""
    module: str = "residual"
    state: str = MEASURED

    def as_record(self) -> dict[str, Any]:
        record = {name: getattr(self, name) for name in COLUMNS if name != "depth"}
        state = NOT_DEFINED if math.isnan(self.value) else self.state
        return record | {"dataset": _shown(self.dataset), "depth": (self.layer + 1) / self.blocks, "state": state}


@lru_cache
def _shown(reference: str) -> str:
    """A dataset's reference as a table can hold it: it may be a path, whose bytes need not be text."""
    return printable(reference)


@dataclass(frozen=True)
class LayerTable:
    """A tidy table with the columns of `COLUMNS`, kept in the order it was measured."""

    frame: pd.DataFrame

    @classmethod
    def from_rows(cls, rows: Iterable[LayerRow]) -> LayerTable:
        import pandas as pd

        return cls._typed(pd.DataFrame.from_records([row.as_record() for row in rows], columns=list(COLUMNS)))

    @classmethod
    def read(cls, path: Path | str) -> LayerTable:
        """Read a table from a run folder, a `layers.parquet` or a `layers.csv`.

        Raises:
            MidblockError: when nothing is there, it is broken, or a column of the contract is missing.
        """
        path = Path(path)
        file = path / "layers.parquet" if path.is_dir() else path
        if not file.exists():
            raise MidblockError(f"no layer table at {file}", hint="give a run folder written by `midblock analyze`")
        check_plain_file(file)
        try:
            frame = _read_csv(file) if file.suffix == ".csv" else _read_parquet(file)
        except (ValueError, OSError) as error:
            raise MidblockError(f"{file} is broken or no layer table: {' '.join(str(error).split())}") from error
        return cls(checked_frame(frame, str(file)))

    @classmethod
    def concatenate(cls, tables: Iterable[LayerTable]) -> LayerTable:
        import pandas as pd

        frames = [table.frame for table in tables if len(table)]
        return cls._typed(pd.concat(frames, ignore_index=True)) if frames else cls.from_rows([])

    @classmethod
    def _typed(cls, frame: pd.DataFrame) -> LayerTable:
        return cls(frame[list(COLUMNS)].astype(dict(COLUMNS)).reset_index(drop=True))

    def __len__(self) -> int:
        return len(self.frame)

    def __iter__(self) -> Iterator[Any]:
        return self.frame.itertuples(index=False)

    @cached_property
    def blocks(self) -> int:
        """L, the number of decoder blocks (recovered from layer and depth)."""
        below = self.frame[self.frame.layer >= 0]
        if below.empty:
            raise MidblockError("the table has no decoder block")
        row = below.iloc[0]
        return round((row.layer + 1) / row.depth)

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(self.frame.metric))

    @property
    def models(self) -> list[str]:
        """Names of the variants, "base" first if it is there."""
        names = list(dict.fromkeys(self.frame.model))
        return sorted(names, key=lambda name: name != BASE)

    def select(self, **equal: str | int | Iterable[str | int]) -> LayerTable:
        """Keep the rows whose columns equal the given values (or are among them)."""
        keep = self.frame
        for column, wanted in equal.items():
            if column not in COLUMNS:
                raise unknown("column", column, COLUMNS)
            values = [wanted] if isinstance(wanted, str | int) else list(wanted)
            keep = keep[keep[column].isin(values)]
        return LayerTable(keep.reset_index(drop=True))

    def curve(self, metric: str, model: str, module: str = "residual") -> pd.DataFrame:
        """One metric of one model by depth, sorted by layer; empty if it was not measured."""
        found = self.frame.take(self._curves.get((metric, model, module), []))
        return found.sort_values("layer", ignore_index=True)

    @cached_property
    def _curves(self) -> Mapping[Any, Any]:
        """The rows of each curve, found once: a summary asks for dozens."""
        return self.frame.groupby(["metric", "model", "module"], sort=False).indices

    def to_pandas(self) -> pd.DataFrame:
        return self.frame.copy()

    def write(self, folder: Path | str) -> None:
        """Write `layers.parquet` and the same rows as `layers.csv`, in which no text is a spreadsheet's formula."""
        write_frame(self.frame, Path(folder), "layers", TEXTS)


def _read_parquet(file: Path) -> pd.DataFrame:
    """The columns of the contract alone; their number of rows is looked at first."""
    import pyarrow.parquet

    # opened here: Arrow takes no name that holds bytes which are no text
    with file.open("rb") as stream, pyarrow.parquet.ParquetFile(stream) as parquet:
        if parquet.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"it has {parquet.metadata.num_rows:,} rows; {MOST_ROWS:,} are read")
        known = [name for name in COLUMNS if name in parquet.schema_arrow.names]
        return parquet.read(columns=known).to_pandas()


def _read_csv(file: Path) -> pd.DataFrame:
    """Read what `write` wrote, bit for bit; a model may be called "NA", so only numbers may be missing."""
    import pandas as pd

    if (size := file.stat().st_size) > LARGEST_CSV:
        raise ValueError(f"it has {size:,} bytes; {LARGEST_CSV:,} are read")
    missing = {name: [""] for name in COLUMNS if name not in TEXTS}
    texts = dict.fromkeys(TEXTS, str)
    read = pd.read_csv(file, dtype=texts, na_values=missing, keep_default_na=False, float_precision="round_trip")
    return read.assign(**{name: read[name].map(cell_text, na_action="ignore") for name in TEXTS if name in read})
