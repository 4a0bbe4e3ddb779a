"""OME-Zarr stores, local or remote, read chunk by chunk through tensorstore."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cpic_monai.volumes.ome_zarr import level_header, multiscale, own_attributes
from cpic_monai.volumes.protocol import Index3, VolumeBase, VolumeError
from cpic_monai.volumes.store_access import (
    DEFAULT_CACHE_BYTES,
    STORE_ERRORS,
    context,
    is_url,
    kvstore,
    tensorstore,
)
from cpic_monai.volumes.zarr_metadata import DRIVERS, read_array, read_root


class ChunkedVolume(VolumeBase):
    """One level of an OME-Zarr store (0.5, or 0.4) as a volume: only touched chunks are read.

    The affine is the one recorded by :func:`~cpic_monai.volumes.write_store`. Stores of other origin give voxel sizes
    only; their axes are taken as right, anterior, superior, with a warning. ``bytes_read`` counts the voxels of the
    chunks that boxes touch, decoded, those of coarser levels that :meth:`stored_level` gave included.

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
        If it is not one 3-D OME-Zarr scan of these versions.
    """

    #: Boxes that :meth:`read_each` has on their way, and the most bytes that their chunks may take.
    AHEAD, AHEAD_BYTES = 32, 64 << 20

    def __init__(
        self,
        location: str | os.PathLike[str],
        level: int = 0,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        storage: Mapping[str, Any] | None = None,
    ) -> None:
        path = os.fspath(location)
        root, stamp = read_root(path, storage)
        stamps = [stamp]

        def array_of(name: str) -> dict[str, Any]:
            array, own_stamp = read_array(path, name, root["zarr_format"], storage)
            stamps.append(own_stamp)
            return array

        self._header = header = level_header(path, root, level, array_of)
        self._driver = DRIVERS[root["zarr_format"]]
        self.level = level
        pyramid = multiscale(path, root)
        self.levels = len(pyramid["datasets"])
        self._means = pyramid.get("type") == "mean"
        self.attributes = own_attributes(root)
        self.cache_bytes = int(cache_bytes)
        self.storage = dict(storage or {})
        where = path.rstrip("/") if is_url(path) else os.path.abspath(path)
        identity = f"{where}#{level}:{'|'.join(stamps)}:{self.attributes.get('checksum', '')}"
        super().__init__(header.shape, header.affine, header.dtype, path, identity, header.chunk)
        self._array: Any = None
        self._pyramid: list[tuple[ChunkedVolume, Index3]] | None = None
        self._finest: ChunkedVolume | None = None

    def at_level(self, level: int) -> ChunkedVolume:
        """The same scan at another level of the pyramid."""
        assert self.path is not None
        return ChunkedVolume(self.path, level, self.cache_bytes, self.storage)

    def stored_level(self, factors: Sequence[int]) -> tuple[ChunkedVolume, Index3]:
        """See :meth:`Volume.stored_level`.

        Only levels that the store says are means count (``"type": "mean"``, as :func:`write_store` writes), and that
        lie where means over whole boxes do. Those of whole numbers are rounded, by half a unit at most in our stores
        (see there): a mean on the fly is not.
        """
        fitting = [
            (level, own) for level, own in self._levels() if all(f % o == 0 for f, o in zip(factors, own, strict=True))
        ]
        return max(fitting, key=lambda found: int(np.prod(found[1])), default=(self, (1, 1, 1)))

    def _levels(self) -> list[tuple[ChunkedVolume, Index3]]:
        """Coarser levels of means with their factors; their headers are read once, where one is first asked for."""
        if self._pyramid is None:
            coarser = [self.at_level(n) for n in range(self.level + 1, self.levels)] if self._means else []
            self._pyramid = [(level, own) for level in coarser if (own := self._factors(level)) is not None]
            for level, _ in self._pyramid:
                level._finest = self
        return self._pyramid

    def _factors(self, level: ChunkedVolume) -> Index3 | None:
        """Voxels of this level in one of a coarser one, or None where it holds no means over whole boxes."""
        step = np.linalg.inv(self.affine) @ level.affine
        i, j, k = factors = np.maximum(1, np.rint(step.diagonal()[:3])).astype(int)
        wanted = np.diag([*factors.astype(float), 1.0])
        wanted[:3, 3] = (factors - 1) / 2
        shape = tuple(-(-n // f) for n, f in zip(self.shape, factors.tolist(), strict=True))
        return (int(i), int(j), int(k)) if np.allclose(step, wanted, atol=1e-3) and shape == level.shape else None

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`.

        Raises
        ------
        VolumeError
            If a chunk is missing, damaged or cannot be fetched.
        """
        return next(self.read_each([(start, stop)]))

    def read_each(self, boxes: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Iterator[np.ndarray]:
        """See :meth:`Volume.read_each`: while one box is used, the next ones are fetched and decoded.

        Raises
        ------
        VolumeError
            See :meth:`read`.
        """
        chunk = int(np.prod(self._header.chunk)) * self.dtype.itemsize
        most = max(1, min(self.AHEAD, self.AHEAD_BYTES // chunk))
        pending: deque[tuple[Index3, Index3, Any]] = deque()
        for start, stop in boxes:
            (a0, a1, a2), (b0, b1, b2) = first, last = self.check_box(start, stop)
            try:
                coming = self._opened()[a0:b0, a1:b1, a2:b2].read(order="F")
            except STORE_ERRORS as error:
                raise self._unreadable(first, last, error) from error
            pending.append((first, last, coming))
            if len(pending) == most:
                yield self._arrived(*pending.popleft())
        while pending:
            yield self._arrived(*pending.popleft())

    def _arrived(self, first: Index3, last: Index3, coming: Any) -> np.ndarray:
        """The values of a box on its way, counted."""
        try:
            box = coming.result()
        except STORE_ERRORS as error:
            raise self._unreadable(first, last, error) from error
        touched = [
            min(-(-b // c) * c, n) - a // c * c
            for a, b, c, n in zip(first, last, self._header.chunk, self.shape, strict=True)
        ]
        count = int(np.prod(touched)) * self.dtype.itemsize
        self.bytes_read += count
        if self._finest is not None:
            self._finest.bytes_read += count
        return np.asarray(box.astype(self.dtype, copy=False))

    def _unreadable(self, first: Index3, last: Index3, error: Exception) -> VolumeError:
        remedy = "copy the store anew, or convert the scan again with --overwrite"
        if is_url(str(self.path)):
            remedy = "check that the server answers requests for byte ranges and holds the whole store"
        return VolumeError(
            f"{self.path}: box {first}..{last} of level {self.level} cannot be read ({error}); {remedy}."
        )

    def _opened(self) -> Any:
        """The stored array in voxel axes (i, j, k), opened on first use."""
        if self._array is None:
            assert self.path is not None
            ts = tensorstore()
            base = kvstore(self.path, self.storage)
            spec = {
                "driver": self._driver,
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
