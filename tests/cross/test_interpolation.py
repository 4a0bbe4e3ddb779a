"""Gradients, masks and faults of the cross-interpolation."""

from __future__ import annotations

import pytest
import torch
from random_trains import evaluator, random_train
from torch import Tensor

from cpic_monai.cross import CrossPlan, Ridge, half_sweep, interpolate, interpolate_plan, make_plan, suffix_sets
from cpic_monai.grid import UNFOLDINGS, IndexGrid
from cpic_monai.tensor_train import TensorTrain

GRID = IndexGrid((4, 2, 2))


def plan_and_values(grid: IndexGrid, true_rank: int, rank: int, groups: int = 1) -> tuple[CrossPlan, Tensor]:
    train = random_train(grid.mode_sizes, true_rank, 2, batch=2, seed=3)
    if groups == 1 and true_rank < rank:
        # Scans of one row space, so that a pivot dead for one is dead for both.
        train = TensorTrain(
            (
                train.cores[0][:1] * torch.tensor([1.0, 2.0])[:, None, None, None],
                *(core[[0, 0]] for core in train.cores[1:]),
            )
        )
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randint(0, 16, (groups, 3), generator=generator)
    suffixes = suffix_sets(grid, seeds, rank, 2, generator)
    _, indices = half_sweep(evaluator(train, grid), grid, suffixes, rank, joint=groups == 1)
    plan = make_plan(grid, indices)
    return plan, evaluator(train, grid)(plan.codes)


@pytest.mark.parametrize("groups", [1, 2], ids=["joint", "per-scan"])
@pytest.mark.parametrize(("true_rank", "rank"), [(3, 2), (1, 3)], ids=["all-alive", "dead-pivots"])
@pytest.mark.parametrize("unfolding", UNFOLDINGS)
def test_gradcheck_with_frozen_pivots(unfolding: str, true_rank: int, rank: int, groups: int) -> None:
    plan, values = plan_and_values(IndexGrid((4, 2, 2), unfolding), true_rank, rank, groups)
    dead = any(not bool(alive.all()) for alive in plan.alive)
    assert dead == (true_rank < rank)
    quick = unfolding != "interleaved"  # one random direction instead of every entry
    assert torch.autograd.gradcheck(
        lambda v: interpolate_plan(v, plan).full(), values.requires_grad_(), fast_mode=quick
    )


def test_a_dead_pivot_has_no_part_in_value_or_gradient() -> None:
    matrix = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    rows, alive = torch.tensor([[0, 3]]), torch.tensor([[True, False]])
    out = interpolate(matrix, rows, alive, Ridge())
    assert not out[..., 1].any()
    (grad,) = torch.autograd.grad(out[:, 1].sum(), matrix)
    assert not grad[:, [2, 3, 4]].any()
    assert grad[:, [0, 1]].any()


def test_least_squares_by_hand() -> None:
    # Rows (2, 0) and (1, 1) by the pivot (1, 0): coefficients 2 and 1, whatever is orthogonal to the pivot.
    matrix = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    out = interpolate(matrix, torch.tensor([0]), torch.tensor([True]), Ridge(1e-14, 0.0, 2))
    torch.testing.assert_close(out, torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("level", [0.0, 1e-9, 1e-3, 1.0])
def test_constant_values_have_small_gradients(level: float) -> None:
    """The background: a plain inverse of the cross matrix has gradients of 1e6 to 1e18 here."""
    plan, values = plan_and_values(GRID, 3, 3)
    leaf = torch.full_like(values, level).requires_grad_()
    train = interpolate_plan(leaf, plan)
    assert torch.isfinite(train.full()).all()
    loss = train.full().square().sum()
    (grad,) = torch.autograd.grad(loss, leaf)
    assert torch.isfinite(grad).all()
    assert float(grad.abs().max()) <= 2 * 32 * level + 1e-12  # exact: d(sum v^2) spread over its 32 entries


def test_floor_bounds_the_coefficients_of_an_empty_scan() -> None:
    matrix = torch.zeros(1, 4, 3, dtype=torch.float64, requires_grad=True)
    out = interpolate(matrix, torch.tensor([[0]]), torch.tensor([[True]]), Ridge())
    (grad,) = torch.autograd.grad(out.sum(), matrix)
    assert not out.any()
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_raise_a_typed_error(bad: float) -> None:
    plan, values = plan_and_values(GRID, 3, 2)
    values[1] = bad
    with pytest.raises(torch.linalg.LinAlgError, match="NaN or infinite"):
        interpolate_plan(values, plan)
    train = random_train(GRID.mode_sizes, 2)
    suffixes = suffix_sets(GRID, torch.tensor([[1, 2]]), 2, 1)
    with pytest.raises(torch.linalg.LinAlgError, match="NaN or infinite"):
        half_sweep(lambda codes: evaluator(train, GRID)(codes) * bad, GRID, suffixes, 2, joint=True)


def test_one_value_that_is_not_finite_never_turns_into_numbers() -> None:
    """At a pivot it raises; elsewhere it stays visible in the train."""
    plan, values = plan_and_values(GRID, 3, 2)
    raised = 0
    for place in range(values.shape[1]):
        spoilt = values.clone()
        spoilt[0, place, 0] = float("nan")
        try:
            dense = interpolate_plan(spoilt, plan).full()
        except torch.linalg.LinAlgError:
            raised += 1
            continue
        assert torch.isnan(dense[0]).any(), f"value {place} of {values.shape[1]} was swallowed"
        assert torch.isfinite(dense[1]).all(), "the other scan is not touched"
    assert raised
