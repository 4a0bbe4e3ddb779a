"""The results page, from ``results.json``, the targets and the notes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from config_reference import shown

from cpic_monai.report import words
from cpic_monai.report.export import in_markdown
from cpic_monai.report.style import number

TEMPLATE = "results.md.j2"
DIRECTIONS = ("at most", "at least", "below", "between")
#: Left out of the tables: the pinball loss says little by itself.
UNTOLD = "pinball"
THREE_DECIMALS = ("mlll", "r2")


def page(results: Mapping[str, Any], targets: Sequence[Mapping[str, Any]], notes: str) -> str:
    """
    The page in Markdown.

    Parameters
    ----------
    results : mapping
        Content of ``results.json``: experiment to entry.
    targets : sequence of mapping
        See :func:`found_and_asked`.
    notes : str
        Markdown that ends the page; its first heading, the notes' own title, is left out.

    Raises
    ------
    ValueError
        If a target is not as it should be.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.FileSystemLoader(Path(__file__).parent), jinja2.PackageLoader("cpic_monai.report", ".")]
        ),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = in_markdown
    text = environment.get_template(TEMPLATE).render(
        targets=[found_and_asked(target, results) for target in targets],
        sections=[_section(name, entry) for name, entry in results.items()],
        notes=re.sub(r"\A# .*\n+", "", notes),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def found_and_asked(target: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, str]:
    """
    A target beside what was found.

    Parameters
    ----------
    target : mapping
        ``what``; ``experiment``; ``value``, the place of a number in the experiment's entry (``methods.cpic.mean.mae``;
        ``*`` stands for all names, and the worst counts); ``less``, places of others, the best of which is subtracted;
        ``direction``, one of DIRECTIONS; ``threshold``, a number, two for ``between``, or the place of one, negative
        behind ``-``; ``aim``, a further threshold, and ``beside``, a mapping of words to places, for the reader.
    results : mapping

    Returns
    -------
    dict
        ``what``, ``asked``, ``found``, ``verdict`` (met, not met, not measured).

    Raises
    ------
    ValueError
        If the direction is none of these.
    """
    direction, entry = target["direction"], results.get(target["experiment"], {})
    if direction not in DIRECTIONS:
        raise ValueError(f"target {target['what']!r}: direction {direction!r} is none of {', '.join(DIRECTIONS)}")
    smaller = direction in ("at most", "below")
    best, worst = (min, max) if smaller else (max, min)
    values = _places(entry, target["value"])
    others = [_places(entry, place) for place in target.get("less", ())]
    limit = _limit(target["threshold"], entry)
    asked = f"{direction} {_limit_words(limit)}"
    asked += f" (aim {_plain(target['aim'])})" if "aim" in target else ""
    row = {"what": str(target["what"]), "asked": asked, "found": "–", "verdict": "not measured"}
    if not values or not all(others) or limit is None:
        return row
    value = worst(values) - (best(v for found in others for v in found) if others else 0.0)
    met = {
        "at most": lambda: value <= limit,
        "at least": lambda: value >= limit,
        "below": lambda: value < limit,
        "between": lambda: limit[0] <= value <= limit[1],
    }[direction]()
    row["found"] = _plain(value)
    remarks = [
        f"{text}: {_plain(v[0])}" for text, place in target.get("beside", {}).items() if (v := _places(entry, place))
    ]
    remarks += _incomplete(entry, [target["value"], *target.get("less", ())])
    row["found"] += f" ({'; '.join(remarks)})" if remarks else ""
    row["verdict"] = "met" if met else "not met"
    return row


def _places(entry: Any, place: str) -> list[float]:
    """The numbers at a place; empty where there is none, or one of them is missing."""
    found = [entry]
    for part in place.split("."):
        below: list[Any] = []
        for value in found:
            if not isinstance(value, Mapping) or (part != "*" and part not in value):
                return []
            below += value.values() if part == "*" else [value[part]]
        found = below
    return [] if any(value is None for value in found) else [float(value) for value in found]


def _limit(threshold: Any, entry: Mapping[str, Any]) -> Any:
    if not isinstance(threshold, str):
        return threshold
    found = _places(entry, threshold.removeprefix("-"))
    return None if not found else -found[0] if threshold.startswith("-") else found[0]


def _limit_words(limit: Any) -> str:
    if limit is None:
        return "–"
    return " and ".join(_plain(v) for v in limit) if isinstance(limit, Sequence) else _plain(limit)


def _plain(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _incomplete(entry: Mapping[str, Any], places: Sequence[str]) -> list[str]:
    """Methods among those named that lack folds or seeds."""
    remarks = []
    for name in dict.fromkeys(place.split(".")[1] for place in places if place.startswith("methods.")):
        done, folds = len(entry["methods"][name]["fold_numbers"]), entry["splits"]["folds"]
        remarks += [f"{name}: {done} of {folds} folds"] * (done < folds)
    return remarks


def _value(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _written(key: str, value: float | None) -> str:
    """A metric as text; where differences of a hundredth count, one decimal more than in a report."""
    value = _value(value)
    if key in THREE_DECIMALS and not math.isnan(value):
        return f"{value:.3f}".replace("-", "−")
    return words.written(key, value)


def _section(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    unit = str(entry["target"].get("unit") or "")
    table = words.columns_of(entry["key_metric"])
    columns = [
        (key, f"{label} [{unit}]" if has_unit and unit else label) for key, label, _, has_unit in table if key != UNTOLD
    ]
    section: dict[str, Any] = {
        "name": name,
        "entry": entry,
        "key": next(label for key, label, *_ in table if key == entry["key_metric"]),
        "labels": [label for _, label in columns],
        "made": _made(entry),
        "stability": _stability_rows(entry) if "stability" in entry else [],
        "rows": [],
        "pooled": [],
        "folds": [],
    }
    if "stability" in entry:
        return section
    key, methods = entry["key_metric"], entry["methods"]
    for who, found in [*methods.items(), *entry["baselines"].items()]:
        spread = [f"{_written(k, found['mean'][k])} ± {_written(k, found['sd'][k])}" for k, _ in columns]
        seconds = number(sum(found["seconds"]) / len(found["seconds"])) if "seconds" in found else ""
        section["rows"].append([who, *spread, seconds])
        if "pooled" in found:
            section["pooled"].append(
                [who, *(_with_ends(k, found["pooled"]) for k, _ in columns), _difference(key, found)]
            )
        numbers = found.get("fold_numbers") or next(iter(methods.values()))["fold_numbers"]
        by_fold = {k: _written(key, fold[key]) for k, fold in zip(numbers, found["folds"], strict=True)}
        section["folds"].append([who, *(by_fold.get(k, "") for k in range(entry["splits"]["folds"]))])
    return section


def _with_ends(key: str, pooled: Mapping[str, Any]) -> str:
    low, high = (pooled.get("intervals") or {}).get(key) or (None, None)
    ends = f" ({_written(key, low)} to {_written(key, high)})" if low is not None and high is not None else ""
    return _written(key, pooled[key]) + ends


def _difference(key: str, found: Mapping[str, Any]) -> str:
    if key not in found.get("differences", {}):
        return ""
    row = found["differences"][key]
    value, low, high = (
        ("+" if _value(row[n]) > 0 else "") + _written(key, row[n]) for n in ("difference", "low", "high")
    )
    return f"{value} ({low} to {high})"


def _stability_rows(entry: Mapping[str, Any]) -> list[list[str]]:
    key, rows = entry["key_metric"], []
    for name, found in entry["stability"].items():
        counts = [str(found[n]) for n in ("runs", "failed", "nan", "skipped", "diverged")]
        values = [_written(key, found[n]) for n in ("min", "max", "mean", "sd")]
        seconds = entry["methods"].get(name, {}).get("seconds") or [math.nan]
        rows.append([name, *counts, *values, number(sum(seconds) / len(seconds))])
    return rows


def _made(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that all methods share, what each adds, and machines and versions."""
    methods = entry["methods"]
    if not methods:
        return {"common": "", "own": [], "with": ""}
    shared = [
        file
        for file in next(iter(methods.values()))["config_files"]
        if all(file in m["config_files"] for m in methods.values())
    ]
    absent = object()
    first = next(iter(methods.values()))["settings"]
    common = {k: v for k, v in first.items() if all(m["settings"].get(k, absent) == v for m in methods.values())}
    own = []
    for name, method in methods.items():
        files = [file for file in method["config_files"] if file not in shared]
        settings = {key: value for key, value in method["settings"].items() if key not in common}
        if files or settings:
            own.append(f"`{name}`: {_settings(files, settings)}")
    made = {
        f"{m['machine']}; Python {m['python']}, "
        + ", ".join(f"{package} {m['packages'][package]}" for package in ("monai", "torch") if package in m["packages"])
        + f"; {m['date']}": None
        for m in methods.values()
    }
    return {"common": _settings(shared, common), "own": own, "with": "; ".join(made)}


def _settings(files: Sequence[str], settings: Mapping[str, Any]) -> str:
    return ", ".join([f"`{file}`" for file in files] + [f"`{key}` {shown(value)}" for key, value in settings.items()])


def read(path: Path) -> Any:
    """JSON of a file; an empty object where it is not there yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
