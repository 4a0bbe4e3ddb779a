"""Voxels that only dead pivots want need not be read."""

from __future__ import annotations

import torch
from torch import Tensor

from cpic_monai.cross.index_sets import CrossPlan


def without_dead(plan: CrossPlan) -> CrossPlan:
    """The plan without the voxels that no train depends on, for index sets that all scans share.

    A dead pivot's bond is zero in the core before it, so its rows in the next mode count for nothing, unless one of
    them is an alive pivot there. Gather tables keep their shapes; they point rows that do not count at the first voxel.
    The plan itself is returned where every voxel counts.

    Parameters
    ----------
    plan
        With one group of index sets.

    Raises
    ------
    ValueError
        If scans have index sets of their own: their numbers of voxels would differ.
    """
    if plan.codes.shape[0] != 1:
        raise ValueError(f"index sets that all scans share are needed, found those of {plan.codes.shape[0]} scans")
    wanted = torch.zeros(plan.codes.shape[1], dtype=torch.bool, device=plan.codes.device)
    for k, table in enumerate(plan.gather):
        rows = table[0].flatten(0, 1)  # (r * n, s)
        wanted[rows[_rows_that_count(plan, k)]] = True
    if bool(wanted.all()):
        return plan
    place = (wanted.cumsum(0) - 1).where(wanted, torch.zeros_like(wanted, dtype=torch.int64))
    return CrossPlan(plan.codes[:, wanted], tuple(place[table] for table in plan.gather), plan.rows, plan.alive)


def _rows_that_count(plan: CrossPlan, mode: int) -> Tensor:
    """Bool ``(r_{k-1} n_k,)``: rows of an alive prefix, and alive pivots."""
    _, r, n, _ = plan.gather[mode].shape
    alive = plan.alive[mode - 1][0] if mode else torch.ones(r, dtype=torch.bool, device=plan.codes.device)
    counts = alive[:, None].expand(r, n).flatten().clone()
    if mode < len(plan.rows):
        counts[plan.rows[mode][0][plan.alive[mode][0]]] = True
    return counts
