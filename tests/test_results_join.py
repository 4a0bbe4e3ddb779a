"""Entries of the results page joined: a method is replaced, its neighbours and their differences stay or go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from results_join import joined

ORDER = {"base": {}, "wide": {}, "deep": {}, "new": {}}


def entry(base: float | None = 1.0, **others: float) -> dict[str, Any]:
    """An entry whose methods have one fold each and, but for the first, a difference from the first."""
    scores = ({} if base is None else {"base": base}) | others
    first = next(iter(scores.values()))
    methods: dict[str, Any] = {name: {"folds": [{"mae": score}]} for name, score in scores.items()}
    for name in list(methods)[1:]:
        methods[name]["differences"] = {"mae": {"difference": scores[name] - first}}
    shared = {"title": "T", "key_metric": "mae", "target": {}, "splits": {"folds": 1}, "split_sha256": "a"}
    constant = {"folds": [{"mae": 9.0}], "differences": {"mae": {"difference": 9.0 - first}}}
    return {**shared, "methods": methods, "baselines": {"constant": constant}}


def difference(found: dict[str, Any], name: str) -> float | None:
    row = found["methods"][name].get("differences")
    return row and row["mae"]["difference"]


def test_a_method_beside_the_same_first_one_joins_with_its_difference():
    found = joined(entry(1.0, wide=2.0, deep=3.0), entry(1.0, new=5.0), ORDER)
    assert list(found["methods"]) == ["base", "wide", "deep", "new"]
    assert [difference(found, name) for name in ("base", "wide", "deep", "new")] == [None, 1.0, 2.0, 4.0]


def test_where_the_first_method_is_new_former_differences_go():
    found = joined(entry(1.0, wide=2.0), entry(1.5, new=5.0), ORDER)
    assert found["methods"]["base"]["folds"] == [{"mae": 1.5}]
    assert (difference(found, "wide"), difference(found, "new")) == (None, 3.5)


def test_differences_from_another_method_than_the_first_go():
    found = joined(entry(1.0, wide=2.0), entry(None, deep=3.0, new=5.0), ORDER)
    assert [difference(found, name) for name in ("wide", "deep", "new")] == [1.0, None, None]


def test_a_method_alone_replaces_its_row():
    found = joined(entry(1.0, wide=2.0, deep=3.0), entry(None, wide=7.0), ORDER)
    assert found["methods"]["wide"]["folds"] == [{"mae": 7.0}]
    assert [difference(found, name) for name in ("wide", "deep")] == [None, 2.0]


def test_methods_that_the_experiment_has_no_more_go():
    found = joined(entry(1.0, gone=2.0), entry(None, wide=7.0), ORDER)
    assert list(found["methods"]) == ["base", "wide"]


def test_other_splits_are_refused():
    other = entry(1.0) | {"split_sha256": "b"}
    with pytest.raises(ValueError, match=r"T: split_sha256 of the new folds differ .* collect base again"):
        joined(entry(1.0), other, ORDER)


def test_seeds_join_by_method():
    kept = {**entry(1.0, wide=2.0), "stability": {"base": {"runs": 1}, "wide": {"runs": 1}}}
    found = joined(kept, {**entry(None, wide=2.0), "stability": {"wide": {"runs": 2}}}, ORDER)
    assert found["stability"] == {"base": {"runs": 1}, "wide": {"runs": 2}}
    assert list(found["methods"]) == ["base", "wide"]


def test_an_experiment_that_is_not_there_is_taken_as_it_is():
    assert joined(None, entry(1.0), ORDER) == entry(1.0)


def test_baselines_are_those_beside_the_first_method():
    beside = joined(entry(1.0, wide=2.0), entry(None, deep=3.0), ORDER)["baselines"]["constant"]
    assert beside["differences"]["mae"]["difference"] == 8.0
    again = joined(entry(1.0, wide=2.0), entry(1.5), ORDER)["baselines"]["constant"]
    assert again["differences"]["mae"]["difference"] == 7.5
    found = entry(None, deep=3.0)
    found["baselines"]["ridge"] = {"folds": [{"mae": 2.0}], "differences": {"mae": {"difference": -1.0}}}
    ridge = joined(entry(1.0, wide=2.0), found, ORDER)["baselines"]["ridge"]
    assert ridge == {"folds": [{"mae": 2.0}]}, "its difference is from another method than the first"
