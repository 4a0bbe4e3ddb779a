"""Small cohorts with realistic FVC."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cpic_monai.report import predictions_frame


def osic_like(split: str, subjects: int, seed: int) -> pd.DataFrame:
    """Courses of FVC in mL over weeks: 5 visits a subject, linear decline, noise of 70 mL."""
    rng = np.random.default_rng(seed)
    parts = []
    for k in range(subjects):
        week = np.sort(rng.choice(np.arange(-4, 70), size=5, replace=False)).astype(float)
        start, slope = rng.normal(2700, 700), rng.normal(-4.5, 3)
        truth = start + slope * (week - week[0]) + rng.normal(0, 70, 5)
        median = start + 0.6 * slope * (week - week[0])
        parts.append(
            predictions_frame(
                split=split,
                subject=[f"ID{split}{k:05d}202177411956430"] * 5,
                pred=np.column_stack([median - 80, median, median + 90]),
                visit=week,
                truth=truth,
                offset=np.full(5, truth[0]),
                strata={"sex": ["Male" if k % 3 else "Female"] * 5},
            )
        )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="session")
def osic() -> pd.DataFrame:
    return pd.concat([osic_like("train", 20, 1), osic_like("val", 6, 2), osic_like("test", 15, 3)], ignore_index=True)


@pytest.fixture(scope="session")
def ages() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    truth = rng.uniform(20, 86, 40)
    median = truth + rng.normal(0, 5, 40)
    return predictions_frame(
        split="val", subject=[f"{k:03d}" for k in range(40)], pred=np.column_stack([median - 5, median, median + 4]),
        truth=truth, offset=np.full(40, 50.0),
    )  # fmt: skip
