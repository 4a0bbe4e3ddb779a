"""Results of a run to MLflow, and a run's curves back from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.handlers import MLFlowHandler


def log_results(tracker: MLFlowHandler | None, metrics: Mapping[str, Any], folder: str | Path) -> None:
    """Log final metrics (``<split>_<metric>``) and all files of ``folder`` to the trainer's run, and end the run.

    Parameters
    ----------
    tracker
        After the trainer has run; None in a process that does not track, where nothing is logged.
    metrics
        Split to metric to value, as in ``metrics.json``.
    folder
        Of the report.
    """
    if tracker is None:
        return
    if tracker.cur_run is None:
        raise RuntimeError("the MLflow handler has no run: attach it to the trainer and train first")
    run = tracker.cur_run.info.run_id
    for split, entry in metrics.items():
        for name, value in entry.items():
            if isinstance(value, int | float) and value == value:
                tracker.client.log_metric(run, f"{split}_{name}", float(value))
    tracker.client.log_artifacts(run, str(folder), artifact_path="eval")
    tracker.close()


class Curves:
    """Training loss and validation metrics by epoch, read back from the trainer's MLflow run for the report.

    Parameters
    ----------
    tracker
        The trainer's handler; the validation handler logs to the same run. None in a process that does not track.
    names
        Metrics to show; those that the run lacks are left out.
    """

    def __init__(self, tracker: MLFlowHandler | None, names: tuple[str, ...] = ("train_loss", "mlll", "rmse")) -> None:
        self.tracker, self.names = tracker, names

    def __call__(self) -> dict[str, list[float]]:
        """Name to values in order of step; empty before a run."""
        if self.tracker is None or self.tracker.cur_run is None:
            return {}
        run = self.tracker.cur_run.info.run_id
        curves = {}
        for name in self.names:
            history = self.tracker.client.get_metric_history(run, name)
            if history:
                curves[name] = [m.value for m in sorted(history, key=lambda m: m.step)]
        return curves
