"""The comparison of two checkpoints as one self-contained page, as Markdown and as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from cpic_monai.report import words
from cpic_monai.report.bootstrap import LEVEL
from cpic_monai.report.comparison import Evaluated, compare, same_rows
from cpic_monai.report.export import render, write_all
from cpic_monai.report.figures import HEIGHT, WIDTH, observed_shares
from cpic_monai.report.style import ACCENT, INK, MUTED, RC, WARN, Picture, canvas, number, percent, svg

__all__ = ["write_comparison"]

LISTED = 6


@mpl.rc_context(RC)
def _error_of_subjects(subjects: Sequence[Mapping[str, Any]], names: Sequence[str], unit: str) -> Picture:
    """Mean absolute error of every subject under the first checkpoint against that under the second."""
    first, second = (np.array([subject[side] for subject in subjects]) for side in ("first", "second"))
    figure, axes = canvas(WIDTH, HEIGHT)
    better = second < first
    end = 1.06 * float(max(first.max(), second.max())) or 1.0
    axes.plot([0, end], [0, end], color=INK, linewidth=1.0, dashes=(4, 3), label="equal")
    axes.scatter(first[better], second[better], s=18, color=ACCENT, linewidths=0, label="smaller in the second")
    axes.scatter(first[~better], second[~better], s=20, color=WARN, marker="D", linewidths=0, label="not smaller")
    brackets = f" [{unit}]" if unit else ""
    axes.set(xlim=(0, end), ylim=(0, end), xlabel=f"MAE, {names[0]}{brackets}", ylabel=f"MAE, {names[1]}{brackets}")
    figure.legend(loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.0)
    alt = (
        f"Mean absolute error of {len(subjects)} subjects, {names[0]} against {names[1]}: smaller in the second for "
        f"{int(better.sum())}."
    )
    return Picture(svg(figure, "errors", alt), "Error of every subject", "One point a subject.", alt)


@mpl.rc_context(RC)
def _calibrations(first: pd.DataFrame, second: pd.DataFrame, names: Sequence[str]) -> Picture:
    """Observed against nominal shares of both."""
    figure, axes = canvas(WIDTH, HEIGHT)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1.0, dashes=(4, 3), label="perfectly calibrated")
    parts = []
    for frame, name, colour, shift in ((first, names[0], MUTED, -0.008), (second, names[1], ACCENT, 0.008)):
        shares = observed_shares(frame)
        at = shares["nominal"] + shift
        axes.vlines(at, shares["low"], shares["high"], color=colour, alpha=0.4, linewidth=4)
        axes.plot(at, shares["observed"], color=colour, marker="o", markersize=5, linewidth=1.2, label=name)
        parts.append(f"{name} {', '.join(percent(value) for value in shares['observed'])}")
    levels = ", ".join(percent(value) for value in shares["nominal"])
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="Nominal level of the quantile")
    axes.set(ylabel="True values at or below it")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(percent)
    axes.legend(loc="upper left")
    alt = f"Calibration at the quantiles {levels}: {'; '.join(parts)} of the true values at or below."
    caption = f"Bars are {100 * LEVEL:g} % intervals over patients."
    return Picture(svg(figure, "calibrations", alt), "Calibration", caption, alt)


def _sentences(result: Mapping[str, Any]) -> list[str]:
    first, second = result["names"]
    patients = f"{number(result['n_patients'], 1)} {'patient' if result['n_patients'] == 1 else 'patients'}"
    intro = (
        f"“{second}” against “{first}” on the same {patients} ({number(result['n'], 1)} rows, split "
        f"“{result['split']}”): {percent(result['improved'])} of the subjects have a smaller mean absolute error."
    )
    clear = {
        side: [m["label"] for m in result["metrics"] if m["verdict"] == side] for side in ("second", "first", "unclear")
    }
    parts = [
        f"“{name}” is better in {', '.join(clear[side])}"
        for side, name in (("second", second), ("first", first))
        if clear[side]
    ]
    if clear["unclear"]:
        parts.append(f"{', '.join(clear['unclear'])} could go either way")
    verdict = f"By {100 * LEVEL:g} % intervals of the paired difference over patients, {'; '.join(parts)}."
    return [
        intro,
        verdict,
        "The intervals hold for these two checkpoints and patients like these; training again with another seed adds "
        "to the difference.",
    ]


def _metric_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    def signed(key: str, value: float) -> str:
        return ("+" if value > 0 else "") + words.written(key, value)

    verdicts = {"second": result["names"][1], "first": result["names"][0], "unclear": "unclear", "": "–"}
    return [
        {
            "label": entry["label"],
            "greater": entry["greater"],
            "has_unit": entry["has_unit"],
            "verdict": verdicts[entry["verdict"]],
            "tone": "best" if entry["verdict"] in ("first", "second") else "",
            "difference": signed(entry["name"], entry["difference"]),
            "range": " to ".join(signed(entry["name"], end) for end in (entry["low"], entry["high"]))
            if entry["low"] == entry["low"]
            else "",
        }
        | {
            side: (
                words.written(entry["name"], entry[side]),
                words.ends(entry["name"], *(entry[f"{side}_interval"] or (None, None))),
            )
            for side in ("first", "second")
        }
        for entry in result["metrics"]
    ]


def write_comparison(
    output_dir: str | os.PathLike[str], first: Evaluated, second: Evaluated, *, split: str | None = None, seed: int = 0
) -> Path:
    """
    Write `comparison.html`, the same as `comparison.md` with `comparison_figures/`, and `comparison.json`.

    Parameters
    ----------
    output_dir : path
    first, second : Evaluated
    split : str, optional
        By default the split that a report is about.
    seed : int
        Of the patients drawn.

    Returns
    -------
    Path
        Of `comparison.html`.

    Raises
    ------
    DifferentPatientsError, ValueError
        See `comparison.compare`; nothing is written then.
    """
    result = compare(first, second, split=split, seed=seed)
    unit = str(result["target"].get("unit") or "")
    rows = [
        {"subject": row["subject"], "visits": number(row["visits"], 1)}
        | {key: number(row[key]) for key in ("first", "second")}
        | {"difference": ("+" if row["difference"] > 0 else "") + number(row["difference"])}
        for row in result["patients"]
    ]
    pictures = [
        _error_of_subjects(result["patients"], result["names"], unit),
        _calibrations(*same_rows(first, second, result["split"]), result["names"]),
    ]
    context = {
        "title": f"{result['target'].get('name') or 'Predictions'}: two checkpoints compared",
        "sentences": _sentences(result),
        "unit": unit,
        "names": result["names"],
        "metric_rows": _metric_rows(result),
        "pictures": pictures,
        "listed": LISTED,
        "total": len(rows),
        "patients": rows if len(rows) <= 2 * LISTED else rows[:LISTED] + rows[-LISTED:],
        "settings": [
            {"name": row["name"].replace("_", " "), "first": _text(row["first"]), "second": _text(row["second"])}
            for row in result["settings"]
        ],
    }
    html = render("comparison.html.j2", context)
    content = {**result, "sentences": context["sentences"], "seed": seed}
    return write_all(output_dir, "comparison", html, "comparison.md.j2", context, {"figure": pictures}, content)


def _text(value: Any) -> str:
    return "–" if value is None else str(value)
