from __future__ import annotations

from pathlib import Path

import pytest
from cohort_items import raw_item

from cpic_monai.cohorts import Cohort, Column, write_phantom_cohort


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients of 8 x 48 x 48 voxels."""
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    return write_phantom_cohort(folder, subjects=3, shape=(8, 48, 48), seed=3, workers=1, progress=False)


@pytest.fixture
def grouped() -> Cohort:
    """24 scans in 12 groups of two, target rising with the group."""
    items = [raw_item(f"s{n:02d}", f"g{n // 2:02d}", [float(n // 2)], age=[float(n)]) for n in range(24)]
    return Cohort(items, (Column("age"),), "value", "mL")
