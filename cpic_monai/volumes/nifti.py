"""NIfTI-1 and NIfTI-2: ``.nii`` memory-mapped, ``.nii.gz`` decompressed once, and held or streamed."""

from __future__ import annotations

import gzip
import mmap
import os
import zlib
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np

from cpic_monai.volumes.cache import BlockCache
from cpic_monai.volumes.held import HeldVolume
from cpic_monai.volumes.protocol import MappedVolume, VolumeBase, VolumeError

_BAD_HEADER = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
)


def file_identity(path: str) -> str:
    """Name of a file's contents: its path, time of change (ns) and size (bytes)."""
    status = os.stat(path)
    return f"{os.path.abspath(path)}:{status.st_mtime_ns}:{status.st_size}"


class _Header:
    """What of a NIfTI header is needed to find and scale its values."""

    def __init__(self, path: str) -> None:
        try:
            image: Any = nib.load(path)
        except _BAD_HEADER as error:
            raise VolumeError(f"{path}: not a readable NIfTI file ({error}); copy it again.") from error
        shape = tuple(int(n) for n in image.shape)
        if len(shape) < 3 or any(n != 1 for n in shape[3:]):
            raise VolumeError(
                f"{path}: shape {shape} is not one 3-D scan; split it (one file per volume or channel) and pass a list."
            )
        proxy = image.dataobj
        if proxy.dtype.kind not in "iuf":
            raise VolumeError(
                f"{path}: voxels of type {proxy.dtype} are no scalar numbers; convert colour or complex data."
            )
        self.shape = shape[:3]
        self.stored_dtype = proxy.dtype
        self.offset = int(proxy.offset)
        # nibabel gives slope 1 and intercept 0 where the header's slope is 0 or not finite, as the standard asks.
        self.slope, self.inter = float(proxy.slope), float(proxy.inter)
        self.affine = np.asarray(image.affine, dtype=np.float64)

    @property
    def scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32) if self.scaled or self.stored_dtype.itemsize > 8 else self.stored_dtype

    def decode(self, stored: np.ndarray) -> np.ndarray:
        if self.scaled:
            return (stored.astype(np.float64) * self.slope + self.inter).astype(np.float32)
        return stored.astype(self.dtype.newbyteorder("="), copy=False)


class NiftiVolume(MappedVolume):
    """An uncompressed ``.nii``, memory-mapped: reading a box loads only the pages it lies in.

    Raises
    ------
    VolumeError
        If the file is truncated, or holds more than one 3-D scan or no scalars.
    """

    def __init__(self, path: str) -> None:
        self._header = header = _Header(path)
        super().__init__(header.shape, header.affine, header.dtype, path, file_identity(path))
        need = header.offset + int(np.prod(header.shape)) * header.stored_dtype.itemsize
        if os.path.getsize(path) < need:
            raise VolumeError(f"{path}: {os.path.getsize(path)} bytes where the header promises {need}; copy it again.")
        self._map: np.ndarray | None = None

    def mapped(self) -> np.ndarray:
        """The stored values as a Fortran-ordered array on the mapped file."""
        if self._map is None:
            assert self.path is not None
            with open(self.path, "rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                # Patches are scattered: without this the kernel reads 128 KiB around each page that is touched.
                pages.madvise(mmap.MADV_RANDOM)
            header = self._header
            self._map = np.ndarray(self.shape, header.stored_dtype, pages, header.offset, order="F")
        return self._map

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Apply the header's slope and intercept."""
        return self._header.decode(stored)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}


def _read_slices(file: gzip.GzipFile, header: _Header, path: str, first: int, last: int) -> np.ndarray:
    """Stored values (i, j, last - first) of slices ``first`` to ``last``, the latter excluded."""
    ni, nj, nk = header.shape
    plane = ni * nj * header.stored_dtype.itemsize
    try:
        file.seek(header.offset + first * plane)
        data = file.read((last - first) * plane)
        # A file's checksum and length are compared only once a reader meets its end, behind the last voxel.
        while last == nk and file.read(1 << 20):
            pass
    except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: a damaged header's wild offset
        raise VolumeError(f"{path}: cannot be decompressed ({error}); copy it again.") from error
    if len(data) < (last - first) * plane:
        raise VolumeError(f"{path}: ends before slice {last} of {nk}; copy it again.")
    return np.frombuffer(data, header.stored_dtype).reshape((ni, nj, last - first), order="F")


class CompressedNiftiVolume(HeldVolume):
    """A ``.nii.gz``: gzip has no random access, so the file is decompressed once and held in the cache."""

    def __init__(self, path: str, cache: BlockCache | None = None) -> None:
        self._header = header = _Header(path)
        super().__init__(header.shape, header.affine, header.dtype, path, file_identity(path), cache=cache)

    def load(self) -> np.ndarray:
        """All stored values.

        Raises
        ------
        VolumeError
            If the file is damaged or cut short.
        """
        assert self.path is not None
        with gzip.open(self.path) as file:
            return _read_slices(file, self._header, self.path, 0, self.shape[2])

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Apply the header's slope and intercept."""
        return self._header.decode(stored)


def open_nifti(path: str, cache: BlockCache | None = None) -> NiftiVolume | CompressedNiftiVolume:
    """Open ``.nii`` or ``.nii.gz`` by its header."""
    return CompressedNiftiVolume(path, cache) if path.lower().endswith(".gz") else NiftiVolume(path)


class GzipNiftiStream(VolumeBase):
    """A ``.nii.gz`` read once from its first slice to its last: what lies before the box is passed over, not held.

    Reading backwards starts the decompression anew.
    """

    def __init__(self, path: str) -> None:
        self._header = header = _Header(path)
        shape = header.shape
        super().__init__(shape, header.affine, header.dtype, path, file_identity(path), (shape[0], shape[1], 1))
        self._file: gzip.GzipFile | None = None

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`.

        Raises
        ------
        VolumeError
            If the file is damaged or cut short, which may show with its last slice only.
        """
        (a0, a1, a2), (b0, b1, b2) = self.check_box(start, stop)
        assert self.path is not None
        if self._file is None:
            self._file = gzip.open(self.path)  # noqa: SIM115 - kept open, to go on from where it is
        stored = _read_slices(self._file, self._header, self.path, a2, b2)
        self.bytes_read += stored.nbytes
        return self._header.decode(stored[a0:b0, a1:b1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}
