"""Where in a scan voxels were picked: three orthogonal slices with all picked voxels projected on them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cpic_monai.report.style import Picture, number

__all__ = ["PickedScan", "picked_pictures"]

_PLANES = {"sagittal": "RL", "coronal": "AP", "axial": "SI"}  # the directions each plane is seen along
# Radiological display: the patient's right on the left, anterior up (axial) or left (sagittal), superior up.
_LEFT, _UP = "RA", "AS"
_PIXELS = 520
_PROJECTED, _ON_SLICE = "#ff9f1c", "#4dd8ff"


@dataclass(frozen=True)
class PickedScan:
    """
    A scan's picked voxels with one slice of each orientation to show them on.

    Attributes
    ----------
    subject : str
    slices : dict of str to float array (2D), values in [0, 1]
        "axial", "coronal", "sagittal", or some of them. A slice has the two other array axes in their order, unturned:
        `image[:, :, k]` of an RAS array is axial. It may be coarser than the scan.
    planes : dict of str to int
        Index of each slice along its array axis.
    voxels : int array, shape (N, 3)
        Picked voxels in array axis order.
    shape : tuple of int
        The scan's shape in voxels.
    spacing : tuple of float
        Voxel size in mm.
    axcodes : str
        Anatomical direction in which each array axis runs, as `nibabel.aff2axcodes` gives it; MONAI's
        ``Orientationd(axcodes="RAS")`` makes it "RAS".

    Raises
    ------
    ValueError
        If shapes, indices or values do not fit these; the message names the subject.
    """

    subject: str
    slices: Mapping[str, npt.NDArray[np.floating]] = field(repr=False)
    planes: Mapping[str, int]
    voxels: npt.NDArray[np.integer] = field(repr=False)
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    axcodes: str = "RAS"

    def __post_init__(self) -> None:
        fault = self._fault()
        if fault:
            raise ValueError(f"picked voxels of subject {self.subject!r}: {fault}")

    def _fault(self) -> str:
        """What is wrong with the content, or nothing."""
        axcodes = "".join(self.axcodes)
        if len(axcodes) != 3 or any(sum(code in pair for code in axcodes) != 1 for pair in _PLANES.values()):
            return f"axcodes must name three directions such as 'RAS' or 'LPS', found {self.axcodes!r}"
        if len(self.shape) != 3 or min(self.shape) < 1:
            return f"shape must be three positive numbers, found {self.shape}"
        if len(self.spacing) != 3 or not min(self.spacing) > 0:
            return f"spacing must be three positive lengths in mm, found {self.spacing}"
        if self.voxels.ndim != 2 or self.voxels.shape[1] != 3:
            return f"voxels must have shape (N, 3), found {self.voxels.shape}"
        if ((self.voxels < 0) | (self.voxels >= np.asarray(self.shape))).any():
            return f"voxels reach from {self.voxels.min(axis=0)} to {self.voxels.max(axis=0)}, outside {self.shape}"
        unknown = sorted(set(self.slices) - set(_PLANES))
        if not self.slices or unknown:
            return f"slices must be some of {list(_PLANES)}, found {list(self.slices)}"
        for plane, image in self.slices.items():
            axis = self.axis(plane)
            if plane not in self.planes or not 0 <= self.planes[plane] < self.shape[axis]:
                return f"planes[{plane!r}] must be an index below {self.shape[axis]}, found {self.planes.get(plane)}"
            extent = tuple(int(n) for k, n in enumerate(self.shape) if k != axis)
            # A coarser slice keeps the proportions, up to a pixel.
            if image.ndim != 2 or abs(image.shape[0] * extent[1] - image.shape[1] * extent[0]) > max(extent):
                return f"the {plane} slice has shape {image.shape}, expected {extent} or a coarser one"
            if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
                return f"the {plane} slice must hold finite values in [0, 1]; scale the intensity window to it"
        return ""

    def axis(self, plane: str) -> int:
        """Array axis that this plane is seen along."""
        return next(k for k, code in enumerate(self.axcodes) if code in _PLANES[plane])

    @classmethod
    def from_reader(
        cls,
        subject: str,
        read_box: Callable[[tuple[int, ...], tuple[int, ...]], npt.ArrayLike],
        voxels: npt.ArrayLike,
        *,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        window: tuple[float, float],
        axcodes: str = "RAS",
    ) -> PickedScan:
        """
        Read the three slices through the median picked voxel, and nothing else.

        Parameters
        ----------
        subject : str
        read_box : callable
            ``read_box(start, stop)`` gives the intensities of the half-open box as an array of its shape.
        voxels : int array, shape (N, 3), N > 0
        shape, spacing, axcodes
            As in the class.
        window : tuple of float
            Intensities shown as black and as white, such as -1000 and 400 HU.

        Raises
        ------
        ValueError
            If there are no voxels, the window is empty, or a box does not come in its shape.
        """
        points = np.asarray(voxels)
        if points.ndim != 2 or points.shape[1:] != (3,) or not len(points):
            raise ValueError(f"picked voxels of subject {subject!r} must have shape (N, 3), found {points.shape}")
        low, high = window
        if not high > low:
            raise ValueError(f"window must rise, found {window}; give the intensities shown as black and as white")
        centre = np.median(points, axis=0).astype(int)
        slices, planes = {}, {}
        for plane, pair in _PLANES.items():
            axis = next(k for k, code in enumerate(axcodes) if code in pair)
            start, stop = [0, 0, 0], list(shape)
            start[axis], stop[axis] = int(centre[axis]), int(centre[axis]) + 1
            box = np.asarray(read_box(tuple(start), tuple(stop)), dtype=np.float32)
            expected = tuple(b - a for a, b in zip(start, stop, strict=True))
            if box.shape != expected:
                raise ValueError(
                    f"subject {subject!r}: the box {start}–{stop} came as {box.shape}, expected {expected}"
                )
            scaled = np.nan_to_num((box.squeeze(axis) - low) / (high - low), nan=0.0)
            slices[plane], planes[plane] = np.clip(scaled, 0.0, 1.0), int(centre[axis])
        return cls(subject, slices, planes, points, shape, spacing, axcodes)


def _picture(scan: PickedScan, plane: str) -> Picture:
    """One slice with the voxels on it."""
    axis = scan.axis(plane)
    kept = [k for k in range(3) if k != axis]
    # Horizontal first: in coronal and axial views right-left, in the sagittal one anterior-posterior.
    kept.sort(key=lambda k: "RLAPSI".index(scan.axcodes[k]))
    across, up = kept
    image = np.asarray(scan.slices[plane], dtype=np.float64)
    image = image if kept[0] < kept[1] else image.T  # (across, up)
    points = scan.voxels[:, kept] + 0.5
    size = np.array([scan.shape[k] * scan.spacing[k] for k in kept])
    places, counts = np.unique(points, axis=0, return_counts=True)
    on_slice = np.unique(points[scan.voxels[:, axis] == scan.planes[plane]], axis=0)

    def millimetres(indices: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        return indices * [scan.spacing[k] for k in kept]

    inches = size / size.max() * _PIXELS / 100
    figure = Figure(figsize=tuple(np.maximum(inches, 0.4)), dpi=100, facecolor="black")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(image.T, cmap="gray", vmin=0, vmax=1, origin="lower", extent=(0, size[0], 0, size[1]), aspect="auto")
    if len(places):
        # Several voxels behind each other look denser, one alone stays visible.
        alpha = np.clip(0.5 + 0.12 * np.log2(counts), 0.5, 0.95)
        x, y = millimetres(places).T
        axes.scatter(x, y, s=15, color=_PROJECTED, alpha=alpha, linewidths=0)
        x, y = millimetres(on_slice).T
        axes.scatter(x, y, s=34, facecolor="none", edgecolor=_ON_SLICE, linewidths=1.1)
    flip = scan.axcodes[across] in _LEFT
    axes.set(xlim=(size[0], 0) if flip else (0, size[0]))
    axes.set(ylim=(0, size[1]) if scan.axcodes[up] in _UP else (size[1], 0))
    axes.set_axis_off()
    left, top = ("A" if plane == "sagittal" else "R"), ("A" if plane == "axial" else "S")
    for letter, place in ((left, (0.035, 0.5)), (top, (0.5, 0.965))):
        axes.text(*place, letter, transform=axes.transAxes, color="white", fontsize=11, ha="center", va="center")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # 128 colours are plenty for grey and two hues, and a third of the bytes.
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", optimize=True)
    alt = (
        f"{plane.capitalize()} slice {scan.planes[plane] + 1} of subject {scan.subject} with {len(scan.voxels)} picked "
        f"voxels projected on it, {len(on_slice)} of them in the slice."
    )
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    markup = Markup('<img src="data:image/png;base64,{}" alt="{}" width="{}" height="{}">').format(
        data, alt, *pixels.size
    )
    caption = f"Slice {scan.planes[plane] + 1} of {scan.shape[axis]}"
    return Picture(markup, plane.capitalize(), caption, alt)


def picked_pictures(scan: PickedScan) -> tuple[str, list[Picture]]:
    """
    A scan's title line and its slices, axial first.

    Returns
    -------
    tuple of (str, list of Picture)
    """
    total = int(np.prod(np.asarray(scan.shape, dtype=object)))
    distinct = len(np.unique(scan.voxels, axis=0))
    share = f"{100 * distinct / total:.2g} %"
    title = f"{scan.subject}: {number(distinct, 1)} of {number(total, 1)} voxels ({share})"
    return title, [_picture(scan, plane) for plane in ("axial", "coronal", "sagittal") if plane in scan.slices]
