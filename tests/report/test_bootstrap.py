"""Intervals over patients: against known draws, direct resampling, and the theory of a mean."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from cpic_monai.metrics import summarise
from cpic_monai.report import predictions_frame
from cpic_monai.report.bootstrap import (
    interval,
    metric_differences,
    metric_draws,
    metric_intervals,
    patient_weights,
)


def cohort(patients: int = 12, seed: int = 0) -> pd.DataFrame:
    """Patients of one to four visits, whose errors have a part that all visits share."""
    generator = np.random.default_rng(seed)
    visits = generator.integers(1, 5, patients)
    subject = np.repeat([f"P{k:02d}" for k in range(patients)], visits)
    shared = np.repeat(generator.normal(0, 100, patients), visits)
    truth = 2000 + shared + generator.normal(0, 20, len(subject))
    return predictions_frame(
        split="test", subject=list(subject), pred=np.tile([1900.0, 2000.0, 2100.0], (len(subject), 1)), truth=truth
    )


def test_every_draw_is_that_of_the_resampled_table() -> None:
    """The weights stand for a table in which a patient drawn twice stands twice, with all visits."""
    frame = cohort()
    names = sorted(frame["subject"].unique())
    draws = metric_draws(frame, draws=5, seed=3)
    assert set(draws) == {"mlll", "rmse", "mae", "r2", "pinball", "coverage"}
    for k, weights in enumerate(patient_weights(len(names), 5, 3)):
        assert weights.sum() == len(names)
        copies = [
            frame[frame["subject"] == name] for name, n in zip(names, weights, strict=True) for _ in range(int(n))
        ]
        expected = summarise(pd.concat(copies, ignore_index=True))
        for name, values in draws.items():
            assert values[k] == pytest.approx(expected[name], rel=1e-9), name


def test_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    frame = cohort()
    shuffled = frame.sample(frac=1.0, random_state=1, ignore_index=True)
    assert metric_intervals(frame)["mlll"] == pytest.approx(metric_intervals(shuffled)["mlll"], rel=1e-12)
    assert metric_intervals(frame, seed=1)["mlll"] != metric_intervals(frame, seed=2)["mlll"]


def test_interval_of_a_mean_has_the_width_of_theory() -> None:
    """One visit a patient: the interval of the MAE is about 2 x 1.96 standard errors wide."""
    generator = np.random.default_rng(5)
    error = generator.uniform(0, 100, 400)
    frame = predictions_frame(
        split="t", subject=[str(k) for k in range(400)], pred=[[-1.0, 0.0, 1.0]] * 400, truth=error
    )
    low, high = metric_intervals(frame, draws=4000)["mae"]
    assert high - low == pytest.approx(2 * 1.96 * error.std() / 20, rel=0.08)
    assert (low + high) / 2 == pytest.approx(error.mean(), rel=0.01)


def test_repeated_visits_do_not_narrow_the_interval() -> None:
    one = cohort()
    ten = pd.concat([one] * 10, ignore_index=True)
    for name, ends in metric_intervals(one).items():
        assert metric_intervals(ten)[name] == pytest.approx(ends, rel=1e-9), name


def scans(patients: int = 12, each: int = 8) -> pd.DataFrame:
    """Scans with names of their own, whose errors are those of their patients."""
    error = np.random.default_rng(1).normal(0, 100, patients)
    rows = [(f"P{k:02d}", f"scans/{k}_{n}.nii") for k in range(patients) for n in range(each)]
    return predictions_frame(
        split="test", patient=[row[0] for row in rows], subject=[row[1] for row in rows],
        pred=[[-50.0, 0.0, 50.0]] * len(rows), truth=np.repeat(error, each),
    )  # fmt: skip


def test_scans_of_a_patient_are_drawn_together() -> None:
    """Eight scans tell no more than one where the error is the patient's."""
    frame = scans()
    one = frame.drop_duplicates("patient")
    for name, ends in metric_intervals(frame).items():
        assert ends == pytest.approx(metric_intervals(one)[name], rel=1e-9), name
    low, high = metric_intervals(frame)["rmse"]
    narrow = metric_intervals(frame.assign(patient=frame["subject"]))["rmse"]
    assert high - low > 2 * (narrow[1] - narrow[0]), "about the square root of eight"
    better = frame.assign(**{q: frame[q] + frame["truth"] / 2 for q in ("q0.2", "q0.5", "q0.8")})
    for name, ends in metric_differences(frame, better).items():
        expected = metric_differences(one, better.drop_duplicates("patient"))[name]
        assert ends == pytest.approx(expected, rel=1e-9, abs=1e-9), name
    assert metric_intervals(frame[frame["patient"] == "P00"]) == {}, "one patient, however many scans"


def test_paired_differences_cancel_what_patients_share() -> None:
    frame = cohort()
    shifted = frame.assign(**{q: frame[q] - 5.0 for q in ("q0.2", "q0.5", "q0.8")}, truth=frame["truth"] - 5.0)
    for name, ends in metric_differences(frame, shifted).items():
        assert ends == pytest.approx((0.0, 0.0), abs=1e-9), name
    wider = frame.assign(**{"q0.2": frame["q0.2"] - 50, "q0.8": frame["q0.8"] + 50})
    low, high = metric_differences(wider, frame)["coverage"]
    alone = metric_intervals(frame)["coverage"]
    assert 0 <= low <= high
    assert high - low < alone[1] - alone[0] + 1e-12
    with pytest.raises(ValueError, match=r"in one alone: \['P00'\]"):
        metric_differences(frame, frame[frame["subject"] != "P00"])


def test_no_interval_without_patients_to_redraw() -> None:
    frame = cohort()
    assert metric_intervals(frame[frame["subject"] == "P00"]) == {}
    assert metric_intervals(frame.assign(truth=np.nan)) == {}
    assert all(math.isnan(end) for end in interval([math.nan, math.inf]))
    # r2 has no value where all truths are equal, and the others do
    flat = metric_intervals(frame.assign(truth=2000.0))
    assert all(math.isnan(end) for end in flat["r2"])
    assert flat["mae"] == (0.0, 0.0)
