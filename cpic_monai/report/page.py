"""The report about a set of predictions: one self-contained HTML page, and the same as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd

from cpic_monai.report import figures, tables, words
from cpic_monai.report.content import report_content
from cpic_monai.report.export import render, write_all
from cpic_monai.report.picked import PickedScan, picked_pictures
from cpic_monai.report.predictions import check_predictions
from cpic_monai.report.provenance import without_paths
from cpic_monai.report.style import Picture
from cpic_monai.report.subgroups import subgroup_figure, subgroup_scores
from cpic_monai.report.trajectories import has_courses, subject_trajectory, trajectories

__all__ = ["write_report"]


def _pretty(value: Any) -> str:
    """JSON with an entry a line, but a list of numbers or words on one; line breaks within text are escaped there."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s*\]", lambda m: "[" + re.sub(r"\n\s+", " ", m[1]) + "]", text)


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
    sigma_min: float = 70.0,
    error_max: float = 1000.0,
) -> Path:
    """
    Write `report.html`, and the same as `report.md` with `report_figures/`, and as `report.json`.

    In this order: headline, metrics, cohort, courses, accuracy and calibration, worst cases with slices, subgroups,
    voxels picked, training, provenance. The page needs nothing outside itself, reads on a phone, in print, and in light
    and dark. Figures are about the split held out for testing, else for validation, else the last one.

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
        Slices with the voxels picked; those of the worst cases are shown there, with their courses, the others apart.
    curves : mapping, optional
        See `figures.training_curves`.
    provenance : mapping, optional
        See `provenance.collect_provenance`. Absolute paths in it are cut to their last part.
    title : str, optional
    sigma_min, error_max : float
        Clips of the mLLL, in the target's unit: for the subgroups, and for whoever reads `report.json`.

    Returns
    -------
    Path
        Of `report.html`. Every file is written under a temporary name, then renamed.

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
    labels: dict[str, str] = {"target_name": target_name, "unit": unit}
    dated = visit_name is not None and has_courses(shown)
    courses: list[Picture] = trajectories(shown, **labels, visit_name=visit_name) if dated and visit_name else []
    overview: list[Picture] = [] if dated else [figures.sorted_predictions(shown, **labels)]
    if known:
        overview.append(figures.predicted_against_true(shown, **labels))
        overview.append(figures.calibration(shown))
        overview.append(figures.residuals(shown, **labels))
    groups = subgroup_scores(frame, split, sigma_min=sigma_min, error_max=error_max) if known else []
    overall = words.value_of(entry, "mae")
    worst = tables.worst_cases(shown)
    # Of the few subjects of a small split the better half is in the table, but no worst case.
    half = max(shown["subject"].nunique() // 2, 1)
    places = {row["subject"]: k for k, row in enumerate(worst[:half])}
    looked_into = []
    for scan in sorted((scan for scan in picked if scan.subject in places), key=lambda scan: places[scan.subject]):
        heading, planes = picked_pictures(scan)
        row = worst[places[scan.subject]]
        if dated and visit_name and shown.loc[shown["subject"] == scan.subject, "visit"].notna().any():
            name = f"worst-{places[scan.subject]}"
            planes.append(subject_trajectory(shown, scan.subject, name=name, **labels, visit_name=visit_name))
        looked_into.append({"heading": heading, "off": f"{row['mae']} {unit}".strip(), "pictures": planes})
    others = [picked_pictures(scan) for scan in picked if scan.subject not in places]
    facts = without_paths(dict(provenance or {}))
    context: dict[str, Any] = {
        "title": title or f"{target_name}: predictions of C\N{NON-BREAKING HYPHEN}PIC",
        **labels,
        "split": split,
        "splits": splits,
        "visit_name": visit_name,
        "known": known,
        "any_truth": bool(frame["truth"].notna().any()),
        "rows_word": tables.rows_word(frame),
        "sentences": words.headline(shown, split, entry, **labels, others=len(splits) > 1),
        "tiles": words.tiles(entry, unit),
        "columns": words.COLUMNS,
        "metric_rows": words.metric_rows(metrics),
        "cohort": tables.cohort_table(cohort, frame),
        "courses": courses,
        "total_subjects": int(shown["subject"].nunique()),
        "interval": figures.interval_name(figures.outer_interval(shown)),
        "scored_interval": figures.interval_name(figures.scored_interval(shown)),
        "overview": overview,
        "training": figures.training_curves(curves or {}),
        "worst": worst,
        "looked_into": looked_into,
        "subgroups": tables.subgroup_rows(groups),
        "subgroup_figure": [subgroup_figure(groups, overall, unit)] if groups and overall == overall else [],
        "picked": others,
        "facts": {k.replace("_", " "): str(v) for k, v in facts.items() if not isinstance(v, (dict, list))},
        "details": {k.replace("_", " "): _pretty(v) for k, v in facts.items() if isinstance(v, (dict, list))},
    }
    pictures = {
        "courses": courses,
        "accuracy": overview,
        "worst": [picture for case in looked_into for picture in case["pictures"]],
        "subgroups": context["subgroup_figure"],
        "picked": [picture for _, planes in others for picture in planes],
        "training": context["training"],
    }
    content = report_content(
        frame,
        title=context["title"],
        split=split,
        sentences=context["sentences"],
        target={"name": target_name, "unit": unit, "visit": visit_name},
        scoring={"sigma_min": sigma_min, "error_max": error_max},
        metrics=metrics,
        cohort=without_paths(dict(cohort)),
        subgroups=groups,
        picked=picked,
        curves=curves or {},
        provenance=facts,
    )
    return write_all(output_dir, "report", render("page.html.j2", context), "page.md.j2", context, pictures, content)
