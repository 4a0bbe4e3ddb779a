"""Evaluation of a trained network over the splits of a cohort: predictions, metrics, and the report about them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import torch
from monai.engines import Evaluator
from torch import Tensor, nn

from cpic_monai.atomic import write_text_atomically
from cpic_monai.attribution import explain, shared_reference
from cpic_monai.batches import ToUnits, collate_visits
from cpic_monai.distributed import gather_scans, rank
from cpic_monai.engines import run_over
from cpic_monai.handlers.fit import HeadSchedule, fit_head
from cpic_monai.networks import CPICNet
from cpic_monai.report import (
    PickedScan,
    constant_baseline,
    predictions_frame,
    summarise_splits,
    write_baselines,
    write_metrics,
    write_predictions,
    write_report,
)
from cpic_monai.report.cohort_facts import cohort_facts, write_left_out
from cpic_monai.report.trajectories import subject_errors
from cpic_monai.report.words import headline_split

logger = logging.getLogger(__name__)


class Evaluation:
    """Run an evaluator over several splits and write what came out.

    Writes ``predictions.csv`` (a row a visit), ``baselines.csv`` (the baselines' rows), ``left_out.csv`` (what the
    cohort could not use), ``metrics.json`` (an object a split, with its baselines) and the report (``report.html``, the
    same as ``.md`` and ``.json``) to ``output_dir``; without targets ``predictions.json`` in the place of metrics and
    baselines. What an earlier run left there of the others is removed.

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
        Items with lazy scans under ``image``, of which a few are drawn with the voxels that the network looks at. Of a
        MONAI dataset no more than those are opened.
    pictures
        How many of ``scans`` to draw: the worst predicted ones, and one more, with the median error, to compare with;
        where no truth is known, the first ones.
    cohort
        Facts for the report (:meth:`cpic_monai.cohorts.Cohort.describe`).
    provenance
        Gives :func:`cpic_monai.report.collect_provenance`'s when the report is written: settings are complete then.
    sigma_min, error_max
        Clips of mLLL in the target's unit.
    fitted
        Names of the splits that the network learned from: the constant baseline learns from them, too.
    curves
        Gives training curves when the report is written (:class:`cpic_monai.tracking.Curves`).
    window
        Intensities, after preprocessing, drawn as black and white.
    tabular_baseline
        Gives predictions by split without the scans (:class:`TabularBaseline`), to be scored beside the network's.
    baselines
        Further ones by the name that the report gives them (:mod:`cpic_monai.baselines`).
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
        provenance: Callable[[], Mapping[str, Any]] = dict,
        sigma_min: float = 70.0,
        error_max: float = 1000.0,
        fitted: Sequence[str] = ("train",),
        curves: Callable[[], Mapping[str, Any]] = dict,
        window: Sequence[float] = (0.0, 1.0),
        tabular_baseline: Callable[[], Mapping[str, pd.DataFrame]] | None = None,
        baselines: Mapping[str, Callable[[], Mapping[str, pd.DataFrame]]] | None = None,
    ) -> None:
        self.evaluator, self.loaders, self.output_dir = evaluator, dict(loaders), Path(output_dir)
        self.target_name, self.unit, self.visit_name, self.quantiles = target_name, unit, visit_name, tuple(quantiles)
        self.scans, self.pictures, self.cohort, self.provenance = scans, pictures, cohort or {}, provenance
        self.sigma_min, self.error_max, self.fitted, self.curves = sigma_min, error_max, tuple(fitted), curves
        self.window = (float(window[0]), float(window[1]))
        self.baselines = dict(baselines or {})
        if tabular_baseline is not None:
            self.baselines = {"tabular": tabular_baseline, **self.baselines}

    def run(self) -> dict[str, Any]:
        """Predict, score and report; returns the content of ``metrics.json`` (empty where no target is known).

        Of several processes each predicts its loaders' scans; the first alone scores and writes, the others return an
        empty dictionary.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        parts = [part for name, loader in self.loaders.items() if len(part := self.predict(name, loader))]
        if not parts:
            raise ValueError("no split has any scan to evaluate; check the cohort and `folds`")
        if rank() > 0:
            return {}
        frame = pd.concat(parts, ignore_index=True)
        write_predictions(frame, self.output_dir / "predictions.csv", visit_name=self.visit_name)
        write_left_out(self.cohort, self.output_dir / "left_out.csv")
        metrics: dict[str, Any] = {}
        scored = bool(frame["truth"].notna().any())
        for name in ("predictions.json",) if scored else ("metrics.json", "baselines.csv"):
            (self.output_dir / name).unlink(missing_ok=True)
        if scored:
            known, others = frame[frame["truth"].notna()], self._baselines()
            write_baselines(others, self.output_dir / "baselines.csv", visit_name=self.visit_name)
            learned = "train" in set(known["split"])
            constant = {"constant": constant_baseline(known, self.fitted)} if learned else {}
            metrics = summarise_splits(
                known, baselines={**constant, **others}, sigma_min=self.sigma_min, error_max=self.error_max
            )
            write_metrics(metrics, self.output_dir / "metrics.json")
        else:
            text = frame.rename(columns={"visit": self.visit_name or "visit"}).to_json(orient="records", indent=2)
            write_text_atomically(self.output_dir / "predictions.json", text + "\n")
        write_report(
            self.output_dir,
            frame,
            metrics=metrics,
            cohort=cohort_facts(self.cohort),
            target_name=self.target_name,
            unit=self.unit,
            visit_name=self.visit_name,
            picked=self.pictures_of(self.pictured(frame)),
            curves=self.curves(),
            provenance=self.provenance(),
            sigma_min=self.sigma_min,
            error_max=self.error_max,
        )
        for split, entry in metrics.items():
            scores = ", ".join(f"{name} {entry[name]:.3f}" for name in ("mlll", "rmse", "coverage"))
            logger.info(f"{split}: {scores} ({self.target_name} in {self.unit})")
        logger.info(f"wrote the report to {self.output_dir / 'report.html'}")
        return metrics

    def predict(self, split: str, loader: Any) -> pd.DataFrame:
        """Predictions of one split's visits by all processes, in the target's unit and the split's order."""
        engine = self.evaluator
        parts: list[pd.DataFrame] = []

        def collect() -> None:
            rows = _rows(engine.state.batch, engine.state.output, split, self.quantiles)
            parts.extend(scan for _, scan in rows.groupby(engine.state.batch["scan_index"].tolist()))

        run_over(engine, loader, collect)
        scans = gather_scans(parts)
        return pd.concat(scans, ignore_index=True) if scans else pd.DataFrame()

    def pictured(self, frame: pd.DataFrame) -> list[int]:
        """Which of the scans are drawn, by their place in ``scans``: see ``pictures``."""
        items = getattr(self.scans, "data", self.scans)  # of a MONAI dataset, without its transform
        places = {str(items[i]["subject"]): i for i in range(len(items))}
        shown = frame[frame["split"] == headline_split(list(dict.fromkeys(frame["split"])))]
        order = [places[subject] for subject in subject_errors(shown)["subject"] if subject in places]
        if not order or self.pictures < 1:
            return list(range(min(self.pictures, len(items))))
        return list(dict.fromkeys([*order[: self.pictures], order[len(order) // 2]]))

    def pictures_of(self, places: Sequence[int]) -> list[PickedScan]:
        """:meth:`picture` of the scans at these places; what attributions are measured from is made once."""
        network: CPICNet = self.evaluator.network  # type: ignore[attr-defined]
        if not places:
            return []
        reference = shared_reference(network, "cohort" if getattr(network.basis, "trains", ()) else "air")
        return [self.picture(self.scans[i], reference) for i in places]

    def picture(self, item: Mapping[str, Any], reference: str | Tensor = "air") -> PickedScan:
        """Three slices of a scan through the middle of the voxels picked, and all voxels picked.

        With the attribution of the last visit's median to them, in the target's unit; ``reference`` as in
        :func:`cpic_monai.attribution.explain`.
        """
        network: CPICNet = self.evaluator.network.eval()  # type: ignore[attr-defined]
        scan, tabular = item["image"], item.get("tabular")
        explained = explain(network, scan, tabular, subject=str(item["subject"]), reference=reference)
        moved = explained.attribution.numpy() * (float(item["scale"][-1]) if "scale" in item else 1.0)
        affine = np.asarray(scan.affine, dtype=float)
        (d, h, w), (a, b, c) = network.grid.shape, np.linalg.norm(affine[:3, :3], axis=0).tolist()
        return PickedScan.from_reader(
            str(item["subject"]),
            lambda start, stop: scan.box(start, stop)[0].numpy(),
            explained.voxels.numpy(),
            shape=(d, h, w),
            spacing=(a, b, c),
            window=self.window,
            axcodes="".join(nibabel.aff2axcodes(affine)),
            attribution=moved if explained.finite else None,
            unit=self.unit,
        )

    def _baselines(self) -> dict[str, pd.DataFrame]:
        """Predictions of the baselines' rows with a truth, by name."""
        found = {}
        for name, predict in self.baselines.items():
            frame = pd.concat(predict().values(), ignore_index=True)
            found[name] = frame[frame["truth"].notna()].reset_index(drop=True)
        return found


class TabularBaseline:
    """What the scan adds: the same head, trained the same way on the same rows, with every scan's features zero.

    Parameters
    ----------
    network
        Whose head is copied; the network itself stays as it is.
    splits
        Split name to encoded items.
    loss_function, schedule, seed
        As :class:`cpic_monai.handlers.FitBasisAndHead`.
    quantiles
        Levels of the predictions' columns.
    learns_from
        Names of the splits whose outcomes the head learns from.
    """

    def __init__(
        self,
        network: CPICNet,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        loss_function: nn.Module,
        schedule: HeadSchedule | dict[str, Any],
        seed: int = 0,
        quantiles: Sequence[float] = (0.2, 0.5, 0.8),
        learns_from: Sequence[str] = ("train",),
    ) -> None:
        self.network, self.splits, self.loss_function, self.seed = network, dict(splits), loss_function, seed
        self.learns_from = tuple(learns_from)
        self.schedule = HeadSchedule(**schedule) if isinstance(schedule, dict) else schedule
        self.quantiles = tuple(quantiles)

    def __call__(self) -> dict[str, pd.DataFrame]:
        """Split name to predictions, rows in the order of the items."""
        head = copy.deepcopy(self.network.head).cpu()
        batches = {name: _without_image(items) for name, items in self.splits.items() if len(items)}
        rank = self.network.rank
        learned = _without_image([item for name in self.learns_from for item in self.splits[name]])
        schedule = replace(self.schedule, fresh=True, jitter=0.0)
        fit_head(head, torch.zeros(len(learned["subject"]), rank), learned, self.loss_function, schedule, self.seed)
        frames = {}
        with torch.no_grad():
            for name, batch in batches.items():
                pred = head(torch.zeros(len(batch["scan_index"]), rank), batch["tabular"])
                frames[name] = _rows(batch, ToUnits()({**batch, "pred": pred}), name, self.quantiles)
        return frames


def _without_image(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return collate_visits([{**item, "image": None} for item in items])


def _rows(batch: Mapping[str, Any], output: Mapping[str, Any], split: str, quantiles: Sequence[float]) -> pd.DataFrame:
    def column(value: Tensor) -> np.ndarray:
        return value.detach().double().cpu().numpy().reshape(len(value), -1)

    rows = batch["scan_index"].tolist()
    label = output.get("label")
    return predictions_frame(
        split=split,
        subject=[batch["subject"][i] for i in rows],
        patient=[batch["patient"][i] for i in rows],
        pred=column(output["pred"]),
        visit=column(batch["visit"]),
        truth=None if label is None else column(label),
        offset=column(batch["offset"]),
        quantiles=quantiles,
        strata={key: [values[i] for i in rows] for key, values in (batch.get("strata") or {}).items()},
    )
