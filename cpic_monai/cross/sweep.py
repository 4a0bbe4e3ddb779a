"""Half sweeps of cross-approximation over the modes, batched over scans (paper Sec. 3.2 and Algorithm 1).

``evaluate(codes) -> values`` is all this module knows of the world: int64 ``(G, M)`` voxel codes in, float
``(B, M, C)`` encodings out. ``G`` is 1 where all scans share their index sets, else ``B``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cpic_monai.cross.index_sets import (
    CrossIndices,
    empty_code,
    extend_left,
    extend_right,
    locate,
    split_columns,
)
from cpic_monai.cross.interpolation import Ridge, interpolate
from cpic_monai.cross.pivoting import joint_rows, pivoted_rows
from cpic_monai.grid import IndexGrid
from cpic_monai.tensor_train import TensorTrain

Evaluate = Callable[[Tensor], Tensor]


def half_sweep(
    evaluate: Evaluate,
    grid: IndexGrid,
    right: Sequence[Tensor],
    rank: int,
    *,
    joint: bool,
    tol: float = 1e-9,
    ridge: Ridge | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[TensorTrain, CrossIndices]:
    """Choose left index sets against given right sets and interpolate, in one pass over the modes.

    Every voxel is evaluated at most once: a mode's values at its pivots are carried on to the next mode.

    Parameters
    ----------
    evaluate
        Codes ``(G, M)`` to values ``(B, M, C)``; may carry gradients.
    right
        Suffix codes ``(G, s_k)`` at each inner bond, nested (:func:`cpic_monai.cross.seeds.suffix_sets`).
    rank
        Largest bond rank.
    joint
        True: one set of pivots for all scans (``G`` must be 1). False: each scan its own.
    tol
        Relative residual below which a pivot is dead.
    dtype
        Of the small algebra; the encoder keeps its own.

    Returns
    -------
    TensorTrain, CrossIndices
        Cores ``(B, r_{k-1}, n_k, r_k)`` with the channels as the last bond, and the index sets used.
    """
    ridge = ridge or Ridge()
    device = right[0].device if right else None
    groups = right[0].shape[0] if right else 1
    if joint and groups != 1:
        raise ValueError(f"joint pivots need one shared set of suffixes, found sets for {groups} scans")
    left = ends = empty_code(groups, device)
    known: Tensor | None = None
    cores, lefts, alives = [], [], []
    last = len(grid.modes) - 1
    for k, mode in enumerate(grid.modes):
        digits = mode.to(device)
        suffix = right[k] if k < last else ends
        columns = extend_right(digits, suffix)
        r, n, s = left.shape[1], len(digits), suffix.shape[1]
        if known is None:
            values = evaluate((left[:, :, None] + columns[:, None, :]).flatten(1)).to(dtype)
            values = values.reshape(values.shape[0], r, n * s, -1)
        else:
            values = _complete(evaluate, left, columns, locate(right[k - 1], columns), known)
        batch, channels = values.shape[0], values.shape[-1]
        if k == last:
            cores.append(values.reshape(batch, r, n, channels))
            break
        matrix = values.reshape(batch, r * n, s * channels)
        choose = joint_rows if joint else pivoted_rows
        rows, alive = choose(matrix.detach(), rank, tol)
        if not joint and groups == 1 and batch > 1:
            # First own pivots of scans that started from shared suffixes: from here on the sets are the scans' own.
            raise ValueError("per-scan pivots need per-scan suffixes: give suffix sets of shape (B, s)")
        core = interpolate(matrix, rows, alive, ridge)
        cores.append(core.reshape(batch, r, n, rows.shape[1]))
        # Codes stay where the suffixes are, the CPU; rows come from where the encodings are.
        left = extend_left(left, digits).gather(1, rows.to(left.device))
        index = rows[:, :, None, None].expand(batch, -1, s, channels)
        known = values.reshape(batch, r * n, s, channels).gather(1, index)
        lefts.append(left)
        alives.append(alive)
    return TensorTrain(tuple(cores)), CrossIndices(tuple(lefts), tuple(right), tuple(alives))


@torch.no_grad()
def alternate(
    evaluate: Evaluate,
    grid: IndexGrid,
    right: Sequence[Tensor],
    rank: int,
    rounds: int,
    held_out: Tensor,
    *,
    joint: bool,
    tol: float = 1e-9,
    ridge: Ridge | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, ...]:
    """Right index sets chosen anew by sweeps from right to left, each against the left sets of a sweep from the left.

    A round looks at twice the voxels of a :func:`half_sweep`. Of all rounds' sets, and those given, each scan (with
    ``joint``: the cohort) keeps those of the smallest error at ``held_out``, so the error there never grows.

    Parameters
    ----------
    right
        As in :func:`half_sweep`; the new sets have the same sizes.
    held_out
        Codes int64 ``(M,)`` of random voxels that tell which sets are best.
    dtype
        Of the small algebra, the errors at ``held_out`` included.
    """
    voxels = held_out[None].expand(right[0].shape[0] if right else 1, -1)
    truth = evaluate(voxels).to(dtype)
    digits = grid.digits(held_out)
    best, least = tuple(right), None
    sizes = tuple(r.shape[1] for r in right)
    for n in range(rounds + 1):
        train, indices = half_sweep(evaluate, grid, right, rank, joint=joint, tol=tol, ridge=ridge, dtype=dtype)
        error = _held_out_error(train, digits, truth)
        error = error.mean(0, keepdim=True) if joint else error
        if least is None:
            least = error
        else:
            better = error < least
            least = torch.where(better, error, least)
            best = tuple(torch.where(better[:, None].cpu(), new, old) for new, old in zip(right, best, strict=True))
        if n < rounds:
            right = _choose_right(evaluate, grid, indices.left, sizes, joint, tol, dtype)
    return best


def _held_out_error(train: TensorTrain, digits: Tensor, truth: Tensor) -> Tensor:
    """Squared error relative to the squared norm, ``(B,)``."""
    wrong = (train.at(digits.to(truth.device)) - truth).square().flatten(1).sum(1)
    return wrong / truth.square().flatten(1).sum(1).clamp_min(torch.finfo(torch.float32).tiny)


def _choose_right(
    evaluate: Evaluate,
    grid: IndexGrid,
    left: Sequence[Tensor],
    sizes: Sequence[int],
    joint: bool,
    tol: float,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """Nested right index sets of these sizes by pivoting on (digit, suffix) against left sets, from the last mode."""
    choose = joint_rows if joint else pivoted_rows
    suffix = empty_code(left[0].shape[0], left[0].device) if left else empty_code(1)
    out: list[Tensor] = []
    for k in range(len(grid.modes) - 1, 0, -1):
        suffixes = extend_right(grid.modes[k].to(suffix.device), suffix)  # (G, n*s)
        prefixes = left[k - 1]
        values = evaluate((suffixes[:, :, None] + prefixes[:, None, :]).flatten(1)).to(dtype)
        matrix = values.reshape(values.shape[0], suffixes.shape[1], -1)
        rows, _ = choose(matrix, sizes[k - 1], tol)
        suffix = suffixes.gather(1, rows.to(suffixes.device))
        out.append(suffix)
    return tuple(reversed(out))


def _complete(evaluate: Evaluate, left: Tensor, columns: Tensor, parents: Tensor, known: Tensor) -> Tensor:
    """Values ``(B, r, n*s, C)`` of a mode: the pivots' from the mode before, the others' from the encoder."""
    fresh, order = split_columns(parents, columns.shape[1])
    batch, r, _, channels = known.shape
    if fresh.shape[1]:
        codes = (left[:, :, None] + columns.gather(1, fresh)[:, None, :]).flatten(1)
        new = evaluate(codes).to(known.dtype).reshape(batch, r, fresh.shape[1], channels)
        known = torch.cat([known, new], dim=2)
    return known.gather(2, order.to(known.device)[:, None, :, None].expand(batch, r, -1, channels))
