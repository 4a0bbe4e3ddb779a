"""NRRD and MetaImage (.nrrd, .nhdr, .mha, .mhd) through ITK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cpic_monai.volumes.cache import BlockCache
from cpic_monai.volumes.held import HeldVolume
from cpic_monai.volumes.nifti import file_identity
from cpic_monai.volumes.protocol import VolumeBase, VolumeError

#: LPS+ (DICOM, ITK) to RAS+ (NIfTI, MONAI): the first two world axes change sign.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

#: ITK's component names -> (NumPy type, ITK's wrapped pixel type). What ITK's Python does not wrap is read as double.
_COMPONENTS = {
    "unsigned_char": ("u1", "UC"),
    "char": ("i1", "SS"),
    "short": ("i2", "SS"),
    "unsigned_short": ("u2", "US"),
    "int": ("i4", "D"),
    "unsigned_int": ("u4", "D"),
    "float": ("f4", "F"),
    "double": ("f8", "D"),
    "long": ("i8", "D"),
    "unsigned_long": ("u8", "D"),
    "long_long": ("i8", "D"),
    "unsigned_long_long": ("u8", "D"),
}


def _image_io(path: str) -> Any:
    import itk

    io = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if io is None:
        raise VolumeError(f"{path}: ITK has no reader for it; check that it is a complete NRRD or MetaImage file.")
    io.SetFileName(path)
    try:
        io.ReadImageInformation()
    except RuntimeError as error:
        raise VolumeError(f"{path}: its header cannot be read ({error}); copy or write it anew.") from error
    return io


def _region(path: str, pixel: str, start: Sequence[int], size: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Read one region, (i, j, k) axes. ITK streams it where the format can; otherwise it reads the file."""
    import itk

    image_type = itk.Image[getattr(itk, pixel), 3]
    reader = itk.ImageFileReader[image_type].New(FileName=path)
    reader.SetUseStreaming(True)
    region = itk.ImageRegion[3]()
    region.SetIndex([int(s) for s in start])
    region.SetSize([int(s) for s in size])
    extract = itk.ExtractImageFilter[image_type, image_type].New(Input=reader.GetOutput())
    extract.SetExtractionRegion(region)
    extract.SetDirectionCollapseToSubmatrix()
    try:
        extract.Update()
    except RuntimeError as error:
        raise VolumeError(f"{path}: its voxels cannot be read ({error}); copy or write it anew.") from error
    return np.array(itk.array_view_from_image(extract.GetOutput()).T, dtype=dtype, order="F")


class StreamedItkVolume(VolumeBase):
    """A file of which ITK can read regions (uncompressed MetaImage): slabs of slices are read on demand."""

    def __init__(self, *header: Any, pixel: str) -> None:
        super().__init__(*header)
        self._pixel = pixel

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`."""
        first, last = self.check_box(start, stop)
        assert self.path is not None
        box = _region(self.path, self._pixel, first, [b - a for a, b in zip(first, last, strict=True)], self.dtype)
        self.bytes_read += box.nbytes
        return box


class HeldItkVolume(HeldVolume):
    """A file that ITK reads only as a whole (compressed, or NRRD): decoded once and held in the cache."""

    def __init__(self, *header: Any, pixel: str, cache: BlockCache | None = None) -> None:
        super().__init__(*header, cache=cache)
        self._pixel = pixel

    def load(self) -> np.ndarray:
        """All values."""
        assert self.path is not None
        return _region(self.path, self._pixel, (0, 0, 0), self.shape, self.dtype)


def open_itk(path: str, cache: BlockCache | None = None) -> StreamedItkVolume | HeldItkVolume:
    """Open a NRRD or MetaImage file by its header.

    Raises
    ------
    VolumeError
        If the file is no scalar 3-D image (a fourth axis of length 1 is allowed), or cannot be read.
    """
    io = _image_io(path)
    dims = [int(io.GetDimensions(a)) for a in range(io.GetNumberOfDimensions())]
    if len(dims) < 3 or any(n != 1 for n in dims[3:]):
        raise VolumeError(f"{path}: shape {tuple(dims)} is not one 3-D scan; split it and pass a list of files.")
    if io.GetNumberOfComponents() != 1:
        raise VolumeError(f"{path}: {io.GetNumberOfComponents()} values a voxel; split the channels into files.")
    component = io.GetComponentTypeAsString(io.GetComponentType())
    if component not in _COMPONENTS:
        raise VolumeError(f"{path}: voxel type {component!r} is not known; convert it to short or float.")
    dtype, pixel = _COMPONENTS[component]
    lps = np.eye(4)
    for axis in range(3):
        lps[:3, axis] = np.asarray(io.GetDirection(axis)[:3]) * io.GetSpacing(axis)
        lps[axis, 3] = io.GetOrigin(axis)
    header = (dims[:3], LPS_TO_RAS @ lps, np.dtype(dtype), path, file_identity(path))
    if len(dims) == 3 and io.CanStreamRead():
        return StreamedItkVolume(*header, (dims[0], dims[1], 1), pixel=pixel)
    return HeldItkVolume(*header, pixel=pixel, cache=cache)
