"""From a lazy scan to its voxels, for networks that look everywhere."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import product
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from cpic_monai.transforms.virtual_scan import VirtualScan

TILE = 15


def dense(scan: VirtualScan, tile: int = TILE) -> Tensor:
    """All voxels of a view, float32 ``(C, D, H, W)``.

    They are read as adjoining cubes of ``tile`` voxels (odd), so that border, interpolation and intensity are those of
    the patches; a voxel at a time would be the same, and slower by far.
    """
    counts = [-(-n // tile) for n in scan.shape]
    centres = np.array(list(product(*(range(tile // 2, n * tile, tile) for n in counts))), dtype=np.int64)
    cubes = scan.patches(centres, tile)
    channels = cubes.shape[1]
    whole = cubes.reshape(*counts, channels, tile, tile, tile).permute(3, 0, 4, 1, 5, 2, 6)
    d, h, w = scan.shape
    padded = whole.reshape(channels, *(n * tile for n in counts))
    return padded[:, :d, :h, :w].contiguous()


class DenseScand(MapTransform):
    """Replace each key's VirtualScan by all its voxels, a float32 tensor ``(C, D, H, W)``.

    For dense networks (the ResNet baselines) and small scans: ``spatial_shape`` decides what that costs.

    Parameters
    ----------
    keys
        Keys that hold VirtualScans.
    allow_missing_keys
        Pass over keys that an item lacks.

    Raises
    ------
    TypeError
        If a key holds no VirtualScan.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read; every other key stays."""
        out = dict(data)
        for key in self.key_iterator(out):
            scan = out[key]
            if not isinstance(scan, VirtualScan):
                raise TypeError(f"key {key!r} holds a {type(scan).__name__}; put VirtualScand before DenseScand.")
            out[key] = dense(scan)
        return out
