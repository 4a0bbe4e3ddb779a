"""Small DICOM series, written with pydicom, and the real scans."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_slices import write_slice


@pytest.fixture
def write_series(tmp_path: Path) -> Callable[..., tuple[Path, np.ndarray]]:
    """Write a series of ``count`` slices whose files are in no spatial order; return folder and stored (k, j, i).

    ``each(k)`` gives further tags of slice k, and ``z(k)`` its position.
    """

    def write(
        count: int = 5,
        dtype: str = "u2",
        each: Callable[[int], dict[str, Any]] = lambda k: {},
        z: Callable[[int], float] = lambda k: 2.0 * k,
        name: Callable[[int], str] = lambda k: f"{(k * 7 + 3) % 11}.dcm",
        low: int = 0,
        high: int = 3000,
        **tags: Any,
    ) -> tuple[Path, np.ndarray]:
        folder = tmp_path / "series"
        folder.mkdir(exist_ok=True)
        stored = np.random.default_rng(count).integers(low, high, (count, 6, 8)).astype(dtype)
        for k in range(count):
            own: dict[str, Any] = {"ImagePositionPatient": [-10.0, 20.0, z(k)], "InstanceNumber": count - k}
            write_slice(folder / name(k), stored[k], **(own | tags | each(k)))
        return folder, stored

    return write


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real scans, named by the environment variable CPIC_DATA."""
    folder = os.environ.get("CPIC_DATA")
    if not folder:
        pytest.skip("CPIC_DATA is not set: no real scans")
    return Path(folder)
