"""Hounsfield units of a lung phantom, drawn a few slices at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cpic_monai.cohorts.phantom_anatomy import Chest, ChestFields, draw_chest
from cpic_monai.cohorts.phantom_texture import Texture
from cpic_monai.cohorts.phantom_tissue import soft, soft_tissue
from cpic_monai.cohorts.phantom_vessels import Tubes, airways, draw_tubes, lung_vessels

__all__ = ["PhantomScan"]

LUNG_HU, FIBROSIS_HU = -850.0, -450.0
_VOXELS_A_CHUNK = 2_000_000


@dataclass(frozen=True)
class _Textures:
    tissue: Texture
    parenchyma: Texture
    patches: Texture
    honeycomb: Texture
    kind: Texture


class PhantomScan:
    """One patient's chest CT as a function of position in mm.

    Fibrosis fills exactly the fraction `extent` of the lung, the voxels lowest in the lung and nearest the outer pleura
    first (with an irregular front). Of the fibrosis the fraction `honeycomb` is honeycombing (air-filled cells of about
    9 mm between dense walls), the rest smooth ground glass; both have the same mean of -450 HU, so only texture tells
    them apart.

    Parameters
    ----------
    seed, number
        Seed of the cohort and number of the patient; the same pair gives the same patient at any resolution.
    extent
        Fraction of the lung volume that is fibrotic, in [0, 1).
    honeycomb
        Fraction of the fibrosis that is honeycombing, in [0, 1].
    stature
        Size of the chest in sd of the population.
    """

    def __init__(self, seed: int, number: int, extent: float, honeycomb: float, stature: float = 0.0) -> None:
        self.extent, self.honeycomb, self.seed, self.number = extent, honeycomb, seed, number
        rng = np.random.default_rng([seed, number, 1])
        self.chest: Chest = draw_chest(rng, stature)
        self.noise_sd = float(rng.uniform(12, 24))
        self.textures = _Textures(
            tissue=Texture(rng, 7.0, points=32),
            parenchyma=Texture(rng, 1.6),
            patches=Texture(rng, 9.0, points=32),
            honeycomb=Texture(rng, 1.4, band=2.0, contrast=1.5, points=96),
            kind=Texture(rng, 14.0, points=24),
        )
        self.vessels: Tubes = lung_vessels(rng, self.chest)
        self.airways: Tubes = airways(self.chest)
        self.front, self.kind_threshold = self._thresholds()

    def _score(self, fields: ChestFields, points: np.ndarray) -> np.ndarray:
        """Order in which lung turns fibrotic (lowest first) at flat chest fields and patient `points` (3, N)."""
        subpleural = np.clip(fields.costal, 0, None) / 18
        return np.asarray(subpleural + 1.9 * fields.height + 0.28 * self.textures.patches(points), dtype=np.float32)

    def _thresholds(self) -> tuple[float, float]:
        """Quantiles on a lattice of 5 mm in the chest, so that the extents do not depend on the scan's grid."""
        x, y, z = np.arange(-128, 129, 5), np.arange(-84, 96, 5), np.arange(-135, 130, 5)
        lattice = np.stack(np.meshgrid(x, y, z, indexing="ij")).reshape(3, -1).astype(np.float32)
        inside = lattice[:, ChestFields(self.chest, lattice).lung > 0]
        points = self.chest.to_patient(inside).astype(np.float32)
        score = self._score(ChestFields(self.chest, inside), points)
        front = float(np.quantile(score, self.extent)) if self.extent > 0 else -np.inf
        kind = self.textures.kind(points)[score < front]
        return front, float(np.quantile(kind, self.honeycomb)) if kind.size else -np.inf

    def render(
        self, z: np.ndarray, y: np.ndarray, x: np.ndarray, first_slice: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the slices at `z`, with rows at `y` and columns at `x` (mm, patient coordinates).

        Returns
        -------
        tuple
            HU (slices, rows, columns) int16 and the mask of fibrosis, uint8, of the same shape.
        """
        shape = (len(z), len(y), len(x))
        hu, mask = np.empty(shape, np.int16), np.empty(shape, np.uint8)
        step = max(1, _VOXELS_A_CHUNK // (shape[1] * shape[2]))
        for low in range(0, shape[0], step):
            part = slice(low, min(low + step, shape[0]))
            image, fibrosis = self._chunk(z[part], y, x)
            mask[part] = fibrosis
            for k in range(part.start, part.stop):  # noise by the slice: independent of the chunks
                noise = np.random.default_rng([self.seed, self.number, 2, first_slice + k])
                grain = ndimage.gaussian_filter(noise.standard_normal(shape[1:], dtype=np.float32), 0.6)
                plane = image[k - part.start] + np.float32(self.noise_sd / 0.47) * grain
                hu[k] = np.clip(np.rint(plane), -1024, 3071)
        return hu, mask

    def _chunk(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z, y, x = (np.asarray(v, np.float32) for v in (z, y, x))
        pixel = float(max(abs(y[1] - y[0]), abs(x[1] - x[0]))) if min(len(x), len(y)) > 1 else 1.0
        edge = 0.8 + 0.7 * pixel
        grid = np.broadcast_arrays(x[None, None], y[None, :, None], z[:, None, None])
        points = np.stack([g.ravel() for g in grid])
        shape = grid[0].shape
        fields = ChestFields(self.chest, self.chest.to_chest(points))
        image = soft_tissue(fields, points, self.textures.tissue(points), edge)
        in_lung = np.flatnonzero(fields.lung > -edge)
        parenchyma, fibrosis = self._parenchyma(fields, points, in_lung, edge)
        image[in_lung] += soft(fields.lung[in_lung], edge) * (parenchyma - image[in_lung])
        mask = np.zeros(points.shape[1], np.uint8)
        mask[in_lung] = fibrosis & (fields.lung[in_lung] > 0)
        image, axes = image.reshape(shape), (z, y, x)
        draw_tubes(image, axes, self.vessels, 40.0, pixel)
        wall = Tubes(self.airways.start, self.airways.stop, self.airways.radius + 1.3)
        draw_tubes(image, axes, wall, 10.0, pixel)
        draw_tubes(image, axes, self.airways, -990.0, pixel)
        return image, mask.reshape(shape)

    def _parenchyma(
        self, fields: ChestFields, points: np.ndarray, where: np.ndarray, edge: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """HU (N,) and fibrosis (N,) bool of the lung at the flat indices `where`."""
        points = points[:, where]
        local = ChestFields(self.chest, self.chest.to_chest(points))
        hu = LUNG_HU + 0.35 * local.y + 22 * self.textures.parenchyma(points)  # the dependent lung is denser
        score = self._score(local, points)
        share = soft(self.front - score, 0.06) if np.isfinite(self.front) else np.zeros_like(score)
        sick = np.flatnonzero(share > 0)
        if sick.size:
            at = points[:, sick]
            comb = soft(self.kind_threshold - self.textures.kind(at), 0.1)
            cells, glass = 290 * self.textures.honeycomb(at), 25 * self.textures.parenchyma(at)
            hu[sick] += share[sick] * (FIBROSIS_HU + comb * cells + (1 - comb) * glass - hu[sick])
        return hu.astype(np.float32), score < self.front
