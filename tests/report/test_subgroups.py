from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cpic_monai.report import predictions_frame
from cpic_monai.report.subgroups import group_labels, subgroup_figure, subgroup_scores


def cohort() -> pd.DataFrame:
    """30 patients of two visits in each of two splits; men are off by 10, women by 30; ages 40 to 69."""
    parts = []
    for split in ("train", "test"):
        subject = [f"{split}{k:02d}" for k in range(30) for _ in range(2)]
        sex = ["Male" if k % 3 else "Female" for k in range(30) for _ in range(2)]
        off = np.where(np.array(sex) == "Male", 10.0, 30.0)
        parts.append(
            predictions_frame(
                split=split, subject=subject, visit=[0.0, 1.0] * 30, pred=[[80.0, 100.0, 120.0]] * 60, truth=100 + off,
                strata={"sex": sex, "age": [f"{40 + k}" for k in range(30) for _ in range(2)]},
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_scores_by_hand() -> None:
    groups = subgroup_scores(cohort(), "test")
    women, men, *ages = groups
    assert (women["stratum"], women["value"], women["subjects"], women["n"]) == ("sex", "Female", 10, 20)
    assert (women["mae"], women["coverage"], women["bias"]) == (30.0, 0.0, 30.0)
    assert (men["mae"], men["coverage"], men["subjects"]) == (10.0, 1.0, 20)
    assert women["intervals"]["mae"] == [30.0, 30.0]
    assert [age["value"] for age in ages] == ["below 49.7", "49.7 to 59.3", "above 59.3"]
    assert [age["subjects"] for age in ages] == [10, 10, 10]
    assert all(10 < age["mae"] < 30 and age["intervals"]["mae"][0] < age["mae"] for age in ages)


def test_terciles_are_those_of_all_patients_whatever_the_split() -> None:
    frame = cohort()
    frame.loc[frame["split"] == "test", "age"] = "41"
    groups = [g for g in subgroup_scores(frame, "test") if g["stratum"] == "age"]
    assert groups == [], "all test patients in one third: nothing to compare"
    labels = group_labels(frame, "age")
    assert labels is not None
    assert labels[frame["split"] == "test"].nunique() == 1


def test_unknown_is_a_group_and_identifiers_are_none() -> None:
    frame = cohort()
    frame.loc[frame["subject"] == "test00", ["age", "sex"]] = ["", "unknown"]
    groups = subgroup_scores(frame, "test")
    unknown = [g for g in groups if g["value"] == "unknown"]
    assert [g["stratum"] for g in unknown] == ["sex", "age"]
    assert all(g["subjects"] == 1 and g["intervals"] == {} for g in unknown), "too few for an interval"
    assert group_labels(frame.assign(site=frame["subject"]), "site") is None
    assert group_labels(frame.assign(site="A"), "site") is None


def test_groups_count_patients_beside_their_scans() -> None:
    """Ten scans of four women, too few for an interval, and twenty of five men."""
    frame = cohort()
    number, women = frame["subject"].str[-2:].astype(int), frame["sex"] == "Female"
    frame["patient"] = frame["split"] + frame["sex"] + (number // 3 % 4).where(women, number % 5).astype(str)
    groups = subgroup_scores(frame, "test")[:2]
    assert [(g["subjects"], g["patients"], bool(g["intervals"])) for g in groups] == [(10, 4, False), (20, 5, True)]
    assert "sex: Female (4) 30.0 mL; sex: Male (5)" in subgroup_figure(groups, 16.7, "mL").alt


def test_terciles_count_a_patient_once_whatever_the_scans() -> None:
    """Twelve patients of the ages 0 to 11, the oldest with 49 scans."""
    ages = [*range(12), *[11] * 48]
    frame = predictions_frame(
        split="test", subject=[f"scan {k}" for k in range(60)], patient=[f"P{age}" for age in ages],
        pred=np.ones((60, 3)), strata={"age": [str(age) for age in ages]},
    )  # fmt: skip
    labels = group_labels(frame, "age")
    assert labels is not None
    assert labels.value_counts().to_dict() == {"below 3.67": 4, "3.67 to 7.33": 4, "above 7.33": 52}


def test_few_numbers_are_categories() -> None:
    labels = group_labels(cohort().assign(grade=["1", "2", "3", "4"] * 30), "grade")
    assert labels is not None
    assert list(labels.cat.categories) == ["1", "2", "3", "4"]


def test_rows_without_truth_are_not_scored() -> None:
    frame = cohort()
    frame.loc[frame["sex"] == "Female", "truth"] = np.nan
    assert [g["stratum"] for g in subgroup_scores(frame, "test")] == ["age"] * 3
    assert subgroup_scores(frame.assign(truth=np.nan), "test") == []


def test_figure_tells_the_numbers() -> None:
    picture = subgroup_figure(subgroup_scores(cohort(), "test"), 16.7, "mL")
    assert "sex: Female (10) 30.0 mL; sex: Male (20) 10.0 mL; age: below 49.7 (10)" in picture.alt
    assert picture.markup.startswith("<svg")


@pytest.mark.parametrize("value", ["nan", "None", " "])
def test_what_counts_as_unknown(value: str) -> None:
    frame = cohort()
    frame.loc[0:1, "sex"] = value
    labels = group_labels(frame, "sex")
    assert labels is not None
    assert labels[0] == "unknown"
