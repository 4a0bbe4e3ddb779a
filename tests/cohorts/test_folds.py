from __future__ import annotations

import numpy as np
import pytest
from cohort_items import raw_item

from cpic_monai.cohorts import Cohort, split


def names(items: list[dict], key: str = "subject") -> list[str]:
    return [item[key] for item in items]


@pytest.mark.parametrize("stratify", [False, True])
def test_groups_stay_together_and_test_folds_cover_the_cohort(grouped: Cohort, stratify: bool) -> None:
    seen: list[str] = []
    for fold in range(4):
        parts = split(grouped, fold, 4, 0.25, seed=7, stratify=stratify)
        groups = [set(names(parts[key], "group")) for key in ("train", "validation", "test")]
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
        assert sorted(name for part in parts.values() for name in names(part)) == names(grouped.items)
        assert len(groups[1]) == 2 or (stratify and len(groups[1]) == 3)  # a quarter of the nine groups left
        seen += names(parts["test"])
    assert sorted(seen) == names(grouped.items)


def test_the_order_of_the_items_does_not_matter(grouped: Cohort) -> None:
    shuffled = Cohort(grouped.items[::-1], grouped.columns, "value", "mL")
    one, other = split(grouped, 2, 5, 0.2, seed=1), split(shuffled, 2, 5, 0.2, seed=1)
    assert {k: sorted(names(v)) for k, v in one.items()} == {k: sorted(names(v)) for k, v in other.items()}
    assert split(grouped, 2, 5, 0.2, seed=1) == one
    assert names(split(grouped, 2, 5, 0.2, seed=2)["test"]) != names(one["test"])


def test_stratified_folds_have_nearly_equal_means(grouped: Cohort) -> None:
    means = [np.mean([i["target"] for i in split(grouped, f, 3, 0, 0, stratify=True)["test"]]) for f in range(3)]
    assert np.ptp(means) < 2  # of a target from 0 to 11


def test_one_fold_has_no_test_set(grouped: Cohort) -> None:
    parts = split(grouped, 0, 1, 0.5)
    assert [len(parts[key]) for key in ("train", "validation", "test")] == [12, 12, 0]


def test_leave_one_group_out(grouped: Cohort) -> None:
    small = Cohort(grouped.items[:6], grouped.columns, "value", "mL")
    for stratify in (False, True):
        parts = split(small, 0, 3, 0.2, stratify=stratify)
        assert [len(parts[key]) for key in ("train", "validation", "test")] == [2, 2, 2]
    assert len(split(small, 0, 3, 0.0)["validation"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 13), "folds=13 is more than the 12 groups"),
        ((5, 5), "fold must be in"),
        ((0, 0), "folds at least 1"),
        ((0, 5, 1.0), r"validation_fraction must be in \[0, 1\)"),
        ((0, 2, 0.95), "nothing is left to train on"),
    ],
)
def test_faults_are_named(grouped: Cohort, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(grouped, *arguments)


def test_stratifying_by_an_unknown_target_is_refused(grouped: Cohort) -> None:
    grouped.items[3]["target"][:] = np.nan
    with pytest.raises(ValueError, match=r"needs the target of every scan; unknown for \['s03'\]"):
        split(grouped, 0, 3, 0, stratify=True)
    assert len(split(grouped, 0, 3, 0)["test"]) == 8


@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.5, 0.5), (0.3, 0.7), (0.6, 0.25, 0.15), (0.3, 0.3, 0.25, 0.1, 0.05)])
def test_classes_are_balanced_whichever_is_rare(shares: tuple[float, ...]) -> None:
    """Every fold has each class's share, to a row; quantiles of so few values would coincide."""
    classes = np.repeat(np.arange(len(shares)), [round(100 * share) for share in shares])
    cohort = Cohort([raw_item(f"s{n:03d}", f"s{n:03d}", [float(k)]) for n, k in enumerate(classes)], (), "grade", "")
    cohort.classes = [str(k) for k in range(len(shares))]  # as a cohort of classes has them
    for fold in range(5):
        test = split(cohort, fold, 5, 0.2, stratify=True)["test"]
        counts = np.bincount([int(item["target"][0]) for item in test], minlength=len(shares))
        np.testing.assert_allclose(counts, 20 * np.array(shares), atol=1)


def test_a_target_that_cannot_be_balanced_is_said(caplog) -> None:
    cohort = Cohort([raw_item(f"s{n}", f"s{n}", [float(n == 0)]) for n in range(20)], (), "grade", "")
    assert len(split(cohort, 0, 5, 0, stratify=True)["test"]) == 4
    assert "too few scans of alike targets to balance 5 folds" in caplog.text
