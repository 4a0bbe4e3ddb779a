"""Patches to be reconstructed, at random voxels of a lazy scan."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable

from cpic_monai.transforms.virtual_scan import VirtualScan


class SampleTargetsd(Randomizable, MapTransform):
    """Read intensities of patches around random foreground voxels; the VirtualScan itself stays.

    Adds ``centres``, int64 ``(M, 3)``, and ``target``, float32 ``(M, C, *patch_shape)``, after preprocessing. Patches
    are moved to lie within the scan, so every target is an intensity and no padding.

    Parameters
    ----------
    keys
        One key, that holds a VirtualScan.
    patch_shape
        Voxels of a patch along each axis, odd; the network's ``patch_shape``.
    count
        Patches ``M`` a scan.
    threshold
        Intensity that foreground exceeds.
    seed
        None: other places at every call (training; see ``set_random_state``). A number: a subject's places are always
        the same ones (held-out scans).
    subject_key
        Where an item holds its subject's name.
    allow_missing_keys
        Pass over keys that an item lacks.

    Raises
    ------
    TypeError
        If a key holds no VirtualScan.
    ValueError
        If a patch is even or larger than the scan, or ``count`` is below 1.
    """

    def __init__(
        self,
        keys: KeysCollection,
        patch_shape: Sequence[int],
        count: int = 32,
        threshold: float = 0.0,
        seed: int | None = None,
        subject_key: str = "subject",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"targets are those of one scan an item, found the keys {self.keys}")
        self.patch_shape = tuple(int(n) for n in patch_shape)
        if count < 1 or len(self.patch_shape) != 3 or any(n < 1 or n % 2 == 0 for n in self.patch_shape):
            raise ValueError(f"found {count} patches of {self.patch_shape} voxels; give 1 or more, of odd edges")
        self.count, self.threshold, self.seed, self.subject_key = count, threshold, seed, subject_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample; every other key stays."""
        out = dict(data)
        for key in self.key_iterator(out):
            scan = out[key]
            if not isinstance(scan, VirtualScan):
                raise TypeError(f"key {key!r} holds a {type(scan).__name__}; put SampleTargetsd behind VirtualScand.")
            half = torch.tensor([n // 2 for n in self.patch_shape])
            last = torch.tensor(scan.shape) - 1 - half
            if bool((last < half).any()):
                raise ValueError(f"subject {scan.subject}: patches of {self.patch_shape} voxels exceed {scan.shape}")
            generator = torch.Generator().manual_seed(self._seed(str(out.get(self.subject_key, ""))))
            centres = scan.foreground_voxels(self.count, generator, self.threshold).clamp(min=half, max=last)
            out["centres"], out["target"] = centres, self._read(scan, centres)
        return out

    def _seed(self, subject: str) -> int:
        if self.seed is None:
            return int(self.R.randint(2**31 - 1))
        return crc32(subject.encode()) + self.seed

    def _read(self, scan: VirtualScan, centres: torch.Tensor) -> torch.Tensor:
        edge = max(self.patch_shape)
        i, j, k = (slice((edge - n) // 2, (edge + n) // 2) for n in self.patch_shape)
        return scan.patches(centres, edge)[..., i, j, k].contiguous()
