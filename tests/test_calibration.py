"""Calibration: what is promised to a new patient holds, off means off, and the factors travel with the checkpoint."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import planted_batch, planted_items
from scans import small_network
from test_export import fitted, noise, predict

from cpic_monai.calibration import ConformalCalibration, patient_quantile, patient_shares, stretched, width_factors
from cpic_monai.export import StaticCPIC
from cpic_monai.handlers import FitBasisAndHead
from cpic_monai.losses import PinballLoss
from cpic_monai.networks import CPICNet, LeaveOneOutRidge, QuantileHead

LEVELS = (0.2, 0.5, 0.8)
SCHEDULE = {"steps": 60, "learning_rate": 1e-2, "ridge_steps": 5}


def cohort(patients: int, visits: int, seed: int, levels: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predictions with half-widths of their own, half as wide as they should be; errors correlate in a patient."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(patients).repeat_interleave(visits)
    median = torch.randn(len(group), 1, generator=generator, dtype=torch.float64)
    scale = 0.2 + torch.rand(len(group), 1, generator=generator, dtype=torch.float64)
    error = torch.randn(patients, 1, generator=generator, dtype=torch.float64)[group]
    error = 0.8 * error + 0.6 * torch.randn(len(group), 1, generator=generator, dtype=torch.float64)
    ends = torch.linspace(-0.42, 0.42, levels, dtype=torch.float64)
    return median + scale * ends, median + scale * error, group


def test_a_patients_visits_share_one_weight() -> None:
    """Weights by hand: three patients, one quarter each, a quarter at infinity."""
    scores = torch.tensor([5.0, 1.0, 2.0, 3.0, 4.0])
    group = torch.tensor([7, 1, 1, 1, 2])
    # In order: 1, 2, 3 have a twelfth each, 4 and 5 a quarter.
    for share, expected in ((0.08, 1.0), (0.1, 2.0), (0.25, 3.0), (0.26, 4.0), (0.5, 4.0), (0.51, 5.0), (0.75, 5.0)):
        assert patient_quantile(scores, group, share) == expected, share
    with pytest.raises(ValueError, match=r"share of 0.76 needs 4 patients .* found 3"):
        patient_quantile(scores, group, 0.76)


@pytest.mark.parametrize("symmetric", [True, False])
def test_new_patients_fall_into_the_interval_as_often_as_promised(symmetric: bool) -> None:
    """Averaged over draws of 19 patients: at least the nominal share, and at most a patient's weight above it."""
    inside, before = [], []
    for seed in range(60):
        widths = width_factors(*cohort(19, 4, seed)[:2], LEVELS, cohort(19, 4, seed)[2], symmetric)
        pred, truth, group = cohort(200, 4, 1000 + seed)
        for quantiles, shares in ((pred, before), (stretched(pred, widths), inside)):
            below = patient_shares(quantiles, truth, group)
            shares.append(below[2] - below[0])
    assert sum(before) / len(before) < 0.4
    rounding = (1 if symmetric else 2) / 20
    assert 0.6 - 0.02 < sum(inside) / len(inside) < 0.6 + rounding + 0.02


def test_each_end_can_have_its_own_factor() -> None:
    """Errors of one sign: the other end comes to the median, and levels need not be symmetric."""
    pred, truth, group = cohort(40, 2, 3)
    truth = pred[:, 1:2] + (truth - pred[:, 1:2]).abs()
    widths = width_factors(pred, truth, (0.1, 0.5, 0.8), group, symmetric=False)
    assert widths[0] == 0
    assert widths[2] > 2
    with pytest.raises(ValueError, match=r"0\.1, 0\.5, 0\.8.*not symmetric.*calibration#symmetric"):
        width_factors(pred, truth, (0.1, 0.5, 0.8), group)


@pytest.mark.parametrize("levels", [(0.1, 0.9), (0.05, 0.1, 0.5), (0.5, 0.9)])
def test_levels_without_the_median_in_the_middle_have_no_factors(levels: tuple[float, ...]) -> None:
    """What is stretched about would keep a share that is not its own."""
    pred, truth, group = cohort(40, 2, 3)
    with pytest.raises(ValueError, match="median in the middle"):
        width_factors(pred[:, : len(levels)], truth, levels, group, symmetric=False)


def test_outer_intervals_hold_inner_ones() -> None:
    pred, truth, group = cohort(60, 3, 5, levels=5)
    levels = (0.1, 0.3, 0.5, 0.7, 0.9)
    widths = width_factors(pred, truth, levels, group)
    after = stretched(pred, widths)
    assert bool((after.diff(dim=1) >= 0).all())
    assert torch.equal(after[:, 2], pred[:, 2]), "the median stays"
    for low, high, share in ((0, 4, 0.8), (1, 3, 0.4)):
        inside = (truth >= after[:, low : low + 1]) & (truth <= after[:, high : high + 1])
        assert float(inside.double().mean()) == pytest.approx(share * 61 / 60, abs=0.01)


def test_the_head_stretches_as_the_arithmetic_says_and_training_does_not_see_it() -> None:
    head = QuantileHead(4, 0, (), (8, 5), quantiles=5).eval()
    features = torch.randn(6, 4)
    plain = head(features).detach()
    head.widths.copy_(torch.tensor([2.0, 0.5, 1.0, 3.0, 0.0]))
    torch.testing.assert_close(head(features), stretched(plain, head.widths))
    torch.testing.assert_close(head.train()(features), plain)
    head.reset_parameters()
    assert torch.equal(head.eval()(features), plain)


def test_older_checkpoints_are_not_calibrated() -> None:
    head = QuantileHead(4, 1)
    state = head.state_dict()
    assert torch.equal(state.pop("widths"), torch.ones(3))
    head.widths.fill_(2.0)
    head.load_state_dict(state)
    assert torch.equal(head.widths, torch.ones(3))
    with pytest.raises(RuntimeError, match="joint"):
        head.load_state_dict({})


def test_an_exported_network_is_calibrated() -> None:
    network = fitted()
    image, tabular = noise(3, seed=4), torch.randn((5, 1), generator=torch.Generator().manual_seed(5))
    plain = predict(network, image, tabular)
    network.head.widths.copy_(torch.tensor([1.7, 1.0, 0.4]))
    expected = predict(network, image, tabular)
    assert float((expected - plain).abs().max()) > 1e-2
    torch.testing.assert_close(predict(StaticCPIC(network), image, tabular), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def trained() -> tuple[CPICNet, list[dict[str, Any]], LeaveOneOutRidge]:
    network = small_network(tabular_hidden=(8, 4), joint_hidden=(16, 8))
    loader = [planted_batch(network, 10, seed=s) for s in (1, 2)]
    ridge = LeaveOneOutRidge()
    FitBasisAndHead(network, loader, PinballLoss(), SCHEDULE, ridge)()
    return network, loader, ridge


def calibration(trained: tuple, path: Path, source: str, **given: Any) -> ConformalCalibration:
    network, train, ridge = trained
    validation = source == "validation"
    loader = [planted_batch(network, 12, seed=9)] if validation else train
    seeds = [(12, 9)] if validation else [(10, 1), (10, 2)]
    items = [item for count, seed in seeds for item in planted_items(count, seed)]
    more = {"loss_function": PinballLoss(), "schedule": SCHEDULE, "ridge": ridge, "parts": 3, **given}
    return ConformalCalibration(network, loader, items, LEVELS, path, {"model": network}, source, **more)


@pytest.mark.parametrize("source", ["validation", "train_leave_one_out"])
def test_factors_go_into_the_checkpoint(source: str, trained: tuple, tmp_path: Path) -> None:
    network = trained[0]
    before = {key: value.clone() for key, value in network.state_dict().items() if key != "basis._extra_state"}
    image = planted_batch(network, 5, seed=30)["image"]
    path, record = tmp_path / "model.pt", tmp_path / "eval" / "calibration.json"
    result = calibration(trained, path, source, record=record)()
    assert json.loads(record.read_text()) == result
    assert result["patients"] == (12 if source == "validation" else 20)
    assert result["visits"] == 2 * result["patients"]
    share = result["below_after"][2] - result["below_after"][0]
    row = 1 / result["visits"]  # the one on the interval's end is in or out by rounding
    assert 0.6 - row <= share <= 0.6 + 2 / result["patients"]
    saved = torch.load(path, weights_only=True)["model"]
    assert saved["head.widths"].tolist() == pytest.approx(result["widths"])
    assert saved["head.widths"][1] == 1
    assert saved["head.widths"][0] == saved["head.widths"][2] != 1
    for key, value in before.items():
        if key != "head.widths" and isinstance(value, torch.Tensor):
            assert torch.equal(value, saved[key]), f"{key} is not calibration's to change"
    calibrated = network(image)
    network.head.reset_parameters()
    torch.testing.assert_close(calibrated, stretched(network(image), saved["head.widths"]))
    assert calibration(trained, path, source)() == result, "calibrating again starts from the raw quantiles"


def test_left_out_scores_are_honest(tmp_path: Path) -> None:
    """Outcomes that no scan tells, learned by heart: without the scan the residuals are wide."""
    network = small_network(tabular_hidden=(8, 4), joint_hidden=(32, 16))
    loader = [planted_batch(network, 10, seed=s) for s in (1, 2)]
    noise_of = torch.Generator().manual_seed(4)
    for batch in loader:
        batch["label"] = torch.randn(10, 1, generator=noise_of)[batch["scan_index"]]
    ridge = LeaveOneOutRidge(penalty=0.01, scan_weight=10.0)
    schedule = {"steps": 200, "learning_rate": 1e-2, "ridge_steps": 0, "jitter": 0.0}
    FitBasisAndHead(network, loader, PinballLoss(), schedule, ridge)()
    given = (network, loader, ridge)
    left_out = calibration(given, tmp_path / "a.pt", "train_leave_one_out", schedule=schedule)()
    after = left_out["below_after"]
    assert left_out["widths"][0] > 2, "the head was sure of what it had seen, and is told otherwise"
    assert 0.55 < after[2] - after[0] < 0.75


def test_what_cannot_be_calibrated_is_refused(trained: tuple, tmp_path: Path, caplog) -> None:
    network, loader, _ = trained
    path, items = tmp_path / "model.pt", planted_items(1, 0)
    with pytest.raises(ValueError, match=r"validation source has 1 patients.*need 2.*validation_fraction"):
        ConformalCalibration(network, loader, items, LEVELS, path, {})
    with pytest.raises(ValueError, match="'test'; choose one of validation, train_leave_one_out"):
        calibration(trained, path, "test")
    with pytest.raises(ValueError, match="recipe closed_form"):
        calibration(trained, path, "train_leave_one_out", ridge=None)
    with pytest.raises(ValueError, match="loader gave 20 scans, `items` names the patients of 3"):
        ConformalCalibration(network, loader, planted_items(3, 0), LEVELS, path, {})()
    caplog.set_level(logging.WARNING)
    ConformalCalibration(network, loader, planted_items(5, 0), LEVELS, path, {})
    assert "calibration on 5 patients (validation): the factors are noisy" in caplog.text
