"""Opening scans by their headers in a MONAI dictionary pipeline."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from cpic_monai.volumes import BlockCache, CachedVolume, Volume, check_same_grid, open_volume
from cpic_monai.volumes.cache import DEFAULT_BYTES

#: Before the key, not after it: MONAI takes every entry that starts with "<key>_" for a dictionary of metadata.
VOLUMES_OF = "volumes_of_"


class LoadVolumed(MapTransform):
    """Open the scan under each key, leaving a MetaTensor of the right shape and affine that takes 4 bytes.

    The volumes are kept beside it under ``volumes_of_<key>``. MONAI's spatial transforms with ``lazy=True`` then
    work on the header alone, and :class:`~cpic_monai.transforms.VirtualScand` joins the two. Run them in a
    :class:`~cpic_monai.transforms.LazyCompose`: MONAI's own Compose would apply them to the empty tensor.

    Parameters
    ----------
    keys
        Each holds a path, an (i, j, k) array, a channel-first (C, i, j, k) array, or a list of paths or arrays, one a
        channel.
    options
        Passed to :func:`~cpic_monai.volumes.open_volume`: ``padding_value``, ``resample_gaps``, ``allow_tilt``,
        ``series_uid``.
    cache_bytes
        Most bytes of blocks held in a process by all scans of this transform.
    allow_missing_keys
        Pass over keys that an item lacks.

    Raises
    ------
    ValueError
        If channels of a scan differ in shape or affine.
    VolumeError, FileNotFoundError
        See :func:`~cpic_monai.volumes.open_volume`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        options: Mapping[str, Any] | None = None,
        cache_bytes: int = DEFAULT_BYTES,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.options = dict(options or {})
        self._cache = BlockCache(cache_bytes)
        self._opened: dict[str, CachedVolume] = {}

    def _open(self, source: Any) -> CachedVolume:
        if not isinstance(source, str):
            return CachedVolume(open_volume(source, cache=self._cache, **self.options), self._cache)
        # Headers are small and a DICOM series has hundreds: read once a process, not once an epoch.
        if source not in self._opened:
            self._opened[source] = CachedVolume(open_volume(source, cache=self._cache, **self.options), self._cache)
        return self._opened[source]

    def volumes(self, source: Any) -> tuple[CachedVolume, ...]:
        """Open all channels of one scan."""
        if isinstance(source, np.ndarray | torch.Tensor) and source.ndim == 4:
            affine = np.asarray(source.affine) if hasattr(source, "affine") else None
            planes = [torch.as_tensor(channel).as_subclass(torch.Tensor) for channel in source]
            opened = [open_volume(p, cache=self._cache, affine=affine, **self.options) for p in planes]
            return tuple(CachedVolume(v, self._cache) for v in opened)
        if isinstance(source, list | tuple):
            return tuple(self._open(channel) for channel in source)
        return (self._open(source),)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each key's source by a placeholder MetaTensor (C, i, j, k) float32."""
        out = dict(data)
        for key in self.key_iterator(out):
            volumes = self.volumes(out[key])
            check_same_grid(volumes, f"subject {out.get('subject', key)}")
            out[key] = placeholder(volumes)
            out[f"{VOLUMES_OF}{key}"] = volumes
        return out

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}


def placeholder(volumes: tuple[Volume, ...]) -> MetaTensor:
    """A MetaTensor (C, i, j, k) float32 with the volumes' affine, all of whose voxels are one and the same float."""
    tensor = torch.zeros(1).expand(len(volumes), *volumes[0].shape)
    meta = {"filename_or_obj": volumes[0].path or "array"}
    return MetaTensor(tensor, affine=torch.from_numpy(volumes[0].affine.copy()), meta=meta)


def is_placeholder(value: Any) -> bool:
    """True for a tensor that only stands for a scan: it has no storage of its own for its voxels."""
    return isinstance(value, MetaTensor) and value.ndim == 4 and not any(value.stride())
