"""Greedy residual pivoting: which rows of a mode's unfolding become the next left index set.

Choose a row, deflate, repeat: the heuristic of pivoted Cholesky, maxvol's greedy kin ([15], [43] in the paper). Loops
over the rank only; batched over scans.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLUMNS_PER_PIVOT = 8
LEAST_SHARE = 0.1


@torch.no_grad()
def pivoted_rows(matrix: Tensor, rank: int, tol: float = 1e-9, by_fit: bool | None = None) -> tuple[Tensor, Tensor]:
    """Choose up to ``rank`` rows that span the rows of each matrix.

    Parameters
    ----------
    matrix
        Float ``(G, R, C)``; no gradient is taken.
    rank
        Rows wanted; ``min(rank, R)`` are returned.
    tol
        A pivot whose residual norm is below ``tol`` times the longest row's norm is marked dead.
    by_fit
        False: the row with the largest residual is next, which keeps the interpolation's coefficients small. True: the
        row whose removal leaves the least residual in all rows is next (greedy column subset selection, Farahat et al.
        2011), among those with a tenth of the largest residual. ``None``: by fit where every pivot has
        ``COLUMNS_PER_PIVOT`` columns, so that the fit to the columns seen says something about the others.

    Returns
    -------
    rows, alive
        Distinct row numbers int64 ``(G, min(rank, R))`` in order of choice, and bool of that shape. The first pivot is
        always alive, so that an empty scan still has a finite train.

    Notes
    -----
    Encodings of scans are mostly texture that no train of low rank holds. Largest residuals then are the most unusual
    rows; by fit the error was 0 to 4 % smaller. On smooth functions with few columns it is the other way round.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, found {rank}")
    residual = matrix.clone()
    groups, size, columns = matrix.shape
    if by_fit is None:
        by_fit = columns >= COLUMNS_PER_PIVOT * rank
    # All rows' inner products, kept up to date; of many short rows (plain TT) they would take gigabytes.
    gram = residual @ residual.transpose(1, 2) if by_fit and size <= rank * columns else None
    free = torch.ones((groups, size), dtype=torch.bool, device=matrix.device)
    batch = torch.arange(groups, device=matrix.device)
    tiny = torch.finfo(matrix.dtype).tiny
    rows, norms = [], []
    largest = residual.square().sum(-1).amax(1, keepdim=True).sqrt()
    for _ in range(min(rank, size)):
        energy = residual.square().sum(-1).masked_fill(~free, -1.0)
        score = energy
        if by_fit:
            shared = _shared_energy(residual) if gram is None else gram.square().sum(-1)
            gain = shared / energy.clamp_min(tiny)
            score = gain.masked_fill(~free | (energy < LEAST_SHARE * energy.amax(1, keepdim=True)), -1.0)
        pivot = score.argmax(1)
        rows.append(pivot)
        norms.append(energy[batch, pivot].clamp_min(0).sqrt())
        free[batch, pivot] = False
        direction = residual[batch, pivot]
        direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(tiny)
        along = residual @ direction[:, :, None]
        residual -= along * direction[:, None, :]
        if gram is not None:
            gram = gram - along * along.transpose(1, 2)
    size_of = torch.stack(norms, dim=1)
    alive = size_of > tol * largest
    alive[:, 0] = True
    return torch.stack(rows, dim=1), alive


def _shared_energy(residual: Tensor) -> Tensor:
    """Sums ``(G, R)`` of each row's squared inner products with all rows of ``(G, R, C)``, by way of ``(C, C)``."""
    return ((residual @ (residual.transpose(1, 2) @ residual)) * residual).sum(-1)


@torch.no_grad()
def joint_rows(matrix: Tensor, rank: int, tol: float = 1e-9) -> tuple[Tensor, Tensor]:
    """One set of pivots for all scans: the scan index is one more free mode (the stacked tensor of Fig. 3).

    Each scan's residual is divided by its norm first, so that a bright scan does not choose for all.
    Shapes as :func:`pivoted_rows`, with ``G = 1``. Scans are interpolated each by its own columns, so these decide
    between the two criteria.
    """
    size = matrix.square().sum((1, 2), keepdim=True).sqrt()
    scaled = matrix / size.clamp_min(torch.finfo(matrix.dtype).tiny)
    by_fit = matrix.shape[2] >= COLUMNS_PER_PIVOT * rank
    return pivoted_rows(scaled.transpose(0, 1).flatten(1)[None], rank, tol, by_fit)
