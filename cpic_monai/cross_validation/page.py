"""The result of a cross-validation for people: a table in Markdown and one page; and each method's pooled report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from cpic_monai.atomic import write_text_atomically
from cpic_monai.cross_validation.results import MethodResult
from cpic_monai.cross_validation.splits import TEST
from cpic_monai.report import words, write_metrics, write_predictions, write_report
from cpic_monai.report.export import render
from cpic_monai.report.style import ACCENT, INK, MUTED, RC, Picture, canvas, number, svg
from cpic_monai.report.summary import plain

__all__ = ["write_results"]


def write_results(output_dir: str | Path, result: Mapping[str, Any], methods: Mapping[str, MethodResult]) -> list[Path]:
    """
    Write everything that a cross-validation leaves for people to read.

    ``<method>/`` gets ``predictions.csv`` of all rows while they were held out, and of quantiles ``metrics.json`` and
    ``report.html`` (with ``.md``, ``.json``): what an evaluation writes, so that two methods' folders can be compared.

    Parameters
    ----------
    output_dir : path
    result : mapping
        See :func:`cpic_monai.cross_validation.aggregate`.
    methods : mapping
        Name to results.

    Returns
    -------
    list of Path
        ``cv_metrics.json``, ``cv_table.md``, ``cv_report.html`` (written last).
    """
    output_dir = Path(output_dir)
    for name, method in methods.items():
        _write_pooled(output_dir / name, method, result)
    context = _context(result)
    metrics = write_text_atomically(
        output_dir / "cv_metrics.json",
        json.dumps(plain(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    )
    table = write_text_atomically(output_dir / "cv_table.md", render("cross_validation.md.j2", context).strip() + "\n")
    page = write_text_atomically(output_dir / "cv_report.html", render("cross_validation.html.j2", context))
    return [metrics, table, page]


def _write_pooled(folder: Path, method: MethodResult, result: Mapping[str, Any]) -> None:
    target, frame = result["target"], method.held_out()
    if "pooled" not in result["methods"][method.name]:  # a task's
        write_text_atomically(folder / "predictions.csv", frame.to_csv(index=False, lineterminator="\n"))
        return
    metrics = {TEST: result["methods"][method.name]["pooled"]}
    write_predictions(frame, folder / "predictions.csv", visit_name=target.get("visit"))
    write_metrics(metrics, folder / "metrics.json")
    write_report(
        folder,
        frame.drop(columns="fold"),
        metrics=metrics,
        cohort=(method.facts.get("cohort") or {}).get("facts") or {},
        target_name=str(target.get("name") or "target"),
        unit=str(target.get("unit") or ""),
        visit_name=target.get("visit"),
        provenance=method.facts.get("provenance"),
        title=f"{target.get('name') or 'Predictions'}: {method.name}, {len(method.folds)} folds pooled",
        **method.scoring,
    )


def _rows(result: Mapping[str, Any]) -> list[tuple[str, bool, Mapping[str, Any]]]:
    """Methods, then baselines: name, whether a method, entry."""
    return [
        *((name, True, entry) for name, entry in result["methods"].items()),
        *((name, False, entry) for name, entry in result["baselines"].items()),
    ]


@mpl.rc_context(RC)
def _by_fold(result: Mapping[str, Any]) -> Picture:
    """The key metric of every fold, a column a method; lines join a fold's values."""
    key, rows = result["key_metric"], _rows(result)
    label, unit = _label(result, key)
    values = np.array([[fold[key] for fold in entry["folds"]] for _, _, entry in rows])
    figure, axes = canvas(max(4.0, 1.1 * len(rows) + 1.2), 3.1)
    at = np.arange(len(rows))
    # Folds stand beside each other in a column, so that equal values stay apart.
    shift = np.linspace(-0.16, 0.16, values.shape[1])
    axes.plot(at[:, None] + shift, values, color=MUTED, linewidth=0.6, alpha=0.5)
    for k, (_, is_method, entry) in enumerate(rows):
        axes.scatter(k + shift, values[k], s=22, color=ACCENT if is_method else MUTED, linewidths=0, zorder=3)
        mean, sd = entry["mean"][key], entry["sd"][key]
        axes.errorbar(k + 0.3, mean, yerr=sd, fmt="_", color=INK, markersize=12, linewidth=1.2, capsize=3)
    axes.set_xticks(at, [name for name, *_ in rows])
    axes.set(xlim=(-0.5, len(rows) - 0.3), ylabel=f"{label} [{unit}]" if unit else label)
    parts = [
        f"{name} {', '.join(words.written(key, v) for v in row)}" for (name, *_), row in zip(rows, values, strict=True)
    ]
    alt = f"{label} of every fold: {'; '.join(parts)}."
    caption = "One point a fold, lines join the same fold. Dash: mean; bar: one standard deviation over folds."
    return Picture(svg(figure, "folds", alt), f"{label} of every fold", caption, alt)


def _label(result: Mapping[str, Any], key: str) -> tuple[str, str]:
    label, has_unit = next((label, has_unit) for name, label, _, has_unit in words.columns_of(key) if name == key)
    return label, str(result["target"].get("unit") or "") if has_unit else ""


def _context(result: Mapping[str, Any]) -> dict[str, Any]:
    key, rows = result["key_metric"], _rows(result)
    label, unit = _label(result, key)
    columns = words.columns_of(key)
    first = next(iter(result["methods"]))
    return {
        "title": f"{result['target'].get('name') or 'Predictions'}: {result['splits']['folds']}-fold cross-validation",
        "sentences": _sentences(result),
        "unit": str(result["target"].get("unit") or ""),
        "columns": columns,
        "pools": "pooled" in result["methods"][first],
        "rows": [_row(name, is_method, entry, rows, columns) for name, is_method, entry in rows],
        "picture": _by_fold(result),
        "key": label,
        "key_unit": unit,
        "fold_numbers": list(range(result["splits"]["folds"])),
        "fold_rows": [
            {
                "name": name,
                "is_method": is_method,
                "cells": [words.written(key, fold[key]) for fold in entry["folds"]],
                "spread": _spread(entry, key),
            }
            for name, is_method, entry in rows
        ],
        "first": first,
        "differences": [
            {"name": name, "cells": [_difference(entry["differences"], column) for column, *_ in columns]}
            for name, _, entry in rows
            if "differences" in entry
        ],
        "facts": {
            "folds": f"{result['splits']['folds']}, seed {result['splits']['seed']}, grouped"
            + (", stratified by target" if result["splits"]["stratify"] else ""),
            "subjects": number(result["subjects"], 1),
            "rows": number(result["n"], 1),
            "splits (SHA-256)": result["split_sha256"],
        },
    }


def _spread(entry: Mapping[str, Any], key: str) -> str:
    return f"{words.written(key, entry['mean'][key])} ± {words.written(key, entry['sd'][key])}"


def _row(name: str, is_method: bool, entry: Mapping[str, Any], rows: Any, columns: Any) -> dict[str, Any]:
    pooled, cells = entry.get("pooled") or {}, []
    for key, _, greater, _ in columns:
        means = [other["mean"][key] for _, _, other in rows if not math.isnan(other["mean"][key])]
        best = bool(means) and greater is not None and entry["mean"][key] == (max(means) if greater else min(means))
        low, high = (pooled.get("intervals") or {}).get(key) or (None, None)
        text = words.written(key, pooled[key]) if key in pooled else ""
        sure = words.ends(key, low, high)
        cells.append(
            {
                "mean": _spread(entry, key),
                "best": best,
                "pooled": f"{text} ({sure})" if text and sure else text,
            }
        )
    minutes = number(entry["seconds"] / 60, 2) if "seconds" in entry else ""
    return {"name": name, "is_method": is_method, "cells": cells, "minutes": minutes}


def _difference(differences: Mapping[str, Any], key: str) -> tuple[str, str]:
    if key not in differences:
        return "–", ""
    signed = {}
    for name, value in differences[key].items():
        signed[name] = ("+" if value > 0 else "") + words.written(key, value).replace("-", "−")
    return signed["difference"], f"{signed['low']} to {signed['high']}"


def _sentences(result: Mapping[str, Any]) -> list[str]:
    key, methods = result["key_metric"], result["methods"]
    label, unit = _label(result, key)
    several = len(methods) > 1
    intro = f"{number(result['subjects'], 1)} subjects in {result['splits']['folds']} folds, each held out once" + (
        f"; {len(methods)} methods on the same splits." if several else "."
    )
    parts = []
    for name, entry in methods.items():
        value = _spread(entry, key)
        parts.append((f"{name} " if several else "") + value + (f" {unit}" if unit else ""))
    constant = result["baselines"].get("constant")
    beside = f"; a constant prediction has {words.written(key, constant['mean'][key])}" if constant else ""
    pooled = "; intervals over patients belong to the pooled values" if "pooled" in next(iter(methods.values())) else ""
    return [
        intro,
        f"{label}, mean and standard deviation over folds: {', '.join(parts)}{beside}.",
        "The folds share most of their training subjects, so their standard deviation says how much a result depends "
        f"on who is held out, not how sure the mean is{pooled}.",
    ]
