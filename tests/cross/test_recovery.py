"""Cross-approximation of trains of known rank, and how many voxels it looks at."""

from __future__ import annotations

import pytest
import torch
from random_trains import evaluator, random_train
from torch import Tensor

from cpic_monai.cross import Ridge, half_sweep, interpolate_plan, make_plan, suffix_sets
from cpic_monai.grid import UNFOLDINGS, IndexGrid
from cpic_monai.tensor_train import TensorTrain

EXACT = Ridge(relative=1e-14, floor=0.0, refinements=2)
RANK = 4
unfoldings = pytest.mark.parametrize("unfolding", UNFOLDINGS)


def suffixes_of(grid: IndexGrid, groups: int, channels: int, rank: int = RANK) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    voxels = torch.stack([torch.randint(0, n, (groups, rank), generator=generator) for n in grid.shape], dim=-1)
    return suffix_sets(grid, grid.encode(voxels), rank, channels, generator)


def assert_exact(found: TensorTrain, true: TensorTrain) -> None:
    dense, expected = found.full(), true.full()
    error = (dense - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert float(error.max()) < 1e-10


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "per-scan"])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("shape", [(8, 8, 8), (4, 7, 5)], ids=str)
@unfoldings
def test_a_train_of_the_rank_is_recovered_exactly(
    unfolding: str, shape: tuple[int, ...], channels: int, joint: bool
) -> None:
    grid = IndexGrid(shape, unfolding)
    # How exact a cross is depends on the condition of its cross matrices, here on the draw of suffixes: one in some
    # hundred random trains comes out at 1e-9 instead of 1e-13.
    true = random_train(grid.mode_sizes, RANK, channels, batch=3, seed=6)
    suffixes = suffixes_of(grid, 1 if joint else 3, channels)
    seen: list[Tensor] = []
    found, indices = half_sweep(evaluator(true, grid, seen), grid, suffixes, RANK, joint=joint, ridge=EXACT)
    assert_exact(found, true)
    assert max(found.ranks) <= RANK

    codes = torch.cat(seen, dim=1)
    for looked in codes:
        assert len(looked.unique()) == codes.shape[1], "a voxel was evaluated twice in one sweep"

    plan = make_plan(grid, indices)
    assert torch.equal(plan.codes.sort(1).values, codes.sort(1).values)
    planned = interpolate_plan(evaluator(true, grid)(plan.codes), plan, EXACT)
    torch.testing.assert_close(planned.full(), found.full(), rtol=1e-9, atol=1e-9)


@unfoldings
def test_more_rank_than_needed_kills_the_rest(unfolding: str) -> None:
    grid = IndexGrid((8, 8, 8), unfolding)
    true = random_train(grid.mode_sizes, 2, seed=6)
    found, indices = half_sweep(evaluator(true, grid), grid, suffixes_of(grid, 1, 1, 6), 6, joint=True, ridge=EXACT)
    assert_exact(found, true)
    assert all(int(alive.sum()) == 2 for alive in indices.alive)
    plan = make_plan(grid, indices)
    assert_exact(interpolate_plan(evaluator(true, grid)(plan.codes), plan, EXACT), true)


def test_values_at_pivots_are_interpolated() -> None:
    """Of a full-rank tensor the cross reproduces at least the chosen rows (one bond: the pivot rows themselves)."""
    dense = torch.randn(1, 6, 7, 2, dtype=torch.float64)
    grid = IndexGrid((6, 7), "tt")

    def evaluate(codes: Tensor) -> Tensor:
        return dense.reshape(1, -1, 2)[:, codes[0]]

    found, indices = half_sweep(evaluate, grid, suffixes_of(grid, 1, 2, 3), 3, joint=True, ridge=EXACT)
    rows = indices.left[0][0] // 7
    torch.testing.assert_close(found.full()[:, rows], dense[:, rows], rtol=1e-9, atol=1e-9)


def test_default_ridge_is_accurate() -> None:
    grid = IndexGrid((8, 8, 8))
    true = random_train(grid.mode_sizes, RANK, 4, seed=5)
    found, _ = half_sweep(evaluator(true, grid), grid, suffixes_of(grid, 1, 4), RANK, joint=True)
    error = (found.full() - true.full()).norm() / true.full().norm()
    assert float(error) < 1e-6


def test_batch_equals_scan_by_scan() -> None:
    grid = IndexGrid((8, 8, 4))
    noisy = random_train(grid.mode_sizes, 7, 2, batch=4, seed=7)  # of more rank than is asked for
    suffixes = suffixes_of(grid, 4, 2)
    together, indices = half_sweep(evaluator(noisy, grid), grid, suffixes, RANK, joint=False)
    for scan in range(4):
        own = tuple(s[scan : scan + 1] for s in suffixes)
        alone, sets = half_sweep(evaluator(noisy[scan], grid), grid, own, RANK, joint=False)
        assert all(torch.equal(a[scan], b[0]) for a, b in zip(indices.left, sets.left, strict=True))
        torch.testing.assert_close(together[scan].full(), alone.full(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("unfolding", "count"), [("interleaved", 1630), ("fused", 3280)])
def test_number_of_evaluations_of_a_ct_scan(unfolding: str, count: int) -> None:
    """Design: at most 1,700 interleaved and 3,300 fused at 32x512x512, rank 10, 16 channels."""
    grid = IndexGrid((32, 512, 512), unfolding)
    waves = torch.randn(3, 16, dtype=torch.float64)
    seen: list[Tensor] = []

    def evaluate(codes: Tensor) -> Tensor:
        seen.append(codes)
        return torch.sin(grid.decode(codes).double() @ waves)

    _, indices = half_sweep(evaluate, grid, suffixes_of(grid, 1, 16, 10), 10, joint=True)
    codes = torch.cat(seen, dim=1)[0]
    assert len(codes) == len(codes.unique()) == count
    assert make_plan(grid, indices).codes.shape == (1, count)


def test_pivots_and_suffixes_must_agree() -> None:
    grid = IndexGrid((4, 4, 4))
    train = random_train(grid.mode_sizes, 2, batch=2)
    with pytest.raises(ValueError, match="found sets for 2 scans"):
        half_sweep(evaluator(train, grid), grid, suffixes_of(grid, 2, 1), 2, joint=True)
    with pytest.raises(ValueError, match="per-scan suffixes"):
        half_sweep(evaluator(train, grid), grid, suffixes_of(grid, 1, 1), 2, joint=False)


@unfoldings
def test_a_scan_of_one_voxel(unfolding: str) -> None:
    grid = IndexGrid((1, 1, 1), unfolding)
    suffixes = suffix_sets(grid, torch.tensor([[0]]), 3, 2)
    found, indices = half_sweep(lambda codes: torch.full((1, codes.shape[1], 2), 0.25), grid, suffixes, 3, joint=True)
    torch.testing.assert_close(found.full().flatten(), torch.tensor([0.25, 0.25]).double(), rtol=1e-6, atol=0)
    assert make_plan(grid, indices).codes.tolist() == [[0]]
