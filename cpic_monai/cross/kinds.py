"""Index sets by the name that a config gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpic_monai.cross.bank import CohortIndexSets, EveryVoxel, ScanIndexSets
from cpic_monai.cross.interpolation import Ridge
from cpic_monai.cross.random_voxels import PickedValues, RandomVoxels
from cpic_monai.cross.tangent import TangentIndexSets
from cpic_monai.grid import IndexGrid

if TYPE_CHECKING:
    from typing_extensions import TypeIs

IndexSets = CohortIndexSets | ScanIndexSets | EveryVoxel | RandomVoxels
INDEX_SETS = ("cohort", "tangent", "scan", "every_voxel", "picked_values", "random_voxels")


def is_values_only(sets: IndexSets) -> TypeIs[PickedValues | RandomVoxels]:
    """Whether a scan is its values at the voxels of one selection, and no tensor train of the grid's modes."""
    return isinstance(sets, PickedValues | RandomVoxels)


def make_index_sets(
    kind: str,
    grid: IndexGrid,
    rank: int,
    channels: int,
    draws: int = 1,
    seed: int = 0,
    ridge: Ridge | None = None,
    oversampling: float = 1.0,
    alternations: int = 0,
) -> IndexSets:
    """Index sets for a grid and an encoding.

    Parameters
    ----------
    kind
        ``cohort``, ``scan`` and ``every_voxel`` (:mod:`cpic_monai.cross.bank`); ``tangent``
        (:mod:`cpic_monai.cross.tangent`); the controls ``picked_values`` and
        ``random_voxels`` (:mod:`cpic_monai.cross.random_voxels`).
    grid, rank, channels, draws, seed, ridge, oversampling, alternations
        Of the index sets, where they have them.

    Raises
    ------
    ValueError
        For an unknown kind.
    """
    if kind == "cohort":
        return CohortIndexSets(grid, rank, channels, draws, seed, ridge, oversampling, alternations)
    if kind == "tangent":
        return TangentIndexSets(grid, rank, channels, draws, seed, ridge, oversampling, alternations)
    if kind == "scan":
        return ScanIndexSets(grid, rank, channels, ridge, oversampling, alternations, seed)
    if kind == "every_voxel":
        return EveryVoxel(grid, rank)
    if kind == "picked_values":
        return PickedValues(grid, rank, channels, draws, seed, ridge, oversampling, alternations)
    if kind == "random_voxels":
        return RandomVoxels(grid, rank, channels, draws, seed, oversampling)
    raise ValueError(f"index_sets {kind!r} is none of {', '.join(INDEX_SETS)}")
