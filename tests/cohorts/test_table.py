from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cpic_monai.cohorts import TableCohort, load_splits, prepare, split


def layout(folder: Path, table: str, scans: str = "abcd", name: str = "cohort.csv") -> Path:
    (folder / "scans").mkdir(exist_ok=True)
    for scan in scans:
        (folder / "scans" / f"{scan}.nii").write_bytes(b"nifti")
    (folder / name).write_text(table)
    return folder / name


TABLE = """id,image,age,sex,site,score
007,scans/a.nii,40,F,1,10
008,scans/b.nii,,M,2,20
009,scans/c.nii,60,,1,
010,scans/x.nii,60,M,1,5
011,scans/d.nii,70,M,2,thirty
"""


def test_missing_values_are_encoded_or_reported(tmp_path: Path) -> None:
    path = layout(tmp_path, TABLE.replace(",\n", ",30\n"))
    cohort = TableCohort(
        path, "image", "score", ["age", "sex", "site"], "id", categorical_columns="site", unit="points"
    )
    assert [item["subject"] for item in cohort.items] == ["007", "008", "009"]
    assert [(s.subject, s.reason) for s in cohort.left_out] == [
        ("010 (line 5)", f"{tmp_path / 'scans' / 'x.nii'} does not exist"),
        ("011 (line 6)", "target is 'thirty', no number"),
    ]
    splits = prepare(cohort, {"train": cohort.items, "validation": [], "test": []})
    names = ("age", "age missing", "sex=(missing)", "sex=F", "sex=M", "site=1", "site=2")
    assert splits.feature_names == names
    np.testing.assert_allclose(
        np.concatenate([item["tabular"].numpy() for item in splits.train]),
        [[-1, 0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 1, 0, 1], [1, 0, 1, 0, 0, 1, 0]],
    )
    labels = np.concatenate([item["label"].numpy() for item in splits.train]).ravel()
    np.testing.assert_allclose(labels, np.array([-1, 0, 1]) * np.sqrt(1.5), rtol=1e-6)
    assert splits.train[0]["strata"] == {"age": "40.0", "sex": "F", "site": "1"}
    assert np.isnan(splits.train[0]["visit"].numpy()).all()
    assert cohort.describe()["tabular"]["sex"] == {"kind": "categorical", "missing": 1, "counts": {"F": 1, "M": 1}}


def test_missing_target_is_reported_but_not_needed_for_prediction(tmp_path: Path) -> None:
    path = layout(tmp_path, TABLE)
    assert ("009 (line 4)", "no target") in [
        (s.subject, s.reason) for s in TableCohort(path, target_column="score", group_column="id").left_out
    ]
    cohort = TableCohort(path, target_column="score", group_column="id", require_target=False)
    assert [item["subject"] for item in cohort.items] == ["007", "008", "009", "011"]
    assert np.isnan(cohort.items[2]["target"]).all()
    for column in ("nowhere", None, ""):
        assert len(TableCohort(path, target_column=column, require_target=False)) == 4


def test_rows_of_one_image_are_visits_of_one_scan(tmp_path: Path) -> None:
    rows = "image,month,dose,y\nscans/a.nii,6,2,50\n./scans/../scans/a.nii,0,1,100\nscans/b.nii,0,1,80\n"
    path = layout(tmp_path, rows)
    cohort = TableCohort(
        path, target_column="y", tabular_columns="dose", visit_column="month", target_mode="relative_to_first"
    )
    assert [item["subject"] for item in cohort.items] == ["scans/a.nii", "scans/b.nii"]
    a = prepare(cohort, {"train": cohort.items, "validation": [], "test": []}).train[0]
    np.testing.assert_array_equal(a["visit"].numpy().ravel(), [0, 6])
    np.testing.assert_allclose(a["label"].numpy().ravel(), [0, -5])  # half of it lost: five tenths
    assert cohort.items[0]["covariates"]["dose"] == [1, 2]


def test_channels_and_groups(tmp_path: Path) -> None:
    path = layout(
        tmp_path, "t1\tt2\tfamily\ty\nscans/a.nii\tscans/b.nii\tF1\t1\nscans/c.nii\tscans/d.nii\tF1\t2\n", name="c.tsv"
    )
    cohort = TableCohort(path, ["t1", "t2"], "y", group_column="family")
    assert cohort.items[0]["image"] == [str(tmp_path / "scans" / "a.nii"), str(tmp_path / "scans" / "b.nii")]
    assert [item["group"] for item in cohort.items] == ["F1", "F1"]
    assert [item["subject"] for item in cohort.items] == ["scans/a.nii", "scans/c.nii"]  # the group names two scans


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE, {"tabular_columns": ["weight"]}, r"columns \['weight'\] are missing; found \['id', 'image'"),
        (TABLE, {"target_column": ""}, "target_column must name the outcome"),
        (TABLE, {"image_column": ""}, "image_column must name"),
        (TABLE, {"tabular_columns": ["score"]}, "score is the outcome: take it out of tabular_columns"),
        ("image,y\nscans/a.nii,\n", {"target_column": "y"}, "no scan is left.*no target"),
        ("id,image,score\n1,scans/a.nii,3\n2,scans/a.nii,4\n", {}, r"lines \[2, 3\].*in groups \['1', '2'\]"),
        (
            "id,image,score,age\n1,scans/a.nii,3,40\n2,scans/b.nii,4,5O\n3,scans/c.nii,4,60\n",
            {"tabular_columns": ["age"]},
            "line 3: age is '5O' in a column of numbers",
        ),
        ("", {}, "is empty"),
    ],
)
def test_faults_are_named(tmp_path: Path, table: str, options: dict, message: str) -> None:
    path = layout(tmp_path, table)
    grouped = {"group_column": "id"} if "id," in table else {}
    with pytest.raises(ValueError, match=message):
        TableCohort(path, **{"target_column": "score", **grouped, **options})


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv is missing"):
        TableCohort(tmp_path / "none.csv")


@pytest.mark.skipif("CPIC_DATA" not in os.environ, reason="CPIC_DATA (folder of real scans) is not set")
def test_ixi() -> None:
    path = Path(os.environ["CPIC_DATA"]) / "ixi_age" / "cohort.csv"
    cohort = TableCohort(path, "image", "age_years", ["sex"], "subject_id", unit="years")
    frame = pd.read_csv(path)
    summary = cohort.describe()
    assert summary["scans"] + len({s.subject for s in cohort.left_out}) == len(frame)
    assert summary["scans"] == 181
    assert summary["target_mean"] == pytest.approx(frame["age_years"].mean())
    splits = load_splits(cohort, fold=1, folds=5, seed=0)
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == 181
    ages = [float((i["label"] * i["scale"] + i["offset"])[0, 0]) for i in splits.test]
    expected = frame.set_index("subject_id")["age_years"].loc[[i["subject"] for i in splits.test]]
    np.testing.assert_allclose(ages, expected, rtol=1e-5)
    assert Path(splits.test[0]["image"]).is_file()


def test_scans_of_one_subject_in_several_groups_are_not_split(tmp_path: Path) -> None:
    """They are read nevertheless: predictions need no groups."""
    path = layout(tmp_path, "id,image,score,who\n1,scans/a.nii,3,P\n2,scans/b.nii,4,P\n")
    cohort = TableCohort(path, target_column="score", subject_column="who", group_column="id")
    assert [item["subject"] for item in cohort.items] == ["P", "P"]
    with pytest.raises(ValueError, match="scans of P are in the groups 1 and 2, so some would train and others test"):
        split(cohort, folds=2)


def test_links_keep_their_names_and_one_file_is_one_scan(tmp_path: Path) -> None:
    path = layout(tmp_path, "image,target\nlink.nii.gz,1\nscans/../link.nii.gz,2\nscans/a.nii,3\n")
    (tmp_path / "blob").write_bytes(b"nifti")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "blob")
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    cohort = TableCohort(tmp_path / "elsewhere" / path.name)
    assert [item["subject"] for item in cohort.items] == ["link.nii.gz", "scans/a.nii"]
    assert [item["image"] for item in cohort.items] == [
        str(tmp_path / "elsewhere" / name) for name in ("link.nii.gz", "scans/a.nii")
    ]
    assert cohort.items[0]["target"].tolist() == [1, 2]


def test_a_blank_behind_a_name_makes_no_other_group(tmp_path: Path) -> None:
    path = layout(tmp_path, "image,target,patient\nscans/a.nii,1,p1\nscans/b.nii ,2,p1 \nscans/c.nii,3,p2\n")
    cohort = TableCohort(path, group_column="patient")
    assert [item["group"] for item in cohort.items] == ["p1", "p1", "p2"]


def test_a_table_that_was_not_named_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"--cohort_csv study\.csv"):
        TableCohort(None)  # type: ignore[arg-type]
