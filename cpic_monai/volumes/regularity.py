"""Is a DICOM series a regular grid? If not: which fault, in which file, with which values, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpic_monai.volumes.dicom_header import SliceHeader
from cpic_monai.volumes.protocol import VolumeError


@dataclass(frozen=True)
class Fault:
    """One way in which a series fails to be a regular grid.

    ``kind`` is one of: series, size, orientation, pixel spacing, duplicate, gaps, tilt, drift.
    """

    kind: str
    file: str
    values: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.values} (at {self.file}); {self.remedy}"


class IrregularSeriesError(VolumeError):
    """A DICOM series that is no regular grid; ``faults`` lists every fault found, ``path`` names the folder."""

    def __init__(self, path: str, faults: Sequence[Fault]) -> None:
        self.path = path
        self.faults = tuple(faults)
        listed = "".join(f"\n  - {fault}" for fault in self.faults)
        super().__init__(f"{path}: the series is not a regular grid:{listed}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path, self.faults))


def check_same(path: str, slices: Sequence[SliceHeader]) -> None:
    """Raise IrregularSeriesError where slices differ in series, size, orientation or pixel spacing."""

    def rounded(values: Sequence[float] | None, digits: int) -> tuple[float, ...] | None:
        return None if values is None else tuple(round(v, digits) + 0.0 for v in values)

    checks: list[tuple[str, Callable[[SliceHeader], Any], str]] = [
        ("series", lambda s: s.series_uid, "select one with series_uid='...', or put each series in its own folder"),
        ("size", lambda s: (s.columns, s.rows), "move the slices of the odd size (a scout?) out of the folder"),
        ("orientation", lambda s: rounded(s.orientation, 3), "move the slices of the odd direction out of the folder"),
        (
            "pixel spacing",
            lambda s: rounded(s.pixel_spacing, 3),
            "move the slices of the odd spacing out of the folder",
        ),
    ]
    faults = []
    for kind, value_of, remedy in checks:
        counts = Counter(value_of(s) for s in slices)
        if len(counts) > 1:
            (common, _), *_ = counts.most_common(1)
            odd = next(s for s in slices if value_of(s) != common)
            values = ", ".join(f"{value} in {n} slices" for value, n in counts.most_common(4))
            faults.append(Fault(kind, odd.file, f"{len(counts)} different values: {values}", remedy))
    if faults:
        raise IrregularSeriesError(path, faults)


@dataclass(frozen=True)
class SliceGeometry:
    """Where sorted slices lie: ``distance`` (n,) mm along the normal; ``step`` (3,) mm of LPS+ a mm of normal."""

    distance: np.ndarray
    step: np.ndarray
    gap: float


def _tilt_fault(slices: Sequence[SliceHeader], positions: np.ndarray, distance: np.ndarray, normal: np.ndarray,
                step: np.ndarray, allow_tilt: bool) -> list[Fault]:  # fmt: skip
    pixel = min(slices[0].pixel_spacing or (1.0, 1.0))
    astray = positions - positions[0] - np.outer(distance - distance[0], step)
    worst = int(np.argmax(np.linalg.norm(astray, axis=1)))
    off_line = float(np.linalg.norm(astray[worst]))
    if off_line > max(0.1 * pixel, 0.01):
        values = f"the slice lies {off_line:.3g} mm beside the line from the first to the last slice"
        return [Fault("drift", slices[worst].file, values, "the patient or table moved: convert with dcm2niix to .nii")]
    sideways = step - normal
    angle = float(np.degrees(np.arctan(np.linalg.norm(sideways))))
    shift = float(np.linalg.norm(sideways) * (distance[-1] - distance[0]))
    if allow_tilt or angle < 0.05 or shift < 0.5 * pixel:
        return []
    tag = slices[0].tilt
    values = f"slices are stacked at {angle:.2f} degrees from their normal, {shift:.3g} mm sideways from first to last"
    values += "" if tag is None else f"; GantryDetectorTilt is {tag:g}"
    remedy = "pass allow_tilt=True to keep the slices as they are under a sheared affine, or convert with dcm2niix"
    return [Fault("tilt", slices[-1].file, values, remedy)]


def gap_tolerance(gap: float, part: float = 0.02) -> float:
    """How far (mm) a gap may be from the median ``gap`` (mm): a part of it, or what rounding of headers does to it.

    Headers are rounded to 0.01 mm at worst; where slices lie closer than 0.1 mm that would hide a missing one.
    """
    return max(part * gap, min(0.01, 0.1 * gap))


def slice_geometry(
    path: str,
    slices: Sequence[SliceHeader],
    normal: np.ndarray,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    tolerance: float = 0.02,
) -> SliceGeometry:
    """Check slices sorted along ``normal`` (all with positions, LPS+ mm), and measure how they are stacked.

    Parameters
    ----------
    tolerance
        A gap may differ from the median gap by this part of it, see :func:`gap_tolerance`.

    Raises
    ------
    IrregularSeriesError
        For duplicate slices, for variable gaps unless ``allow_gaps``, for a tilt unless ``allow_tilt``, and for slices
        beside the line.
    """
    positions = np.array([s.position for s in slices], dtype=np.float64)
    distance = positions @ normal
    if len(slices) == 1:
        return SliceGeometry(distance, normal, slices[0].thickness or 1.0)
    gaps = np.diff(distance)
    double = np.flatnonzero(gaps < 1e-3)
    if len(double):
        first = int(double[0])
        values = f"{len(double)} slices lie where another does, first {slices[first].file} and {slices[first + 1].file}"
        values += f" at {tuple(positions[first].round(3).tolist())} mm"
        remedy = "keep one slice a position (repeated scans, phases and echoes belong in folders of their own)"
        raise IrregularSeriesError(path, [Fault("duplicate", slices[first + 1].file, values, remedy)])
    gap = float(np.median(gaps))
    step = (positions[-1] - positions[0]) / (distance[-1] - distance[0])
    faults = _tilt_fault(slices, positions, distance, normal, step, allow_tilt)
    odd = np.flatnonzero(np.abs(gaps - gap) > gap_tolerance(gap, tolerance))
    if len(odd) and not allow_gaps:
        at = int(odd[0])
        values = (
            f"slice gaps range from {gaps.min():.4g} to {gaps.max():.4g} mm (median {gap:.4g}), {len(odd)} of "
            f"{len(gaps)} differ; the first is {gaps[at]:.4g} mm, between {slices[at].file} and {slices[at + 1].file}"
        )
        remedy = "restore missing slices, or pass resample_gaps=True to interpolate onto a regular grid"
        faults.append(Fault("gaps", slices[at + 1].file, values, remedy))
    if faults:
        raise IrregularSeriesError(path, faults)
    return SliceGeometry(distance, step, gap)
