"""Branching vessels and airways of the lung phantom, drawn as tubes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cpic_monai.cohorts.phantom_anatomy import Chest, ChestFields

__all__ = ["Tubes", "airways", "draw_tubes", "lung_vessels"]


@dataclass(frozen=True)
class Tubes:
    """Straight tubes in patient coordinates: `start` and `stop` (N, 3) and `radius` (N,), all in mm."""

    start: np.ndarray
    stop: np.ndarray
    radius: np.ndarray


def _tree(hilum: np.ndarray, targets: np.ndarray, leaf: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join targets, nearest to the hilum first, to the nearest node already in the tree; radii by Murray's law."""
    order = np.argsort(np.linalg.norm(targets - hilum, axis=1), kind="stable")
    nodes = np.concatenate([hilum[None], targets[order]])
    depth = np.linalg.norm(nodes - hilum, axis=1)
    parent = np.zeros(len(nodes), dtype=np.int64)
    for n in range(1, len(nodes)):
        away = np.linalg.norm(nodes[:n] - nodes[n], axis=1)
        # A detour towards the periphery is dear, so branches run outwards as they do in a lung.
        parent[n] = int(np.argmin(away + 0.35 * depth[:n]))
    flow = np.zeros(len(nodes))
    for n in range(len(nodes) - 1, 0, -1):
        flow[n] += leaf**3
        flow[parent[n]] += flow[n]
    radius = np.clip(np.cbrt(flow[1:]), leaf, 5.5)
    return nodes[parent[1:]], nodes[1:], radius


def lung_vessels(rng: np.random.Generator, chest: Chest, branches: int = 180) -> Tubes:
    """Grow one tree a lung from its hilum to `branches` points spread over the lung."""
    parts = []
    for side in (-1.0, 1.0):
        hilum = np.array([34.0 * side, 14.0, 8.0])
        points = rng.uniform([8, -85, -130], [126, 95, 125], size=(branches * 12, 3)) * [side, 1, 1]
        depth = ChestFields(chest, points.T.astype(np.float32)).lung
        parts.append(_tree(hilum, points[depth > 5][:branches], leaf=0.9))
    start, stop = (np.concatenate([p[k] for p in parts]) for k in (0, 1))
    return Tubes(chest.to_patient(start.T).T, chest.to_patient(stop.T).T, np.concatenate([p[2] for p in parts]))


def airways(chest: Chest) -> Tubes:
    """Trachea, main and lobar bronchi (inner radii)."""
    carina = (0, 20, 36)
    segments: list[tuple[tuple[float, float, float], tuple[float, float, float], float]] = [
        ((0, 12, 170), carina, 8.5),
        (carina, (-36, 20, 14), 6.0),
        (carina, (40, 22, 8), 5.5),
    ]
    for side, root in ((-1, (-36, 20, 14)), (1, (40, 22, 8))):
        for tip, radius in (((52, 25, 58), 3.0), ((58, -22, -14), 2.8), ((58, 38, -48), 3.2), ((75, 48, -80), 2.0)):
            start = root if radius != 2.0 else (58 * side, 38, -48)
            segments.append((start, (tip[0] * side, tip[1], tip[2]), radius))
    first, last = (chest.to_patient(np.array([s[k] for s in segments], float).T).T for k in (0, 1))
    return Tubes(first, last, np.array([s[2] for s in segments]))


def draw_tubes(
    image: np.ndarray, axes: tuple[np.ndarray, np.ndarray, np.ndarray], tubes: Tubes, value: float, pixel: float
) -> None:
    """Blend tubes of the given HU into `image` in place.

    Parameters
    ----------
    image
        (slices, rows, columns) float32 in HU.
    axes
        World coordinates in mm of the slices (z), rows (y) and columns (x), each evenly spaced.
    value
        HU inside the tube.
    pixel
        In-plane spacing in mm: a tube thinner than a pixel fades by its share of the pixel instead of flickering.
    """
    lowest = np.minimum(tubes.start, tubes.stop)[:, ::-1]  # (N, 3) as z, y, x
    highest = np.maximum(tubes.start, tubes.stop)[:, ::-1]
    drawn = np.maximum(tubes.radius, 0.55 * pixel)
    reach = (drawn + 0.5 * pixel + 0.5)[:, None]
    for n in range(len(tubes.radius)):
        box = []
        for axis, low, high in zip(axes, lowest[n] - reach[n], highest[n] + reach[n], strict=True):
            first, last = (axis[0], axis[-1]) if axis[-1] >= axis[0] else (axis[-1], axis[0])
            if high < first or low > last:
                break
            inside = np.flatnonzero((axis >= low) & (axis <= high))
            if inside.size == 0:
                break
            box.append(slice(int(inside[0]), int(inside[-1]) + 1))
        if len(box) < 3:
            continue
        z, y, x = (axis[b] for axis, b in zip(axes, box, strict=True))
        a, d = tubes.start[n].astype(np.float32), (tubes.stop[n] - tubes.start[n]).astype(np.float32)
        px, py, pz = (x - a[0])[None, None], (y - a[1])[None, :, None], (z - a[2])[:, None, None]
        along = np.clip((px * d[0] + py * d[1] + pz * d[2]) / max(float(d @ d), 1e-6), 0, 1)
        away = np.sqrt((px - along * d[0]) ** 2 + (py - along * d[1]) ** 2 + (pz - along * d[2]) ** 2)
        share = min(1.0, (float(tubes.radius[n]) / float(drawn[n])) ** 2)
        weight = share * np.clip((drawn[n] - away) / (0.5 * pixel + 0.5) + 0.5, 0, 1)
        part = image[tuple(box)]
        part += (weight * (value - part)).astype(np.float32)
