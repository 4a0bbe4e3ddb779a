"""Evaluation of a task: predictions, metrics of every split, and a page with their table."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.engines import Evaluator

from cpic_monai.atomic import write_text_atomically
from cpic_monai.distributed import gather_scans, rank
from cpic_monai.engines import run_over
from cpic_monai.report import write_metrics
from cpic_monai.report.cohort_facts import cohort_facts, write_left_out
from cpic_monai.report.provenance import without_paths
from cpic_monai.report.summary import plain
from cpic_monai.tasks.task import Task

__all__ = ["TaskEvaluation", "read_task_predictions"]

logger = logging.getLogger(__name__)


class TaskEvaluation:
    """Predict splits; write ``predictions.csv``, ``metrics.json`` and a short report (``.html``, ``.md``, ``.json``).

    Beside each split's metrics stand those of one answer for everybody, learned from the splits ``fitted``.

    Parameters
    ----------
    evaluator
        With ``decollate=False`` and the task's postprocessing.
    loaders
        Split name to loader.
    output_dir
        Made where missing.
    task
        Names and scores the predictions.
    target_name
        Of the cohort.
    cohort
        Facts for the page.
    provenance
        Gives those of the run when the page is written: only then all settings are known.
    fitted
        Names of the splits that the network learned from.
    baselines
        Of quantiles, by overlays for them: refused.

    Raises
    ------
    ValueError
        If there are baselines.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        loaders: Mapping[str, Any],
        output_dir: str | Path,
        *,
        task: Task,
        target_name: str,
        cohort: Mapping[str, Any] | None = None,
        provenance: Callable[[], Mapping[str, Any]] = dict,
        fitted: Sequence[str] = ("train",),
        baselines: Mapping[str, Any] | None = None,
    ) -> None:
        if baselines:
            raise ValueError(
                f"config key `evaluation#baselines` has {', '.join(baselines)}, which predict quantiles, not "
                f"{', '.join(task.columns)}: leave configs/ridge.json and configs/crop_shape.json out for a task"
            )
        self.evaluator, self.loaders, self.output_dir, self.task = evaluator, dict(loaders), Path(output_dir), task
        self.target_name, self.cohort, self.provenance = target_name, cohort or {}, provenance
        self.fitted = tuple(fitted)

    def run(self) -> dict[str, Any]:
        """Predict, score, write; returns the content of ``metrics.json`` (empty but in the first process)."""
        scans = {split: found for split, loader in self.loaders.items() if (found := self._predict(loader))}
        if rank() > 0:
            return {}
        if not scans:
            raise ValueError("no split has any scan to evaluate; check the cohort and `folds`")
        labels = {split: torch.cat([scan["label"] for scan in found]) for split, found in scans.items()}
        learned = [labels[split] for split in self.fitted if split in labels]
        constant = self.task.constant(torch.cat(learned)) if learned else None
        frames: list[pd.DataFrame] = []
        metrics: dict[str, dict[str, Any]] = {}
        for split, found in scans.items():
            pred, label = torch.cat([scan["pred"] for scan in found]), labels[split]
            subject = [scan["subject"] for scan in found for _ in range(len(scan["pred"]))]
            columns = {name: pred[:, k].tolist() for k, name in enumerate(self.task.columns)}
            frames.append(pd.DataFrame({"split": split, "subject": subject, **columns, **self.task.truth(label)}))
            metrics[split] = {**self._score(pred, label), "n": len(pred), "subjects": len(set(subject))}
            if constant is not None:
                metrics[split]["baselines"] = {"constant": self._score(constant.expand(len(label), -1), label)}
        table = pd.concat(frames, ignore_index=True)
        write_text_atomically(self.output_dir / "predictions.csv", table.to_csv(index=False, lineterminator="\n"))
        write_left_out(self.cohort, self.output_dir / "left_out.csv")
        write_metrics(metrics, self.output_dir / "metrics.json")
        self._page(metrics)
        for split, entry in metrics.items():
            scores = ((name, value) for name, value in entry.items() if name != "baselines")
            logger.info(f"{split}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores))
        return metrics

    def _predict(self, loader: Any) -> list[dict[str, Any]]:
        """Predictions and labels of each scan, of all processes, in the split's order."""
        engine, parts = self.evaluator, []

        def collect() -> None:
            batch, out = engine.state.batch, engine.state.output
            labels = torch.as_tensor(out["label"]).cpu().double() * batch["scale"] + batch["offset"]
            for k, subject in enumerate(batch["subject"]):
                rows = batch["scan_index"] == k
                pred = torch.as_tensor(out["pred"]).cpu()[rows]
                parts.append({"subject": subject, "pred": pred, "label": labels[rows]})

        run_over(engine, loader, collect)
        return gather_scans(parts)

    def _score(self, pred: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
        return {
            name: float(metric.reduce(torch.as_tensor(metric(pred, label))))
            for name, metric in self.task.metrics().items()
        }

    def _page(self, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """The metrics as a table, and what the cohort and the run were."""
        rows = []
        for split, entry in metrics.items():
            rows.append({"split": split, "who": "C-PIC", **{k: v for k, v in entry.items() if k != "baselines"}})
            rows += [{"split": split, "who": name, **beside} for name, beside in entry.get("baselines", {}).items()]
        scores = pd.DataFrame(rows)
        title = f"{self.target_name}: predictions of C-PIC"
        facts = {
            "target": {"name": self.target_name},
            "cohort": {"facts": cohort_facts(self.cohort)},
            "provenance": dict(self.provenance()),
        }
        content = json.dumps(without_paths(plain(facts)), indent=2, allow_nan=False)
        text = (
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
            f"<h1>{html.escape(title)}</h1>\n{scores.to_html(index=False, float_format='%.3f', na_rep='')}\n"
            f"<details><summary>Cohort and run</summary><pre>{html.escape(content)}</pre></details>\n</html>\n"
        )
        write_text_atomically(self.output_dir / "report.json", content + "\n")
        write_text_atomically(self.output_dir / "report.html", text)
        cells = [list(scores.columns), ["---"] * scores.shape[1]]
        cells += [
            [v if isinstance(v, str) else "" if pd.isna(v) else f"{v:.3f}" for v in row]
            for row in scores.itertuples(index=False)
        ]
        lines = "\n".join("| " + " | ".join(row) + " |" for row in cells)
        write_text_atomically(self.output_dir / "report.md", f"# {title}\n\n{lines}\n")


def read_task_predictions(path: str | Path) -> pd.DataFrame:
    """
    Read a task's ``predictions.csv``, every column as text.

    Raises
    ------
    FileNotFoundError
    ValueError
        If the columns ``split`` and ``subject`` are missing.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    if missing := {"split", "subject"} - set(table.columns):
        raise ValueError(f"{path}: lacks the columns {sorted(missing)}; found {list(table.columns)}")
    return table
