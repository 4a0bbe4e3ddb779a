"""From the folds' predictions to one result on identical splits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cpic_monai.cross_validation import aggregate, read_method, split_checksum
from cpic_monai.cross_validation.page import write_results
from cpic_monai.metrics import summarise
from cpic_monai.report import read_predictions, write_baselines, write_predictions
from tests.bundle.folds_left import GOOD, add_baseline, results_of


def test_held_out_rows_are_pooled(tmp_path):
    method = read_method("a", results_of(tmp_path, GOOD), 3)
    rows = method.held_out()
    assert len(rows) == 16
    assert rows.groupby("subject")["fold"].unique().map(list).to_dict() == {
        name: [str(k)] for k, held in enumerate(GOOD) for name in held
    }
    # Absolute errors are 10 k and 10 k + 1: of 3, 3 and 2 subjects.
    assert summarise(rows)["mae"] == pytest.approx((3 * 0.5 + 3 * 10.5 + 2 * 20.5) / 8)


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ([["p0", "p1"], ["p1", "p2", "p3", "p4", "p5", "p6", "p7"]], "subject p1 is held out in fold 0 and in fold 1"),
        ([["p0", "p1", "p2"], ["p3", "p4", "p5"]], "2 of 8 subjects are held out in no fold, the first is p6"),
    ],
)
def test_a_subject_held_out_twice_or_never_is_an_error(tmp_path, tests, message):
    with pytest.raises(ValueError, match=message):
        read_method("a", results_of(tmp_path, tests), len(tests))


def test_some_folds_alone(tmp_path):
    """Folds that are there are read by their numbers; subjects of the others are held out in none of them."""
    results_of(tmp_path, GOOD)
    method = read_method("a", tmp_path, [2, 0])
    assert set(method.held_out()["subject"]) == {*GOOD[0], *GOOD[2]}
    one = aggregate({"a": read_method("a", tmp_path, [1])}, {}, "mae")["methods"]["a"]
    assert one["mean"]["mae"] == pytest.approx(10.5)
    assert np.isnan(one["sd"]["mae"])
    with pytest.raises(ValueError, match="subject p0 is held out in fold 0 and in fold 1"):
        read_method("a", tmp_path, [0, 0])


def test_baselines_of_overlays_are_in_the_result(tmp_path):
    add_baseline(results_of(tmp_path, GOOD), "ridge", [1.0, 2.0, 6.0])
    baselines = aggregate({"a": read_method("a", tmp_path, 3)}, {}, "rmse")["baselines"]
    assert list(baselines) == ["constant", "ridge"]
    assert baselines["ridge"]["mean"]["rmse"] == pytest.approx(3.0)
    assert "pooled" not in baselines["ridge"], "its predictions were not written"


def test_baselines_with_predictions_are_pooled_and_compared(tmp_path):
    """A baseline that is off by 5 everywhere, where the method is off by 0, 10 and 20 on its folds' first visits."""
    add_baseline(results_of(tmp_path, GOOD), "ridge", [5.0, 5.0, 5.0])
    add_baseline(tmp_path, "not written", [7.0, 7.0, 7.0])
    for k in range(3):
        folder = tmp_path / f"fold_{k}" / "eval"
        frame = read_predictions(folder / "predictions.csv")
        for shift, column in ((-50, "q0.2"), (5, "q0.5"), (50, "q0.8")):
            frame[column] = frame["truth"] + shift
        write_baselines({"ridge": frame}, folder / "baselines.csv", visit_name="week")
    method = read_method("a", tmp_path, 3)
    result = aggregate({"a": method}, {"folds": 3, "seed": 0, "stratify": False, "validation_fraction": 0.0}, "mae")
    ridge = result["baselines"]["ridge"]
    assert ridge["pooled"]["mae"] == pytest.approx(5.0)
    assert ridge["pooled"]["intervals"]["mae"] == pytest.approx([5.0, 5.0])
    mine = result["methods"]["a"]["pooled"]["mae"]
    assert ridge["differences"]["mae"]["difference"] == pytest.approx(5.0 - mine)
    assert ridge["differences"]["mae"]["low"] < 5.0 - mine < ridge["differences"]["mae"]["high"]
    assert "pooled" not in result["baselines"]["not written"]
    assert result["baselines"]["constant"]["differences"]["mae"]["difference"] > 0
    page = write_results(tmp_path, result, {"a": method})[2].read_text()
    assert "Differences from “a”" in page
    # An evaluation without baselines leaves none of an earlier one.
    write_baselines({}, tmp_path / "fold_1" / "eval" / "baselines.csv")
    assert "pooled" not in aggregate({"a": read_method("a", tmp_path, 3)}, {}, "mae")["baselines"]["ridge"]


def test_the_constant_baseline_learns_from_validation_scans_where_the_method_does(tmp_path):
    results_of(tmp_path, GOOD)

    def constant(both: bool) -> float:
        method = read_method("a", tmp_path, 3, [{"fit_on_validation": both}] * 3)
        return aggregate({"a": method}, {}, "mae")["baselines"]["constant"]["pooled"]["mae"]

    whole = constant(False)
    for k in range(3):
        path = tmp_path / f"fold_{k}" / "eval" / "predictions.csv"
        frame = read_predictions(path)
        last = (frame["split"] == "train") & (frame["subject"] >= "p5")
        write_predictions(frame.assign(split=frame["split"].where(~last, "validation")), path)
    assert constant(True) == pytest.approx(whole)
    assert constant(False) != pytest.approx(whole)


def test_result_over_folds_and_methods(tmp_path):
    methods = {
        name: read_method(name, results_of(tmp_path / name, GOOD, offset), 3)
        for name, offset in (("near", 0.0), ("far_off", 40.0))
    }
    splits = {"folds": 3, "seed": 0, "stratify": False, "validation_fraction": 0.0}
    result = aggregate(methods, splits, "mae")
    near, far = result["methods"]["near"], result["methods"]["far_off"]
    assert [fold["mae"] for fold in near["folds"]] == pytest.approx([0.5, 10.5, 20.5])
    assert near["mean"]["mae"] == pytest.approx(10.5)
    assert near["sd"]["mae"] == pytest.approx(10.0)
    assert near["pooled"]["mae"] == pytest.approx((3 * 0.5 + 3 * 10.5 + 2 * 20.5) / 8)
    assert near["seconds"] == 90.0
    assert "differences" not in near
    assert {key: far["differences"]["mae"][key] for key in ("difference", "low", "high")} == pytest.approx(
        {"difference": 40.0, "low": 40.0, "high": 40.0}
    )
    # A constant prediction of a fold is the median of its training rows.
    truths = methods["near"].folds[0]
    training = truths.loc[truths["split"] == "train", "truth"]
    held = truths.loc[truths["split"] == "test", "truth"]
    expected = (held - training.median()).abs().mean()
    assert result["baselines"]["constant"]["folds"][0]["mae"] == pytest.approx(expected)
    assert result["split_sha256"] == split_checksum(methods["far_off"].folds)
    paths = write_results(tmp_path, result, methods)
    assert [path.name for path in paths] == ["cv_metrics.json", "cv_table.md", "cv_report.html"]
    table = paths[1].read_text()
    assert "| near | " in table
    assert "10.5 ± 10.0" in table
    assert "| far\\_off | " in table
    assert "MAE \\[years\\]" in table
    assert "40.0 (+40.0 to +40.0)" in table
    page = paths[2].read_text()
    assert "Differences from “near”" in page
    assert 'class="best">10.5 ± 10.0' in page
    assert json.loads(paths[0].read_text())["methods"]["near"]["mean"]["mae"] == pytest.approx(10.5)
    assert (tmp_path / "near" / "report.html").is_file()


def test_methods_on_different_splits_are_not_compared(tmp_path):
    other = [["p0", "p3", "p5"], ["p1", "p4", "p7"], ["p2", "p6"]]
    methods = {
        name: read_method(name, results_of(tmp_path / name, tests), 3) for name, tests in (("a", GOOD), ("b", other))
    }
    with pytest.raises(ValueError, match=r"fold 0: subject p5 is in the split 't\w+' for [ab] alone"):
        aggregate(methods, {"folds": 3}, "mae")
