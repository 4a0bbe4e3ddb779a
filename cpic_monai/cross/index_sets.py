"""Nested index sets: which voxels a cross-approximation looks at (paper Sec. 3.2, "Index selection")."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cpic_monai.grid import IndexGrid


def left_sizes(grid: IndexGrid, rank: int) -> tuple[int, ...]:
    """Left index sets' sizes at the inner bonds: ``min(rank, number of prefixes)``, nested."""
    sizes, size = [], 1
    for n in grid.mode_sizes[:-1]:
        size = min(rank, size * n)
        sizes.append(size)
    return tuple(sizes)


def right_sizes(grid: IndexGrid, rank: int, channels: int, pivots: int | None = None) -> tuple[int, ...]:
    """Right index sets' sizes at the inner bonds, at most ``rank``.

    With ``pivots``, the size of left index sets larger than the rank, every bond has four columns a pivot where there
    are that many: 15 pivots on the 16 columns of a last suffix would be fitted to noise (measured: an error above 1).

    Channels are columns too, so near the last modes, where suffixes run out, half of them tell as much as all:
    at 32x512x512 and rank 10 this saves 5 % of the evaluations. A scalar encoding takes every suffix up to ``rank``.
    """
    sizes, available, size = [], 1, 1
    for n in reversed(grid.mode_sizes[1:]):
        available *= n
        wanted = available if channels == 1 else max(available // 2, -(-(4 * pivots if pivots else rank) // channels))
        size = min(rank, wanted, size * n)
        sizes.append(size)
    return tuple(reversed(sizes))


def oversampled(rank: int, channels: int, oversampling: float) -> tuple[int, int]:
    """Largest left and right index set for trains of this rank.

    A left set larger than the rank (the train is truncated to the rank afterwards) averages over rows, which an
    encoding far from low rank needs most. That takes many columns a row: with few channels the right sets are enlarged
    instead.

    Raises
    ------
    ValueError
        If ``oversampling`` is below 1.
    """
    if not oversampling >= 1:
        raise ValueError(f"`oversampling` must be at least 1, found {oversampling}")
    many = math.ceil(rank * oversampling)
    return (many, rank) if channels >= 4 * oversampling else (rank, many)


@dataclass(frozen=True)
class CrossIndices:
    """Index sets of one cross-approximation, for ``G`` groups of scans (1: shared by the whole cohort).

    Attributes
    ----------
    left
        At each inner bond ``k`` the prefix codes int64 ``(G, r_k)``, nested: each is one of the set before it
        plus a digit.
    right
        At each inner bond the suffix codes int64 ``(G, s_k)``, nested from the other end.
    alive
        Bool ``(G, r_k)``: False for a pivot that added nothing (its bond is masked in the interpolation).
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    alive: tuple[Tensor, ...]

    @property
    def groups(self) -> int:
        """Number of scans with sets of their own, or 1."""
        return self.left[0].shape[0] if self.left else 1

    def to(self, device) -> CrossIndices:
        """The sets on another device."""
        return CrossIndices(*(tuple(t.to(device) for t in sets) for sets in (self.left, self.right, self.alive)))


@dataclass(frozen=True)
class CrossPlan:
    """A cross-approximation with every pivot fixed: one list of voxels, and where each mode finds its values.

    Attributes
    ----------
    codes
        int64 ``(G, N)``, each voxel once.
    gather
        Per mode positions in ``codes``, int64 ``(G, r_{k-1}, n_k, s_k)``.
    rows
        Per inner bond the pivots among the ``r_{k-1} n_k`` rows, int64 ``(G, r_k)``.
    alive
        Per inner bond the mask of used pivots, bool ``(G, r_k)``.
    """

    codes: Tensor
    gather: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]
    alive: tuple[Tensor, ...]


def empty_code(groups: int, device=None) -> Tensor:
    """The empty prefix or suffix, int64 ``(G, 1)``."""
    return torch.zeros((groups, 1), dtype=torch.int64, device=device)


def locate(codes: Tensor, among: Tensor) -> Tensor:
    """Positions int64 ``(G, a)`` of ``codes (G, a)`` in ``among (G, b)``; the entries of ``among`` are distinct.

    Raises
    ------
    ValueError
        If a code is missing: the index sets are not nested.
    """
    order = among.argsort(dim=1)
    place = torch.searchsorted(among.gather(1, order), codes.contiguous()).clamp_max(among.shape[1] - 1)
    found = order.gather(1, place)
    if not torch.equal(among.gather(1, found), codes):
        raise ValueError("index sets are not nested: a set holds a code that its neighbour and a digit do not give")
    return found


def split_columns(parents: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Columns not among ``parents (G, s)``, int64 ``(G, columns - s)``, and the order that puts both back in place.

    A mode's values at its parents' columns are already known from the mode before (they are the cross's pivots).
    """
    known = torch.zeros((parents.shape[0], columns), dtype=torch.int8, device=parents.device).scatter_(1, parents, 1)
    fresh = known.argsort(dim=1, stable=True)[:, : columns - parents.shape[1]]
    return fresh, torch.cat([parents, fresh], dim=1).argsort(dim=1)


def extend_left(left: Tensor, digits: Tensor) -> Tensor:
    """Rows of a mode, int64 ``(G, r * n)``: every prefix with every digit."""
    return (left[:, :, None] + digits).flatten(1)


def extend_right(digits: Tensor, right: Tensor) -> Tensor:
    """Columns before a mode, int64 ``(G, n * s)``: every digit with every suffix."""
    return (digits[:, None] + right[:, None, :]).flatten(1)


def make_plan(grid: IndexGrid, indices: CrossIndices) -> CrossPlan:
    """List every voxel of fixed index sets once and say where each mode finds its values."""
    device = indices.left[0].device if indices.left else None
    groups, count = indices.groups, 0
    ends = empty_code(groups, device)
    codes, gather, rows = [], [], []
    known = None  # positions of the values at (left set, right set) of the bond before
    for k, mode in enumerate(grid.modes):
        digits = mode.to(device)
        left = indices.left[k - 1] if k else ends
        right = indices.right[k] if k < len(indices.right) else ends
        columns = extend_right(digits, right)  # (G, n*s)
        if known is None:
            new, order = columns, None
        else:
            fresh, order = split_columns(locate(indices.right[k - 1], columns), columns.shape[1])
            new = columns.gather(1, fresh)
        r, m = left.shape[1], new.shape[1]
        codes.append((left[:, :, None] + new[:, None, :]).flatten(1))
        place = torch.arange(count, count + r * m, device=device).reshape(1, r, m).expand(groups, -1, -1)
        count += r * m
        if known is not None and order is not None:
            place = torch.cat([known, place], dim=2).gather(2, order[:, None, :].expand(-1, r, -1))
        place = place.reshape(groups, r, len(digits), right.shape[1])
        gather.append(place)
        if k < len(indices.left):
            pivots = locate(indices.left[k], extend_left(left, digits))
            rows.append(pivots)
            flat = place.reshape(groups, -1, right.shape[1])
            known = flat.gather(1, pivots[:, :, None].expand(-1, -1, flat.shape[2]))
    return CrossPlan(torch.cat(codes, dim=1), tuple(gather), tuple(rows), indices.alive)
