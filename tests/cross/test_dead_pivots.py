"""A tolerance that masks pivots: fewer voxels are read, and the whole chain gives the same trains."""

from __future__ import annotations

import io

import pytest
import torch
from random_trains import evaluator, random_train
from scans import images, small_network

from cpic_monai.cross import interpolate_plan, make_plan
from cpic_monai.cross.bank import CohortIndexSets
from cpic_monai.cross.dead_pivots import without_dead
from cpic_monai.export import StaticCPIC
from cpic_monai.grid import IndexGrid
from cpic_monai.networks import CPICNet

GRID = IndexGrid((8, 8, 8))
SIMPLE = random_train(GRID.mode_sizes, 2, 3, seed=2)


def selected(rank: int, tol: float, **settings) -> CohortIndexSets:
    sets = CohortIndexSets(GRID, rank, 3, **settings)
    generator = torch.Generator().manual_seed(5)
    seeds = [torch.randint(0, 512, (rank,), generator=generator) for _ in range(2)]
    sets.select(evaluator(SIMPLE, GRID), seeds, generator, tol)
    return sets


@pytest.mark.parametrize("settings", [{}, {"oversampling": 1.5}])
def test_rank_is_an_upper_bound_where_the_encoding_is_simple(settings) -> None:
    sets, all_of_them = selected(6, 1e-4, **settings), selected(6, 0.0, **settings)
    assert int(sets.alive.sum(-1).max()) == 2, "the encoding's own rank"
    assert len(sets.codes()) < 0.6 * len(all_of_them.codes())
    assert len(sets.codes()) == sum(plan.codes.shape[1] for plan in sets.plans)
    for train in sets.decompose(evaluator(SIMPLE, GRID)(sets.codes()[None])):
        torch.testing.assert_close(train.full(), SIMPLE.full(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unfolding", ["interleaved", "fused", "tt"])
def test_voxels_left_out_have_no_part_in_the_train(unfolding: str) -> None:
    """Pivots dropped at random, in the middle of nested sets too: the trains stay those of all voxels."""
    grid = IndexGrid((8, 8, 8), unfolding)
    sets = CohortIndexSets(grid, 4, 2)
    torch.manual_seed(1)
    sets.alive = sets.alive & (torch.rand(sets.alive.shape) < 0.6)
    sets.alive[..., 0] = True
    plan = make_plan(grid, sets.indices(0))
    thin = without_dead(plan)
    kept = torch.isin(plan.codes[0], thin.codes[0])
    assert 0 < int(kept.sum()) == thin.codes.shape[1] < plan.codes.shape[1]
    values = torch.randn(2, plan.codes.shape[1], 2, dtype=torch.float64, requires_grad=True)
    whole = interpolate_plan(values, plan).full()
    torch.testing.assert_close(interpolate_plan(values[:, kept], thin).full(), whole, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(whole.square().sum(), values)
    assert (gradient[:, ~kept] == 0).all(), "nothing that counts is left out"
    assert (gradient[:, kept] != 0).any(-1).any(0).all(), "nothing is read in vain"


def test_a_plan_of_alive_pivots_is_left_as_it_is() -> None:
    sets = CohortIndexSets(GRID, 4, 2)
    plan = make_plan(GRID, sets.indices(0))
    assert without_dead(plan) is plan
    twice = type(plan)(plan.codes.expand(2, -1), plan.gather, plan.rows, plan.alive)
    with pytest.raises(ValueError, match="those of 2 scans"):
        without_dead(twice)


def test_a_tolerance_that_leaves_one_pivot_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`tolerance`.*found 1.5"):
        selected(3, 1.5)


def fitted(tol: float) -> CPICNet:
    torch.manual_seed(0)
    network = small_network(draws=2, rank=5)
    source = network.source(images(5, seed=3))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        seeds = [network.seeds(source, generator).flatten() for _ in range(2)]
        network.indices.select(
            lambda codes: network.encode(source.patches(network.grid.decode(codes[0]))), seeds, generator, tol
        )
        network.basis.fit(network.decompose(images(5, seed=3)))
    return network


def test_basis_checkpoint_and_export_with_masked_pivots() -> None:
    network = fitted(tol=0.7)
    sets = network.indices
    every = sum(make_plan(network.grid, sets.indices(d)).codes.shape[1] for d in range(2))
    assert len(network.voxels()) < every, "the tolerance masks pivots whose voxels are not read"
    image, tabular = images(3, seed=8), torch.randn(3, 1)
    with torch.no_grad():
        expected = network(image, tabular)
        assert torch.isfinite(network.basis(network.decompose(image))).all()
        assert network.basis(network.decompose(image)).std(0).max() > 1e-3
        patches = network.source(image).patches(network.voxels())
        torch.testing.assert_close(network(patches, tabular), expected)
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        file.seek(0)
        other = small_network(draws=1, rank=5)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(image, tabular), expected)
        torch.testing.assert_close(StaticCPIC(network)(image, tabular), expected, rtol=1e-5, atol=1e-5)
