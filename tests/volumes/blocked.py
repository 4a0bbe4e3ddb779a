"""A volume that notes what is read of it."""

from __future__ import annotations

import numpy as np

from cpic_monai.volumes.protocol import VolumeBase


class BlockedVolume(VolumeBase):
    """An array that may only be read in boxes, and notes their corners."""

    def __init__(self, array, block_shape):
        super().__init__(array.shape, np.eye(4), array.dtype, None, f"blocked:{id(array)}", block_shape)
        self.array, self.reads = array, []

    def read(self, start, stop):
        self.check_box(start, stop)
        self.reads.append(tuple(start))
        return self.array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))].copy()
