"""Scans without outcomes: found by name, with what a table says of them."""

from __future__ import annotations

import nibabel
import numpy as np
import pandas as pd
import pytest

from cpic_monai.cohorts import Column, ItemEncoder, ScanCohort, TabularEncoder, TargetScaler


def _encoder(mode: str = "relative_to_first") -> ItemEncoder:
    encoder = ItemEncoder()
    items = [{"covariates": {"Weeks": [0.0, 52.0], "Age": [50.0, 70.0]}, "target": np.array([1.0, 3.0])}]
    encoder.tabular = TabularEncoder((Column("Weeks", "scaled", 52.0), Column("Age"))).fit(items)
    encoder.target = TargetScaler(mode, 0.1).fit(items)
    return encoder


def _save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), path)


def test_values_come_from_the_first_visit_and_times_from_the_config(tmp_path):
    _save(tmp_path / "p1.nii.gz")
    _save(tmp_path / "p2.nii.gz")
    rows = [("p1", 9, 2000.0, 71.0), ("p1", 3, 2500.0, 70.0)]
    pd.DataFrame(rows, columns=["Patient", "Weeks", "FVC", "Age"]).to_csv(tmp_path / "v.csv", index=False)
    cohort = ScanCohort(
        [tmp_path / "p1.nii.gz", tmp_path / "p2.nii.gz"],
        _encoder(),
        tmp_path / "v.csv",
        subject_column="Patient",
        visit_column="Weeks",
        visits=(0, 26),
        target_column="FVC",
        target_name="FVC",
        unit="mL",
    )
    first, second = _encoder().apply(cohort.items)
    np.testing.assert_allclose(first["tabular"].numpy(), [[0.0, 1.0], [0.5, 1.0]], atol=1e-6)
    assert first["offset"].unique().tolist() == [2500.0]
    assert first["label"].isnan().all()
    # Not in the table: the mean age, and fractions of an unknown first FVC.
    np.testing.assert_allclose(second["tabular"].numpy()[:, 1], 0.0, atol=1e-6)
    assert second["offset"].unique().tolist() == [1.0]
    assert any("p2" in note for note in cohort.notes)
    assert cohort.unit == "mL"


def test_where_no_first_value_is_known_the_unit_says_so(tmp_path):
    _save(tmp_path / "p1.nii.gz")
    cohort = ScanCohort(tmp_path, _encoder(), target_column="FVC", target_name="FVC", unit="mL")
    assert cohort.unit == "fraction of the first FVC"


def test_a_table_without_the_subject_column_is_refused(tmp_path):
    _save(tmp_path / "p1.nii.gz")
    pd.DataFrame({"id": ["p1"]}).to_csv(tmp_path / "v.csv", index=False)
    with pytest.raises(ValueError, match=r"columns \['subject'.*\] are missing"):
        ScanCohort(tmp_path / "p1.nii.gz", _encoder("constant"), tmp_path / "v.csv")


def test_columns_that_the_network_knows_must_be_in_the_table(tmp_path):
    """A header in other letters would predict everybody at the mean age, without a word."""
    _save(tmp_path / "p1.nii.gz")
    given = {"subject_column": "Patient", "visit_column": "Weeks"}
    (tmp_path / "v.csv").write_text("Patient,AGE\np1,70\n")
    with pytest.raises(
        ValueError, match=r"v.csv.*columns \['Age'\] are missing; found \['Patient', 'AGE'\].*`visit_column`"
    ):
        ScanCohort(tmp_path / "p1.nii.gz", _encoder(), tmp_path / "v.csv", **given)
    (tmp_path / "v.csv").write_text("Patient, Age\np1, 70\n")
    cohort = ScanCohort(tmp_path / "p1.nii.gz", _encoder(), tmp_path / "v.csv", **given)
    assert cohort.items[0]["covariates"]["Age"] == [70]
    assert "no table of values: Age are taken as missing" in ScanCohort(tmp_path, _encoder(), **given).notes[0]


def test_a_table_that_names_none_of_the_scans_is_refused(tmp_path):
    _save(tmp_path / "p1.nii.gz")
    (tmp_path / "v.csv").write_text("Patient,Age\np1.nii.gz,70\n")
    with pytest.raises(ValueError, match=r"v\.csv: column 'Patient' names none .* has 'p1\.nii\.gz', .* are 'p1' \("):
        ScanCohort(tmp_path, _encoder(), tmp_path / "v.csv", "Patient", "Weeks")
    (tmp_path / "v.csv").write_text("Patient,Age\n")
    with pytest.raises(ValueError, match=r"it has none, the scans are 'p1'"):
        ScanCohort(tmp_path, _encoder(), tmp_path / "v.csv", "Patient", "Weeks")


def test_rows_without_a_scan_and_scans_without_a_row_are_warned_of(tmp_path, caplog):
    for number in range(5):
        _save(tmp_path / f"p{number}.nii")
    (tmp_path / "v.csv").write_text("Patient,Age\np0,70\nq1,60\n")
    cohort = ScanCohort(tmp_path, _encoder(), tmp_path / "v.csv", "Patient", "Weeks")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2
    assert "4 of 5 scans have no row" in warned[0]
    assert warned[0].endswith("missing: 'p1', 'p2', 'p3', ...")
    assert warned[1].endswith("v.csv are no scan's: 'q1'")
    assert all(any(note in line for note in cohort.notes) for line in warned)


def test_categories_that_training_had_not_are_noted(tmp_path, caplog):
    items = [{"covariates": {"Sex": ["M", "F"]}, "target": np.array([1.0, 3.0])}]
    encoder = ItemEncoder()
    encoder.tabular = TabularEncoder((Column("Sex", "categorical"),)).fit(items)
    encoder.target = TargetScaler("constant").fit(items)
    for number in range(3):
        _save(tmp_path / f"p{number}.nii")
    (tmp_path / "v.csv").write_text("subject,Sex\np0,male\np1,M\np2,male\n")
    cohort = ScanCohort(tmp_path, encoder, tmp_path / "v.csv")
    note = "Sex 'male' was not seen in training (F, M): taken as none of them; 2 of 3 scans: 'p0', 'p2'"
    assert note in cohort.notes
    assert note in caplog.text
