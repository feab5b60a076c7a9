"""Demand: what an analysis will ask of a machine, counted before it starts: passes, bytes, operations.

Counted from the request itself (the prompts as tokens, the models' shapes), by what the code does; nothing is measured
here. docs/cost.md uses the same arithmetic for models that are not there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from midblock.analysis.control_words import read_controls
from midblock.analysis.prompts import FLOOR_PROMPTS, Prompts
from midblock.analysis.settings import AnalysisSettings
from midblock.analysis.work import kinds_of
from midblock.checkpoints import Anatomy
from midblock.checkpoints.footprint import Footprint
from midblock.metrics.catalogue import METRICS, choose
from midblock.metrics.metric import WEIGHT_SOURCES
from midblock.metrics.top_singular import EXACT_UP_TO
from midblock.studies.doctor.speed import work_of

LIBRARIES = 500 * 2**20  # bytes that Python, torch and transformers take themselves
HELD = 3  # copies of a batch's states of all layers that are alive at once: held, passing, and in float64 at a time
ROW = 8  # bytes of a number in a row: float64
FILES = 2 * 2**20  # bytes of a run folder besides rows and figures
BY_LAYER = 3000  # bytes that a layer adds to tables and page, for each model and set of tokens
SPECTRA = 3  # matrices whose spectra are taken of each weight: the base's, the tuned one's, their difference
EIGEN = 9  # operations of an eigendecomposition, in n³
DENSE = 2  # copies of a weight in float64 while its spectrum is taken
SKETCH = 6  # passes of a randomised decomposition over its matrix


@dataclass(frozen=True)
class Shape:
    """How many prompts of how many tokens; enough to count with.

    Attributes:
        prompts: N; `deep` of them get token-level metrics.
        tokens: of all prompts, padding included; `deep_tokens` of those.
        length: of a typical batch; `rows` are its prompts.
        rounded_tokens: that the base reads in another precision too.
    """

    prompts: int
    deep: int
    tokens: int
    deep_tokens: int
    length: int
    rows: int
    rounded_tokens: int

    @classmethod
    def of(cls, prompts: Prompts) -> Shape:
        """Of prompts that are ready to be run."""
        deep, pooled = ([batch.input_ids.shape for batch in each] for each in (prompts.deep, prompts.pooled))
        every = sorted([*deep, *pooled], key=math.prod)
        rows, length = every[len(every) // 2]
        return cls(
            sum(shape[0] for shape in (*deep, *pooled)),
            sum(shape[0] for shape in deep),
            sum(map(math.prod, (*deep, *pooled))),
            sum(map(math.prod, deep)),
            length,
            rows,
            sum(each.input_ids.numel() for each in prompts.deep if prompts.rounded.issuperset(each.index.tolist())),
        )

    @classmethod
    def asked(cls, settings: AnalysisSettings) -> Shape:
        """The most that settings can ask for, where no data was read: every prompt at its full length."""
        count, length = settings.num_samples, settings.max_length
        deep = min(count, settings.num_token_samples)
        rows = max(1, settings.batch_tokens // length)
        return cls(count, deep, count * length, deep * length, length, rows, min(deep, FLOOR_PROMPTS) * length)


@dataclass(frozen=True)
class Demand:
    """What an analysis asks for.

    Attributes:
        model_bytes: of each model in memory, the base first.
        loading: the most that is held besides the models before it while each is loaded.
        working: bytes in memory besides models.
        held_on_disk: bytes of states that a walk block by block keeps at most, of all prompts, models and layers.
        file_bytes: of all weight files.
        passes: operations of the models' passes.
        heads: operations of heads that states are read with, and rows of the vocabulary that come out.
        rows_read: those rows.
        estimates: layers × models × sets of tokens that intervals are made for.
        width, prompts: D and N, which those intervals grow with.
        weights: operations of comparing weights, in float64.
        folder: bytes of the run folder.
        partial: bytes that a run keeps on disk until it is whole, so that it can be resumed.
    """

    model_bytes: tuple[int, ...]
    loading: int
    working: int
    held_on_disk: int
    file_bytes: int
    passes: float
    heads: float
    rows_read: int
    estimates: int
    width: int
    prompts: int
    weights: float
    folder: int
    partial: int

    @property
    def whole(self) -> int:
        """Bytes of memory with all models in it."""
        return sum(self.model_bytes) + max(self.loading, self.working)

    @classmethod
    def of(
        cls,
        anatomy: Anatomy,
        footprints: Sequence[Footprint],
        shape: Shape,
        settings: AnalysisSettings,
        dtype: torch.dtype,
        file_bytes: int,
    ) -> Demand:
        """Count.

        Args:
            anatomy: of the base, or of its skeleton.
            footprints: of the models, the base first.
        """
        depth, width, kinds = len(anatomy), anatomy.width, kinds_of(settings)
        models, tuned, sets = len(footprints), max(1, len(footprints) - 1), len(settings.token_sets())
        passing = bool(kinds)  # comparing weights alone runs no prompts
        rows = passing * models * shape.prompts * (depth + 2) * width * ROW * sets
        held = (depth + 2) * shape.rows * shape.length * width * dtype.itemsize * HELD
        read = _rows_read(kinds, shape, settings, depth, models)
        vocabulary = anatomy.config.vocab_size
        working = LIBRARIES + held + rows + 4 * vocabulary * settings.lens_positions * ROW * models
        working += DENSE * ROW * _largest(anatomy) if _weights(anatomy, settings) else 0
        states = passing * models * shape.tokens * (depth + 2) * width * dtype.itemsize
        return cls(
            model_bytes=tuple(each.total for each in footprints),
            loading=max(each.loading - each.total for each in footprints),
            working=working,
            held_on_disk=states,
            file_bytes=file_bytes,
            passes=_passes(kinds, shape, settings, tuned) * work_of(anatomy, shape.length),
            heads=2.0 * read * width * vocabulary,
            rows_read=read * vocabulary,
            estimates=passing * (depth + 2) * tuned * sets * settings.seeds,
            width=width,
            prompts=shape.prompts,
            weights=_weights(anatomy, settings) * tuned,
            folder=FILES + BY_LAYER * (depth + 2) * tuned * sets * settings.seeds,
            partial=rows,
        )


def _passes(kinds: frozenset[str], shape: Shape, settings: AnalysisSettings, tuned: int) -> float:
    """Tokens that blocks run over, of all models and reasons."""
    if not kinds:
        return 0.0
    models, controls = 1 + tuned, len(read_controls(settings.controls, settings.control_draws))
    alone = tuned * shape.deep_tokens
    found = float(models * shape.tokens) + sum(alone for kind in ("own", "reverse") if kind in kinds)
    found += controls * (models * shape.tokens + (alone if "own" in kinds else 0))
    found += shape.rounded_tokens if "floor" in kinds else 0
    found += 2 * models * shape.tokens if "views" in kinds else 0
    found += models * shape.deep_tokens if settings.general is not None else 0
    return found * settings.seeds


def _rows_read(kinds: frozenset[str], shape: Shape, settings: AnalysisSettings, depth: int, models: int) -> int:
    """States that a head turns into rows over the vocabulary."""
    lens = shape.deep * settings.lens_positions * (depth + 1) * models if "lens" in kinds else 0
    heads = shape.deep * settings.answer_positions * models if "heads" in kinds else 0
    return (lens + heads) * settings.seeds


def _weights(anatomy: Anatomy, settings: AnalysisSettings) -> float:
    """Operations of the comparison of weights: of spectra, where metrics want some."""
    wanted = choose(settings.metrics)
    deep = {METRICS[name].source for name in wanted} & (set(WEIGHT_SOURCES) - {"weights"})
    if not (settings.weights or settings.weights_only) or not deep:
        return 0.0
    matrices = [each.shape for each in anatomy.projections.values() if len(each.shape) > 1]
    return sum(SPECTRA * _spectrum(shape, settings) for shape in matrices)


def _largest(anatomy: Anatomy) -> int:
    """Numbers of the largest matrix, of stacked ones the largest of the stack."""
    return max(math.prod(each.shape[-2:]) for each in anatomy.projections.values())


def _spectrum(shape: tuple[int, ...], settings: AnalysisSettings) -> float:
    small, large = sorted(shape[-2:])
    many = math.prod(shape[:-2])
    if small <= EXACT_UP_TO or settings.exact_spectra:
        return many * (2.0 * large * small**2 + EIGEN * float(small) ** 3)
    return many * SKETCH * 2.0 * large * small * min(settings.subspace_rank, small)
