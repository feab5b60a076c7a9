"""Factors on disk: computed once for a checkpoint, shared by later runs and by the processes of one.

Cost: a file is read, hashed, and U_kᵀ W V_k computed once to see that it is the weight's. Described in
docs/tuning/rpsft.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from midblock.base import MidblockError, Progress, Silent
from midblock.base.files import write_failure
from midblock.base.seal import DamagedError
from midblock.checkpoints.cache import cache_root
from midblock.runs.processes import barrier
from midblock.trace.sealed import read_sealed, write_sealed
from midblock.tuning.anchor.factors import Factors, block, factorize, resolve_k

METHOD = 2  # of the factors; a change of how they are made must raise it
TOLERANCE = 1e-3  # of ‖Σ_k‖_F: far above what another device's rounding does, far below what a wrong byte does
OWNER = "factors"  # the file's name tells of what
ELSEWHERE = "MIDBLOCK_CACHE names another place for the cache"
SKEW = 0.02  # of ‖I‖_F: what rounding to bfloat16 leaves of orthonormality is ten times less


def load_factors(
    weights: Mapping[str, Tensor],
    k: str,
    *,
    weight_hash: str | None,
    seed: int,
    dtype: torch.dtype = torch.float32,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> dict[str, Factors]:
    """Factors of every weight, from the cache where they are there, made (and kept there) where not.

    What is read is checked against its own checksum and against the weight: if U_kᵀ W V_k is not what the file says,
    the file is broken or of another weight, and is made again.

    Args:
        weights: name to pretrained weight, (m, n) or (experts, m, n), whole: not yet sharded.
        k: directions kept, a number or a share (`resolve_k`).
        weight_hash: `Checkpoint.weight_hash()` of the checkpoint they come from; None: nothing is cached.
        dtype: what U and V are kept in.
        share: (rank, world): each process makes every world-th factor and reads the others' once all are done. Without
            a cache, or where processes do not share its disk, each makes all.
        progress: is told how many weights are done.

    Raises:
        MidblockError: as `resolve_k` and `factorize`, or the cache cannot be written.
    """
    rank, world = share
    names = list(weights)
    advance = (progress or Silent()).phase(f"singular factors of {len(names)} weights", len(names))
    found: dict[str, Factors] = {}

    def get(name: str) -> None:
        weight = weights[name].detach()
        found[name] = _cached(name, weight, resolve_k(k, *weight.shape[-2:]), weight_hash, seed, dtype)
        advance(1)

    if world > 1 and weight_hash is not None:
        for name in names[rank::world]:
            get(name)
        barrier()
    for name in names:
        if name not in found:
            get(name)
    return {name: found[name] for name in names}


def _cached(name: str, weight: Tensor, k: int, weight_hash: str | None, seed: int, dtype: torch.dtype) -> Factors:
    if weight_hash is None:
        return factorize(weight, k, seed=seed, dtype=dtype, name=name)
    path = factor_file(weight_hash, name, k, seed, dtype, weight.dtype)
    if (kept := _read(path, weight, k, dtype)) is not None:
        return kept
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if (kept := _read(path, weight, k, dtype)) is not None:  # another process made it meanwhile
                return kept
            made = factorize(weight, k, seed=seed, dtype=dtype, name=name)
            _keep(path, made, name)
    except OSError as error:
        raise MidblockError(write_failure(path, error).what, hint=ELSEWHERE) from error
    return made


def _keep(path: Path, made: Factors, name: str) -> None:
    residual = torch.tensor(made.residual, dtype=torch.float64)
    parts = {"U": made.U, "core": made.core, "V": made.V, "residual": residual}
    try:
        write_sealed(path, parts, OWNER, {"weight": name})
    except MidblockError as error:
        raise MidblockError(error.what, hint=ELSEWHERE) from error


def factor_file(weight_hash: str, name: str, k: int, seed: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> Path:
    """Where the factors of one weight are kept, whether they are there or not."""
    key = repr((METHOD, weight_hash, name, k, seed, str(dtype), str(weight_dtype)))
    digest = hashlib.sha256(key.encode()).hexdigest()
    return cache_root() / "factors" / weight_hash[:32] / f"{digest[:32]}.safetensors"


def _read(path: Path, weight: Float[Tensor, "*experts m n"], k: int, dtype: torch.dtype) -> Factors | None:
    """Return what the file holds, or None where there is none that can be trusted."""
    try:
        parts, _ = read_sealed(path, OWNER)
    except (DamagedError, MidblockError):  # a file of an earlier version has no seal: it may be broken, too
        return None
    *experts, m, n = weight.shape
    wanted = {"U": (*experts, m, k), "core": (*experts, k, k), "V": (*experts, n, k), "residual": ()}
    if {part: tuple(value.shape) for part, value in parts.items()} != wanted:
        return None
    if {parts["U"].dtype, parts["V"].dtype} != {dtype} or not parts["core"].is_floating_point():
        return None
    kept = Factors(parts["U"], parts["core"], parts["V"], float(parts["residual"])).to(weight.device)
    return kept if _fits(kept, weight) else None


def _fits(kept: Factors, weight: Tensor) -> bool:
    """Whether these are orthonormal (a file of zeros is not) and belong to the weight; not-a-number never fits."""
    error = torch.linalg.matrix_norm(block(weight, kept.U, kept.V) - kept.core)
    fits = (error <= TOLERANCE * torch.linalg.matrix_norm(kept.core)).all()
    for side in (kept.U.to(kept.core.dtype), kept.V.to(kept.core.dtype)):
        skew = side.mT @ side - torch.eye(kept.k, dtype=side.dtype, device=side.device)
        fits &= (torch.linalg.matrix_norm(skew) <= SKEW * kept.k**0.5).all()
    return bool(fits)
