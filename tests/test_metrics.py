"""Metrics against values worked out by hand, alone, over batches, and inside MONAI engines."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine

from cpic_monai.losses import QuantileShapeError
from cpic_monai.metrics import (
    R2,
    IntervalCoverage,
    MeanAbsoluteError,
    ModifiedLaplaceLogLikelihood,
    PinballMetric,
    QuantileMetric,
    RootMeanSquaredError,
    quantile_columns,
    summarise,
)

# Three rows: a narrow interval (sigma clipped to 70), a wide one (sigma 200), a miss beyond 1000 (error clipped).
PRED = torch.tensor([[2490.0, 2500.0, 2510.0], [1900.0, 2000.0, 2100.0], [2900.0, 3000.0, 3100.0]])
TRUTH = torch.tensor([[2505.0], [2100.0], [1000.0]])
ROOT2 = math.sqrt(2.0)
MLLL_ROWS = [
    -ROOT2 * 5 / 70 - math.log(ROOT2 * 70),
    -ROOT2 * 100 / 200 - math.log(ROOT2 * 200),
    -ROOT2 * 1000 / 200 - math.log(ROOT2 * 200),
]
MEAN = (2505 + 2100 + 1000) / 3
EXPECTED = {
    "mlll": sum(MLLL_ROWS) / 3,
    "rmse": math.sqrt((25 + 10_000 + 4_000_000) / 3),
    "mae": (5 + 100 + 2000) / 3,
    # per row, levels 0.2, 0.5, 0.8: errors (15, 5, -5), (200, 100, 0), (-1900, -2000, -2100)
    "pinball": ((3 + 2.5 + 1) + (40 + 50 + 0) + (1520 + 1000 + 420)) / 9,
    "coverage": 2 / 3,  # 2505 inside; 2100 on the upper end counts; 1000 outside
    "r2": 1 - 4_010_025 / sum((y - MEAN) ** 2 for y in (2505, 2100, 1000)),
}
METRICS: dict[str, type[QuantileMetric]] = {
    "mlll": ModifiedLaplaceLogLikelihood,
    "rmse": RootMeanSquaredError,
    "mae": MeanAbsoluteError,
    "pinball": PinballMetric,
    "coverage": IntervalCoverage,
    "r2": R2,
}


def frame(pred: torch.Tensor = PRED, truth: torch.Tensor = TRUTH) -> pd.DataFrame:
    table = pd.DataFrame(pred.numpy(), columns=["q0.2", "q0.5", "q0.8"])
    return table.assign(truth=truth.numpy())


@pytest.mark.parametrize("name", METRICS)
def test_values_by_hand(name: str) -> None:
    metric = METRICS[name]()
    rows = metric(PRED, TRUTH)
    assert isinstance(rows, torch.Tensor)
    assert rows.shape == (3, 2 if name == "r2" else 1)
    assert rows.dtype == torch.float64
    assert metric.aggregate().item() == pytest.approx(EXPECTED[name], rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_batches_of_any_size_and_lists_of_rows_give_the_same(name: str) -> None:
    metric = METRICS[name]()
    metric(PRED[:1], TRUTH[:1, 0])  # a flat target
    metric([PRED[1], PRED[2]], [TRUTH[1], TRUTH[2]])  # decollated
    assert metric.aggregate().item() == pytest.approx(EXPECTED[name], rel=1e-12)
    metric.reset()
    with pytest.raises(ValueError, match="no rows to aggregate"):
        metric.aggregate()


def test_mlll_rows_and_the_best_possible_score() -> None:
    metric = ModifiedLaplaceLogLikelihood()
    np.testing.assert_allclose(metric(PRED, TRUTH)[:, 0].numpy(), MLLL_ROWS, rtol=1e-12)
    metric.reset()
    metric(torch.full((4, 3), 2000.0), torch.full((4, 1), 2000.0))
    assert metric.aggregate().item() == pytest.approx(-math.log(70 * ROOT2))  # -4.595, OSIC's optimum


def test_crossed_quantiles_take_the_smallest_sigma_and_cover_nothing() -> None:
    crossed = torch.tensor([[2100.0, 2000.0, 1900.0]])
    truth = torch.tensor([[2000.0]])
    mlll, coverage = ModifiedLaplaceLogLikelihood(), IntervalCoverage()
    assert mlll(crossed, truth).item() == pytest.approx(-math.log(70 * ROOT2))
    assert coverage(crossed, truth).item() == 0.0


def test_clips_are_arguments() -> None:
    metric = ModifiedLaplaceLogLikelihood(sigma_min=2.0, error_max=10.0)
    metric(torch.tensor([[40.0, 40.5, 41.0]]), torch.tensor([[80.0]]))
    assert metric.aggregate().item() == pytest.approx(-ROOT2 * 10 / 2 - math.log(ROOT2 * 2))
    with pytest.raises(ValueError, match="must be positive"):
        ModifiedLaplaceLogLikelihood(sigma_min=0.0)


def test_columns_are_found_by_level() -> None:
    levels = (0.05, 0.2, 0.5, 0.8, 0.95)
    wide = torch.cat([PRED[:, :1] - 1e3, PRED, PRED[:, 2:] + 1e3], dim=1)
    for name in ("mlll", "rmse", "mae", "coverage", "r2"):
        metric = METRICS[name](quantiles=levels)
        metric(wide, TRUTH)
        assert metric.aggregate().item() == pytest.approx(EXPECTED[name], rel=1e-12)
    outer = IntervalCoverage(levels, lower=0.05, upper=0.95)
    outer(wide, TRUTH)
    assert outer.aggregate().item() == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"needs the quantile 0\.2, but the predicted levels are \[0\.5\]"):
        IntervalCoverage((0.5,))
    with pytest.raises(ValueError, match="below its upper"):
        IntervalCoverage(lower=0.8, upper=0.2)


def test_rmse_is_not_the_mean_absolute_error() -> None:
    """MONAI's RMSEMetric gives 5 here (root of each sample, then mean)."""
    metric = RootMeanSquaredError((0.5,))
    metric(torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [7.0]]))
    metric(torch.tensor([[0.0]]), torch.tensor([[7.0]]))
    assert metric.aggregate().item() == pytest.approx(math.sqrt(99 / 3))


def test_r2_landmarks() -> None:
    truth = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    for pred, expected in ((truth, 1.0), (torch.full((4, 1), 3.0), 0.0)):
        metric = R2((0.5,))
        metric(pred, truth)
        assert metric.aggregate().item() == pytest.approx(expected, abs=1e-12)
    single = R2((0.5,))
    single(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    assert math.isnan(single.aggregate().item())


@pytest.mark.parametrize("name", METRICS)
def test_what_is_refused(name: str) -> None:
    metric = METRICS[name]()
    spoilt = PRED.clone()
    spoilt[0, 1], spoilt[2, 2] = math.nan, math.inf
    with pytest.raises(ValueError, match="2 of 9 predictions are not finite"):
        metric(spoilt, TRUTH)
    missing = TRUTH.clone()
    missing[1] = math.nan
    with pytest.raises(ValueError, match="1 of 3 true values are not finite"):
        metric(PRED, missing)
    with pytest.raises(QuantileShapeError, match="expected target"):
        metric(PRED, TRUTH[:2])
    with pytest.raises(ValueError, match="needs the true values"):
        metric(PRED)
    with pytest.raises(ValueError, match="without rows"):
        metric(PRED[:0], TRUTH[:0])
    assert len(metric) == 0  # nothing of a refused batch stays behind


class _Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def evaluate(batches: list[dict[str, torch.Tensor]], *, epochs: int = 1) -> dict[str, float]:
    """Run a real evaluator over ready-made batches whose "image" is the prediction."""
    handlers = {
        name: IgniteMetricHandler(metric_fn=metric(), output_transform=from_engine(["pred", "label"]))
        for name, metric in METRICS.items()
    }
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=_Identity(),
        key_val_metric={"mlll": handlers.pop("mlll")},
        additional_metrics=handlers,
        decollate=False,
    )
    for _ in range(epochs):
        evaluator.run()
    assert evaluator.state.metric_details["mlll"].shape == (sum(len(b["label"]) for b in batches), 1)
    return evaluator.state.metrics


def test_inside_an_engine_over_uneven_batches_and_epochs() -> None:
    batches = [{"image": PRED[:1], "label": TRUTH[:1]}, {"image": MetaTensor(PRED[1:]), "label": MetaTensor(TRUTH[1:])}]
    once = evaluate(batches)
    assert set(once) == set(METRICS)
    for name, value in once.items():
        assert value == pytest.approx(EXPECTED[name], rel=1e-12), name
    assert evaluate(batches, epochs=3) == once  # reset between epochs: rows would weigh the same, but their count not


def test_reset_between_epochs_of_different_data() -> None:
    handler = IgniteMetricHandler(metric_fn=RootMeanSquaredError(), output_transform=from_engine(["pred", "label"]))
    batches = [{"image": PRED, "label": TRUTH}]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=batches, network=_Identity(), key_val_metric={"rmse": handler},
        decollate=False, metric_cmp_fn=lambda current, best: current < best,
    )  # fmt: skip
    evaluator.run()
    assert evaluator.state.metrics["rmse"] == pytest.approx(EXPECTED["rmse"])
    batches[0] = {"image": PRED[:2], "label": TRUTH[:2]}
    evaluator.run()
    assert evaluator.state.metrics["rmse"] == pytest.approx(math.sqrt(10_025 / 2))


def test_engine_and_table_agree_exactly() -> None:
    generator = torch.Generator().manual_seed(3)
    median = 2500 + 600 * torch.randn(37, 1, generator=generator)
    pred = median + torch.tensor([[-120.0, 0.0, 140.0]]) * (0.5 + torch.rand(37, 1, generator=generator))
    truth = median + 180 * torch.randn(37, 1, generator=generator)
    batches = [{"image": pred[a:b], "label": truth[a:b]} for a, b in ((0, 1), (1, 17), (17, 37))]
    table = summarise(frame(pred, truth))
    assert table.pop("n") == 37
    assert evaluate(batches) == pytest.approx(table, rel=1e-12)


def test_summarise_by_hand_and_without_truth() -> None:
    result = summarise(frame())
    assert result.pop("n") == 3
    assert result == pytest.approx(EXPECTED, rel=1e-12)

    missing = pd.concat([frame(), frame().assign(truth=np.nan)], ignore_index=True)
    with pytest.raises(ValueError, match="3 of 6 rows have no truth"):
        summarise(missing)
    assert summarise(missing, missing_truth="omit") == pytest.approx(EXPECTED | {"n": 3}, rel=1e-12)

    empty = summarise(frame().assign(truth=np.nan), missing_truth="omit")
    assert empty.pop("n") == 0
    assert set(empty) == set(EXPECTED)
    assert all(math.isnan(value) for value in empty.values())
    with pytest.raises(ValueError, match="missing_truth must be"):
        summarise(frame(), missing_truth="skip")  # type: ignore[arg-type]


def test_summarise_with_the_median_alone() -> None:
    result = summarise(frame()[["q0.5", "truth"]])
    assert result["mae"] == pytest.approx(EXPECTED["mae"])
    assert math.isnan(result["mlll"])
    assert math.isnan(result["coverage"])


def test_quantile_columns() -> None:
    table = pd.DataFrame(columns=["q0.8", "quality", "q0.05", "q2", "truth"])
    assert quantile_columns(table) == {0.05: "q0.05", 0.8: "q0.8"}
    with pytest.raises(ValueError, match="no quantile columns"):
        quantile_columns(table[["truth"]])
