"""TT-SVD: exactness, error bound, gradients."""

from __future__ import annotations

import pytest
import torch
from random_trains import random_train

from cpic_monai.grid import UNFOLDINGS, IndexGrid
from cpic_monai.tensor_train import norm, tt_svd


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("unfolding", UNFOLDINGS)
def test_exact_where_the_rank_suffices(unfolding: str, channels: int) -> None:
    grid = IndexGrid((4, 8, 3), unfolding)
    train = random_train(grid.mode_sizes, 3, channels, batch=2)
    found = tt_svd(train.full(), 3)
    assert max(found.ranks) <= 3
    torch.testing.assert_close(found.full(), train.full(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_error_is_at_most_the_discarded_singular_values(rank: int) -> None:
    dense = torch.randn(2, 4, 3, 2, 5, 2, dtype=torch.float64)
    train = tt_svd(dense, rank)
    error = (train.full() - dense).flatten(1).norm(dim=1)
    for scan in range(2):
        discarded = 0.0
        for rows in (4, 12, 24):
            discarded += float(torch.linalg.svdvals(dense[scan].reshape(rows, -1))[rank:].square().sum())
        assert 0 < float(error[scan]) <= discarded**0.5 * (1 + 1e-12)
    # It is an orthogonal projection: Pythagoras holds.
    torch.testing.assert_close(
        norm(train).square() + error.square(), dense.flatten(1).square().sum(1), rtol=1e-12, atol=0
    )


def test_matrix_case_is_the_best_approximation() -> None:
    matrix = torch.diag(torch.tensor([5.0, 3.0, 2.0, 1.0], dtype=torch.float64))[None, :, :, None]
    error = (tt_svd(matrix, 2).full() - matrix).norm()
    torch.testing.assert_close(error, torch.tensor(5.0, dtype=torch.float64).sqrt())  # 2^2 + 1^2


@pytest.mark.parametrize("dense", [torch.eye(8), torch.zeros(8, 8), torch.ones(8, 8)], ids=["repeated", "zero", "one"])
def test_gradients_are_finite_and_bounded(dense: torch.Tensor) -> None:
    """Repeated singular values make the gradient of an SVD infinite; a fixed subspace projects, so it is at most 1."""
    leaf = dense.double().reshape(1, 2, 4, 8, 1).requires_grad_()
    train = tt_svd(leaf, 2)
    weights = torch.randn(train.full().shape, dtype=torch.float64)
    (grad,) = torch.autograd.grad((train.full() * weights).sum(), leaf)
    assert torch.isfinite(grad).all()
    assert float(grad.norm()) <= float(weights.norm()) * (1 + 1e-12)
    assert float(grad.norm()) > 0


def test_one_mode_and_rank_zero() -> None:
    dense = torch.randn(2, 5, 3)
    assert torch.equal(tt_svd(dense, 2).full(), dense)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        tt_svd(dense, 0)
