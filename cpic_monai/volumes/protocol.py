"""What every scan that is read out of core promises: the :class:`Volume` contract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

Index3 = tuple[int, int, int]


class VolumeError(ValueError):
    """A scan cannot be read as one 3-D volume; the message names the file, the value found and the remedy."""


@runtime_checkable
class Volume(Protocol):
    """A 3-D scan that is opened by its header and read in boxes.

    The contract:

    - Opening reads headers only; no voxel is in memory afterwards.
    - ``read`` takes a half-open box that lies within the volume. It never clips: a box outside is the caller's error.
    - ``read`` returns values in physical units (after rescale slope and intercept), in ``dtype``.
    - A volume can be pickled: what is opened (maps, readers) is dropped and opened again where it is next needed.
    - Two volumes of equal ``identity`` hold the same values, so blocks may be shared between them.

    Attributes
    ----------
    shape
        Extents (i, j, k) in voxels, axes as MONAI and nibabel load them.
    affine
        (4, 4) float64, voxel index to RAS+ millimetres.
    spacing
        Voxel size in millimetres along i, j, k: the norms of the affine's columns.
    dtype
        Type of the values ``read`` returns (native byte order).
    path
        The file or folder, or None for values already in memory.
    identity
        Name of the contents: path, time and size of the file, and what options change the values.
    block_shape
        The box that is cheapest to read at once (one slice of a DICOM series, say).
    bytes_read
        Bytes of voxel values fetched from the source so far by this object.
    is_mapped
        Whether ``mapped`` gives an array.
    """

    shape: Index3
    affine: np.ndarray
    dtype: np.dtype
    path: str | None
    identity: str
    block_shape: Index3
    bytes_read: int

    @property
    def is_mapped(self) -> bool:
        """Whether ``mapped`` gives an array."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (mm) along i, j, k."""

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """Return the values of the box ``start <= voxel < stop``, shape ``stop - start``.

        Raises
        ------
        IndexError
            If the box is empty or reaches out of the volume.
        """

    def read_each(self, boxes: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Iterator[np.ndarray]:
        """Yield the values of several boxes (start, stop) in turn; formats that can, fetch the next ones meanwhile."""

    def stored_level(self, factors: Sequence[int]) -> tuple[Volume, Index3]:
        """Return the coarsest stored level of means over boxes of voxels that divide ``factors``, and its own factors.

        A scan without a pyramid is its only level: itself, (1, 1, 1).
        """

    def mapped(self) -> np.ndarray | None:
        """Return a (shape) array of *stored* values that loads on access, or None where there is no such thing.

        Stored values become physical ones by ``decode``. An array in memory and a memory-mapped file have one.
        """

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Turn stored values from ``mapped`` into physical values of type ``dtype``."""


class VolumeBase:
    """What all volumes share: attributes, spacing, and the check of a box. Subclasses provide ``read``."""

    @property
    def is_mapped(self) -> bool:
        """Whether ``mapped`` gives an array."""
        return False

    def __init__(
        self,
        shape: Sequence[int],
        affine: np.ndarray,
        dtype: np.dtype | type,
        path: str | None,
        identity: str,
        block_shape: Sequence[int] | None = None,
    ) -> None:
        i, j, k = (int(n) for n in shape)
        if min(i, j, k) < 1:
            raise VolumeError(f"{path or 'array'}: shape {(i, j, k)} has an empty axis; a scan needs three.")
        self.shape: Index3 = (i, j, k)
        self.affine = np.array(affine, dtype=np.float64)
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all() or np.linalg.det(self.affine) == 0:
            raise VolumeError(
                f"{path or 'array'}: the voxel-to-world affine must be a finite, invertible 4x4 matrix, "
                f"found {self.affine.tolist()}; correct the header."
            )
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.path = path
        self.identity = identity
        b0, b1, b2 = (min(int(b), n) for b, n in zip(block_shape or self.shape, self.shape, strict=True))
        self.block_shape: Index3 = (b0, b1, b2)
        self.bytes_read = 0

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (mm) along i, j, k."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return (x, y, z)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`."""
        raise NotImplementedError(f"{type(self).__name__} must define read()")

    def read_each(self, boxes: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Iterator[np.ndarray]:
        """See :meth:`Volume.read_each`; by default one is read when it is asked for."""
        return (self.read(start, stop) for start, stop in boxes)

    def stored_level(self, factors: Sequence[int]) -> tuple[Volume, Index3]:
        """See :meth:`Volume.stored_level`; by default there is no pyramid."""
        return self, (1, 1, 1)

    def mapped(self) -> np.ndarray | None:
        """See :meth:`Volume.mapped`; by default there is none."""
        return None

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """See :meth:`Volume.decode`."""
        return np.asarray(stored).astype(self.dtype, copy=False)

    def check_box(self, start: Sequence[int], stop: Sequence[int]) -> tuple[Index3, Index3]:
        """Return the box as plain integers, or raise IndexError when it is empty or reaches out of the volume."""
        a0, a1, a2 = (int(s) for s in start)
        b0, b1, b2 = (int(s) for s in stop)
        inside = all(0 <= a < b <= n for a, b, n in zip((a0, a1, a2), (b0, b1, b2), self.shape, strict=True))
        if not inside:
            raise IndexError(
                f"{self.path or 'array'}: box {(a0, a1, a2)}..{(b0, b1, b2)} is empty or reaches out of the volume of "
                f"shape {self.shape}; clip it before reading."
            )
        return (a0, a1, a2), (b0, b1, b2)

    def __repr__(self) -> str:
        spacing = ", ".join(f"{s:.4g}" for s in self.spacing)
        return f"{type(self).__name__}({self.path or 'array'}, shape={self.shape}, mm=({spacing}), {self.dtype})"


class MappedVolume(VolumeBase):
    """A volume whose stored values can be addressed as an array: ``mapped`` is given, ``read`` follows from it."""

    @property
    def is_mapped(self) -> bool:
        """Whether ``mapped`` gives an array: yes."""
        return True

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`."""
        (a0, a1, a2), (b0, b1, b2) = self.check_box(start, stop)
        stored = self.mapped()
        assert stored is not None
        box = np.array(stored[a0:b0, a1:b1, a2:b2])
        self.bytes_read += box.nbytes
        return self.decode(box)
