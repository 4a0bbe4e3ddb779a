from __future__ import annotations

import pytest
from bodies import aligner, write_scans

from cpic_monai.transforms import LoadVolumed, fit_transforms


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def template(scans, tmp_path_factory):
    """Made of the scans, once for all tests of a module."""
    path = tmp_path_factory.mktemp("template") / "template.nii.gz"
    fit_transforms([LoadVolumed("image"), aligner(path)], scans)
    return path
