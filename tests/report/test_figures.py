from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cpic_monai.report import predictions_frame, summarise_splits, write_report
from cpic_monai.report.figures import observed_shares, training_curves
from cpic_monai.report.style import number, percent
from cpic_monai.report.trajectories import has_courses, select_subjects, short, subject_errors
from cpic_monai.report.words import headline, headline_split, metric_rows, tiles


def errors_of(values: dict[str, float], visits: int = 2) -> pd.DataFrame:
    subjects = [subject for subject in values for _ in range(visits)]
    pred = np.array([[90.0, 100.0, 110.0]] * len(subjects))
    truth = [100.0 + values[subject] for subject in subjects]
    visit = [float(k % visits) for k in range(len(subjects))]
    return predictions_frame(split="test", subject=subjects, visit=visit, pred=pred, truth=truth)


def test_subject_errors_by_hand() -> None:
    frame = predictions_frame(
        split="test", subject=["a", "b", "a", "c"], pred=[[90, 100, 110], [0, 1, 2], [95, 100, 125], [0, 0, 0]],
        truth=[104, 1, 80, np.nan],
    )  # fmt: skip
    table = subject_errors(frame)
    assert table.to_dict("records") == [
        {"subject": "a", "visits": 2, "mae": 12.0, "bias": -8.0, "width": 25.0, "coverage": 0.5},
        {"subject": "b", "visits": 1, "mae": 0.0, "bias": 0.0, "width": 2.0, "coverage": 1.0},
    ]


@pytest.mark.parametrize(
    ("levels", "coverage", "name"),
    [
        ((0.05, 0.2, 0.5, 0.8, 0.95), 0.5, "20–80\N{NO-BREAK SPACE}%"),
        ((0.1, 0.5, 0.9), 1.0, "10–90\N{NO-BREAK SPACE}%"),
    ],
)
def test_coverage_of_a_subject_is_that_of_the_metrics(
    levels: tuple[float, ...], coverage: float, name: str, tmp_path: Path
) -> None:
    """The interval of the metrics where it is predicted, not the outermost; the headings name it."""
    pred = [[100.0 * level for level in levels]] * 2
    frame = predictions_frame(split="test", subject=["a", "a"], pred=pred, truth=[50.0, 85.0], quantiles=levels)
    assert subject_errors(frame)["coverage"].tolist() == [coverage]
    metrics = summarise_splits(frame)
    if 0.2 in levels:
        assert metrics["test"]["coverage"] == coverage
    write_report(tmp_path, frame, metrics=metrics, cohort={}, target_name="age", unit="a", visit_name=None)
    assert f'<th scope="col">{name} coverage</th>' in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"| {name} coverage |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_selection_takes_best_middle_and_worst() -> None:
    frame = errors_of({f"s{k:02d}": float((k * 7) % 31) for k in range(31)})  # errors are a permutation of 0..30
    by_error = {k * 7 % 31: f"s{k:02d}" for k in range(31)}
    chosen = select_subjects(frame, 6)
    assert chosen == [
        (by_error[0], "best"), (by_error[1], "best"), (by_error[14], "median"), (by_error[15], "median"),
        (by_error[29], "worst"), (by_error[30], "worst"),
    ]  # fmt: skip


@pytest.mark.parametrize("count", range(1, 15))
def test_selection_never_repeats_and_takes_all_it_can(count: int) -> None:
    frame = errors_of({f"s{k}": float(k) for k in range(count)})
    subjects = [subject for subject, _ in select_subjects(frame)]
    assert len(set(subjects)) == len(subjects) == min(count, 12)
    errors = [int(subject[1:]) for subject in subjects]
    assert errors == sorted(errors)


def test_selection_without_truth_takes_the_first() -> None:
    frame = errors_of({f"s{k}": 0.0 for k in range(20)}).assign(truth=np.nan)
    assert select_subjects(frame, 3) == [("s0", ""), ("s1", ""), ("s2", "")]


def test_has_courses() -> None:
    assert has_courses(errors_of({"a": 1.0}))
    assert not has_courses(errors_of({"a": 1.0, "b": 1.0}, visits=1))
    assert not has_courses(errors_of({"a": 1.0}).assign(visit=np.nan))
    assert not has_courses(errors_of({"a": 1.0}).assign(visit=3.0))


def test_observed_shares_by_hand() -> None:
    frame = predictions_frame(
        split="test", subject=list("abcd"), pred=[[0, 10, 20]] * 4, truth=[-1, 10, 15, 30], quantiles=(0.1, 0.5, 0.9)
    )
    shares = observed_shares(frame)
    assert shares["nominal"].tolist() == [0.1, 0.5, 0.9]
    assert shares["observed"].tolist() == [0.25, 0.5, 0.75]
    assert ((shares["low"] <= shares["observed"]) & (shares["observed"] <= shares["high"])).all()
    assert observed_shares(frame.iloc[:1])["low"].isna().all()


def test_intervals_of_shares_are_over_patients() -> None:
    """Ten identical rows a patient carry no more information than one: the interval must not shrink."""
    truth = np.array([5.0] * 6 + [15.0] * 6)
    one = predictions_frame(split="t", subject=list("abcdefghijkl"), pred=[[0, 10, 20]] * 12, truth=truth)
    ten = pd.concat([one] * 10, ignore_index=True)
    pd.testing.assert_frame_equal(observed_shares(one), observed_shares(ten))
    scans = ten.assign(subject=[f"scan {k}" for k in range(120)])
    pd.testing.assert_frame_equal(observed_shares(one), observed_shares(scans))


def test_the_headline_counts_patients_beside_their_scans() -> None:
    frame = errors_of({f"s{k}": 10.0 for k in range(12)}, visits=1)
    entry = {"mae": 10.0, "rmse": 10.0, "coverage": 0.4}
    given: dict[str, Any] = {"target_name": "age", "unit": "years", "others": False}
    assert headline(frame, "test", entry, **given)[0].startswith("On 12 subjects, the predicted age is")
    scans = frame.assign(patient=[f"p{k % 3}" for k in range(12)])
    assert headline(scans, "test", entry, **given)[0].startswith("On 12 subjects of 3 patients, the predicted age is")
    many = pd.concat([frame.assign(subject=frame["subject"] + f"_{n}") for n in range(9)], ignore_index=True)
    sure, unsure = (headline(part, "test", entry, **given)[1] for part in (many.assign(patient=many["subject"]), many))
    assert "the intervals are too narrow" in sure
    assert "the intervals are" not in unsure, "108 scans, but 12 patients"


def test_curves_group_by_quantity_and_check_shapes() -> None:
    pictures = training_curves({"train_loss": [2, 1], "val/loss": [[1, 3], [2, math.nan]], "mlll": [-7], "empty": []})
    assert [picture.title for picture in pictures] == ["loss", "mlll"]
    assert "train_loss from 2.00 to 1.00 in 2 epochs; val/loss from 3.00 to 3.00 in 1 epochs" in pictures[0].alt
    with pytest.raises(ValueError, match=r"curves\['x'\] has shape \(2, 3\)"):
        training_curves({"x": np.ones((2, 3))})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2712.4, "2\u202f712"), (90.44, "90.4"), (6.03, "6.03"), (-0.7364, "−0.736"), (0.0, "0"), (None, "–"),
        (math.nan, "–"), (-math.inf, "−∞"), (1e6, "1\u202f000\u202f000"), (1e-12, "0.000000"),
    ],
)  # fmt: skip
def test_numbers_for_reading(value: float | None, text: str) -> None:
    assert number(value) == text


def test_percent_and_short_names() -> None:
    assert percent(0.754) == "75\u00a0%"
    assert percent(math.nan) == "–"
    assert short("patient") == "patient"
    assert short("ID00007637202177411956430") == "ID00…411956430"


def test_headline_split() -> None:
    assert headline_split(["train", "val", "test"]) == "test"
    assert headline_split(["train", "Val"]) == "Val"
    assert headline_split(["fold0", "fold1"]) == "fold1"


def test_best_cells_and_tones() -> None:
    entry: dict[str, Any] = {
        "mlll": -6.0,
        "rmse": 200.0,
        "mae": 100.0,
        "r2": None,
        "pinball": 5.0,
        "coverage": 0.6,
        "n": 9,
        "subjects": 3,
        "intervals": {"mae": [50.0, 180.0], "r2": [None, None]},
    }
    base = {"mlll": -7.0, "rmse": 190.0, "mae": 100.0, "r2": 0.1, "pinball": 6.0, "coverage": 0.9, "n": 9}
    model, constant = metric_rows({"test": entry | {"baselines": {"constant": base}}})
    # columns: mlll, rmse, mae, r2, pinball, coverage
    assert [best for _, best, _ in model["cells"]] == [True, False, True, False, True, False]
    assert [best for _, best, _ in constant["cells"]] == [False, True, True, True, False, False]
    assert model["cells"][3][0] == "–"
    assert [text for _, _, text in model["cells"]] == ["", "", "50.0 to 180", "", "", ""]
    notes = {tile["label"]: tile["tone"] for tile in tiles(entry | {"baselines": {"constant": base}}, "mL")}
    assert notes == {"mLLL": "better", "RMSE": "worse", "MAE": "same", "Coverage": ""}
