"""An experiment's new entry joined to the one that the page has: a method is replaced, its neighbours stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What two entries must share for their methods to stand in one table.
SAME = ("key_metric", "target", "splits", "split_sha256", "phantom")


def joined(kept: Mapping[str, Any] | None, found: Mapping[str, Any], order: Mapping[str, Any]) -> dict[str, Any]:
    """
    The entry with the methods of both; where both have one, the new.

    Paired differences need the rows of two methods, of which an entry has only the sums: they are those that
    were computed where both methods were collected together, and stay as long as the first method has
    not changed since.

    Parameters
    ----------
    kept, found : mapping
        Entries of :func:`results_collect.collect`; `kept` may be None.
    order : mapping
        The experiment's methods, in its order; others go.

    Raises
    ------
    ValueError
        If the entries are of different cohorts, splits or metrics; what differs is named.
    """
    if kept is None:
        return dict(found)
    if changed := [key for key in SAME if kept.get(key) != found.get(key)]:
        raise ValueError(
            f"{found['title']}: {', '.join(changed)} of the new folds differ from those of the methods on the page, so "
            f"they cannot stand in one table: collect {', '.join(kept['methods'])} again, or remove the entry"
        )
    entry = {**found, "methods": _by_method("methods", kept, found, order)}
    if "stability" in found:
        entry["stability"] = _by_method("stability", kept, found, order)
        return entry
    first = next(iter(entry["methods"]))
    of_kept, of_found = (_first_numbers(e["methods"], first) for e in (kept, found))
    now = _first_numbers(entry["methods"], first)
    for name, method in entry["methods"].items():
        beside = of_found if name in found["methods"] else of_kept
        if beside != now:
            entry["methods"][name] = {key: value for key, value in method.items() if key != "differences"}
    entry["baselines"] = {**kept["baselines"], **found["baselines"]}
    return entry


def _by_method(key: str, kept: Mapping[str, Any], found: Mapping[str, Any], order: Mapping[str, Any]) -> dict[str, Any]:
    both = {**kept[key], **found[key]}
    return {name: both[name] for name in order if name in both}


def _first_numbers(methods: Mapping[str, Any], first: str) -> Any:
    """The folds of the method that an entry's differences are from, if that is `first`."""
    return methods[first]["folds"] if next(iter(methods)) == first else None
