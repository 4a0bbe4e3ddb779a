"""Where in a scan voxels were picked, and which moved the prediction: slices with the voxels projected on them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from cpic_monai.report.style import Picture, number

__all__ = ["PickedScan", "picked_pictures"]

_PLANES = {"sagittal": "RL", "coronal": "AP", "axial": "SI"}  # the directions each plane is seen along
# Radiological display: the patient's right on the left, anterior up (axial) or left (sagittal), superior up.
_LEFT, _UP = "RA", "AS"
_PIXELS = 520
_PROJECTED, _ON_SLICE = "#ff9f1c", "#4dd8ff"
_DIVERGING = "bwr"  # red raises, blue lowers; its ends stay bright on a dark scan


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
    attribution : float array, shape (N,), optional
        What each picked voxel adds to the prediction, in `unit`; drawn as colours.
    unit : str

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
    attribution: npt.NDArray[np.floating] | None = field(default=None, repr=False)
    unit: str = ""

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
        if self.attribution is not None and (
            self.attribution.shape != self.voxels.shape[:1] or not np.isfinite(self.attribution).all()
        ):
            return f"attribution must be {len(self.voxels)} finite values, found shape {self.attribution.shape}"
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
        attribution: npt.NDArray[np.floating] | None = None,
        unit: str = "",
    ) -> PickedScan:
        """
        Read the three slices through the median picked voxel, and nothing else.

        Parameters
        ----------
        subject : str
        read_box : callable
            ``read_box(start, stop)`` gives the intensities of the half-open box as an array of its shape.
        voxels : int array, shape (N, 3), N > 0
        shape, spacing, axcodes, attribution, unit
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
        return cls(subject, slices, planes, points, shape, spacing, axcodes, attribution, unit)


def _kept(scan: PickedScan, plane: str) -> list[int]:
    """Array axes of a slice, horizontal first: right-left, in the sagittal plane anterior-posterior."""
    return sorted((k for k in range(3) if k != scan.axis(plane)), key=lambda k: "RLAPSI".index(scan.axcodes[k]))


def _slice(scan: PickedScan, plane: str) -> tuple[Figure, Axes]:
    """One slice as a radiologist sees it, in millimetres along `_kept` axes."""
    across, up = kept = _kept(scan, plane)
    image = np.asarray(scan.slices[plane], dtype=np.float64)
    image = image if across < up else image.T  # (across, up)
    size = np.array([scan.shape[k] * scan.spacing[k] for k in kept])
    inches = size / size.max() * _PIXELS / 100
    figure = Figure(figsize=tuple(np.maximum(inches, 0.4)), dpi=100, facecolor="black")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(image.T, cmap="gray", vmin=0, vmax=1, origin="lower", extent=(0, size[0], 0, size[1]), aspect="auto")
    flip = scan.axcodes[across] in _LEFT
    axes.set(xlim=(size[0], 0) if flip else (0, size[0]))
    axes.set(ylim=(0, size[1]) if scan.axcodes[up] in _UP else (size[1], 0))
    axes.set_axis_off()
    left, top = ("A" if plane == "sagittal" else "R"), ("A" if plane == "axial" else "S")
    for letter, place in ((left, (0.035, 0.5)), (top, (0.5, 0.965))):
        axes.text(*place, letter, transform=axes.transAxes, color="white", fontsize=11, ha="center", va="center")
    return figure, axes


def _finished(
    scan: PickedScan, plane: str, figure: Figure, title: str, alt: str, more: str = "", colours: int = 128
) -> Picture:
    """The figure as a PNG in the page."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Few colours are plenty for grey and two hues, and a third of the bytes.
    pixels = (
        Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    )
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    markup = Markup('<img src="data:image/png;base64,{}" alt="{}" width="{}" height="{}">').format(
        data, alt, *pixels.size
    )
    return Picture(markup, title, f"Slice {scan.planes[plane] + 1} of {scan.shape[scan.axis(plane)]}{more}", alt)


def _picture(scan: PickedScan, plane: str) -> Picture:
    """One slice with the voxels on it."""
    kept = _kept(scan, plane)
    spacing = [scan.spacing[k] for k in kept]
    points = scan.voxels[:, kept] + 0.5
    places, counts = np.unique(points, axis=0, return_counts=True)
    on_slice = np.unique(points[scan.voxels[:, scan.axis(plane)] == scan.planes[plane]], axis=0)
    figure, axes = _slice(scan, plane)
    if len(places):
        # Several voxels behind each other look denser, one alone stays visible.
        alpha = np.clip(0.5 + 0.12 * np.log2(counts), 0.5, 0.95)
        x, y = (places * spacing).T
        axes.scatter(x, y, s=15, color=_PROJECTED, alpha=alpha, linewidths=0)
        x, y = (on_slice * spacing).T
        axes.scatter(x, y, s=34, facecolor="none", edgecolor=_ON_SLICE, linewidths=1.1)
    alt = (
        f"{plane.capitalize()} slice {scan.planes[plane] + 1} of subject {scan.subject} with {len(scan.voxels)} picked "
        f"voxels projected on it, {len(on_slice)} of them in the slice."
    )
    return _finished(scan, plane, figure, plane.capitalize(), alt)


def _attribution_picture(scan: PickedScan, plane: str, moved: npt.NDArray[np.floating], largest: float) -> Picture:
    """The same with each place in the colour of what it adds; voxels behind each other are added up."""
    kept = _kept(scan, plane)
    places, which = np.unique(scan.voxels[:, kept], axis=0, return_inverse=True)
    summed = np.bincount(which.ravel(), weights=moved, minlength=len(places))
    order = np.abs(summed).argsort(kind="stable")  # the largest on top
    x, y = ((places[order] + 0.5) * [scan.spacing[k] for k in kept]).T
    figure, axes = _slice(scan, plane)
    share = np.minimum(np.abs(summed[order]) / largest, 1.0)
    scale = ScalarMappable(Normalize(-largest, largest), _DIVERGING)
    # What adds little fades; its alpha is in the colours, so that the bar's are whole.
    colours = scale.to_rgba(summed[order])
    colours[:, 3] = 0.25 + 0.75 * share
    axes.scatter(x, y, s=4 + 40 * share, c=colours, linewidths=0)
    inset = axes.inset_axes((0.3, 0.06, 0.4, 0.025))
    bar = figure.colorbar(scale, cax=inset, orientation="horizontal", ticks=[-largest, 0, largest])
    bar.ax.set_xticklabels([f"−{number(largest)}", "0", f"{number(largest)} {scan.unit}".strip()])
    bar.ax.tick_params(colors="white", labelsize=8, length=2, pad=1)
    raised, lowered = number(float(moved[moved > 0].sum())), number(float(moved[moved < 0].sum()))
    unit = f" {scan.unit}" if scan.unit else ""
    alt = (
        f"{plane.capitalize()} slice {scan.planes[plane] + 1} of subject {scan.subject} with the attributions of "
        f"{len(moved)} picked voxels: together they raise the median by {raised}{unit} and lower it by {lowered}{unit}."
    )
    return _finished(scan, plane, figure, f"{plane.capitalize()}, attribution", alt, "; red raises, blue lowers", 256)


def picked_pictures(scan: PickedScan) -> tuple[str, list[Picture]]:
    """
    A scan's title line and its slices, axial first; then, where they are known, the same with the attributions.

    The colours of the three are those of one scale, which ends at the 99th percentile of the sizes of the attributions
    (added up along the line of sight in the plane where that is largest).

    Returns
    -------
    tuple of (str, list of Picture)
    """
    total = int(np.prod(np.asarray(scan.shape, dtype=object)))
    distinct = len(np.unique(scan.voxels, axis=0))
    share = f"{100 * distinct / total:.2g} %"
    title = f"{scan.subject}: {number(distinct, 1)} of {number(total, 1)} voxels ({share})"
    planes = [plane for plane in ("axial", "coronal", "sagittal") if plane in scan.slices]
    pictures = [_picture(scan, plane) for plane in planes]
    if scan.attribution is not None and np.any(scan.attribution):
        largest = max(_extent(scan, plane) for plane in planes)
        pictures += [_attribution_picture(scan, plane, scan.attribution, largest) for plane in planes]
    return title, pictures


def _extent(scan: PickedScan, plane: str) -> float:
    """The 99th percentile of the sizes of a plane's sums along the line of sight; of those that are not 0."""
    _, which = np.unique(scan.voxels[:, _kept(scan, plane)], axis=0, return_inverse=True)
    sizes = np.abs(np.bincount(which.ravel(), weights=scan.attribution))
    return float(np.quantile(sizes[sizes > 0], 0.99)) if (sizes > 0).any() else 0.0
