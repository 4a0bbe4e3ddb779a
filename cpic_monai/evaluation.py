"""Evaluation of a trained network over the splits of a cohort: predictions, metrics, and the report about them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Events
from monai.engines import Evaluator
from torch import Tensor

from cpic_monai.networks import CPICNet
from cpic_monai.report import (
    PickedScan,
    constant_baseline,
    predictions_frame,
    summarise_splits,
    write_metrics,
    write_predictions,
    write_report,
)
from cpic_monai.report.atomic import write_text_atomically

logger = logging.getLogger(__name__)


class Evaluation:
    """Run an evaluator over several splits and write what came out.

    Writes ``predictions.csv`` (a row a visit), ``metrics.json`` (an object a split, each with the constant prediction as
    baseline) and ``report.html`` to ``output_dir``; at inference, without targets, ``predictions.json`` instead of
    metrics.

    Parameters
    ----------
    evaluator
        With ``decollate=False`` and :class:`cpic_monai.batches.ToUnits` as postprocessing; not the one that validates
        during training, whose handlers save checkpoints.
    loaders
        Split name to loader.
    output_dir
        Made where missing.
    target_name, unit, visit_name
        Of the cohort.
    quantiles
        Levels of the predictions' columns.
    scans
        Items with lazy scans under ``image``, a few of which are drawn with the voxels that the network looks at.
    pictures
        How many of ``scans`` to draw.
    cohort
        Facts for the report (:meth:`cpic_monai.cohorts.Cohort.describe`).
    provenance
        Of :func:`cpic_monai.report.collect_provenance`.
    sigma_min, error_max
        Clips of mLLL in the target's unit.
    curves
        Training curves for the report, or a callable that gives them when the report is written.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        loaders: Mapping[str, Any],
        output_dir: str | Path,
        *,
        target_name: str,
        unit: str,
        visit_name: str | None = None,
        quantiles: Sequence[float] = (0.2, 0.5, 0.8),
        scans: Sequence[dict[str, Any]] = (),
        pictures: int = 3,
        cohort: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        sigma_min: float = 70.0,
        error_max: float = 1000.0,
        curves: Any = None,
    ) -> None:
        self.evaluator, self.loaders, self.output_dir = evaluator, dict(loaders), Path(output_dir)
        self.target_name, self.unit, self.visit_name, self.quantiles = target_name, unit, visit_name, tuple(quantiles)
        self.scans, self.pictures, self.cohort, self.provenance = scans, pictures, cohort or {}, provenance
        self.sigma_min, self.error_max, self.curves = sigma_min, error_max, curves

    def run(self) -> dict[str, Any]:
        """Predict, score and report; returns the content of ``metrics.json`` (empty where no target is known)."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        parts = [self.predict(name, loader) for name, loader in self.loaders.items() if len(loader)]
        if not parts:
            raise ValueError("no split has any scan to evaluate; check the cohort and `folds`")
        frame = pd.concat(parts, ignore_index=True)
        write_predictions(frame, self.output_dir / "predictions.csv", visit_name=self.visit_name)
        metrics: dict[str, Any] = {}
        if frame["truth"].notna().any():
            metrics = self._score(frame[frame["truth"].notna()])
            write_metrics(metrics, self.output_dir / "metrics.json")
        else:
            text = frame.rename(columns={"visit": self.visit_name or "visit"}).to_json(orient="records", indent=2)
            write_text_atomically(self.output_dir / "predictions.json", text + "\n")
        write_report(
            self.output_dir,
            frame,
            metrics=metrics,
            cohort=self.cohort,
            target_name=self.target_name,
            unit=self.unit,
            visit_name=self.visit_name,
            picked=[self.picture(self.scans[i]) for i in range(min(self.pictures, len(self.scans)))],
            curves=self.curves() if callable(self.curves) else self.curves,
            provenance=self.provenance,
        )
        for split, entry in metrics.items():
            logger.info(
                f"{split}: mLLL {entry['mlll']:.3f}, RMSE {entry['rmse']:.1f} {self.unit}, coverage {entry['coverage']:.2f}"
            )
        logger.info(f"wrote the report to {self.output_dir / 'report.html'}")
        return metrics

    def predict(self, split: str, loader: Any) -> pd.DataFrame:
        """Predictions of one split's visits, in the target's unit."""
        engine, parts = self.evaluator, []

        def collect() -> None:
            parts.append(_rows(engine.state.batch, engine.state.output, split, self.quantiles))

        with engine.add_event_handler(Events.ITERATION_COMPLETED, collect):
            engine.data_loader = loader
            engine.state.epoch_length = len(loader)
            engine.run()
        return pd.concat(parts, ignore_index=True)

    @torch.no_grad()
    def picture(self, item: Mapping[str, Any]) -> PickedScan:
        """Three slices of a scan through the middle of the voxels picked, and all voxels picked."""
        network: CPICNet = self.evaluator.network
        scan = item["image"]
        voxels = network.looked_at([scan], [str(item["subject"])])[0]
        inside = ((voxels >= 0) & (voxels < torch.tensor(network.grid.shape))).all(1)
        voxels = voxels[inside]
        middle = [int(v) for v in voxels.double().median(0).values]
        slices = {f"axis {axis}": _plane(scan, axis, middle[axis]) for axis in range(3)}
        spacing = np.linalg.norm(np.asarray(scan.affine, dtype=float)[:3, :3], axis=0)
        return PickedScan(
            subject=str(item["subject"]),
            slices=slices,
            planes={f"axis {axis}": middle[axis] for axis in range(3)},
            voxels=voxels.numpy(),
            shape=tuple(network.grid.shape),  # type: ignore[arg-type]
            spacing=tuple(float(s) for s in spacing),  # type: ignore[arg-type]
        )

    def _score(self, frame: pd.DataFrame) -> dict[str, Any]:
        baselines = {}
        if "train" in set(frame["split"]):
            baselines["constant"] = constant_baseline(frame)
        return summarise_splits(frame, baselines=baselines, sigma_min=self.sigma_min, error_max=self.error_max)


def _rows(batch: Mapping[str, Any], output: Mapping[str, Any], split: str, quantiles: Sequence[float]) -> pd.DataFrame:
    def column(value: Tensor) -> np.ndarray:
        return value.detach().double().cpu().numpy().reshape(len(value), -1)

    rows = batch["scan_index"].tolist()
    label = output.get("label")
    return predictions_frame(
        split=split,
        subject=[batch["subject"][i] for i in rows],
        pred=column(output["pred"]),
        visit=column(batch["visit"]),
        truth=None if label is None else column(label),
        offset=column(batch["offset"]),
        quantiles=quantiles,
        strata={key: [values[i] for i in rows] for key, values in (batch.get("strata") or {}).items()},
    )


def _plane(scan: Any, axis: int, index: int) -> np.ndarray:
    """One slice of a lazy scan's first channel, scaled to [0, 1] for display."""
    shape = list(scan.shape)[-3:]
    axes = [torch.arange(n) if a != axis else torch.tensor([index]) for a, n in enumerate(shape)]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    values = scan.patches(voxels, 1)[:, 0].reshape([n for a, n in enumerate(shape) if a != axis])
    low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-12)).numpy()

