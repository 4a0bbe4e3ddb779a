"""The content of a report as numbers, for `report.json`: what the page shows, unrounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cpic_monai.report.figures import observed_shares
from cpic_monai.report.picked import PickedScan
from cpic_monai.report.summary import describe_cohort
from cpic_monai.report.tables import WORST
from cpic_monai.report.trajectories import select_subjects, subject_errors

__all__ = ["FORMAT", "report_content"]

FORMAT = 1


def report_content(
    frame: pd.DataFrame,
    *,
    title: str,
    split: str,
    sentences: Sequence[str],
    target: Mapping[str, Any],
    scoring: Mapping[str, float],
    metrics: Mapping[str, Any],
    cohort: Mapping[str, Any],
    subgroups: Sequence[Mapping[str, Any]],
    picked: Sequence[PickedScan],
    curves: Mapping[str, Sequence[float] | npt.ArrayLike],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """
    Everything that the page is made of, without its figures.

    Parameters
    ----------
    frame : DataFrame
        Predictions of all splits; they themselves are in `predictions.csv`.
    title, split, sentences
        As the page shows them.
    target : mapping
        ``name``, ``unit``, ``visit``.
    scoring : mapping
        ``sigma_min`` and ``error_max`` of the mLLL.
    metrics, cohort, subgroups, picked, curves, provenance
        See `page.write_report`.

    Returns
    -------
    dict
        ``format`` (1), ``title``, ``split``, ``sentences``, ``target``, ``scoring``, ``metrics``, ``cohort`` (``facts``
        and ``splits``), ``courses`` (subject and rank), ``calibration`` (a row a quantile: ``nominal``, ``observed``,
        ``low``, ``high``), ``worst`` (a row a subject), ``subgroups``, ``picked`` (``subject``, ``shape``, ``voxels``:
        how many different ones), ``curves``, ``provenance``.
    """
    shown = frame[frame["split"] == split]
    known = bool(shown["truth"].notna().any())
    return {
        "format": FORMAT,
        "title": title,
        "split": split,
        "sentences": list(sentences),
        "target": dict(target),
        "scoring": dict(scoring),
        "metrics": dict(metrics),
        "cohort": {"facts": dict(cohort), "splits": describe_cohort(frame)},
        "courses": [{"subject": name, "rank": rank} for name, rank in select_subjects(shown)],
        "calibration": observed_shares(shown).to_dict("records") if known else [],
        "worst": subject_errors(shown).head(WORST).to_dict("records"),
        "subgroups": [dict(group) for group in subgroups],
        "picked": [
            {"subject": scan.subject, "shape": list(scan.shape), "voxels": len(np.unique(scan.voxels, axis=0))}
            for scan in picked
        ],
        "curves": {name: np.asarray(values, dtype=np.float64).tolist() for name, values in curves.items()},
        "provenance": dict(provenance),
    }
