"""Suffix sets, their sizes, plans, and what is refused."""

from __future__ import annotations

import pytest
import torch
from random_trains import evaluator, random_train

from cpic_monai.cross import CrossIndices, half_sweep, left_sizes, make_plan, right_sizes, suffix_sets
from cpic_monai.grid import UNFOLDINGS, IndexGrid

unfoldings = pytest.mark.parametrize("unfolding", UNFOLDINGS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_sizes_by_hand() -> None:
    grid = IndexGrid((4, 4), "interleaved")  # modes of 2, 2, 2, 2
    assert left_sizes(grid, 3) == (2, 3, 3)
    assert right_sizes(grid, 3, 1) == (3, 3, 2)
    # With 4 channels, 8, 4 and 2 suffixes are there; half of them do: 4 (at most 3), 2, 1.
    assert right_sizes(grid, 3, 4) == (3, 2, 1)


@pytest.mark.parametrize("channels", [1, 4])
@unfoldings
def test_suffix_sets_are_nested_distinct_and_of_the_stated_sizes(unfolding: str, channels: int) -> None:
    grid = IndexGrid((8, 5, 6), unfolding)
    codes = grid.encode(torch.randint(0, 5, (3, 7, 3), generator=generator()))
    sets = suffix_sets(grid, codes, 6, channels, generator())
    assert tuple(s.shape[1] for s in sets) == right_sizes(grid, 6, channels)
    below = {0}
    for k in range(len(sets) - 1, -1, -1):
        for g in range(3):
            chosen = sets[k][g].tolist()
            assert len(set(chosen)) == len(chosen)
            below = set(sets[k + 1][g].tolist()) if k + 1 < len(sets) else {0}
            possible = {int(digit) + suffix for digit in grid.modes[k + 1] for suffix in below}
            assert set(chosen) <= possible


def test_suffixes_of_the_seeds_come_first() -> None:
    grid = IndexGrid((8, 8, 8), "interleaved")
    codes = grid.encode(torch.tensor([[[3, 5, 6], [0, 7, 1]]]))
    sets = suffix_sets(grid, codes, 4, 1, generator())
    digits = grid.digits(codes)
    for k, suffixes in enumerate(sets):
        for seed in range(2):
            tail = sum(int(grid.modes[m][digits[0, seed, m]]) for m in range(k + 1, len(grid.modes)))
            assert tail in suffixes[0].tolist()


def test_same_generator_same_sets() -> None:
    grid, codes = IndexGrid((8, 8, 8)), torch.tensor([[3, 77]])
    first, again = (suffix_sets(grid, codes, 5, 2, generator(4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = suffix_sets(grid, codes, 5, 2, generator(5))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seeds", [torch.zeros(3, dtype=torch.int64), torch.zeros((2, 0), dtype=torch.int64)])
def test_seeds_of_a_wrong_shape_are_refused(seeds: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="seed voxels"):
        suffix_sets(IndexGrid((4, 4)), seeds, 2, 1)


def sets_of(grid: IndexGrid, rank: int = 3) -> CrossIndices:
    train = random_train(grid.mode_sizes, rank)
    suffixes = suffix_sets(grid, torch.tensor([[0, 5, 9]]), rank, 1, generator())
    return half_sweep(evaluator(train, grid), grid, suffixes, rank, joint=True)[1]


@unfoldings
def test_a_plan_lists_every_voxel_once(unfolding: str) -> None:
    grid = IndexGrid((4, 8, 3), unfolding)
    indices = sets_of(grid)
    plan = make_plan(grid, indices)
    codes = plan.codes[0].tolist()
    assert len(set(codes)) == len(codes)
    for k, gather in enumerate(plan.gather):
        left = indices.left[k - 1][0] if k else torch.zeros(1, dtype=torch.int64)
        right = indices.right[k][0] if k < len(indices.right) else torch.zeros(1, dtype=torch.int64)
        expected = left[:, None, None] + grid.modes[k][None, :, None] + right[None, None, :]
        assert torch.equal(plan.codes[0][gather[0]], expected), f"mode {k}"


@pytest.mark.parametrize("side", ["left", "right"])
def test_sets_that_are_not_nested_are_refused(side: str) -> None:
    grid = IndexGrid((4, 4, 4))
    indices = sets_of(grid)
    left, right = list(indices.left), list(indices.right)
    sets, bond = (left, 2) if side == "left" else (right, 1)
    # A code of an axis bit that belongs to the other side of the bond can never be there.
    sets[bond] = sets[bond].clone()
    sets[bond][0, 0] += int(grid.modes[-1][1] if side == "left" else grid.modes[0][1])
    with pytest.raises(ValueError, match="not nested"):
        make_plan(grid, CrossIndices(tuple(left), tuple(right), indices.alive))
