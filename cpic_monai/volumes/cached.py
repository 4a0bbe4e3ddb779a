"""Reading many small boxes of a volume at once, through the block cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cpic_monai.volumes.cache import BlockCache, shared_cache
from cpic_monai.volumes.held import HeldVolume
from cpic_monai.volumes.protocol import Index3, Volume, VolumeBase


def windows(array: np.ndarray, size: Sequence[int], writeable: bool = False) -> np.ndarray:
    """All boxes of ``size`` in the last three axes of ``array``, as a view indexed by their first corner.

    Shape (..., n0-s0+1, n1-s1+1, n2-s2+1, s0, s1, s2). Indexing it with arrays of corners copies the boxes in C.
    """
    lead = array.ndim - 3
    corners = tuple(n - s + 1 for n, s in zip(array.shape[lead:], size, strict=True))
    strides = array.strides[:lead] + array.strides[lead:] * 2
    return as_strided(array, array.shape[:lead] + corners + tuple(size), strides, writeable=writeable)


class CachedVolume(VolumeBase):
    """A volume read through a :class:`BlockCache`, on a grid of blocks aligned with voxel 0.

    A volume that can be mapped (an array, an uncompressed .nii) is gathered from directly: its pages need no second
    cache.

    Parameters
    ----------
    volume
        What to read.
    cache
        Where blocks are held. Default: the process's shared cache.
    block_shape
        Extents of a block; default is the volume's own (for DICOM a whole slice).
    """

    def __init__(
        self, volume: Volume, cache: BlockCache | None = None, block_shape: Sequence[int] | None = None
    ) -> None:
        super().__init__(
            volume.shape,
            volume.affine,
            volume.dtype,
            volume.path,
            volume.identity,
            block_shape or volume.block_shape,
        )
        self.volume = volume
        self.cache = cache if cache is not None else shared_cache()
        self.grid: Index3 = tuple(-(-n // b) for n, b in zip(self.shape, self.block_shape, strict=True))  # type: ignore[assignment]

    @property
    def is_mapped(self) -> bool:
        """Whether the volume underneath can be gathered from directly."""
        return self.volume.is_mapped

    def mapped(self) -> np.ndarray | None:
        """See :meth:`Volume.mapped`."""
        return self.volume.mapped()

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """See :meth:`Volume.decode`."""
        return self.volume.decode(stored)

    def stored_level(self, factors: Sequence[int]) -> tuple[Volume, Index3]:
        """See :meth:`Volume.stored_level`."""
        level, own = self.volume.stored_level(factors)
        return (self, own) if level is self.volume else (CachedVolume(level, self.cache), own)

    def block(self, index: Sequence[int]) -> np.ndarray:
        """The block at ``index`` of the block grid; those at the far border may be smaller than ``block_shape``."""
        return next(self._blocks([index]))

    def _blocks(self, indices: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """The blocks at different ``indices`` of the block grid in turn; those not held are read ahead."""
        boxes = []
        for index in indices:
            start = tuple(int(i) * b for i, b in zip(index, self.block_shape, strict=True))
            stop = tuple(min(s + b, n) for s, b, n in zip(start, self.block_shape, self.shape, strict=True))
            boxes.append((start, stop, (self.identity, self.block_shape, *start)))
        missing = {key: (start, stop) for start, stop, key in boxes if key not in self.cache}
        coming = self.volume.read_each(missing.values())
        for start, stop, key in boxes:
            if key in missing:
                block = next(coming)
                yield self.cache.get(key, lambda block=block: block)  # type: ignore[misc]
            else:  # held when asked, but perhaps dropped since
                yield self.cache.get(key, lambda box=(start, stop): self.volume.read(*box))  # type: ignore[misc]

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`."""
        first, last = self.check_box(start, stop)
        return self._inside(np.array([first], dtype=np.int64), tuple(b - a for a, b in zip(first, last, strict=True)))[
            0
        ]

    def boxes(
        self, starts: np.ndarray, size: Sequence[int], edge: Literal["replicate", "mirror"] = "replicate"
    ) -> np.ndarray:
        """Read boxes of one size, which may reach out of the volume.

        Parameters
        ----------
        starts
            (N, 3) int64, first corner of each box.
        size
            Extents of every box.
        edge
            What lies outside: the nearest voxel (``replicate``), or the mirror image about the outermost voxel's
            centre (``mirror``, which splines need), replicated beyond one reflection.

        Returns
        -------
        numpy.ndarray
            (N, *size), in the volume's dtype. Each block is fetched once.
        """
        starts = np.asarray(starts, dtype=np.int64).reshape(-1, 3)
        shape = np.array(self.shape)
        inner = np.minimum(size, shape)
        # The box shifted inside holds all that the wanted one can show: its own inside, else the nearest edge.
        # A mirror looks one box deeper at most, and a box that is half outside still finds its reflection there.
        shifted = np.clip(starts, 0, shape - inner)
        values = self._inside(shifted, tuple(inner.tolist()))
        border = (shifted != starts).any(axis=1) | bool((inner < size).any())
        if not border.any():
            return values
        rows = np.flatnonzero(border)
        index = []
        for axis in range(3):
            place = starts[rows, axis, None] + np.arange(size[axis])
            if edge == "mirror":
                place = np.abs(place)
                place = np.where(place > shape[axis] - 1, 2 * (shape[axis] - 1) - place, place)
            place = np.clip(place, 0, shape[axis] - 1) - shifted[rows, axis, None]
            index.append(np.clip(place, 0, inner[axis] - 1))
        i, j, k = index
        filled = values[rows[:, None, None, None], i[:, :, None, None], j[:, None, :, None], k[:, None, None, :]]
        if len(rows) == len(starts):
            return filled
        values[rows] = filled
        return values

    def _inside(self, starts: np.ndarray, size: Sequence[int]) -> np.ndarray:
        """Boxes that all lie within the volume, (N, *size)."""
        stored = self.mapped() if self.is_mapped else None
        if stored is None:
            return self._from_blocks(starts, np.array(size))
        boxes = windows(stored, size)[starts[:, 0], starts[:, 1], starts[:, 2]]
        self.bytes_read += boxes.nbytes
        if not isinstance(self.volume, HeldVolume):  # that one counts what it decodes
            self.volume.bytes_read += boxes.nbytes
        return self.decode(boxes)

    def _from_blocks(self, starts: np.ndarray, size: np.ndarray) -> np.ndarray:
        out = np.empty((len(starts), *size.tolist()), self.dtype)
        if not len(starts):
            return out
        block = np.array(self.block_shape)
        first, last = starts // block, (starts + size - 1) // block
        # Every (box, block) pair that meets, as arrays: the box, the block, and where their common part lies in both.
        pairs = []
        for step in product(*(range(int(n) + 1) for n in (last - first).max(axis=0))):
            box = np.flatnonzero((first + step <= last).all(axis=1))
            index = first[box] + step
            low = np.maximum(starts[box], index * block)
            high = np.minimum(starts[box] + size, (index + 1) * block)
            pairs.append(np.column_stack([np.ravel_multi_index(tuple(index.T), self.grid), high - low, box, low]))
        meet = np.concatenate(pairs)
        # Parts of equal extent in one block are copied in one go.
        order = np.lexsort((meet[:, 3], meet[:, 2], meet[:, 1], meet[:, 0]))
        meet = meet[order]
        cuts = np.flatnonzero((np.diff(meet[:, :4], axis=0) != 0).any(axis=1)) + 1
        ids = np.unique(meet[:, 0])
        blocks = self._blocks(np.column_stack(np.unravel_index(ids, self.grid)).tolist())
        held, values, corner = -1, np.empty(0), np.empty(0)
        for low_row, high_row in zip([0, *cuts.tolist()], [*cuts.tolist(), len(meet)], strict=True):
            group = meet[low_row:high_row]
            if group[0, 0] != held:
                held, values = int(group[0, 0]), next(blocks)
                corner = np.array(np.unravel_index(held, self.grid)) * block
            extent = group[0, 1:4].tolist()
            box, low = group[:, 4], group[:, 5:8]
            source, target = low - corner, low - starts[box]
            parts = windows(values, extent)[source[:, 0], source[:, 1], source[:, 2]]
            windows(out, extent, writeable=True)[box, target[:, 0], target[:, 1], target[:, 2]] = parts
        self.bytes_read += out.nbytes
        return out
