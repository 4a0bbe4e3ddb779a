"""Random textures in millimetres: the same patient looks the same at every resolution."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

__all__ = ["Texture"]


class Texture:
    """A periodic random field over world space, of zero mean and unit standard deviation.

    White noise on a periodic lattice is filtered once and then read by linear interpolation, so the field is a function
    of position in millimetres: it costs the lattice, not the scan, and does not depend on the scan's grid.

    Parameters
    ----------
    rng
        Source of the white noise.
    sigma
        Standard deviation of the Gaussian filter in mm.
    band
        If above 1, the field is the difference of Gaussians of ``sigma`` and ``band * sigma``: cells of one typical
        size (wavelength about ``6.5 * sigma`` for a band of 2) instead of clouds of every size.
    contrast
        If above 0, the field is squashed by ``tanh(contrast * field)``: cells of nearly constant value between walls.
    points
        Lattice points a side; the period is ``points * step`` mm.
    """

    def __init__(
        self, rng: np.random.Generator, sigma: float, band: float = 0.0, contrast: float = 0.0, points: int = 64
    ) -> None:
        self.step = sigma / 0.8
        noise = rng.standard_normal((points,) * 3, dtype=np.float32)
        field = ndimage.gaussian_filter(noise, sigma / self.step, mode="wrap", truncate=3.5)
        if band > 1:
            field -= ndimage.gaussian_filter(noise, band * sigma / self.step, mode="wrap", truncate=3.5)
        field = (field - field.mean()) / field.std()
        if contrast > 0:
            field = np.tanh(contrast * field)
            field = (field - field.mean()) / field.std()
        self.field = np.ascontiguousarray(field, dtype=np.float32)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values (N,) float32 at ``points`` (3, N) in mm."""
        values = ndimage.map_coordinates(
            self.field, points / np.float32(self.step), output=np.float32, order=1, mode="grid-wrap", prefilter=False
        )
        return np.asarray(values)
