"""Coarser levels of a scan: means over boxes of voxels, made block by block where they are looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cpic_monai.volumes.cached import CachedVolume
from cpic_monai.volumes.protocol import VolumeBase


class PooledVolume(VolumeBase):
    """Means over aligned boxes of ``factors`` voxels, float32.

    Voxel y of the level is the mean of source voxels ``f*y .. f*y + f - 1``; at the far border, of those that exist.
    Its centre lies at source position ``f*y + (f-1)/2``. One block of the level reads one slab of the source, so the
    level is made in bounded memory; wrapped in a :class:`CachedVolume`, once.

    Parameters
    ----------
    source
        The scan at full resolution.
    factors
        Voxels to average along i, j, k.
    """

    #: Most source bytes that one block of the level reads (unless one voxel of the level, or one DICOM slice, is more).
    SLAB_BYTES = 32 << 20

    def __init__(self, source: CachedVolume, factors: Sequence[int]) -> None:
        self.factors = np.array([int(f) for f in factors])
        if self.factors.min() < 1:
            raise ValueError(f"pooling factors {tuple(factors)}: each must be 1 or more.")
        shape = -(-np.array(source.shape) // self.factors)
        scale = np.diag([*self.factors.astype(float), 1.0])
        scale[:3, 3] = (self.factors - 1) / 2
        # Whole source blocks across, as few voxels deep as fit: a DICOM slab is then read slice by slice, each once.
        block = np.maximum(1, np.minimum(shape, 32))
        if not source.is_mapped and source.block_shape[:2] == source.shape[:2]:
            block = np.array([shape[0], shape[1], 1])
        while np.prod(block * self.factors) * source.dtype.itemsize > self.SLAB_BYTES and block[2] > 1:
            block[2] = max(1, block[2] // 2)
        name = f"{source.identity}|mean{'x'.join(map(str, self.factors))}"
        super().__init__(shape.tolist(), source.affine @ scale, np.float32, source.path, name, block.tolist())
        self.source = source

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`."""
        first, last = self.check_box(start, stop)
        low = np.array(first) * self.factors
        high = np.minimum(np.array(last) * self.factors, self.source.shape)
        values = self.source.read(low.tolist(), high.tolist())
        self.bytes_read += values.nbytes
        for axis, factor in enumerate(self.factors.tolist()):
            if factor == 1:
                continue
            edges = np.arange(0, values.shape[axis], factor)
            count = np.diff(np.append(edges, values.shape[axis]))
            count = count.reshape([-1 if a == axis else 1 for a in range(3)])
            values = np.add.reduceat(values, edges, axis=axis, dtype=np.float64) / count
        return np.ascontiguousarray(values, dtype=np.float32)


def pooled_volume(volume: CachedVolume, factors: Sequence[int]) -> CachedVolume:
    """Means over boxes of ``factors`` voxels, from the coarsest stored level that they are means of, too.

    Where the scan has a pyramid (:meth:`Volume.stored_level`), what is read is smaller by the level's factors; only the
    rest is pooled on the fly. Values are those of :class:`PooledVolume` up to the rounding of the level, half a unit
    where it holds whole numbers; at the far border, where the last box of a level is not full, means of means weigh
    its voxels more.
    """
    level, own = volume.stored_level(factors)
    rest = [int(f) // o for f, o in zip(factors, own, strict=True)]
    cached = level if isinstance(level, CachedVolume) else CachedVolume(level, volume.cache)
    return cached if max(rest) == 1 else CachedVolume(PooledVolume(cached, rest), volume.cache)
