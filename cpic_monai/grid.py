"""The index grid: voxels of a padded power-of-two box, seen as a tensor of many small modes.

A voxel is named by one int64 *code*, its row-major position in the padded box. Every mode of an unfolding contributes
an additive offset to the code, so a left prefix, a digit and a right suffix combine by plain addition (paper Sec. 3.4,
"Tensorisation").

With a ``step`` above 1 the grid is coarser than the scan: of every cube of ``step`` voxels along each axis, a *cell*,
the middle voxel stands for all. Cubes around it (patches) keep the scan's own spacing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

UNFOLDINGS = ("tt", "grouped", "interleaved", "fused")


def next_power_of_two(size: int) -> int:
    """Smallest power of two that is at least ``size`` (``size >= 1``)."""
    if size < 1:
        raise ValueError(f"a grid axis needs at least one voxel, found {size}")
    return 1 << (size - 1).bit_length()


@dataclass(frozen=True)
class IndexGrid:
    """A scan's voxel grid, padded (virtually) to powers of two and unfolded into modes.

    Parameters
    ----------
    shape
        Voxels along each spatial axis, e.g. ``(32, 512, 512)``.
    unfolding
        ``tt``: one mode an axis (plain TT). ``grouped``: one binary mode a bit, axis after axis.
        ``interleaved``: one binary mode a bit, the coarsest bit of every axis first (QTT). ``fused``: the bits of
        one level of all axes together (modes of up to 8).
    step
        Voxels from one cell of the grid to the next, along each axis.

    Raises
    ------
    ValueError
        For an unknown unfolding, an empty axis, a step below 1 or a grid of more than 2**62 voxels.
    """

    shape: tuple[int, ...]
    unfolding: str = "interleaved"
    step: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if self.unfolding not in UNFOLDINGS:
            raise ValueError(f"unfolding {self.unfolding!r} is none of {', '.join(UNFOLDINGS)}")
        if isinstance(self.step, bool) or not isinstance(self.step, int) or self.step < 1:
            raise ValueError(f"the grid's step is {self.step!r}; it must be a whole number of voxels, 1 or more")
        if sum(n.bit_length() - 1 for n in self.padded_shape) > 62:
            raise ValueError(f"grid {self.shape} has more voxels than an int64 code can name (2**62)")

    @cached_property
    def cells(self) -> tuple[int, ...]:
        """Cells along each axis; the last may be cut off by the scan's border."""
        return tuple(-(-n // self.step) for n in self.shape)

    @cached_property
    def offset(self) -> tuple[int, ...]:
        """Where in its cell the voxel lies that stands for it, the same in all cells.

        In the middle, or where the last cell of an axis is cut off before its middle, at that cell's end.
        """
        last = [n - 1 - (c - 1) * self.step for n, c in zip(self.shape, self.cells, strict=True)]
        return tuple(min(self.step // 2, n) for n in last)

    @cached_property
    def padded_shape(self) -> tuple[int, ...]:
        """Cells along each axis after padding; ``tt`` needs none."""
        if self.unfolding == "tt":
            return self.cells
        return tuple(next_power_of_two(n) for n in self.cells)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Code step of one cell along each axis (row-major over :attr:`padded_shape`)."""
        steps = [1]
        for n in reversed(self.padded_shape[1:]):
            steps.append(steps[-1] * n)
        return tuple(reversed(steps))

    @cached_property
    def modes(self) -> tuple[Tensor, ...]:
        """Per mode the additive code offset of each digit, int64 ``(n_k,)``."""
        if self.unfolding == "tt":
            sizes = zip(self.padded_shape, self.strides, strict=True)
            return tuple(torch.arange(n, dtype=torch.int64) * step for n, step in sizes)
        bits = [n.bit_length() - 1 for n in self.padded_shape]

        def bit(axis: int, level: int) -> Tensor:
            """Offsets of the ``level``-th coarsest bit of an axis."""
            return torch.tensor([0, self.strides[axis] << (bits[axis] - 1 - level)], dtype=torch.int64)

        axes = range(len(bits))
        if self.unfolding == "grouped":
            return tuple(bit(axis, level) for axis in axes for level in range(bits[axis])) or (_single(),)
        levels = [[bit(axis, level) for axis in axes if level < bits[axis]] for level in range(max(bits))]
        if self.unfolding == "interleaved":
            return tuple(offsets for level in levels for offsets in level) or (_single(),)
        return tuple(_outer_sum(level) for level in levels) or (_single(),)

    @property
    def mode_sizes(self) -> tuple[int, ...]:
        """Digits of each mode ``n_k``; their product is the number of padded cells."""
        return tuple(len(m) for m in self.modes)

    def encode(self, voxels: Tensor) -> Tensor:
        """Codes int64 ``(...)`` of the cells of voxels int64 ``(..., D)``; outside the padded box: ``ValueError``."""
        limit = torch.tensor(self.padded_shape, device=voxels.device) * self.step
        wrong = ((voxels < 0) | (voxels >= limit)).any(-1)
        if bool(wrong.any()):
            first = voxels[wrong].reshape(-1, len(self.shape))[0].tolist()
            raise ValueError(f"voxel {first} lies outside the grid {tuple(limit.tolist())}; give indices within it")
        cells = torch.div(voxels.to(torch.int64), self.step, rounding_mode="floor")
        return (cells * torch.tensor(self.strides, device=voxels.device)).sum(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Voxels int64 ``(..., D)`` of codes int64 ``(...)``, each in the middle of its cell."""
        cells = self._cells_of(codes)
        return cells if self.step == 1 else cells * self.step + torch.tensor(self.offset, device=codes.device)

    def _cells_of(self, codes: Tensor) -> Tensor:
        """Cells int64 ``(..., D)`` of codes."""
        out = []
        for n, stride in zip(self.padded_shape, self.strides, strict=True):
            out.append(torch.div(codes, stride, rounding_mode="floor") % n)
        return torch.stack(out, dim=-1)

    def digits(self, codes: Tensor) -> Tensor:
        """Mode digits int64 ``(..., K)`` of codes, so that ``sum_k modes[k][digit_k] == code``."""
        cells = self._cells_of(codes)
        out = []
        for offsets in self.modes:
            # Offsets of one mode are products of distinct axis steps: find the digit whose offset's cell agrees on
            # the bits this mode owns.
            owned = self._cells_of(offsets)  # (n, D)
            if self.unfolding == "tt":
                axis = int((owned.max(0).values > 0).nonzero()[0]) if len(offsets) > 1 else 0
                out.append(cells[..., axis] if len(offsets) > 1 else torch.zeros_like(codes))
                continue
            mask = owned.amax(0)  # the bits owned, per axis
            match = ((cells & mask)[..., None, :] == owned).all(-1)
            out.append(match.to(torch.int64).argmax(-1))
        return torch.stack(out, dim=-1)

    def inside(self, codes: Tensor) -> Tensor:
        """True where a code names a voxel of the scan, False in the virtual padding."""
        return (self._cells_of(codes) < torch.tensor(self.cells, device=codes.device)).all(-1)

    def unfold(self, dense: Tensor) -> Tensor:
        """Dense encoding ``(B, *cells, C)`` as ``(B, n_1, ..., n_K, C)``, zero in the padding (small grids)."""
        batch, channels = dense.shape[0], dense.shape[-1]
        padded = dense.new_zeros((batch, *self.padded_shape, channels))
        padded[(slice(None), *(slice(n) for n in self.cells))] = dense
        codes = all_codes(self)
        return padded.reshape(batch, -1, channels)[:, codes].reshape(batch, *self.mode_sizes, channels)

    def fold(self, unfolded: Tensor) -> Tensor:
        """The inverse of :meth:`unfold`: ``(B, n_1, ..., n_K, C)`` to ``(B, *cells, C)``."""
        batch, channels = unfolded.shape[0], unfolded.shape[-1]
        flat = torch.empty_like(unfolded).reshape(batch, -1, channels)
        flat[:, all_codes(self)] = unfolded.reshape(batch, -1, channels)
        dense = flat.reshape(batch, *self.padded_shape, channels)
        return dense[(slice(None), *(slice(n) for n in self.cells))]


def all_codes(grid: IndexGrid) -> Tensor:
    """Codes of every padded voxel in mode order, int64 ``(prod n_k,)``; only for grids that fit in memory."""
    return _outer_sum(grid.modes)


def _outer_sum(offsets: Sequence[Tensor]) -> Tensor:
    total = torch.zeros(1, dtype=torch.int64)
    for mode in offsets:
        total = (total[:, None] + mode).reshape(-1)
    return total


def _single() -> Tensor:
    """The one mode of a one-voxel grid."""
    return torch.zeros(1, dtype=torch.int64)
