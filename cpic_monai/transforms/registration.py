"""Where a scan lies against a template: translation, rigid or affine, found by ITK on coarse images of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import itk
import numpy as np

KINDS = ("translation", "rigid", "affine")


@dataclass(frozen=True)
class CoarseImage:
    """A dense image on an axis-aligned grid of the world.

    Attributes
    ----------
    values
        Float32 ``(i, j, k)``; 0 is background.
    origin, spacing
        RAS+ mm of the first voxel's centre; mm between voxels along all axes.
    """

    values: np.ndarray
    origin: np.ndarray
    spacing: float

    @property
    def affine(self) -> np.ndarray:
        """Voxel to RAS+ mm, (4, 4) float64."""
        out = np.diag([self.spacing] * 3 + [1.0])
        out[:3, 3] = self.origin
        return out

    @property
    def middle(self) -> np.ndarray:
        """Middle of the field of view, RAS+ mm."""
        return self.origin + self.spacing * (np.array(self.values.shape) - 1) / 2

    @property
    def centre_of_mass(self) -> np.ndarray:
        """Mean position of its intensity, RAS+ mm; the middle of an image that is all background."""
        mass = np.clip(self.values, 0, None).astype(np.float64)
        places = [np.arange(n) for n in mass.shape]
        total = mass.sum()
        if total <= 0:
            return self.middle
        sums = [(mass.sum(tuple(b for b in range(3) if b != a)) * places[a]).sum() for a in range(3)]
        return self.origin + self.spacing * np.array(sums) / total


def register(fixed: CoarseImage, moving: CoarseImage, kind: str = "affine", region: Any = None) -> np.ndarray:
    """World of ``fixed`` to world of ``moving``, (4, 4) float64 in RAS+ mm, by largest correlation of intensities.

    Starts from equal centres of mass. ITK does the search (``ImageRegistrationMethodv4`` with the correlation metric
    and a conjugate gradient line search), in one thread, so that the result is the same on every run.

    Parameters
    ----------
    kind
        ``translation`` stops at the centres of mass; ``rigid`` turns and shifts; ``affine`` also scales and shears.
    region
        Part of the fixed image that counts: three ``(from, to)`` fractions of its extents along R, A and S, e.g.
        ``((0, 1), (0, 1), (0.33, 1))`` for a head without its neck.

    Raises
    ------
    ValueError
        If ``kind`` is unknown, or one of the images is empty.
    """
    if kind not in KINDS:
        raise ValueError(f"registration kind {kind!r} is none of {', '.join(KINDS)}")
    for name, image in (("template", fixed), ("scan", moving)):
        if not np.isfinite(image.values).all() or image.values.max() <= image.values.min():
            raise ValueError(f"the {name} has no contrast or holds NaN after `intensity`: nothing to register")
    shift = moving.centre_of_mass - fixed.centre_of_mass
    out = np.eye(4)
    out[:3, 3] = shift
    if kind == "translation":
        return out
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    still, moved = _image(fixed), _image(moving)
    transform = (itk.AffineTransform if kind == "affine" else itk.VersorRigid3DTransform)[
        (itk.D, 3) if kind == "affine" else itk.D
    ].New()
    transform.SetIdentity()
    transform.SetCenter(fixed.middle.tolist())
    transform.SetTranslation(shift.tolist())
    metric = itk.CorrelationImageToImageMetricv4[type(still), type(moved)].New()
    if region is not None:
        metric.SetFixedImageMask(_mask(fixed, region))
    scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New()
    scales.SetMetric(metric)
    optimizer = itk.ConjugateGradientLineSearchOptimizerv4Template[itk.D].New()
    optimizer.SetScalesEstimator(scales)
    optimizer.SetNumberOfIterations(60)
    optimizer.SetMaximumStepSizeInPhysicalUnits(fixed.spacing / 2)
    optimizer.SetLowerLimit(0)
    optimizer.SetUpperLimit(2)
    optimizer.SetEpsilon(0.2)
    optimizer.SetMaximumLineSearchIterations(10)
    optimizer.SetMinimumConvergenceValue(1e-6)
    optimizer.SetConvergenceWindowSize(8)
    method = itk.ImageRegistrationMethodv4[type(still), type(moved)].New(
        fixed_image=still, moving_image=moved, metric=metric, optimizer=optimizer, initial_transform=transform
    )
    method.SetNumberOfLevels(1)
    method.SetShrinkFactorsPerLevel([1])
    method.SetSmoothingSigmasPerLevel([0])
    method.InPlaceOn()
    method.Update()
    # Three known points and the origin say what the transform is, whatever its parameters mean.
    base = np.array(transform.TransformPoint([0.0, 0.0, 0.0]))
    for axis in range(3):
        point = np.zeros(3)
        point[axis] = 1.0
        out[:3, axis] = np.array(transform.TransformPoint(point.tolist())) - base
    out[:3, 3] = base
    return out


def _image(coarse: CoarseImage) -> Any:
    """An ITK image whose physical space is RAS+ mm (ITK itself does not care which way its axes point)."""
    image = itk.image_from_array(np.ascontiguousarray(coarse.values.T, dtype=np.float32))
    image.SetSpacing([coarse.spacing] * 3)
    image.SetOrigin(coarse.origin.tolist())
    return image


def _mask(coarse: CoarseImage, region: Any) -> Any:
    inside = np.zeros(coarse.values.shape, np.uint8)
    box = tuple(
        slice(round(low * n), round(high * n)) for (low, high), n in zip(region, coarse.values.shape, strict=True)
    )
    inside[box] = 1
    if not inside.any():
        raise ValueError(f"region {region} leaves no voxel of the template, which has {coarse.values.shape} voxels")
    image = itk.image_from_array(np.ascontiguousarray(inside.T))
    image.SetSpacing([coarse.spacing] * 3)
    image.SetOrigin(coarse.origin.tolist())
    mask = itk.ImageMaskSpatialObject[3].New()
    mask.SetImage(image)
    mask.Update()
    return mask
