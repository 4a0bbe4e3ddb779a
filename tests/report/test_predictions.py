from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cpic_monai.report import check_predictions, predictions_frame, read_predictions, write_predictions
from cpic_monai.report.predictions import strata_columns


def test_csv_has_the_contracts_columns_and_text(tmp_path: Path) -> None:
    frame = predictions_frame(
        split="test", subject=["ID1", "ID1"], visit=[0, 12], pred=[[2400, 2500, 2600.5], [2300, 2450, 2550]],
        truth=[2510, np.nan], offset=[2510, 2510],
    )  # fmt: skip
    path = write_predictions(frame, tmp_path / "new" / "predictions.csv", visit_name="week")
    assert path.read_text().splitlines() == [
        "split,subject,week,q0.2,q0.5,q0.8,truth,offset,patient",
        "test,ID1,0.0,2400.0,2500.0,2600.5,2510.0,2510.0,ID1",
        "test,ID1,12.0,2300.0,2450.0,2550.0,,2510.0,ID1",
    ]
    assert sorted(os.listdir(path.parent)) == ["predictions.csv"]


@pytest.mark.parametrize("visit_name", ["week", None, "months since scan"])
def test_round_trip_is_exact(osic: pd.DataFrame, tmp_path: Path, visit_name: str | None) -> None:
    path = write_predictions(osic, tmp_path / "p.csv", visit_name=visit_name)
    pd.testing.assert_frame_equal(read_predictions(path), osic, check_exact=True)


def test_subjects_stay_text_and_unknown_visits_stay_unknown(tmp_path: Path) -> None:
    subjects = ["007", "NA", 'O"Hara, M', "null"]
    frame = predictions_frame(split="inference", subject=subjects, pred=np.ones((4, 3)))
    back = read_predictions(write_predictions(frame, tmp_path / "p.csv"))
    assert back["subject"].tolist() == subjects
    assert back[["visit", "truth", "offset"]].isna().to_numpy().all()


def test_patients_of_several_scans(tmp_path: Path) -> None:
    given: dict[str, Any] = {"split": "test", "subject": ["a1", "a2", "b"], "pred": np.ones((3, 3))}
    strata = {"patient": ["x", "x", "x"], "sex": ["F", "F", "M"]}
    frame = predictions_frame(**given, patient=["007", "007", "NA"], strata=strata)
    back = read_predictions(write_predictions(frame, tmp_path / "p.csv"))
    assert back["patient"].tolist() == ["007", "007", "NA"], "not the stratum of that name"
    assert strata_columns(back) == ["sex"]
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    with pytest.raises(ValueError, match="'patient' is empty"):
        predictions_frame(**given, patient=["007", "", "NA"])


def test_files_without_patients_are_read(osic: pd.DataFrame, tmp_path: Path) -> None:
    path = write_predictions(osic, tmp_path / "p.csv")
    pd.read_csv(path, dtype=str).drop(columns="patient").to_csv(path, index=False)
    back = read_predictions(path)
    assert (back["patient"] == back["subject"]).all()
    pd.testing.assert_frame_equal(back, osic, check_exact=True)


def test_scans_of_one_name_are_of_one_patient() -> None:
    """A table that names scans by their patients and has no groups: each scan is its own, by its path."""
    paths = ["1.nii", "2.nii", "3.nii"]
    frame = predictions_frame(split="test", subject=["A", "A", "B"], patient=paths, pred=np.ones((3, 3)))
    assert frame["patient"].tolist() == ["1.nii", "1.nii", "3.nii"]


def test_column_order_and_index_do_not_matter(osic: pd.DataFrame) -> None:
    shuffled = osic[sorted(osic.columns, reverse=True)].set_index(pd.Index(range(100, 100 + len(osic))))
    pd.testing.assert_frame_equal(check_predictions(shuffled), osic)


def test_faults_are_named(osic: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lack the columns \['truth', 'offset'\]"):
        check_predictions(osic.drop(columns=["truth", "offset"]))
    with pytest.raises(ValueError, match="no rows"):
        check_predictions(osic.iloc[:0])
    spoilt = osic.copy()
    spoilt.loc[[3, 7], "q0.5"] = np.nan
    with pytest.raises(ValueError, match=r"2 of 205 rows .* 'IDtrain00000"):
        check_predictions(spoilt)
    with pytest.raises(ValueError, match="'subject' is empty in row 1"):
        check_predictions(osic.assign(subject=["a", None] + ["b"] * (len(osic) - 2)))
    with pytest.raises(ValueError, match=r"pred has shape \(2, 2\), expected \(2, 3\)"):
        predictions_frame(split="a", subject=["b", "c"], pred=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"truth has shape \(3,\)"):
        predictions_frame(split="a", subject=["b", "c"], pred=np.ones((2, 3)), truth=[1, 2, 3])
    with pytest.raises(ValueError, match="visit_name 'truth'"):
        write_predictions(osic, tmp_path / "p.csv", visit_name="truth")
    (tmp_path / "bad.csv").write_text("split,subject,week,q0.5,truth,offset\na,b,1,2,many,\n")
    with pytest.raises(ValueError, match=r"bad\.csv: column 'truth' holds something that is no number"):
        read_predictions(tmp_path / "bad.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv: expected columns split,subject"):
        read_predictions(tmp_path / "other.csv")
