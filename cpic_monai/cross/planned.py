"""Interpolation from a fixed plan: a static graph without any choice, for index sets that all scans share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cpic_monai.cross.index_sets import CrossPlan
from cpic_monai.cross.interpolation import Ridge, interpolate
from cpic_monai.tensor_train import TensorTrain


@dataclass(frozen=True)
class StackedModes:
    """Modes of one size, solved together.

    Attributes
    ----------
    modes
        Their numbers.
    gather
        Padded gather table int64 ``(G, m, r, n, s)``; the number of voxels stands for a zero.
    rows, alive
        Pivots int64 and bool ``(G, m, r)``.
    shapes
        Left and right bond size of each mode, without padding.
    """

    modes: tuple[int, ...]
    gather: Tensor
    rows: Tensor
    alive: Tensor
    shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class StackedPlan:
    """A plan laid out for :func:`interpolate_plan` on one device; made once, used every step.

    Attributes
    ----------
    stacks
        All modes but the last, by size.
    tail
        Gather table of the last mode, int64 ``(G, r, n, 1)``.
    voxels
        Number of codes of the plan.
    """

    stacks: tuple[StackedModes, ...]
    tail: Tensor
    voxels: int


def stack_plan(plan: CrossPlan, device: torch.device | str = "cpu") -> StackedPlan:
    """Lay a plan out on a device, so that no step copies tables to it."""
    sizes: dict[int, list[int]] = {}
    for k, gather in enumerate(plan.gather[:-1]):
        sizes.setdefault(gather.shape[2], []).append(k)
    voxels = plan.codes.shape[1]
    stacks = tuple(_stack(plan, members, voxels, device) for members in sizes.values())
    return StackedPlan(stacks, plan.gather[-1].to(device), voxels)


def interpolate_plan(values: Tensor, plan: CrossPlan | StackedPlan, ridge: Ridge | None = None) -> TensorTrain:
    """The train of :func:`cpic_monai.cross.half_sweep` from one evaluation of all of a plan's voxels.

    Parameters
    ----------
    values
        Encodings ``(B, N, C)`` at the plan's codes, in the dtype of the small algebra (float64 recommended).
    plan
        A :class:`StackedPlan` on the values' device saves laying it out.

    Notes
    -----
    Pivots are fixed, so all modes of one size are solved in a single batched call instead of one after the other.
    """
    if isinstance(plan, CrossPlan):
        plan = stack_plan(plan, values.device)
    ridge = ridge or Ridge()
    batch, _, channels = values.shape
    padded = torch.cat([values, values.new_zeros(batch, 1, channels)], dim=1)  # the last entry is the zero of padding
    cores: dict[int, Tensor] = {}
    for stack in plan.stacks:
        groups, count, r, n, s = stack.gather.shape
        matrix = _take(padded, stack.gather.reshape(groups, -1)).reshape(batch, count, r * n, s * channels)
        rows = stack.rows.expand(batch, -1, -1)
        solved = interpolate(matrix, rows, stack.alive, ridge).reshape(batch, count, r, n, -1)
        for i, (mode, (left, right)) in enumerate(zip(stack.modes, stack.shapes, strict=True)):
            cores[mode] = solved[:, i, :left, :, :right]
    _, r, n, _ = plan.tail.shape
    final = _take(values, plan.tail.reshape(plan.tail.shape[0], -1)).reshape(batch, r, n, channels)
    return TensorTrain((*(cores[mode] for mode in sorted(cores)), final))


def _take(values: Tensor, places: Tensor) -> Tensor:
    """Values ``(B, M, C)`` at places ``(G, M)``."""
    if places.shape[0] == 1:
        return values.index_select(1, places[0])
    return values.gather(1, places[:, :, None].expand(-1, -1, values.shape[2]))


def _stack(plan: CrossPlan, members: list[int], zero: int, device: torch.device | str) -> StackedModes:
    """Tables of modes of one size, padded to the largest bonds among them."""
    r = max(plan.gather[k].shape[1] for k in members)
    s = max(plan.gather[k].shape[3] for k in members)
    rank = max(plan.rows[k].shape[1] for k in members)
    pad = torch.nn.functional.pad
    gather = [
        pad(plan.gather[k], (0, s - plan.gather[k].shape[3], 0, 0, 0, r - plan.gather[k].shape[1]), value=zero)
        for k in members
    ]
    rows = [pad(plan.rows[k], (0, rank - plan.rows[k].shape[1])) for k in members]
    alive = [pad(plan.alive[k], (0, rank - plan.alive[k].shape[1])) for k in members]
    shapes = tuple((plan.gather[k].shape[1], plan.rows[k].shape[1]) for k in members)
    table, pivots, mask = (torch.stack(part, 1).to(device) for part in (gather, rows, alive))
    return StackedModes(tuple(members), table, pivots, mask, shapes)
