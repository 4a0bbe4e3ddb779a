"""From a lazy scan to its voxels, for networks that look everywhere."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from cpic_monai.transforms.virtual_scan import VirtualScan


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
            out[key] = scan.whole()
        return out
