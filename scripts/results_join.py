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
    now = _first_numbers(entry["methods"], first)
    entry["methods"] = _differing_from(now, first, kept, found, "methods", entry["methods"])
    # Baselines are of the first method's folds; of another one's where that has none.
    old, new = (kept, found) if _first_numbers(found["methods"], first) == now else (found, kept)
    baselines = {**old["baselines"], **new["baselines"]}
    entry["baselines"] = _differing_from(now, first, old, new, "baselines", baselines)
    return entry


def _differing_from(
    now: Any, first: str, old: Mapping[str, Any], new: Mapping[str, Any], part: str, rows: Mapping[str, Any]
) -> dict[str, Any]:
    """The rows, taken from `new` where it has them, without differences from other numbers of the first than `now`."""
    result = {}
    for name, row in rows.items():
        beside = _first_numbers((new if name in new[part] else old)["methods"], first)
        result[name] = row if beside == now else {key: value for key, value in row.items() if key != "differences"}
    return result


def _by_method(key: str, kept: Mapping[str, Any], found: Mapping[str, Any], order: Mapping[str, Any]) -> dict[str, Any]:
    both = {**kept[key], **found[key]}
    return {name: both[name] for name in order if name in both}


def _first_numbers(methods: Mapping[str, Any], first: str) -> Any:
    """The folds of the method that an entry's differences are from, if that is `first`."""
    return methods[first]["folds"] if next(iter(methods)) == first else None
