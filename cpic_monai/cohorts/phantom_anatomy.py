"""Anatomy of the lung phantom: implicit surfaces of a chest, in millimetres.

Coordinates are DICOM patient coordinates about the middle of the chest: x to the patient's left, y to the back, z to
the head. Every surface is a function that is positive inside and about the distance to the surface in mm, so that a
depth under the pleura is at hand, soft edges are cheap, and a chunk of slices is drawn without the rest of the scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

__all__ = ["Chest", "ChestFields", "draw_chest", "superellipse_depth"]

_TINY = np.float32(1e-6)


@dataclass(frozen=True)
class Chest:
    """Measures of one patient's chest (mm and degrees, before scaling by `size`)."""

    size: tuple[float, float, float]
    centre: tuple[float, float, float]
    rotation: tuple[float, float, float]
    fat: float
    heart: float
    diaphragm: float
    rib_phase: float

    def to_chest(self, points: np.ndarray) -> np.ndarray:
        """Map patient points (3, ...) in mm to the chest's own coordinates."""
        matrix = Rotation.from_euler("xyz", self.rotation, degrees=True).as_matrix().T / np.array(self.size)[:, None]
        centre = np.asarray(self.centre, np.float32).reshape((3,) + (1,) * (points.ndim - 1))
        return np.tensordot(matrix.astype(np.float32), points - centre, axes=1)

    def to_patient(self, points: np.ndarray) -> np.ndarray:
        """Map chest points (3, N) to patient coordinates in mm (inverse of `to_chest`)."""
        matrix = Rotation.from_euler("xyz", self.rotation, degrees=True).as_matrix() * np.array(self.size)[None]
        return np.asarray(matrix @ points + np.asarray(self.centre)[:, None])


def draw_chest(rng: np.random.Generator, stature: float = 0.0) -> Chest:
    """Draw a chest; `stature` in sd (from the predicted lung capacity) makes it larger or smaller by 3 % an sd."""
    common = 1 + 0.03 * float(np.clip(stature, -2, 2)) + 0.015 * rng.standard_normal()
    size = np.clip(common * (1 + 0.025 * rng.standard_normal(3)), 0.88, 1.09)
    return Chest(
        size=(float(size[0]), float(size[1]), float(size[2])),
        centre=(float(rng.uniform(-5, 5)), float(rng.uniform(-6, 6)), float(rng.uniform(-8, 8))),
        rotation=(float(rng.normal(0, 1.5)), float(rng.normal(0, 1.0)), float(rng.normal(0, 2.5))),
        fat=float(rng.uniform(6, 18)),
        heart=float(rng.uniform(0.9, 1.12)),
        diaphragm=float(rng.uniform(-12, 12)),
        rib_phase=float(rng.uniform(0, 1)),
    )


def superellipse_depth(
    x: np.ndarray, y: np.ndarray, a: np.ndarray | np.float32, b: np.ndarray | np.float32, power: float
) -> np.ndarray:
    """Depth in mm, to first order, inside ``|x/a|^power + |y/b|^power = 1``; negative outside."""
    sx, sy = np.abs(x) / a, np.abs(y) / b
    px, py = sx ** np.float32(power - 1), sy ** np.float32(power - 1)
    total = sx * px + sy * py + _TINY
    radius = total ** np.float32(1 / power)
    gradient = np.hypot(px / a, py / b) * radius / total + _TINY
    return np.asarray((1 - radius) / gradient)


class ChestFields:
    """The surfaces of a chest at points (3, ...) given in the chest's own coordinates (float32)."""

    def __init__(self, chest: Chest, points: np.ndarray) -> None:
        self.chest = chest
        self.x, self.y, self.z = x, y, z = points
        rise = np.clip((z + 40) / 168, 0, 0.995)
        profile = np.sqrt(1 - rise ** np.float32(2.4))
        self.a = 126 * profile  # half width of the thoracic cavity
        self.b = 86 * profile ** np.float32(0.75)
        self.yc = 5 + 18 * (1 - profile)
        self.cavity = superellipse_depth(x, y - self.yc, self.a, self.b, 2.3)
        right = 82 * (1 - ((x + 62) / 72) ** 2 - ((y - 8) / 92) ** 2)
        left = 68 * (1 - ((x - 64) / 70) ** 2 - ((y - 5) / 90) ** 2)
        self.above_diaphragm = 0.75 * (z - np.maximum(right, left) + 132 - chest.diaphragm)
        h = np.float32(chest.heart)
        self.heart = 46 * (1 - np.sqrt(((x - 24) / (54 * h)) ** 2 + ((y + 24) / (46 * h)) ** 2 + ((z + 50) / 54) ** 2))
        self.spine = 22 - np.hypot(x, 1.1 * (y - 64))
        width = 13 + 17 * np.exp(-(((y - 12) / 34) ** 2))  # mediastinum: widest at the hila, narrow behind the sternum
        outside_middle = np.minimum(np.abs(x) - width, np.minimum(-self.heart, -self.spine))
        self.costal = np.minimum(self.cavity, self.above_diaphragm)  # depth under the outer pleura
        self.lung = np.minimum(self.costal, outside_middle)

    @property
    def height(self) -> np.ndarray:
        """Height in the lung: 0 at the base, 1 at the apex."""
        return np.asarray(np.clip((self.z + 130) / 250, 0, 1))
