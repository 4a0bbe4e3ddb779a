"""Courses of single subjects over their visits, and the choice of the subjects worth showing."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from cpic_monai.metrics import quantile_columns
from cpic_monai.report.figures import median_column, outer_interval, scored_interval
from cpic_monai.report.style import ACCENT, INK, MUTED, RC, WARN, Picture, canvas, number, svg

__all__ = [
    "has_courses",
    "select_subjects",
    "short",
    "subject_errors",
    "subject_trajectory",
    "trajectories",
    "trajectory",
]


def short(subject: str, length: int = 14) -> str:
    """A subject's name cut in the middle, where long study identifiers are least telling."""
    if len(subject) <= length:
        return subject
    head = length // 3
    return f"{subject[:head]}…{subject[-(length - head - 1) :]}"


def has_courses(frame: pd.DataFrame) -> bool:
    """Whether any subject has at least two different visits, so that a course can be drawn."""
    return bool((frame.dropna(subset=["visit"]).groupby("subject")["visit"].nunique() > 1).any())


def subject_errors(frame: pd.DataFrame) -> pd.DataFrame:
    """
    How far off each subject is, the worst first; subjects without a truth are left out.

    Returns
    -------
    DataFrame
        Columns ``subject``, ``visits`` (scored), ``mae``, ``bias`` (mean of truth - median) and ``width`` (mean of the
        interval, see `figures.scored_interval`) in natural units, ``coverage`` (share of truths within that interval).
    """
    columns = quantile_columns(frame)
    known = frame.dropna(subset=["truth"])
    lower, upper = (known[columns[level]] for level in scored_interval(frame))
    error = known["truth"] - known[median_column(frame)]
    rows = pd.DataFrame(
        {
            "subject": known["subject"],
            "visits": 1,
            "mae": error.abs(),
            "bias": error,
            "width": upper - lower,
            "coverage": ((known["truth"] >= lower) & (known["truth"] <= upper)).astype(float),
        }
    )
    means = dict.fromkeys(("mae", "bias", "width", "coverage"), "mean")
    result = rows.groupby("subject", sort=False, as_index=False).agg({"visits": "sum", **means})
    return result.sort_values("mae", ascending=False, kind="stable", ignore_index=True)


def select_subjects(frame: pd.DataFrame, limit: int = 12) -> list[tuple[str, str]]:
    """
    Subjects to show: the best, the middle and the worst third of `limit`, by mean absolute error.

    Parameters
    ----------
    frame : DataFrame
    limit : int
        The most to show; all subjects if there are not more.

    Returns
    -------
    list of (subject, rank)
        Rank is "best", "median" or "worst", or empty where no truth is known (then the first `limit` subjects).
    """
    dated = frame.dropna(subset=["visit"])
    errors = subject_errors(dated)["subject"].tolist()[::-1]  # best first
    if not errors:
        return [(subject, "") for subject in dict.fromkeys(dated["subject"])][:limit]
    count = min(len(errors), limit)
    best, worst = (count + 2) // 3, (count + 1) // 3
    middle = count - best - worst
    start = (len(errors) - middle) // 2
    start = min(max(start, best), len(errors) - worst - middle)
    chosen = [(subject, "best") for subject in errors[:best]]
    chosen += [(subject, "median") for subject in errors[start : start + middle]]
    return chosen + [(subject, "worst") for subject in errors[len(errors) - worst :]] if worst else chosen


@mpl.rc_context(RC)
def trajectory(
    part: pd.DataFrame, rank: str, *, name: str, span: float, target_name: str, unit: str, visit_name: str
) -> Picture:
    """
    One subject's course: band between the outermost quantiles, median, and true values.

    Parameters
    ----------
    part : DataFrame
        The subject's rows with a visit.
    rank : str
        "best", "median", "worst" or empty, shown as a tag.
    name : str
        Unique name of the figure.
    span : float
        Height of the value axis in the target's unit; the same for all subjects, so that slopes compare.
    target_name, unit, visit_name : str
        For labels.

    Returns
    -------
    Picture
    """
    columns = quantile_columns(part)
    lower, upper = (columns[level] for level in outer_interval(part))
    middle = median_column(part)
    # Several measurements at one visit share a prediction; the band is drawn through their mean.
    band = part.groupby("visit", sort=True)[[lower, middle, upper]].mean()
    known = part.dropna(subset=["truth"]).sort_values("visit")
    inside = (known["truth"] >= known[lower]) & (known["truth"] <= known[upper])
    figure, axes = canvas(2.45, 1.9)
    if len(band) > 1:
        axes.fill_between(band.index, band[lower], band[upper], color=ACCENT, alpha=0.22, linewidth=0)
        axes.plot(band.index, band[middle], color=ACCENT, linewidth=1.6)
    else:
        axes.vlines(band.index, band[lower], band[upper], color=ACCENT, alpha=0.3, linewidth=8)
        axes.scatter(band.index, band[middle], marker="_", s=120, color=ACCENT, linewidths=1.6)
    axes.plot(known["visit"], known["truth"], color=MUTED, linewidth=0.6, alpha=0.7)
    axes.scatter(known["visit"][inside], known["truth"][inside], s=16, color=INK, linewidths=0, zorder=3)
    axes.scatter(known["visit"][~inside], known["truth"][~inside], s=18, color=WARN, marker="D", linewidths=0, zorder=3)
    everything = np.concatenate([band.to_numpy().ravel(), known["truth"].to_numpy()])
    centre = (everything.min() + everything.max()) / 2
    axes.set(ylim=(centre - span / 2, centre + span / 2), xlabel=visit_name, ylabel=unit or target_name)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    subject = str(part["subject"].iloc[0])
    caption = f"{len(band)} visits"
    alt = (
        f"{target_name} of subject {subject} over {visit_name} {band.index[0]:g} to {band.index[-1]:g}: "
        f"predicted median from {number(band[middle].iloc[0])} to {number(band[middle].iloc[-1])} {unit}"
    )
    if len(known):
        mae = float((known["truth"] - known[middle]).abs().mean())
        caption = f"off by {number(mae)} {unit} on average".replace("  ", " ")
        alt += f"; true from {number(known['truth'].iloc[0])} to {number(known['truth'].iloc[-1])} {unit}, "
        alt += f"{int(inside.sum())} of {len(known)} inside the band"
    return Picture(svg(figure, name, alt + "."), short(subject), caption, alt + ".", rank)


def subject_trajectory(
    frame: pd.DataFrame, subject: str, *, name: str, target_name: str, unit: str, visit_name: str
) -> Picture:
    """The course of one subject on an axis of its own; see `trajectory`."""
    part = frame[(frame["subject"] == subject) & frame["visit"].notna()]
    span = _span(part)
    labels = {"target_name": target_name, "unit": unit, "visit_name": visit_name}
    return replace(trajectory(part, "", name=name, span=span, **labels), title="Course")


def _span(part: pd.DataFrame) -> float:
    """Height of a value axis that holds a subject's predictions and truths."""
    values = part[[*quantile_columns(part).values(), "truth"]].to_numpy()
    return 1.12 * float(np.nanmax(values) - np.nanmin(values)) or 1.0


def trajectories(frame: pd.DataFrame, *, target_name: str, unit: str, visit_name: str) -> list[Picture]:
    """Courses of the selected subjects on value axes of one height; see `trajectory`."""
    dated = frame.dropna(subset=["visit"])
    chosen = select_subjects(frame)
    parts = [dated[dated["subject"] == subject] for subject, _ in chosen]
    span = max(map(_span, parts), default=1.0)
    return [
        trajectory(part, rank, name=f"course-{k}", span=span, target_name=target_name, unit=unit, visit_name=visit_name)
        for k, (part, (_, rank)) in enumerate(zip(parts, chosen, strict=True))
    ]
