"""Controls of cross-approximation: as many voxels, picked or random, without interpolation."""

from __future__ import annotations

import pytest
import torch
from scans import images, lazy, small_network

from cpic_monai.cross.bank import CohortIndexSets
from cpic_monai.cross.kinds import INDEX_SETS, make_index_sets
from cpic_monai.cross.random_voxels import PickedValues, RandomVoxels
from cpic_monai.grid import IndexGrid
from cpic_monai.tensor_train import inner


@pytest.mark.parametrize("unfolding", ["tt", "interleaved", "grouped", "fused"])
@pytest.mark.parametrize(
    ("rank", "channels", "oversampling"), [(1, 1, 1), (3, 4, 1), (3, 8, 2), (5, 1, 1), (4, 1, 1.5), (9, 2, 1)]
)
def test_equal_in_number_to_the_cross_indices(unfolding: str, rank: int, channels: int, oversampling: float) -> None:
    grid = IndexGrid((8, 16, 8), unfolding)
    sets = CohortIndexSets(grid, rank, channels, oversampling=oversampling)
    sets.select(lambda codes: torch.rand(2, codes.shape[1], channels), [torch.arange(rank)])
    found = RandomVoxels(grid, rank, channels, draws=2, oversampling=oversampling)
    assert found.picked.shape == (2, len(sets.codes()))


def test_voxels_are_the_seeds_without_repetition() -> None:
    grid = IndexGrid((8, 8, 8))
    sets = RandomVoxels(grid, 2, 4)
    assert sets.seeds_wanted == 2 * sets.count
    # Seeds that lie far from one another in order, each twice.
    codes = torch.randperm(512)[: sets.count].repeat_interleave(2)
    sets.select(None, [codes, codes.flip(0)])
    assert sets.draws == 2
    first, second = sets.codes().split(sets.count)
    assert torch.equal(first, codes[::2])
    assert torch.equal(second, codes[::2].flip(0))
    assert torch.equal(sets.grid.encode(sets.voxels()), sets.codes())


def test_few_seeds_are_filled_from_anywhere_in_the_scan() -> None:
    grid = IndexGrid((5, 5, 5))  # padded to 8: filling voxels stay inside the scan
    sets = RandomVoxels(grid, 4, 4)
    sets.select(None, [torch.tensor([0, 0, 1])], torch.Generator().manual_seed(1))
    assert sets.codes()[:2].tolist() == [0, 1]
    assert len(sets.codes().unique()) == sets.count > 2
    assert bool(grid.inside(sets.codes()).all())


@pytest.mark.parametrize("kind", ["picked_values", "random_voxels"])
def test_the_inner_product_is_that_of_the_values(kind: str) -> None:
    sets = make_index_sets(kind, IndexGrid((4, 8, 8)), 3, 2, draws=2)
    values = torch.randn(5, len(sets.codes()), 2, dtype=torch.float64)
    trains = sets.decompose(values)
    assert len(trains) == 2
    assert trains[0].mode_sizes == sets.mode_sizes
    total = sum(inner(t, t) for t in trains)
    torch.testing.assert_close(total, values.flatten(1) @ values.flatten(1).T)


def test_picked_values_look_where_the_cohort_looks() -> None:
    grid = IndexGrid((4, 8, 8))
    assert torch.equal(PickedValues(grid, 3, 2, 2, seed=4).codes(), CohortIndexSets(grid, 3, 2, 2, seed=4).codes())


@pytest.mark.parametrize("kind", ["picked_values", "random_voxels"])
def test_in_the_network(kind: str) -> None:
    """Dense images, patches and lazy scans agree; a checkpoint with other draws loads."""
    network, image = small_network(index_sets=kind, draws=2), images(3)
    assert network.shared_voxels
    network.basis.fit(network.decompose(images(6, seed=1)))
    expected = network(image)
    torch.testing.assert_close(network(lazy(image)), expected, rtol=1e-4, atol=1e-5)
    patches = network.source(image).patches(network.voxels())
    torch.testing.assert_close(network(patches), expected, rtol=1e-4, atol=1e-5)
    other = small_network(index_sets=kind, seed=5)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(image), expected, rtol=1e-4, atol=1e-5)
    assert len(network.looked_at(image)[0]) == len(network.voxels())


def test_gradients_reach_the_encoder() -> None:
    network = small_network(index_sets="random_voxels")
    network.decompose(images(2))[0].full().square().sum().backward()
    assert all(bool(p.grad.any()) for p in network.encoder.parameters() if p.grad is not None)


def test_refusals() -> None:
    grid = IndexGrid((4, 8, 8))
    with pytest.raises(ValueError, match="sample them again"):
        RandomVoxels(grid, 3, 2).decompose(torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="'none' is none of"):
        make_index_sets("none", grid, 3, 2)
    with pytest.raises(ValueError, match="at least 1"):
        RandomVoxels(grid, 0, 2)
    assert {type(make_index_sets(kind, grid, 3, 2)).__name__ for kind in INDEX_SETS} == {
        "CohortIndexSets", "ScanIndexSets", "EveryVoxel", "PickedValues", "RandomVoxels", "TangentIndexSets"
    }  # fmt: skip


def test_voxels_stay_where_loader_workers_can_read_them() -> None:
    network = small_network(index_sets="random_voxels").to("meta")
    assert network.indices.codes().device.type == "cpu"
    assert next(network.encoder.parameters()).device.type == "meta"
