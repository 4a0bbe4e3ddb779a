"""Cubic B-spline coefficients of a scan, made block by block where they are looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import spline_filter

from cpic_monai.volumes.cached import CachedVolume
from cpic_monai.volumes.protocol import VolumeBase


class SplineVolume(VolumeBase):
    """Coefficients c with ``value(x) = sum_k c_k B3(x - k)``, float32, for interpolation of order 3.

    The filter that makes them is recursive over the whole scan, but its response falls by 0.268 a voxel (the pole
    sqrt(3) - 2): with a margin of 12 voxels a block differs from the whole by 1e-7 of the intensity range.
    At the scan's own border it is mirrored, as ``scipy.ndimage`` does with mode ``mirror``.
    """

    MARGIN = 12
    BLOCK = (64, 64, 32)

    def __init__(self, source: CachedVolume) -> None:
        super().__init__(source.shape, source.affine, np.float32, source.path, f"{source.identity}|spline3", self.BLOCK)
        self.source = source

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`."""
        first, last = (np.array(corner) for corner in self.check_box(start, stop))
        low = np.maximum(first - self.MARGIN, 0)
        high = np.minimum(last + self.MARGIN, self.shape)
        values = self.source.read(low.tolist(), high.tolist())
        self.bytes_read += values.nbytes
        coefficients = spline_filter(values, order=3, output=np.float64, mode="mirror")
        a, b = first - low, last - low
        return np.ascontiguousarray(coefficients[a[0] : b[0], a[1] : b[1], a[2] : b[2]], dtype=np.float32)
