"""Cross-validation of patients with several scans each."""

from __future__ import annotations

import numpy as np
import pytest

from cpic_monai.cross_validation import aggregate, read_method
from cpic_monai.report.bootstrap import metric_differences, metric_intervals
from tests.bundle.folds_left import GOOD, results_of


def test_intervals_and_differences_are_over_patients(tmp_path):
    """The second method's error is its patients'; the first one's files take each subject for one."""
    patients, error = ["A", "C", "E", "A", "C", "E", "B", "D"], np.repeat([40.0, 0, 9, 40, 0, 9, 70, 25], 2)
    methods = {
        "old": read_method("old", results_of(tmp_path / "old", GOOD), 3),
        "new": read_method("new", results_of(tmp_path / "new", GOOD, error, patients), 3),
    }
    result = aggregate(methods, {"folds": 3}, "mae")
    old, new = (method.held_out() for method in methods.values())
    assert new.groupby("patient")["subject"].nunique().to_dict() == {"A": 2, "B": 1, "C": 2, "D": 1, "E": 2}
    assert result["subjects"] == 8
    found, by_subject = result["methods"]["new"], metric_differences(new.assign(patient=new["subject"]), old)
    expected = metric_differences(new, old.assign(patient=new["patient"]))
    for name, ends in expected.items():
        assert (found["differences"][name]["low"], found["differences"][name]["high"]) == pytest.approx(ends), name
        assert found["pooled"]["intervals"][name] == pytest.approx(list(metric_intervals(new)[name]), nan_ok=True), name
    assert np.diff(expected["mae"]) > 1.1 * np.diff(by_subject["mae"])
