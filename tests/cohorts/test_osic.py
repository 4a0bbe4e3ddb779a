from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from cpic_monai.cohorts import OsicCohort, prepare

HEADER = "Patient,Weeks,FVC,Percent,Age,Sex,SmokingStatus\n"
A = "A,10,2000,80,60,Male,Ex-smoker\nA,-4,2500,90,60,Male,Ex-smoker\nA,22,1500,70,60,Male,Ex-smoker\n"
B = "B,0,3000,75,70,Female,Never smoked\nB,8,2900,70,70,Female,Never smoked\nB,8,2700,68,70,Female,Never smoked\n"
C = "C,1,2222,50,66,Male,Never smoked\n"


def layout(folder: Path, rows: str, scans: str = "AB") -> Path:
    (folder / "train").mkdir(exist_ok=True)
    (folder / "train.csv").write_text(HEADER + rows)
    for patient in scans:
        (folder / "train" / patient).mkdir(exist_ok=True)
        (folder / "train" / patient / "1.dcm").write_bytes(b"DICM")
    return folder


def encoded(cohort: OsicCohort) -> list[dict]:
    return prepare(cohort, {"train": cohort.items, "validation": [], "test": []}).train


def test_visits_are_relative_to_the_first(tmp_path: Path) -> None:
    cohort = OsicCohort(layout(tmp_path, A + B))
    a, b = encoded(cohort)
    assert (a["subject"], a["group"], a["image"]) == ("A", "A", str(tmp_path / "train" / "A"))
    np.testing.assert_allclose(a["visit"].numpy().ravel(), [-4, 10, 22])
    np.testing.assert_allclose(a["tabular"].numpy(), np.array([[0], [14], [26]]) / 52, rtol=1e-6)
    np.testing.assert_allclose(a["offset"].numpy().ravel(), 2500)
    np.testing.assert_allclose(a["scale"].numpy().ravel(), 250)
    np.testing.assert_allclose(a["label"].numpy().ravel(), [0, -2, -4])
    np.testing.assert_allclose((b["label"] * b["scale"] + b["offset"]).numpy().ravel(), [3000, 2800])
    assert a["strata"] == {"Age": "60.0", "Sex": "Male", "SmokingStatus": "Ex-smoker"}
    assert all(str(a[k].dtype) == "torch.float32" for k in ("tabular", "label", "offset", "scale", "visit"))
    assert (cohort.unit, cohort.target_name, cohort.visit_name) == ("mL", "FVC", "week")


def test_duplicates_are_averaged_and_reported(tmp_path: Path) -> None:
    cohort = OsicCohort(layout(tmp_path, A + B))
    np.testing.assert_array_equal(cohort.items[1]["target"], [3000, 2800])
    assert cohort.notes == ["B: several rows at Weeks [8.0], FVC and Percent averaged"]


def test_tabular_values_are_those_of_the_first_visit(tmp_path: Path) -> None:
    cohort = OsicCohort(layout(tmp_path, A + B), tabular_columns=("Weeks", "Percent", "FVC", "Sex"))
    assert cohort.items[0]["covariates"]["Percent"] == [90, 90, 90]
    assert cohort.items[0]["covariates"]["FVC"] == [2500, 2500, 2500]
    assert encoded(cohort)[0]["tabular"].shape == (3, 5)


def test_patients_without_scan_are_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = layout(tmp_path, A + B + C)
    (folder / "train" / "B" / "1.dcm").unlink()
    with caplog.at_level(logging.INFO):
        cohort = OsicCohort(folder)
    assert [(s.subject, s.reason) for s in cohort.left_out] == [
        ("B", "its folder of DICOM files is empty"),
        ("C", "its folder of DICOM files is missing"),
    ]
    assert "1 left out (C)" in caplog.text
    assert "OSIC: 1 scans, 3 rows, 2 left out" in caplog.text


def test_without_baseline_a_patient_of_one_visit_is_left_out(tmp_path: Path) -> None:
    cohort = OsicCohort(layout(tmp_path, A + C, "AC"), include_baseline=False)
    np.testing.assert_array_equal(cohort.items[0]["visit"], [10, 22])
    assert cohort.items[0]["baseline"] == 2500
    assert [s.subject for s in cohort.left_out] == ["C"]


def test_further_weeks_for_prediction(tmp_path: Path) -> None:
    item = encoded(OsicCohort(layout(tmp_path, A + B), weeks=(10, 30)))[0]
    np.testing.assert_array_equal(item["visit"].numpy().ravel(), [-4, 10, 22, 30])
    np.testing.assert_array_equal(np.isnan(item["label"].numpy().ravel()), [False, False, False, True])
    np.testing.assert_allclose(item["tabular"].numpy()[-1, 0], 34 / 52, rtol=1e-6)


def test_visits_without_fvc(tmp_path: Path) -> None:
    folder = layout(tmp_path, A + "A,40,,70,60,Male,Ex-smoker\n,3,1000,70,60,Male,Ex-smoker\n")
    cohort = OsicCohort(folder)
    assert [(s.subject, s.reason) for s in cohort.left_out] == [
        ("line 6", "no Patient"),
        ("A", "a visit without Weeks or FVC"),
    ]
    assert len(OsicCohort(folder, require_target=False).items[0]["visit"]) == 4


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (A.replace("2000", "two"), {}, ValueError, r"train.csv, line 2 \(A\): FVC is 'two', no number"),
        (A.replace("2500", "0"), {}, ValueError, "no scan is left.*positive number of mL, found 0"),
        (A, {"tabular_columns": ("Weeks", "Height")}, ValueError, "'Height'.*choose among"),
        (A, {"table": "test.csv"}, FileNotFoundError, "test.csv is missing"),
        (A, {"images": "test"}, FileNotFoundError, "test is missing: it should hold one folder"),
        ("", {}, ValueError, "no scan is left"),
    ],
)
def test_faults_are_named(tmp_path: Path, rows: str, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OsicCohort(layout(tmp_path, rows), **options)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    folder = layout(tmp_path, A)
    (folder / "train.csv").write_text("Patient,Weeks,FVC\nA,1,2000\n")
    with pytest.raises(ValueError, match=r"\['Percent', 'Age', 'Sex', 'SmokingStatus'\] are missing; found"):
        OsicCohort(folder)
