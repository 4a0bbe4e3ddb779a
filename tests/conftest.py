"""What all tests share: few threads, helper modules of this folder, and the same random numbers for each test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)
sys.path.insert(0, str(Path(__file__).parent))  # random_trains, scans, planted: whether `tests` is a package or not


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
