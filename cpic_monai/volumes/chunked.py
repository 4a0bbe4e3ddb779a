"""OME-Zarr stores, local or remote, read chunk by chunk through tensorstore."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cpic_monai.volumes.ome_zarr import level_header, multiscale, own_attributes
from cpic_monai.volumes.protocol import VolumeBase, VolumeError
from cpic_monai.volumes.store_access import (
    DEFAULT_CACHE_BYTES,
    STORE_ERRORS,
    context,
    is_url,
    kvstore,
    read_json,
    tensorstore,
)


class ChunkedVolume(VolumeBase):
    """One level of an OME-Zarr store (Zarr version 3, OME-NGFF 0.5) as a volume: only touched chunks are read.

    The affine is the one recorded by :func:`~cpic_monai.volumes.write_store`. Stores of other origin give voxel sizes
    only; their axes are taken as right, anterior, superior, with a warning. ``bytes_read`` counts the voxels of the
    chunks that boxes touch, decoded.

    Parameters
    ----------
    location
        A folder, or an ``http(s)://``, ``s3://`` or ``gs://`` URL.
    level
        0 is the scan itself; the voxels of each further one are twice as large.
    cache_bytes
        Most bytes that tensorstore holds in this process, for all stores opened with this number.
    storage
        Further settings of tensorstore's key-value store, e.g. ``{"aws_region": "eu-central-1"}``.

    Attributes
    ----------
    levels
        How many there are.
    attributes
        What was recorded with the scan: checksum, source, chunk size; empty for stores of other origin.

    Raises
    ------
    FileNotFoundError
        If there is no such store, or it was never finished.
    VolumeError
        If it is not one 3-D OME-Zarr 0.5 scan.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        level: int = 0,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        storage: Mapping[str, Any] | None = None,
    ) -> None:
        path = os.fspath(location)
        root, stamp = read_json(path, "zarr.json", storage)
        stamps = [stamp]

        def read_array(name: str) -> dict[str, Any]:
            array, own_stamp = read_json(path, f"{name}/zarr.json", storage)
            stamps.append(own_stamp)
            return array

        self._header = header = level_header(path, root, level, read_array)
        self.level = level
        self.levels = len(multiscale(path, root)["datasets"])
        self.attributes = own_attributes(root)
        self.cache_bytes = int(cache_bytes)
        self.storage = dict(storage or {})
        where = path.rstrip("/") if is_url(path) else os.path.abspath(path)
        identity = f"{where}#{level}:{'|'.join(stamps)}:{self.attributes.get('checksum', '')}"
        super().__init__(header.shape, header.affine, header.dtype, path, identity, header.chunk)
        self._array: Any = None

    def at_level(self, level: int) -> ChunkedVolume:
        """The same scan at another level of the pyramid."""
        assert self.path is not None
        return ChunkedVolume(self.path, level, self.cache_bytes, self.storage)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`.

        Raises
        ------
        VolumeError
            If a chunk is missing, damaged or cannot be fetched.
        """
        (a0, a1, a2), (b0, b1, b2) = first, last = self.check_box(start, stop)
        try:
            box = self._opened()[a0:b0, a1:b1, a2:b2].read(order="F").result()
        except STORE_ERRORS as error:
            remedy = "copy the store anew, or convert the scan again with --overwrite"
            if is_url(str(self.path)):
                remedy = "check that the server answers requests for byte ranges and holds the whole store"
            where = f"{self.path}: box {first}..{last} of level {self.level}"
            raise VolumeError(f"{where} cannot be read ({error}); {remedy}.") from error
        touched = [
            min(-(-b // c) * c, n) - a // c * c
            for a, b, c, n in zip(first, last, self._header.chunk, self.shape, strict=True)
        ]
        self.bytes_read += int(np.prod(touched)) * self.dtype.itemsize
        return box.astype(self.dtype, copy=False)

    def _opened(self) -> Any:
        """The stored array in voxel axes (i, j, k), opened on first use."""
        if self._array is None:
            assert self.path is not None
            ts = tensorstore()
            base = kvstore(self.path, self.storage)
            spec = {
                "driver": "zarr3",
                "kvstore": base | {"path": f"{base.get('path', '')}{self._header.path}/"},
                # Our own stores have every chunk: a missing one was lost. Others may leave out what is empty.
                "fill_missing_data_reads": "checksum" not in self.attributes,
                "recheck_cached_data": "open",
            }
            array = ts.open(spec, open=True, read=True, context=context(self.cache_bytes)).result()
            for axis in sorted(self._header.single, reverse=True):
                array = array[ts.d[axis][0]]
            axes = [axis - sum(s < axis for s in self._header.single) for axis in self._header.axes]
            self._array = array[ts.d[tuple(axes)].transpose[:]]
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_array": None}
