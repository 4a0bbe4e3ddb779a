"""Everything of the lung phantom but its lungs: air, table, fat, muscle, bone, mediastinum and abdomen."""

from __future__ import annotations

import numpy as np

from cpic_monai.cohorts.phantom_anatomy import ChestFields, superellipse_depth

__all__ = ["blend", "soft", "soft_tissue"]


def soft(depth: np.ndarray, width: float) -> np.ndarray:
    """Share of a voxel inside a surface at the given depth (mm), for an edge `width` mm wide."""
    return np.asarray(np.clip(depth / np.float32(width) + np.float32(0.5), 0, 1))


def blend(image: np.ndarray, weight: np.ndarray, value: np.ndarray | float) -> None:
    """Move `image` towards `value` by `weight` in place."""
    image += weight * (value - image)


def soft_tissue(fields: ChestFields, points: np.ndarray, tissue: np.ndarray, edge: float) -> np.ndarray:
    """Draw the body.

    Parameters
    ----------
    fields
        Surfaces of the chest at the points.
    points
        Patient coordinates (3, N) in mm, float32 (the table stands still while the patient lies askew).
    tissue
        Texture (N,) of about unit standard deviation.
    edge
        Width of a surface in mm.

    Returns
    -------
    numpy.ndarray
        HU (N,) float32.
    """
    x, y, z = fields.x, fields.y, fields.z
    chest = fields.chest
    tissue = 15 * tissue
    image = np.full(x.shape, -1000, np.float32)
    table = 3.0 - np.abs(points[1] - np.float32(chest.centre[1] + 131) + (points[0] / 42) ** 2)
    blend(image, soft(table, edge) * (np.abs(points[0]) < 150), -420)

    body = superellipse_depth(x, y - 9, np.float32(158), np.float32(110), 2.5)
    blend(image, soft(body, edge), -105 + 0.5 * tissue)
    outside = -fields.cavity
    # A coat of muscle around the ribs, thick at the shoulders where the cavity narrows to its apex.
    muscle = np.minimum(24 + 0.5 * tissue - outside + np.clip(z - 20, 0, 90), body - chest.fat)
    blend(image, soft(muscle, edge), 52 + 0.6 * tissue)
    cleft = 1.6 - np.abs(outside - 17 - 0.35 * tissue)  # fat between the layers of muscle
    blend(image, 0.8 * soft(cleft, edge) * (body > chest.fat), -80)

    _ribs(image, fields, outside, edge)
    inside = soft(fields.cavity, edge)
    blend(image, inside, -80 + 2.4 * tissue)  # mediastinal fat; lung and organs are drawn over it
    _abdomen(image, fields, tissue, inside, edge)
    _mediastinum(image, fields, tissue, edge)
    _spine(image, fields, edge)
    return image


def _ribs(image: np.ndarray, fields: ChestFields, outside: np.ndarray, edge: float) -> None:
    x, y, z = fields.x, fields.y, fields.z
    anterior = np.clip(0.5 * (1 - (y - fields.yc) / fields.b), 0, 1)  # 0 at the back, 1 at the front
    turn = (z + 62 * anterior) / 27 + np.float32(fields.chest.rib_phase)  # ribs slope down to the front
    along = 27 * (turn - np.rint(turn))
    rib = 5 * (1 - np.sqrt((along / 6.5) ** 2 + ((outside - 6) / 4.6) ** 2))
    rib[(np.abs(x) < 24) & (y < 0)] = -9
    cartilage = anterior > 0.93
    weight = soft(rib, edge)
    blend(image, weight, np.where(cartilage, np.float32(110), np.float32(560)))
    blend(image, soft(rib - 2.2, edge) * ~cartilage, 240)  # marrow
    sternum = 6 * (1 - np.sqrt((x / 20) ** 2 + ((y - fields.yc + fields.b + 7) / 6.5) ** 2))
    sternum = np.minimum(sternum, np.minimum(z + 45, 85 - z))
    blend(image, soft(sternum, edge), 260)


def _abdomen(image: np.ndarray, fields: ChestFields, tissue: np.ndarray, inside: np.ndarray, edge: float) -> None:
    x, y, z = fields.x, fields.y, fields.z
    below = -fields.above_diaphragm - 1
    liver = np.minimum(below, 38 - x + 0.25 * (y + 20))
    spleen = 26 * (1 - np.sqrt(((x - 82) / 36) ** 2 + ((y - 42) / 44) ** 2 + ((z + 102) / 48) ** 2))
    stomach = 30 * (1 - np.sqrt(((x - 58) / 44) ** 2 + ((y + 18) / 48) ** 2 + ((z + 104) / 46) ** 2))
    blend(image, inside * soft(liver, edge), 62 + 0.3 * tissue)
    blend(image, inside * soft(np.minimum(below, spleen), edge), 50 + 0.3 * tissue)
    blend(image, inside * soft(np.minimum(below - 2, stomach), edge), 35 + 0.3 * tissue)
    gas = np.minimum(stomach - 5, -38 - y)  # gas rises to the front of a patient lying on the back
    blend(image, inside * soft(np.minimum(below - 4, gas), edge), -960)


def _mediastinum(image: np.ndarray, fields: ChestFields, tissue: np.ndarray, edge: float) -> None:
    x, y, z = fields.x, fields.y, fields.z
    above = soft(fields.above_diaphragm + 4, edge)
    blend(image, above * soft(fields.heart - 3, edge), 42 + 0.4 * tissue)
    descending = 12 - np.hypot(x - 21, y - 44)
    ascending = 15.5 - np.hypot(x + 12, y + 6)
    arch = 12.5 - np.hypot(np.abs(x - 4 + 0.55 * (y - 20)) - 0, z - 62)
    arch = np.minimum(arch, 30 - np.abs(y - 19))
    cava = 10 - np.hypot(x + 27, y - 4)
    for vessel in (
        np.minimum(descending, 60 - z),
        np.minimum(ascending, np.minimum(z + 25, 62 - z)),
        arch,
        np.minimum(cava, np.minimum(z + 20, 110 - z)),
        np.minimum(15 - np.hypot(y - 12, z - 6), 34 - np.abs(x)),  # pulmonary arteries, side to side
        np.minimum(7 - np.hypot(x - 5, y - 38), z + 130),  # oesophagus
    ):
        blend(image, soft(vessel, edge), 44 + 0.3 * tissue)


def _spine(image: np.ndarray, fields: ChestFields, edge: float) -> None:
    x, y, z = fields.x, fields.y, fields.z
    disc = np.abs(27 * (z / 27 - np.rint(z / 27))) < 3
    body = 17 * (1 - np.sqrt((x / 20) ** 2 + ((y - 65) / 16) ** 2))
    blend(image, soft(body, edge), np.where(disc, np.float32(85), np.float32(430)))
    blend(image, soft(body - 3, edge) * ~disc, 210)
    ring = 15 - np.hypot(x, y - 90)
    process = np.minimum(4 - np.abs(x), np.minimum(y - 96, 116 - y))
    transverse = np.minimum(5 - np.abs(y - 90), 32 - np.abs(x)) - 30 * disc
    blend(image, soft(np.maximum(ring, np.maximum(process, transverse)), edge), 380)
    blend(image, soft(9 - np.hypot(x, y - 90), edge), 25)  # canal
