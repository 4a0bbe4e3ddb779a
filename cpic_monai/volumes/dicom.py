"""DICOM series: headers through pydicom, pixels through ITK's GDCM, one slice at a time."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence

import numpy as np

from cpic_monai.volumes.dicom_header import SliceHeader, dicom_files, in_order, read_slice_header
from cpic_monai.volumes.itk_image import LPS_TO_RAS
from cpic_monai.volumes.protocol import VolumeBase, VolumeError
from cpic_monai.volumes.regularity import (
    Fault,
    IrregularSeriesError,
    SliceGeometry,
    check_same,
    gap_tolerance,
    slice_geometry,
)


class DicomVolume(VolumeBase):
    """A DICOM series, or one slice of it, as a volume; of the files only the slices that a box touches are read.

    Slices are sorted along the normal of their plane by ImagePositionPatient. Where a slice lacks it, all are ordered
    by InstanceNumber, else by the number in the file name, evenly spaced (OSIC has such patients), with a warning.

    Values are slope * stored + intercept, with each slice's own pair; MONOCHROME1 is inverted first. They are int16,
    uint8, uint16 or int32 where slopes and intercepts are whole numbers, else float32.

    Parameters
    ----------
    source
        A folder with the slices, or one ``.dcm`` file (a volume one slice thick).
    padding_value
        CT only: values below are raised to it. Scanners fill what lies outside their round field of view with -2000 or
        less; -1024 HU is air. None keeps what is stored.
    resample_gaps
        Interpolate linearly between slices onto a regular grid of the median gap, where gaps vary. Whether or not that
        is asked, a series without gaps is left as it is.
    allow_tilt
        Accept a gantry tilt, described exactly by a sheared affine.
    series_uid
        Read the slices of this SeriesInstanceUID only.

    Raises
    ------
    IrregularSeriesError
        If the series is no regular grid.
    VolumeError
        If a file is no DICOM image of one grey plane.
    """

    def __init__(
        self,
        source: str,
        padding_value: float | None = -1024.0,
        resample_gaps: bool = False,
        allow_tilt: bool = False,
        series_uid: str | None = None,
    ) -> None:
        files = dicom_files(source) if os.path.isdir(source) else [source]
        slices = [read_slice_header(file) for file in files]
        if series_uid is not None:
            known = sorted({s.series_uid for s in slices})
            slices = [s for s in slices if s.series_uid == series_uid]
            if not slices:
                raise VolumeError(f"{source}: no slice of series_uid {series_uid!r}; the folder has {known}.")
        check_same(source, slices)
        orientation = np.array(slices[0].orientation or (1, 0, 0, 0, 1, 0), dtype=np.float64)
        across, down = orientation[:3], orientation[3:]
        if abs(across @ down) > 1e-3 or abs(np.linalg.norm(across) - 1) > 1e-2 or abs(np.linalg.norm(down) - 1) > 1e-2:
            fault = Fault(
                "orientation", slices[0].file, f"{slices[0].orientation} are no two perpendicular unit vectors",
                "correct ImageOrientationPatient",
            )  # fmt: skip
            raise IrregularSeriesError(source, [fault])
        normal = np.cross(across, down)
        if all(s.position is not None for s in slices):
            slices.sort(key=lambda s: float(np.dot(s.position or (0, 0, 0), normal)))
            geometry = slice_geometry(source, slices, normal, resample_gaps, allow_tilt)
            origin = np.array(slices[0].position)
        else:
            slices = in_order(slices, source)
            geometry = self._evenly_spaced(source, slices, normal)
            origin = np.array(slices[0].position or (0.0, 0.0, 0.0))
        self.slices: tuple[SliceHeader, ...] = tuple(slices)
        self.padding_value = padding_value if slices[0].modality == "CT" else None
        self._place = self._regular_grid(geometry)
        lps = np.eye(4)
        rows_mm, columns_mm = self._pixel_spacing(source)
        lps[:3, 0] = across * columns_mm
        lps[:3, 1] = down * rows_mm
        depth = geometry.distance[-1] - geometry.distance[0]
        lps[:3, 2] = geometry.step * (depth / (len(self._place) - 1) if len(self._place) > 1 else geometry.gap)
        lps[:3, 3] = origin
        shape = (slices[0].columns, slices[0].rows, len(self._place))
        super().__init__(shape, LPS_TO_RAS @ lps, self._value_type(), source, self._identity(), (shape[0], shape[1], 1))

    @staticmethod
    def _evenly_spaced(source: str, slices: Sequence[SliceHeader], normal: np.ndarray) -> SliceGeometry:
        gap = slices[0].thickness
        if gap is None:
            gap = 1.0
            warnings.warn(
                f"{source}: neither positions nor slice thickness are given; slices are taken as 1 mm apart.",
                RuntimeWarning,
                stacklevel=3,
            )
        return SliceGeometry(np.arange(len(slices)) * gap, normal, gap)

    def _pixel_spacing(self, source: str) -> tuple[float, float]:
        spacing = self.slices[0].pixel_spacing
        if spacing is None or min(spacing) <= 0:
            warnings.warn(
                f"{source}: PixelSpacing is {spacing}; pixels are taken as 1 mm wide.", RuntimeWarning, stacklevel=3
            )
            return (1.0, 1.0)
        return spacing

    def _regular_grid(self, geometry: SliceGeometry) -> np.ndarray:
        """Where each slice of the volume lies in the series: 0.25 is a quarter of the way from the 1st to the 2nd."""
        found = geometry.distance - geometry.distance[0]
        count = len(found)
        if count < 3 or np.abs(np.diff(found) - geometry.gap).max() <= gap_tolerance(geometry.gap):
            return np.arange(count, dtype=np.float64)
        wanted = np.linspace(0, found[-1], round(found[-1] / geometry.gap) + 1)
        return np.interp(wanted, found, np.arange(count))

    def _value_type(self) -> np.dtype:
        pairs = {(s.slope, s.intercept, s.bits, s.signed) for s in self.slices}
        whole = all(float(slope).is_integer() and float(inter).is_integer() for slope, inter, _, _ in pairs)
        if not whole or (self._place % 1 != 0).any() or (self.padding_value or 0) % 1:
            return np.dtype(np.float32)
        ends = []
        for slope, intercept, bits, signed in pairs:
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
            ends += [slope * low + intercept, slope * high + intercept]
        floor = min(ends) if self.padding_value is None else max(min(ends), self.padding_value)
        for dtype in (np.uint8, np.int16, np.uint16, np.int32):
            if np.iinfo(dtype).min <= floor and max(ends) <= np.iinfo(dtype).max:
                return np.dtype(dtype)
        return np.dtype(np.float32)

    def _identity(self) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        for s in self.slices:
            status = os.stat(s.path)
            digest.update(f"{s.path}:{status.st_mtime_ns}:{status.st_size};".encode())
        digest.update(f"{self.padding_value}:{self._place.tolist()}".encode())
        return f"dicom:{digest.hexdigest()}"

    def _read_slice(self, number: int) -> np.ndarray:
        header = self.slices[number]
        values = read_pixels(header)
        if values.shape != self.shape[:2]:
            raise VolumeError(f"{header.path}: pixels are {values.shape} where the header says {self.shape[:2]}.")
        self.bytes_read += values.shape[0] * values.shape[1] * ((header.bits + 7) // 8)
        return values if self.padding_value is None else np.maximum(values, self.padding_value)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`. Every slice is read at most once, and only two are held besides the box."""
        (a0, a1, a2), (b0, b1, b2) = self.check_box(start, stop)
        out = np.empty((b0 - a0, b1 - a1, b2 - a2), self.dtype, order="F")
        held: dict[int, np.ndarray] = {}
        for k in range(a2, b2):
            before = int(np.floor(self._place[k] + 1e-9))
            part = float(self._place[k]) - before
            needed = [before] if part < 1e-9 else [before, before + 1]
            held = {n: held[n] if n in held else self._read_slice(n) for n in needed}
            plane = held[before][a0:b0, a1:b1]
            if len(needed) == 2:
                plane = plane * (1 - part) + held[before + 1][a0:b0, a1:b1] * part
            out[:, :, k - a2] = plane
        return out


def read_pixels(header: SliceHeader) -> np.ndarray:
    """Read one slice in physical units: (columns, rows) float64.

    ITK's GDCM undoes the compression, inverts MONOCHROME1 (2**bits - 1 - stored) and applies slope and intercept.

    Raises
    ------
    VolumeError
        If the pixels cannot be decoded.
    """
    if header.monochrome1 and header.signed:
        return _read_signed_monochrome1(header)
    import itk

    image_type = itk.Image[itk.D, 3]
    reader = itk.ImageFileReader[image_type].New(FileName=header.path)
    reader.SetImageIO(itk.GDCMImageIO.New())
    try:
        reader.Update()
    except RuntimeError as error:
        raise VolumeError(
            f"{header.path}: its pixels cannot be decoded ({error}); copy the file anew or leave the scan out."
        ) from error
    return np.array(itk.array_view_from_image(reader.GetOutput())[0].T)


def _read_signed_monochrome1(header: SliceHeader) -> np.ndarray:
    """GDCM refuses signed MONOCHROME1 of fewer than 16 bits; the inverse of signed stored values is -1 - stored."""
    import pydicom

    try:
        stored = pydicom.dcmread(header.path).pixel_array.T.astype(np.float64)
    except (ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise VolumeError(f"{header.path}: its pixels cannot be decoded ({error}); copy the file anew.") from error
    return (-1 - stored) * header.slope + header.intercept
