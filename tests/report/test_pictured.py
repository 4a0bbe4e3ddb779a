"""Which scans an evaluation draws: the worst predicted, and one in the middle."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from monai.data import Dataset

from cpic_monai.evaluation import Evaluation
from cpic_monai.report import predictions_frame


def frame() -> pd.DataFrame:
    """Seven test subjects off by 0, 10, ... 60, and a training subject that is further off."""
    off = [30.0, 0.0, 60.0, 20.0, 50.0, 10.0, 40.0, 500.0]
    return predictions_frame(
        split=["test"] * 7 + ["train"], subject=[f"S{k}" for k in range(8)], pred=[[-1.0, 0.0, 1.0]] * 8, truth=off
    )


def evaluation(subjects: list[str], pictures: int = 3) -> Evaluation:
    def opened(item: dict[str, Any]) -> None:
        raise AssertionError(f"{item['subject']} was opened to choose among scans")

    scans = Dataset([{"subject": name} for name in subjects], transform=opened)
    given: Any = {"scans": scans, "pictures": pictures, "target_name": "FVC", "unit": "mL"}
    return Evaluation(cast(Any, None), {}, "none", **given)


def test_the_worst_and_the_median() -> None:
    chosen = evaluation([f"S{k}" for k in range(8)]).pictured(frame())
    assert chosen == [2, 4, 6, 0], "off by 60, 50, 40, and 30 in the middle; the training subject is not shown"


@pytest.mark.parametrize(("subjects", "expected"), [(["S1", "S3"], [1, 0]), (["S5"], [0])])
def test_among_the_scans_given(subjects: list[str], expected: list[int]) -> None:
    assert evaluation(subjects).pictured(frame()) == expected


def test_the_first_ones_without_truths() -> None:
    unknown = frame().assign(truth=np.nan)
    assert evaluation(["S3", "S4", "S5", "S6"]).pictured(unknown) == [0, 1, 2]
    assert evaluation(["S3"]).pictured(unknown) == [0]
    assert evaluation(["S3"], pictures=0).pictured(frame()) == []
