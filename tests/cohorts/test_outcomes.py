"""Tables of classes and of times to an event: visits without an outcome are left out, the scan's others stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cpic_monai.cohorts import ClassTableCohort, SurvivalTableCohort


def layout(folder: Path, table: str) -> Path:
    for scan in "abc":
        (folder / f"{scan}.nii").write_bytes(b"nifti")
    (folder / "cohort.csv").write_text(table)
    return folder / "cohort.csv"


def test_a_visit_without_a_class_is_left_out_alone(tmp_path: Path) -> None:
    path = layout(tmp_path, "image,kind,months,age\na.nii,,0,50\na.nii,ill,6,51\nb.nii,well,0,60\nc.nii,,0,70\n")
    cohort = ClassTableCohort(path, "kind", ["age"], visit_column="months")
    assert [item["subject"] for item in cohort.items] == ["a.nii", "b.nii"]
    first = cohort.items[0]
    assert (first["target"].tolist(), first["visit"].tolist(), first["covariates"]) == ([0.0], [6.0], {"age": [51]})
    assert first["baseline"] == 0.0
    assert [(s.subject, s.reason) for s in cohort.left_out] == [
        ("a.nii (visit 1 of 2)", "no class"),
        ("c.nii", "no class"),
    ]


def test_a_visit_without_a_time_is_left_out_alone(tmp_path: Path) -> None:
    path = layout(tmp_path, "image,time,event,months\na.nii,9,1,0\na.nii,-3,1,6\nb.nii,5,0,0\nc.nii,,1,0\n")
    cohort = SurvivalTableCohort(path, "time", "event", visit_column="months")
    np.testing.assert_array_equal(np.concatenate([item["target"] for item in cohort.items]), [9.0, -5.0])
    assert [s.subject for s in cohort.left_out] == ["a.nii (visit 2 of 2)", "c.nii"]


def test_none_is_a_class(tmp_path: Path) -> None:
    cohort = ClassTableCohort(layout(tmp_path, "image,grade\na.nii,None\nb.nii,Severe\nc.nii,NA\n"), "grade")
    assert cohort.classes == ("None", "Severe")
    assert [(s.subject, s.reason) for s in cohort.left_out] == [("c.nii", "no class")]
