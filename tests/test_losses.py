"""Pinball loss against values worked out by hand, and the shapes it refuses."""

from __future__ import annotations

import pytest
import torch

from cpic_monai.losses import PinballLoss, QuantileShapeError

PRED = torch.tensor([[1.0, 2.0, 3.0], [10.0, 10.0, 10.0]])
TARGET = torch.tensor([[4.0], [8.0]])
# Row 1: errors 3, 2, 1 -> 0.2 * 3, 0.5 * 2, 0.8 * 1.  Row 2: errors -2 -> 0.8 * 2, 0.5 * 2, 0.2 * 2.
VALUES = torch.tensor([[0.6, 1.0, 0.8], [1.6, 1.0, 0.4]])


@pytest.mark.parametrize(
    ("reduction", "expected"), [("none", VALUES), ("mean", torch.tensor(0.9)), ("sum", torch.tensor(5.4))]
)
def test_values_by_hand(reduction: str, expected: torch.Tensor) -> None:
    torch.testing.assert_close(PinballLoss(reduction=reduction)(PRED, TARGET), expected)


def test_a_flat_target_is_a_column() -> None:
    loss = PinballLoss(reduction="none")
    torch.testing.assert_close(loss(PRED, TARGET[:, 0]), VALUES)


def test_target_dtype_follows_the_prediction() -> None:
    value = PinballLoss()(PRED, TARGET.double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.tensor(0.9))


def test_gradient_is_the_level_below_and_the_level_minus_one_above() -> None:
    pred = PRED.clone().requires_grad_()
    PinballLoss(reduction="sum")(pred, TARGET).backward()
    assert pred.grad is not None
    torch.testing.assert_close(pred.grad, torch.tensor([[-0.2, -0.5, -0.8], [0.8, 0.5, 0.2]]))


def test_minimiser_is_the_sample_quantile() -> None:
    sample = torch.arange(1.0, 102.0)  # quantile q of 1..101 is 1 + 100 q
    loss = PinballLoss((0.1, 0.75))
    grid = torch.arange(1.0, 102.0)
    costs = [[float(loss(torch.tensor([[a, 51.0]]).expand(101, 2), sample)) for a in grid]]
    costs.append([float(loss(torch.tensor([[51.0, b]]).expand(101, 2), sample)) for b in grid])
    assert [float(grid[int(torch.tensor(c).argmin())]) for c in costs] == [11.0, 76.0]


@pytest.mark.parametrize(
    ("pred", "target", "found"),
    [
        ((4, 2), (4, 1), r"pred has shape \(4, 2\), expected \(rows, 3\)"),
        ((4,), (4, 1), r"pred has shape \(4,\)"),
        ((4, 3), (5, 1), r"target has shape \(5, 1\)"),
        ((4, 3), (1, 1), r"target has shape \(1, 1\)"),
        ((4, 3), (1, 4), r"target has shape \(1, 4\)"),
        ((4, 3), (4, 3), r"target has shape \(4, 3\)"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(pred: tuple, target: tuple, found: str) -> None:
    with pytest.raises(QuantileShapeError, match=found):
        PinballLoss()(torch.zeros(pred), torch.zeros(target))


@pytest.mark.parametrize("quantiles", [(), (0.0, 0.5), (0.5, 1.0), (0.8, 0.5, 0.2), (0.5, 0.5)])
def test_levels_are_checked(quantiles: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="quantiles"):
        PinballLoss(quantiles)


def test_the_loss_brings_nothing_into_a_checkpoint() -> None:
    assert PinballLoss().state_dict() == {}
