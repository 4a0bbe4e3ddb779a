"""Two checkpoints on the same patients, and the refusal of anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cpic_monai.metrics import summarise
from cpic_monai.report import (
    DifferentPatientsError,
    Evaluated,
    compare,
    summarise_splits,
    write_comparison,
    write_predictions,
    write_report,
)
from cpic_monai.report.comparison import settings_that_differ
from cpic_monai.report.comparison_page import _sentences
from scripts.compare_reports import main
from tests.report.test_page import Page, assert_self_contained

FACTS: dict[str, Any] = {
    "target": {"name": "FVC", "unit": "mL", "visit": "week"},
    "scoring": {"sigma_min": 70.0, "error_max": 1000.0},
    "provenance": {"seed": 0, "date": "now", "config": {"rank": 10}},
}


def better(frame: pd.DataFrame, share: float = 0.5) -> pd.DataFrame:
    """Predictions moved towards the truth by a share of the error."""
    step = share * (frame["truth"] - frame["q0.5"])
    return frame.assign(**{name: frame[name] + step for name in ("q0.2", "q0.5", "q0.8")})


def test_a_better_checkpoint_is_found_better(osic: pd.DataFrame) -> None:
    one, other = Evaluated("one", osic, FACTS), Evaluated("other", better(osic), FACTS)
    result = compare(one, other)
    test = osic[osic["split"] == "test"]
    assert (result["split"], result["subjects"], result["n"]) == ("test", 15, 75)
    for entry in result["metrics"]:
        expected = summarise(better(test))[entry["name"]] - summarise(test)[entry["name"]]
        assert entry["difference"] == pytest.approx(expected)
        assert entry["low"] <= entry["difference"] <= entry["high"]
        assert entry["verdict"] == ("" if entry["name"] == "coverage" else "second")
    assert {entry["verdict"] for entry in compare(other, one)["metrics"]} == {"first", ""}
    assert result["improved"] == 1.0
    differences = [patient["difference"] for patient in result["patients"]]
    assert differences == sorted(differences)
    assert differences[-1] < 0


def test_noise_is_no_verdict(osic: pd.DataFrame) -> None:
    noise = np.random.default_rng(0).normal(0, 3, len(osic))
    shaken = osic.assign(**{name: osic[name] + noise for name in ("q0.2", "q0.5", "q0.8")})
    result = compare(Evaluated("one", osic, FACTS), Evaluated("other", shaken, FACTS))
    assert [entry["verdict"] for entry in result["metrics"] if entry["name"] == "mae"] == ["unclear"]


def test_order_of_rows_does_not_matter(osic: pd.DataFrame) -> None:
    shuffled = better(osic).sample(frac=1.0, random_state=0, ignore_index=True)
    straight = compare(Evaluated("a", osic, FACTS), Evaluated("b", better(osic), FACTS))
    mixed = compare(Evaluated("a", osic, FACTS), Evaluated("b", shuffled, FACTS))
    for one, other in zip(straight["metrics"], mixed["metrics"], strict=True):
        assert other["low"] == pytest.approx(one["low"], rel=1e-9)


def test_patients_that_one_side_knows_hold_for_both(osic: pd.DataFrame) -> None:
    """One file was written before the column of patients: whichever it is, subjects of a patient are drawn together."""
    patient = osic["subject"].str[:10]  # ten test subjects, and five
    known, unknown = osic.assign(patient=patient), better(osic)
    wide = compare(Evaluated("a", known, FACTS), Evaluated("b", unknown.assign(patient=patient), FACTS))
    assert (wide["subjects"], wide["n_patients"]) == (15, 2)
    assert compare(Evaluated("a", known, FACTS), Evaluated("b", unknown, FACTS))["metrics"] == wide["metrics"]
    turned = compare(Evaluated("b", unknown, FACTS), Evaluated("a", known, FACTS))
    for entry, other in zip(wide["metrics"], turned["metrics"], strict=True):
        for one, two in (("first", "second"), ("second", "first")):
            assert entry[f"{one}_interval"] == other[f"{two}_interval"]
        assert (entry["low"], entry["high"]) == pytest.approx((-other["high"], -other["low"]), rel=1e-9, abs=1e-12)
    assert "on the same 2 patients (75 rows" in _sentences(wide)[0]


def test_different_patients_are_refused_by_name(osic: pd.DataFrame) -> None:
    name = "IDtest00003202177411956430"
    one = Evaluated("one", osic, FACTS)
    fewer = Evaluated("other", osic[osic["subject"] != name], FACTS)
    with pytest.raises(DifferentPatientsError, match=rf"different patients: {name} \(1\) in one alone. Evaluate both"):
        compare(one, fewer)
    renamed = osic.assign(subject=osic["subject"].replace(name, "new"))
    with pytest.raises(DifferentPatientsError, match=rf"{name} \(1\) in one alone; new \(1\) in other alone"):
        compare(one, Evaluated("other", renamed, FACTS))
    many = osic.assign(subject="x" + osic["subject"])
    with pytest.raises(DifferentPatientsError, match=r"and 5 more \(15\) in one alone; .* and 5 more \(15\) in other"):
        compare(one, Evaluated("other", many, FACTS))


def test_different_rows_settings_and_splits_are_refused(osic: pd.DataFrame) -> None:
    one, first = Evaluated("one", osic, FACTS), osic.index[osic["split"] == "test"][0]
    name = osic["subject"][first]
    for other in (osic.drop(first), osic.assign(truth=osic["truth"].where(osic.index != first, 1.0))):
        with pytest.raises(DifferentPatientsError, match=f"subject {name}: visits or true values differ"):
            compare(one, Evaluated("other", other, FACTS))
    with pytest.raises(ValueError, match="scoring differs"):
        compare(one, Evaluated("other", osic, {**FACTS, "scoring": {"sigma_min": 1.0, "error_max": 1000.0}}))
    with pytest.raises(ValueError, match=r"quantile levels differ: \[0.2, 0.5, 0.8\] in one, \[0.2, 0.5, 0.9\]"):
        compare(one, Evaluated("other", osic.rename(columns={"q0.8": "q0.9"}), FACTS))
    with pytest.raises(ValueError, match=r"split 'fold7'; it has \['test', 'train', 'val'\]"):
        compare(one, one, split="fold7")


def test_settings_that_differ() -> None:
    other = {**FACTS["provenance"], "date": "later", "config": {"rank": 20, "draws": 3}}
    assert settings_that_differ(FACTS["provenance"], other) == [
        {"name": "config rank", "first": 10, "second": 20},
        {"name": "config draws", "first": None, "second": 3},
    ]


def test_the_script_writes_one_page(osic: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, frame in (("a", osic), ("b", better(osic))):
        folder = tmp_path / name / "eval"
        provenance = {"seed": 0, "config": {"rank": 10 if name == "a" else 20}}
        write_report(
            folder, frame, metrics=summarise_splits(frame), cohort={}, target_name="FVC", unit="mL", visit_name="week",
            provenance=provenance,
        )  # fmt: skip
        write_predictions(frame, folder / "predictions.csv", visit_name="week")
    given = [str(tmp_path / "a" / "eval"), str(tmp_path / "b" / "eval"), "--output", str(tmp_path / "out")]
    assert main(given) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "comparison.html")
    page = Page(tmp_path / "out" / "comparison.html")
    assert_self_contained(page)
    assert "“b” is better in mLLL, RMSE, MAE, R², Pinball" in page.text
    assert "config rank" in page.text
    assert len(page.all("svg")) == 2
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["names"] == ["a", "b"]
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert "| config rank | 10 | 20 |" in markdown
    assert main([*given, "--names", "old", "new", "--split", "val"]) == 0
    assert "“new” against “old” on the same 6 patients" in (tmp_path / "out" / "comparison.html").read_text()


def test_the_script_says_what_is_wrong(osic: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "predictions.csv is missing; give a folder that an evaluation has written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_on_refusal(osic: pd.DataFrame, tmp_path: Path) -> None:
    one = Evaluated("one", osic, FACTS)
    with pytest.raises(DifferentPatientsError):
        write_comparison(tmp_path / "out", one, Evaluated("other", osic.iloc[:-5], FACTS))
    assert not (tmp_path / "out").exists()


def test_a_true_value_of_zero_may_be_rounded(osic: pd.DataFrame) -> None:
    """Truths are float32 on their way, less an offset that is each run's own."""
    first = osic.assign(truth=osic["truth"].where(osic.index != osic.index[-1], 0.0))
    second = first.assign(truth=first["truth"] + 2e-6)
    compare(Evaluated("a", first, FACTS), Evaluated("b", second, FACTS))
