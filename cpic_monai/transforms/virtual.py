"""From a lazily transformed placeholder to a :class:`VirtualScan`, and from that to patches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform
from monai.utils import LazyAttr

from cpic_monai.transforms.load import VOLUMES_OF, is_placeholder
from cpic_monai.transforms.virtual_scan import VirtualScan
from cpic_monai.volumes import CachedVolume


def composed_affine(tensor: MetaTensor, volume: CachedVolume, name: str = "scan") -> np.ndarray:
    """Output voxel to source voxel of a placeholder with pending operations, (4, 4) float64.

    ``inv(A_source) A_tensor P_0 P_1 ...``: the tensor's own affine differs from the source's only where a transform has
    been applied eagerly, and is then accounted for.

    Raises
    ------
    ValueError
        If a pending operation is no affine (a dense displacement field).
    """
    affine = np.linalg.inv(volume.affine) @ tensor.affine.numpy().astype(np.float64)
    for operation in tensor.pending_operations:
        step = np.asarray(operation[LazyAttr.AFFINE], dtype=np.float64)
        if step.ndim != 2:
            raise ValueError(f"{name}: a pending transform is no affine map (shape {step.shape}); leave it out.")
        affine = affine @ to_affine_nd(3, step)
    return affine


class VirtualScand(MapTransform):
    """Turn the placeholder under each key, with its pending operations, into a VirtualScan. Nothing is applied.

    Parameters
    ----------
    keys
        Keys that LoadVolumed has opened.
    intensity
        One pointwise intensity transform or several; see :mod:`cpic_monai.transforms.intensity`.
    order
        Interpolation: 0, 1 or 3. MONAI's per-transform ``mode`` does not count when transforms are lazy.
    padding_value
        Raw value outside the scan: -1024 for CT, 0 for MR.
    allow_missing_keys
        Pass over keys that an item lacks.
    antialias
        True: voxels larger than the scan's are means, see :class:`~cpic_monai.transforms.VirtualScan`.

    Raises
    ------
    KeyError
        If a key has not been opened by LoadVolumed.
    ValueError
        If a transform has been applied to the placeholder as if it held voxels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        intensity: Any = None,
        order: int = 1,
        padding_value: float = 0.0,
        allow_missing_keys: bool = False,
        antialias: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.intensity, self.order, self.padding_value, self.antialias = intensity, order, padding_value, antialias

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each key's placeholder by a VirtualScan; ``volumes_of_<key>`` goes with it."""
        out = dict(data)
        for key in self.key_iterator(out):
            name = f"subject {out.get('subject', '?')}, key {key!r}"
            volumes = out.pop(f"{VOLUMES_OF}{key}", None)
            if volumes is None:
                raise KeyError(f"{name}: no {VOLUMES_OF}{key} in the item; put LoadVolumed before VirtualScand.")
            tensor = out[key]
            if not is_placeholder(tensor):
                raise ValueError(
                    f"{name}: a transform was applied to the header-only tensor (now {type(tensor).__name__}); run "
                    "spatial transforms lazily (LazyCompose), give intensity transforms to VirtualScand, and make a "
                    "CacheDataset with as_contiguous=False."
                )
            if tensor.shape[0] != len(volumes):
                raise ValueError(
                    f"{name}: {tensor.shape[0]} channels for {len(volumes)} volumes; choose channels by their paths."
                )
            out[key] = VirtualScan(
                volumes,
                composed_affine(tensor, volumes[0], name),
                tuple(int(n) for n in tensor.peek_pending_shape()),
                self.order,
                self.padding_value,
                self.intensity,
                str(out.get("subject", "")),
                antialias=self.antialias,
            )
        return out


class VoxelSource(Protocol):
    """Who says at which voxels a subject's scan is looked at."""

    def voxels(self, subject: str) -> Any:
        """(N, 3) int64 voxels of the subject's view; they may lie outside."""


class SamplePatchesd(MapTransform):
    """Replace each key's VirtualScan by its patches at the subject's voxels, (N, C * len(scales), p, p, p) float32.

    In a loader with workers (``num_workers`` of 1 or more), these read the patches of the next ``prefetch_factor``
    batches each while the network computes. They take ``indices`` along when they start, which is at the beginning of
    every epoch: voxels chosen anew before it (``SelectIndexSets``) hold from then on. Leave ``persistent_workers`` off
    where voxels change between epochs, for such workers keep the first ones.

    Parameters
    ----------
    keys
        Keys that hold VirtualScans.
    indices
        Has ``voxels(subject) -> (N, 3) int64``.
    patch_size
        Voxels along a patch's edge, odd.
    scales
        Context scales; see :meth:`VirtualScan.patches`.
    subject_key
        Where an item holds its subject's name.
    grid_key
        If given, the view's grid is left there: ``{"shape": (3,) int64, "affine": (4, 4) float64, "voxels": (N, 3)}``
        tensors of the last key, to show where patches came from.
    allow_missing_keys
        Pass over keys that an item lacks.

    Raises
    ------
    KeyError
        If an item has no ``subject_key``.
    TypeError
        If a key holds no VirtualScan.
    """

    def __init__(
        self,
        keys: KeysCollection,
        indices: VoxelSource,
        patch_size: int,
        scales: Sequence[int] = (1,),
        subject_key: str = "subject",
        grid_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.indices, self.patch_size, self.scales = indices, int(patch_size), tuple(scales)
        self.subject_key, self.grid_key = subject_key, grid_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample; every other key stays."""
        out = dict(data)
        for key in self.key_iterator(out):
            if self.subject_key not in out:
                raise KeyError(
                    f"item with keys {list(out)} has no {self.subject_key!r}: whose voxels are to be sampled?"
                )
            scan = out[key]
            if not isinstance(scan, VirtualScan):
                raise TypeError(f"key {key!r} holds a {type(scan).__name__}; put VirtualScand before SamplePatchesd.")
            voxels = torch.as_tensor(self.indices.voxels(out[self.subject_key]))
            out[key] = scan.patches(voxels, self.patch_size, self.scales)
            if self.grid_key is not None:
                grid = {"shape": torch.tensor(scan.shape), "affine": torch.from_numpy(scan.affine), "voxels": voxels}
                out[self.grid_key] = grid
        return out
