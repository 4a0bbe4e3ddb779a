"""Greedy residual pivoting: which rows of a mode's unfolding become the next left index set.

The heuristic of pivoted Cholesky, maxvol's greedy kin ([15], [43] in the paper): take the row with the largest
residual, deflate, repeat. Loops over the rank only; batched over scans.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def pivoted_rows(matrix: Tensor, rank: int, tol: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Choose up to ``rank`` rows that span the rows of each matrix.

    Parameters
    ----------
    matrix
        Float ``(G, R, C)``; no gradient is taken.
    rank
        Rows wanted; ``min(rank, R)`` are returned.
    tol
        A pivot whose residual norm is below ``tol`` times the first pivot's is marked dead.

    Returns
    -------
    rows, alive
        Distinct row numbers int64 ``(G, min(rank, R))`` in order of choice, and bool of that shape. The first pivot is
        always alive, so that an empty scan still has a finite train.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, found {rank}")
    residual = matrix.clone()
    groups, size, _ = matrix.shape
    free = torch.ones((groups, size), dtype=torch.bool, device=matrix.device)
    batch = torch.arange(groups, device=matrix.device)
    rows, norms = [], []
    for _ in range(min(rank, size)):
        energy = residual.square().sum(-1).masked_fill(~free, -1.0)
        pivot = energy.argmax(1)
        rows.append(pivot)
        norms.append(energy[batch, pivot].clamp_min(0).sqrt())
        free[batch, pivot] = False
        direction = residual[batch, pivot]
        direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
        residual -= (residual @ direction[:, :, None]) * direction[:, None, :]
    size_of = torch.stack(norms, dim=1)
    alive = size_of > tol * size_of[:, :1]
    alive[:, 0] = True
    return torch.stack(rows, dim=1), alive


@torch.no_grad()
def joint_rows(matrix: Tensor, rank: int, tol: float = 1e-9) -> tuple[Tensor, Tensor]:
    """One set of pivots for all scans: the scan index is one more free mode (the stacked tensor of Fig. 3).

    Each scan's residual is divided by its norm first, so that a bright scan does not choose for all.
    Shapes as :func:`pivoted_rows`, with ``G = 1``.
    """
    size = matrix.square().sum((1, 2), keepdim=True).sqrt()
    scaled = matrix / size.clamp_min(torch.finfo(matrix.dtype).tiny)
    return pivoted_rows(scaled.transpose(0, 1).flatten(1)[None], rank, tol)
