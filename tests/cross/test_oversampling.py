"""Index sets larger than the rank, truncation with finite gradients, and alternating sweeps."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from random_trains import evaluator, random_train
from torch import Tensor

from cpic_monai.cross import Ridge, half_sweep, left_sizes, right_sizes, suffix_sets
from cpic_monai.cross.bank import CohortIndexSets, ScanIndexSets, held_out
from cpic_monai.cross.index_sets import oversampled
from cpic_monai.cross.sweep import alternate
from cpic_monai.grid import UNFOLDINGS, IndexGrid
from cpic_monai.tensor_train import TensorTrain, round_train, truncate_train, tt_svd

EXACT = Ridge(relative=1e-14, floor=0.0, refinements=2)
GRID = IndexGrid((8, 8, 8))


def noisy(channels: int, noise: float, batch: int = 3, grid: IndexGrid = GRID) -> Tensor:
    """Trains of rank 3 plus white noise, ``(B, n_1, ..., n_K, C)`` of unit norm each."""
    dense = random_train(grid.mode_sizes, 3, channels, batch, seed=4).full()
    dense = dense / dense.flatten(1).norm(dim=1).reshape(-1, *[1] * (dense.ndim - 1))
    white = torch.randn(dense.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return dense + noise * white / white[0].numel() ** 0.5


def entries(dense: Tensor, grid: IndexGrid = GRID):
    flat = grid.fold(dense).flatten(1, -2)

    def evaluate(codes: Tensor) -> Tensor:
        if codes.shape[0] == 1:
            return flat[:, codes[0]]
        return flat.gather(1, codes[:, :, None].expand(-1, -1, flat.shape[2]))

    return evaluate


def relative(train: TensorTrain, dense: Tensor) -> float:
    return float(((train.full() - dense).flatten(1).norm(dim=1) / dense.flatten(1).norm(dim=1)).mean())


def errors(dense: Tensor, mode: str, rank: int = 3, draws: int = 6, **settings) -> float:
    """Mean error over draws of seeds."""
    found, channels = [], dense.shape[-1]
    for draw in range(draws):
        generator = torch.Generator().manual_seed(draw)
        seeds = torch.randint(0, 512, (len(dense), rank), generator=generator)
        if mode == "scan":
            (train,), _ = ScanIndexSets(GRID, rank, channels, **settings).sweep(entries(dense), seeds)
        else:
            sets = CohortIndexSets(GRID, rank, channels, **settings)
            sets.select(entries(dense), [seeds[0]], generator)
            (train,) = sets.decompose(entries(dense)(sets.codes()[None]))
        assert max(train.ranks) <= rank
        found.append(relative(train, dense))
    return sum(found) / draws


def test_sizes_by_hand() -> None:
    assert oversampled(10, 16, 1.0) == (10, 10)
    assert oversampled(10, 16, 1.5) == (15, 10)
    assert oversampled(10, 1, 2.0) == (10, 20)
    assert oversampled(10, 7, 2.0) == (10, 20)
    grid = IndexGrid((4, 4))
    assert right_sizes(grid, 3, 4, 6) == (3, 3, 2), "as many as there are, up to the rank, for 6 pivots"
    with pytest.raises(ValueError, match=r"at least 1, found 0.5"):
        oversampled(10, 16, 0.5)


@pytest.mark.parametrize(("oversampling", "count"), [(1.0, 1630), (1.5, 2410), (2.0, 3140)])
def test_number_of_voxels_of_a_ct_scan(oversampling: float, count: int) -> None:
    grid = IndexGrid((32, 512, 512))
    sets = CohortIndexSets(grid, 10, 16, oversampling=oversampling)
    codes = sets.codes()
    assert len(codes) == len(codes.unique()) == count


@pytest.mark.parametrize("mode", ["scan", "cohort"])
@pytest.mark.parametrize("channels", [1, 8])
def test_a_train_of_the_rank_is_still_recovered(mode: str, channels: int) -> None:
    dense = noisy(channels, 0.0)
    assert errors(dense, mode, ridge=EXACT, oversampling=2.0, draws=2) < 1e-8


@pytest.mark.parametrize("mode", ["scan", "cohort"])
@pytest.mark.parametrize("channels", [1, 8])
def test_the_error_falls_with_oversampling_and_nears_tt_svd(mode: str, channels: int) -> None:
    dense = noisy(channels, 0.5)
    best = relative(tt_svd(dense, 3), dense)
    plain, more = (errors(dense, mode, oversampling=o) for o in (1.0, 2.0))
    assert best < more < 0.97 * plain
    assert more < (1.5 if channels > 1 else 2.5) * best


def test_truncation_is_rounding() -> None:
    train = random_train(GRID.mode_sizes, 6, 3, batch=2, seed=1)
    for rank in (1, 3, 6):
        found = truncate_train(train, rank)
        torch.testing.assert_close(found.full(), round_train(train, rank).full(), rtol=1e-9, atol=1e-9)
        assert max(found.ranks) <= rank
    single = random_train((5,), 3, 2)
    assert torch.equal(truncate_train(single, 1).full(), single.full())


@pytest.mark.parametrize("level", [0.0, 1e-9, 1e-3, 1.0])
def test_constant_values_have_small_gradients(level: float) -> None:
    """Where rounding itself, by an SVD of coinciding singular values, has none that are finite."""
    sets = CohortIndexSets(GRID, 3, 8, oversampling=2.0)
    values = torch.full((2, len(sets.codes()), 8), level, dtype=torch.float64, requires_grad=True)
    (train,) = sets.decompose(values)
    loss = train.full().square().sum()
    (grad,) = torch.autograd.grad(loss, values)
    assert torch.isfinite(train.full()).all()
    assert torch.isfinite(grad).all()
    assert float(grad.abs().max()) <= 2 * 512 * level + 1e-12


def test_gradient_of_the_truncated_train_is_that_of_a_projection() -> None:
    """A step along the gradient changes the data inside a fixed subspace: linear in the cores' tensor."""
    train = random_train((2, 3, 2), 4, 2, seed=2)
    leaves = [core.clone().requires_grad_() for core in train.cores]
    weight = torch.randn(truncate_train(train, 2).full().shape, dtype=torch.float64)
    (truncate_train(TensorTrain(tuple(leaves)), 2).full() * weight).sum().backward()
    basis = truncate_train(train, 2).cores[1:]
    right = torch.einsum("brns,bsmc->brnmc", *basis).flatten(2)  # (1, 2, n m c), orthonormal rows
    projector = right.transpose(1, 2) @ right
    again = [core.clone().requires_grad_() for core in train.cores]
    dense = TensorTrain(tuple(again)).full()
    projected = (dense.reshape(1, 2, -1) @ projector).reshape(dense.shape)
    (projected * weight).sum().backward()
    for a, b in zip(leaves, again, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "per-scan"])
@pytest.mark.parametrize("unfolding", UNFOLDINGS)
def test_alternating_never_grows_the_held_out_error(unfolding: str, joint: bool) -> None:
    grid = IndexGrid((8, 8, 8), unfolding)
    dense = noisy(1, 0.3, grid=grid)
    voxels = held_out(grid, torch.Generator().manual_seed(0), 100)
    seeds = torch.randint(0, 512, (1 if joint else 3, 3), generator=torch.Generator().manual_seed(1))
    right = suffix_sets(grid, seeds, 3, 1, torch.Generator().manual_seed(2))
    truth = entries(dense, grid)(voxels[None])
    found = []
    for rounds in (0, 1, 3):
        sets = alternate(entries(dense, grid), grid, right, 3, rounds, voxels, joint=joint)
        assert tuple(s.shape for s in sets) == tuple(s.shape for s in right)
        train, _ = half_sweep(entries(dense, grid), grid, sets, 3, joint=joint)
        wrong = (train.at(grid.digits(voxels)) - truth).square().flatten(1).sum(1) / truth.square().flatten(1).sum(1)
        found.append(wrong.mean(0, keepdim=True) if joint else wrong)
    for fewer, more in pairwise(found):
        assert bool((more <= fewer * (1 + 1e-9)).all())
    assert bool((found[-1] < found[0]).any())


def test_alternation_leaves_a_scan_apart_from_its_batch() -> None:
    dense = noisy(1, 0.3)
    seeds = torch.randint(0, 512, (3, 3), generator=torch.Generator().manual_seed(1))
    sets = ScanIndexSets(GRID, 3, 1, alternations=2)
    (together,), _ = sets.sweep(entries(dense), seeds)
    (alone,), _ = sets.sweep(entries(dense[1:2]), seeds[1:2])
    torch.testing.assert_close(together[1].full(), alone.full(), rtol=1e-9, atol=1e-9)


def test_oversampled_sets_are_saved_and_loaded() -> None:
    sets = CohortIndexSets(GRID, 3, 8, oversampling=2.0, seed=1)
    assert sets.left.shape[2] == 6
    assert max(left_sizes(GRID, 6)) == 6
    other = CohortIndexSets(GRID, 3, 8, oversampling=2.0, seed=2)
    other.load_state_dict(sets.state_dict())
    assert torch.equal(other.codes(), sets.codes())
    with pytest.raises(RuntimeError, match="size mismatch"):
        CohortIndexSets(GRID, 3, 8).load_state_dict(sets.state_dict())


def test_trains_do_not_follow_the_evaluator_of_other_scans() -> None:
    """Oversampled sets chosen on one cohort decompose another of the same train exactly."""
    true = random_train(GRID.mode_sizes, 3, 8, batch=2, seed=9)
    sets = CohortIndexSets(GRID, 3, 8, ridge=EXACT, oversampling=1.5)
    sets.select(evaluator(true[0], GRID), [torch.tensor([1, 100, 300])], torch.Generator().manual_seed(0))
    (train,) = sets.decompose(evaluator(true[0], GRID)(sets.codes()[None]))
    torch.testing.assert_close(train.full(), true[0].full(), rtol=1e-8, atol=1e-8)
