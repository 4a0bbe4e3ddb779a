from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cpic_monai.cohorts import BratsCohort, prepare

TABLE = """Brats20ID,Age,Survival_days,Extent_of_Resection
P1,60.5,289,GTR
P2,52.0,ALIVE (361 days later),GTR
P3,54.25,1826.25,NA
P4,39.0,,STR
P5,68.5,150,GTR
"""


def layout(folder: Path, table: str = TABLE) -> Path:
    (folder / "survival_info.csv").write_text(table)
    for patient, suffix in (("P1", ".nii"), ("P2", ".nii"), ("P3", ".nii.gz"), ("P4", ".nii"), ("P5", ".nii")):
        (folder / patient).mkdir()
        for sequence in ("t1", "t1ce", "t2", "flair")[: 3 if patient == "P5" else 4]:
            (folder / patient / f"{patient}_{sequence}{suffix}").write_bytes(b"nifti")
    return folder


def test_alive_and_missing_survival_are_reported(tmp_path: Path) -> None:
    cohort = BratsCohort(layout(tmp_path), tabular_columns=("Age", "Extent_of_Resection"))
    assert [item["subject"] for item in cohort.items] == ["P1", "P3", "P5"]
    assert [(s.subject, s.reason) for s in cohort.left_out] == [
        ("P2", "survival is 'ALIVE (361 days later)', no number of days"),
        ("P4", "no survival"),
    ]
    splits = prepare(cohort, {"train": cohort.items, "validation": [], "test": []})
    assert splits.feature_names == ("Age", "Extent_of_Resection=(missing)", "Extent_of_Resection=GTR")
    np.testing.assert_allclose(splits.train[1]["label"].numpy(), [[1.0]])  # five years
    np.testing.assert_allclose(splits.train[0]["label"].numpy(), [[289 / 1826.25]], rtol=1e-6)
    np.testing.assert_array_equal(splits.train[1]["tabular"].numpy()[0, 1:], [1, 0])
    assert splits.train[0]["image"] == str(tmp_path / "P1" / "P1_t1.nii")
    assert splits.train[1]["image"].endswith("P3_t1.nii.gz")
    assert splits.train[1]["strata"] == {"Age": "54.25", "Extent_of_Resection": "unknown"}


def test_sequences_are_channels_in_the_order_asked(tmp_path: Path) -> None:
    cohort = BratsCohort(layout(tmp_path), sequences=("flair", "t1"))
    assert [Path(p).name for p in cohort.items[0]["image"]] == ["P1_flair.nii", "P1_t1.nii"]
    assert ("P5", "no flair scan (P5/P5_flair.nii or .nii.gz)") in [(s.subject, s.reason) for s in cohort.left_out]


def test_prediction_needs_no_survival(tmp_path: Path) -> None:
    folder = layout(tmp_path, "BraTS20ID,Age\nP1,60\nP2,50\n")
    cohort = BratsCohort(folder, require_target=False)
    items = prepare(cohort, {"train": cohort.items, "validation": [], "test": []}).train
    assert len(items) == 2
    assert np.isnan(items[0]["label"].numpy()).all()
    assert items[0]["tabular"].shape == (1, 0)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("Id,Age,Survival_days\nP1,60,3\n", {}, "no column of identifiers"),
        ("BraTS20ID,Age\nP1,60\n", {}, "Survival_days is missing"),
        ("BraTS20ID,Age,Survival_days\nP1,old,3\n", {}, "line 2: Age is 'old'"),
        ("BraTS20ID,Age,Survival_days\nP1,60,3\nP1,60,3\n", {}, "line 3: P1 occurs twice"),
        ("BraTS20ID,Age,Survival_days\nP1,60,-3\n", {}, "positive number of days, found -3"),
        (TABLE, {"sequences": ("t3",)}, "sequences must be a list of any of"),
        (TABLE, {"sequences": "t1"}, "sequences must be a list of any of"),
        (TABLE, {"sequences": ()}, "one or more different sequences"),
    ],
)
def test_faults_are_named(tmp_path: Path, table: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BratsCohort(layout(tmp_path, table), **options)
