"""The error at held-out voxels: zero for low rank, growing with noise, indifferent to scale."""

from __future__ import annotations

import pytest
import torch
from random_trains import evaluator, random_train
from torch import Tensor

from cpic_monai.cross import Ridge
from cpic_monai.cross.bank import CohortIndexSets
from cpic_monai.cross.held_out import held_out_error
from cpic_monai.grid import IndexGrid

GRID = IndexGrid((8, 8, 8))
RANK, CHANNELS, SCANS = 3, 2, 2
TRUE = random_train(GRID.mode_sizes, RANK, CHANNELS, batch=SCANS, seed=4)


def sets_of(draws: int = 2) -> CohortIndexSets:
    exact = Ridge(relative=1e-14, floor=0.0, refinements=2)
    return CohortIndexSets(GRID, RANK, CHANNELS, draws=draws, seed=1, ridge=exact)


def error(sets: CohortIndexSets, values: Tensor) -> Tensor:
    codes = [plan.codes[0] for plan in sets.plans]
    return held_out_error(sets.decompose(values), sets.split(values), codes, sets.grid)


def planted(sets: CohortIndexSets, noise: float = 0.0) -> Tensor:
    """Values of trains of the sets' rank, plus noise that is the same wherever two draws look at one voxel."""
    full = torch.randn((512, CHANNELS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return evaluator(TRUE, GRID)(sets.codes()[None]) + noise * full[sets.codes()]


@pytest.mark.parametrize("draws", [2, 3])
def test_a_planted_low_rank_encoding_has_no_error_and_noise_has(draws: int) -> None:
    sets = sets_of(draws)
    clean = error(sets, planted(sets))
    assert clean.shape == (SCANS,)
    assert float(clean.max()) < 1e-10
    small, large = error(sets, planted(sets, 1e-4)), error(sets, planted(sets, 3e-2))
    assert (small > 100 * clean).all()
    assert (large > 10 * small).all()


def test_it_is_the_error_at_the_voxels_that_only_the_other_draw_looks_at() -> None:
    sets = sets_of()
    values = planted(sets, 0.1)
    (first, second), (a, b) = sets.decompose(values), (plan.codes[0] for plan in sets.plans)
    known = dict(zip(sets.codes().tolist(), values.unbind(1), strict=True))
    wrong, size = torch.zeros(SCANS).double(), torch.zeros(SCANS).double()
    for train, own, other in ((first, a, b), (second, b, a)):
        full = train.full().reshape(SCANS, *GRID.mode_sizes, CHANNELS)
        for code in set(other.tolist()) - set(own.tolist()):
            guess = full[(slice(None), *GRID.digits(torch.tensor(code)).tolist())]
            wrong += (guess - known[code]).square().sum(1)
            size += known[code].square().sum(1)
    assert len(set(a.tolist()) & set(b.tolist())) > 0, "some voxels are common, and left out"
    torch.testing.assert_close(error(sets, values), wrong / size, rtol=1e-9, atol=0)


def test_a_small_encoding_is_no_better_and_an_empty_scan_has_no_error() -> None:
    sets = sets_of()
    values = planted(sets, 0.1)
    torch.testing.assert_close(error(sets, 1e-4 * values), error(sets, values), rtol=1e-6, atol=0)
    values[0] = 0
    values.requires_grad_()
    found = error(CohortIndexSets(GRID, RANK, CHANNELS, draws=2, seed=1), values)
    assert found[0] == 0
    found.sum().backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_its_gradient_is_that_of_finite_differences() -> None:
    sets = sets_of()
    sets.ridge = Ridge(relative=1e-6)
    values = planted(sets, 0.1)[:1].requires_grad_()
    (gradient,) = torch.autograd.grad(error(sets, values).sum(), values)
    torch.manual_seed(0)
    way = torch.randn_like(values)
    step = 1e-6 * way
    with torch.no_grad():
        slope = (error(sets, values + step) - error(sets, values - step)) / 2e-6
    assert float((gradient * way).sum()) == pytest.approx(float(slope), rel=1e-4)
    # Scaling the encoding changes nothing, so the gradient is orthogonal to it, but for the ridge's floor.
    assert float((gradient * values.detach()).sum().abs()) < 1e-4 * float(gradient.norm() * values.detach().norm())


def test_draws_without_held_out_voxels_are_refused() -> None:
    sets = sets_of()
    values = planted(sets)
    one = sets.split(values)[0]
    (train, _), codes = sets.decompose(values), sets.plans[0].codes[0]
    with pytest.raises(ValueError, match="two draws needed, found 1"):
        held_out_error([train], [one], [codes], GRID)
    with pytest.raises(ValueError, match=f"same {len(codes)} voxels"):
        held_out_error([train] * 2, [one] * 2, [codes] * 2, GRID)
