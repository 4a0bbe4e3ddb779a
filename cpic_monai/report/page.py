"""One self-contained HTML page about a set of predictions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy.typing as npt
import pandas as pd

from cpic_monai.metrics import summarise
from cpic_monai.report import figures, words
from cpic_monai.report.atomic import write_text_atomically
from cpic_monai.report.picked import PickedScan, picked_pictures
from cpic_monai.report.predictions import check_predictions, strata_columns
from cpic_monai.report.provenance import without_paths
from cpic_monai.report.style import Picture, number
from cpic_monai.report.summary import describe_cohort
from cpic_monai.report.trajectories import has_courses, subject_errors, trajectories

__all__ = ["write_report"]

WORST = 10
_COHORT_LABELS = {
    "subjects": "Subjects",
    "target_mean": "Mean",
    "target_sd": "SD",
}


def _cohort_table(cohort: Mapping[str, Any], frame: pd.DataFrame) -> dict[str, Any]:
    """Columns and rows of the cohort table (one row a split), and single facts that stand above it."""
    facts = {str(key): value for key, value in cohort.items() if not isinstance(value, Mapping)}
    splits = describe_cohort(frame)
    for split, entry in cohort.items():
        if isinstance(entry, Mapping):
            splits[str(split)] = {**splits.get(str(split), {}), **entry}
    keys = list(dict.fromkeys(key for entry in splits.values() for key in entry))
    rows = [{"split": split, "cells": [_cell(entry.get(key)) for key in keys]} for split, entry in splits.items()]
    labels = _COHORT_LABELS | {"visits": _rows_word(frame)}
    facts = {key.replace("_", " "): _cell(value) for key, value in without_paths(facts).items()}
    return {"headings": [labels.get(key, key.replace("_", " ")) for key in keys], "rows": rows, "facts": facts}


def _rows_word(frame: pd.DataFrame) -> str:
    """What a row is called: a visit, where the cohort has such."""
    return "Visits" if frame["visit"].notna().any() else "Rows"


def _cell(value: Any) -> str:
    if value is None or isinstance(value, float):
        return number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return number(value, 1)
    return str(value)


def _worst_cases(frame: pd.DataFrame) -> list[dict[str, str]]:
    """The subjects furthest off, as text."""
    worst = subject_errors(frame).head(WORST)
    return [
        {
            "subject": str(row["subject"]),
            "visits": number(row["visits"], 1),
            "mae": number(row["mae"]),
            "bias": ("+" if row["bias"] > 0 else "") + number(row["bias"]),
            "width": number(row["width"]),
            "coverage": words.written("coverage", row["coverage"]),
        }
        for row in worst.to_dict("records")
    ]


def _subgroups(frame: pd.DataFrame) -> list[dict[str, str]]:
    """MAE and coverage of the values of every stratum that has two to eight of them."""
    rows = []
    for column in strata_columns(frame):
        values = frame[column].astype(str)
        if not 2 <= values.nunique() <= 8:
            continue
        for value, part in frame.groupby(values, sort=True):
            scores = summarise(part, missing_truth="omit")
            if scores["n"]:
                rows.append(
                    {
                        "stratum": column.replace("_", " "),
                        "value": str(value),
                        "subjects": number(part["subject"].nunique(), 1),
                        "n": number(scores["n"], 1),
                        "mae": number(scores["mae"]),
                        "coverage": words.written("coverage", float(scores["coverage"])),
                    }
                )
    return rows


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def write_report(
    output_dir: str | os.PathLike[str],
    predictions: pd.DataFrame,
    *,
    metrics: Mapping[str, Any],
    cohort: Mapping[str, Any],
    target_name: str,
    unit: str,
    visit_name: str | None,
    picked: Sequence[PickedScan] = (),
    curves: Mapping[str, Sequence[float] | npt.ArrayLike] | None = None,
    provenance: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> Path:
    """
    Write `report.html`: headline, metrics, cohort, figures, worst cases, picked voxels, provenance.

    The page needs nothing outside itself, reads on a phone, in print, and in light and dark. Figures are about the
    split held out for testing, else for validation, else the last one.

    Parameters
    ----------
    output_dir : path
    predictions : DataFrame
        See `cpic_monai.report.predictions`; without truths the parts that compare are left out and the page says so.
    metrics : mapping
        Content of `metrics.json` (see `cpic_monai.report.summary`); empty at inference.
    cohort : mapping
        Facts about the cohort (name to value), and by split further columns of the cohort table; subjects, visits, mean
        and SD of the target are added from the predictions where they are missing.
    target_name, unit : str
        Such as "FVC" and "mL".
    visit_name : str, optional
        Such as "week". With None, or where no subject has two visits, sorted predictions stand in for courses.
    picked : sequence of PickedScan
    curves : mapping, optional
        See `figures.training_curves`.
    provenance : mapping, optional
        See `provenance.collect_provenance`. Absolute paths in it are cut to their last part.
    title : str, optional

    Returns
    -------
    Path
        Of `report.html`, written under a temporary name, then renamed.

    Raises
    ------
    ValueError
        If the predictions are not as they should be; see `check_predictions`.
    """
    frame = check_predictions(predictions)
    splits = list(dict.fromkeys(frame["split"]))
    split = words.headline_split(splits)
    shown = frame[frame["split"] == split]
    entry = metrics.get(split) or {}
    known = bool(shown["truth"].notna().any())
    courses: list[Picture] = []
    overview: list[Picture] = []
    if visit_name is not None and has_courses(shown):
        courses = trajectories(shown, target_name=target_name, unit=unit, visit_name=visit_name)
    else:
        overview.append(figures.sorted_predictions(shown, target_name, unit))
    if known:
        overview.append(figures.predicted_against_true(shown, target_name, unit))
        overview.append(figures.calibration(shown))
        overview.append(figures.residuals(shown, target_name, unit))
    facts = without_paths(dict(provenance or {}))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cpic_monai.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html.j2").render(
        title=title or f"{target_name}: predictions of C\N{NON-BREAKING HYPHEN}PIC",
        target_name=target_name,
        unit=unit,
        split=split,
        splits=splits,
        visit_name=visit_name,
        known=known,
        any_truth=bool(frame["truth"].notna().any()),
        rows_word=_rows_word(frame),
        sentences=words.headline(shown, split, entry, target_name=target_name, unit=unit, others=len(splits) > 1),
        tiles=words.tiles(entry, unit),
        columns=words.COLUMNS,
        metric_rows=words.metric_rows(metrics),
        cohort=_cohort_table(cohort, frame),
        courses=courses,
        total_subjects=int(shown["subject"].nunique()),
        interval=figures.interval_name(shown),
        overview=overview,
        training=figures.training_curves(curves or {}),
        worst=_worst_cases(shown),
        subgroups=_subgroups(shown) if known else [],
        picked=[picked_pictures(scan) for scan in picked],
        facts={
            key.replace("_", " "): str(value) for key, value in facts.items() if not isinstance(value, (dict, list))
        },
        details={
            key.replace("_", " "): _pretty(value) for key, value in facts.items() if isinstance(value, (dict, list))
        },
    )
    return write_text_atomically(Path(output_dir) / "report.html", html)
