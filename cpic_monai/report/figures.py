"""Figures of the report. Each takes a checked predictions frame (see `predictions`) and returns a `Picture`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from cpic_monai.metrics import quantile_columns
from cpic_monai.report.bootstrap import DRAWS, interval, patient_weights
from cpic_monai.report.style import ACCENT, INK, MUTED, OTHER, PAPER, RC, WARN, Picture, canvas, number, percent, svg

__all__ = [
    "calibration",
    "observed_shares",
    "predicted_against_true",
    "residuals",
    "sorted_predictions",
    "training_curves",
]

# Above this many points a scatter is drawn as pixels inside the SVG, which a phone still scrolls.
MANY_POINTS = 1500
WIDTH, HEIGHT = 4.0, 3.1


def _label(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit else name


def outer_interval(frame: pd.DataFrame) -> tuple[float, float]:
    """Levels of the lowest and the highest predicted quantile."""
    levels = list(quantile_columns(frame))
    return levels[0], levels[-1]


def scored_interval(frame: pd.DataFrame) -> tuple[float, float]:
    """Levels of the interval whose coverage is a metric, 0.2 to 0.8; where it is not predicted, of the outermost."""
    return (0.2, 0.8) if {0.2, 0.8} <= set(quantile_columns(frame)) else outer_interval(frame)


def interval_name(levels: tuple[float, float]) -> str:
    """An interval in words, such as "20–80 %"."""
    low, high = levels
    return f"{100 * low:g}–{100 * high:g}\N{NO-BREAK SPACE}%"


def median_column(frame: pd.DataFrame) -> str:
    """Column of the 0.5 quantile, or of the one nearest to it."""
    columns = quantile_columns(frame)
    return columns[min(columns, key=lambda level: abs(level - 0.5))]


@mpl.rc_context(RC)
def predicted_against_true(frame: pd.DataFrame, target_name: str, unit: str) -> Picture:
    """Predicted medians against true values with the identity line, intervals as faint bars where they are few."""
    known = frame.dropna(subset=["truth"])
    columns = quantile_columns(frame)
    low, high = (known[columns[level]].to_numpy() for level in outer_interval(frame))
    truth, median = known["truth"].to_numpy(), known[median_column(frame)].to_numpy()
    figure, axes = canvas(WIDTH, HEIGHT)
    if len(known) <= MANY_POINTS // 3:
        axes.vlines(truth, low, high, color=ACCENT, alpha=0.18, linewidth=1.2)
    axes.scatter(
        truth, median, s=12, color=ACCENT, alpha=0.75 if len(known) < 300 else 0.4, linewidths=0,
        rasterized=len(known) > MANY_POINTS,
    )  # fmt: skip
    ends = np.array([min(truth.min(), median.min()), max(truth.max(), median.max())])
    margin = 0.04 * (ends[1] - ends[0]) or abs(ends[0]) * 0.05 or 1.0
    ends += [-margin, margin]
    axes.plot(ends, ends, color=INK, linewidth=1.0, dashes=(4, 3), label="predicted = true")
    axes.set(
        xlim=ends,
        ylim=ends,
        xlabel=f"True {_label(target_name, unit)}",
        ylabel=f"Predicted {_label(target_name, unit)}",
    )
    axes.legend(loc="upper left")
    correlation = float(np.corrcoef(truth, median)[0, 1]) if truth.std() > 0 and median.std() > 0 else math.nan
    alt = (
        f"Scatter of {len(known)} predicted medians against true {target_name}, correlation {number(correlation, 2)}; "
        f"true values from {number(truth.min())} to {number(truth.max())} {unit}."
    )
    caption = "One point a row; points on the dashed line are exact. Faint bars are the predicted intervals."
    return Picture(svg(figure, "predicted-against-true", alt), "Predicted against true", caption, alt)


def observed_shares(frame: pd.DataFrame, draws: int = DRAWS) -> pd.DataFrame:
    """
    Share of true values at or below each predicted quantile, with its uncertainty over patients.

    The bootstrap draws patients, not rows: see `bootstrap`.

    Parameters
    ----------
    frame : DataFrame
        Predictions with truths.
    draws : int

    Returns
    -------
    DataFrame
        Columns ``nominal``, ``observed``, ``low``, ``high`` (95 % interval; NaN with fewer than two patients).
    """
    columns = quantile_columns(frame)
    known = frame.dropna(subset=["truth"])
    below = pd.DataFrame({level: known["truth"] <= known[name] for level, name in columns.items()})
    sums = below.groupby(known["patient"]).sum().to_numpy(dtype=np.float64)
    rows = known.groupby("patient").size().to_numpy(dtype=np.float64)
    result = pd.DataFrame({"nominal": list(columns), "observed": below.mean().to_numpy()})
    result["low"] = result["high"] = math.nan
    if len(rows) > 1:
        weights = patient_weights(len(rows), draws)
        shares = (weights @ sums) / (weights @ rows)[:, None]
        result[["low", "high"]] = [interval(column) for column in shares.T]
    return result


@mpl.rc_context(RC)
def calibration(frame: pd.DataFrame) -> Picture:
    """Nominal against observed share of true values below each quantile."""
    shares = observed_shares(frame)
    figure, axes = canvas(WIDTH, HEIGHT)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1.0, dashes=(4, 3), label="perfectly calibrated")
    axes.vlines(shares["nominal"], shares["low"], shares["high"], color=ACCENT, alpha=0.45, linewidth=4)
    axes.plot(
        shares["nominal"], shares["observed"], color=ACCENT, marker="o", markersize=6, linewidth=1.2, label="observed"
    )
    for row in shares.itertuples():
        # On the side of the point that is away from the diagonal.
        above = row.observed >= row.nominal
        axes.annotate(
            percent(row.observed), (row.nominal, row.observed), xytext=(-8, 6) if above else (8, -10),
            textcoords="offset points", ha="right" if above else "left", va="center", fontsize=8.5,
        )  # fmt: skip
    axes.set(
        xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="Nominal level of the quantile", ylabel="True values at or below it"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(percent)
    axes.legend(loc="upper left")
    alt = "Calibration: " + "; ".join(
        f"{percent(row.observed)} of true values at or below the {percent(row.nominal)} quantile"
        for row in shares.itertuples()
    )
    caption = "Points on the dashed line: quantiles mean what they say. Bars are 95 % intervals, drawn over patients."
    return Picture(svg(figure, "calibration", alt), "Calibration", caption, alt + ".")


@mpl.rc_context(RC)
def residuals(frame: pd.DataFrame, target_name: str, unit: str) -> Picture:
    """Histogram of truth minus median."""
    known = frame.dropna(subset=["truth"])
    error = (known["truth"] - known[median_column(frame)]).to_numpy()
    figure, axes = canvas(WIDTH, HEIGHT)
    # Freedman-Diaconis, bounded so that one diverged prediction does not make a million bars.
    width = 2.0 * float(np.subtract(*np.quantile(error, [0.75, 0.25]))) / len(error) ** (1 / 3)
    bins = int(np.clip(np.ptp(error) / width, 5, 40)) if width > 0 else 5
    counts, _, _ = axes.hist(error, bins=bins, color=ACCENT, alpha=0.55, edgecolor=PAPER, linewidth=0.8)
    axes.axvline(0.0, color=INK, linewidth=1.0, dashes=(4, 3))
    axes.axvline(error.mean(), color=WARN, linewidth=1.6, label=f"mean {number(error.mean())} {unit}".rstrip())
    axes.set(xlabel=f"True − predicted {_label(target_name, unit)}", ylabel="Rows")
    axes.set_ylim(0, 1.2 * float(np.max(counts)))  # room for the legend
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.legend(loc="best")
    alt = (
        f"Histogram of {len(error)} residuals of {target_name}: mean {number(error.mean())}, "
        f"standard deviation {number(error.std())}, from {number(error.min())} to {number(error.max())} {unit}."
    )
    caption = "Left of zero the prediction was too high, right of it too low."
    return Picture(svg(figure, "residuals", alt), "Residuals", caption, alt)


@mpl.rc_context(RC)
def sorted_predictions(frame: pd.DataFrame, target_name: str, unit: str) -> Picture:
    """Predicted intervals sorted by their median, with true values: for cohorts without visits."""
    columns = quantile_columns(frame)
    ordered = frame.sort_values(median_column(frame), kind="stable")
    low, high = (ordered[columns[level]].to_numpy() for level in outer_interval(frame))
    median, truth = ordered[median_column(frame)].to_numpy(), ordered["truth"].to_numpy()
    rank = np.arange(1, len(ordered) + 1)
    figure, axes = canvas(WIDTH, HEIGHT)
    share = f"{interval_name(outer_interval(frame))} interval"
    if len(ordered) <= 250:
        width = float(np.clip(240 / len(ordered), 1.2, 9))
        axes.vlines(rank, low, high, color=ACCENT, alpha=0.3, linewidth=width, label=share)
        axes.scatter(rank, median, marker="_", s=(width * 1.6) ** 2, color=ACCENT, linewidths=1.6, label="median")
    else:
        axes.fill_between(rank, low, high, color=ACCENT, alpha=0.25, linewidth=0, label=share)
        axes.plot(rank, median, color=ACCENT, linewidth=1.4, label="median")
    known = ~np.isnan(truth)
    if known.any():
        inside = (truth >= low) & (truth <= high)
        pixels = len(ordered) > MANY_POINTS
        axes.scatter(
            rank[inside],
            truth[inside],
            s=12,
            color=INK,
            linewidths=0,
            zorder=3,
            label="true, inside",
            rasterized=pixels,
        )
        outside = known & ~inside
        axes.scatter(
            rank[outside], truth[outside], s=14, marker="D", color=WARN, linewidths=0, zorder=3, label="true, outside",
            rasterized=pixels,
        )  # fmt: skip
    axes.set(xlabel="Rows, sorted by predicted median", ylabel=_label(target_name, unit))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    figure.legend(loc="outside upper left", ncols=2, handletextpad=0.4, columnspacing=1.2)
    held = (
        f"{int(((truth >= low) & (truth <= high)).sum())} of {int(known.sum())} true values lie inside"
        if known.any()
        else "no truth is known"
    )
    alt = f"{len(ordered)} predicted intervals of {target_name} sorted by their median; {held}."
    caption = "One bar a row. Dark points are true values inside their interval, diamonds those outside."
    return Picture(svg(figure, "sorted-predictions", alt), "Predictions in order", caption, alt)


@mpl.rc_context(RC)
def training_curves(curves: Mapping[str, Sequence[float] | npt.ArrayLike]) -> list[Picture]:
    """
    Values over epochs, a figure a quantity.

    Parameters
    ----------
    curves : mapping
        Name to values, either (E,) for the epochs 1 … E, or (E, 2) with the epochs in the first column. Names that
        share their last word (``train_loss``, ``val_loss``) share a figure.

    Returns
    -------
    list of Picture

    Raises
    ------
    ValueError
        If values have another shape.
    """
    groups: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    for name, given in curves.items():
        values = np.asarray(given, dtype=np.float64)
        if values.ndim == 1:
            values = np.column_stack([np.arange(1, len(values) + 1), values])
        if values.ndim != 2 or values.shape[1] != 2:
            raise ValueError(f"curves[{name!r}] has shape {values.shape}, expected (epochs,) or (epochs, 2)")
        values = values[np.isfinite(values).all(axis=1)]
        if len(values):
            groups.setdefault(name.replace("/", "_").rsplit("_", 1)[-1], {})[name] = values
    pictures = []
    for quantity, group in groups.items():
        figure, axes = canvas(WIDTH, HEIGHT * 0.8)
        for (name, values), colour in zip(group.items(), (ACCENT, WARN, OTHER, MUTED) * len(group), strict=False):
            axes.plot(
                values[:, 0], values[:, 1], color=colour, linewidth=1.5, label=name,
                marker="o" if len(values) < 20 else None, markersize=3.5,
            )  # fmt: skip
        axes.set(xlabel="Epoch", ylabel=quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.legend(loc="best")
        alt = f"Training curves of {quantity}: " + "; ".join(
            f"{name} from {number(values[0, 1])} to {number(values[-1, 1])} in {len(values)} epochs"
            for name, values in group.items()
        )
        pictures.append(Picture(svg(figure, f"curve-{quantity}", alt), quantity, "", alt + "."))
    return pictures
