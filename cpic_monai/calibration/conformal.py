"""Calibrate a trained network and write its checkpoint again."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn
from tqdm import tqdm

from cpic_monai.atomic import write_text_atomically
from cpic_monai.batches import PrepareVisits
from cpic_monai.calibration.factors import patient_shares, patients_needed, stretched, width_factors
from cpic_monai.distributed import broadcast_module, gather_visits, rank
from cpic_monai.handlers.checkpoint import save_together
from cpic_monai.handlers.fit import FitBasisAndHead, HeadSchedule, collect_trains, fit_head
from cpic_monai.losses import check_quantiles
from cpic_monai.networks import CPICNet, LeaveOneOutRidge
from cpic_monai.networks.heads import LogitHead

logger = logging.getLogger(__name__)
SOURCES = ("validation", "train_leave_one_out")
FEW_PATIENTS = 10


class ConformalCalibration:
    """Find the factors on patients that the head did not see, and save them with the checkpoint.

    Two sources of such predictions:

    ``validation``: those of the validation split by the network. That split also chose the checkpoint, so its errors
    are a little smaller than a new patient's; where it is small, the factors are noisy.

    ``train_leave_one_out`` (recipe ``closed_form``): those of the training split, each scan described by the ridge
    regression on all *other* patients and predicted by a head fitted without its patient (cross-conformal, Vovk 2015).
    Many more patients, but the encoder has learned from their outcomes: approximate, without the finite-sample promise.

    Parameters
    ----------
    network
        Holds the weights to calibrate, those of ``path``.
    loader
        Batches of the source's split, in the order of ``items``, not augmented.
    items
        The split's encoded items: ``group`` names the patient.
    quantiles
        Levels of the network's columns.
    path, objects
        The checkpoint to write again, as :class:`cpic_monai.handlers.BestCheckpoint` does.
    source
        ``validation`` or ``train_leave_one_out``.
    symmetric
        True: one factor for the two ends of an interval, which then holds its share as a whole. False: one for each
        end, which needs more patients.
    loss_function, schedule, ridge, seed, parts
        Of ``train_leave_one_out``: as for :class:`cpic_monai.handlers.FitBasisAndHead`, and the number of heads fitted,
        each without one part of the patients. 1 fits one head, on all of them, which is too sure of itself; few parts
        leave much out, and err to the wide side.
    record
        JSON file to write: factors, patients, visits, shares before and after. ``None``: none.
    device
        Where to compute.

    Raises
    ------
    ValueError
        For a network without quantiles, an unknown source, ``train_leave_one_out`` without ridge or schedule, levels
        that allow no symmetric intervals, or fewer patients than the widest level can be calibrated on.
    """

    def __init__(
        self,
        network: CPICNet,
        loader: Any,
        items: Sequence[Mapping[str, Any]],
        quantiles: Sequence[float],
        path: str | Path,
        objects: Mapping[str, Any],
        source: str = "validation",
        symmetric: bool = True,
        loss_function: nn.Module | None = None,
        schedule: HeadSchedule | dict[str, Any] | None = None,
        ridge: LeaveOneOutRidge | None = None,
        seed: int = 0,
        parts: int = 20,
        record: str | Path | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if source not in SOURCES:
            raise ValueError(f"`calibration_source` is {source!r}; choose one of {', '.join(SOURCES)}")
        if isinstance(network.head, LogitHead):
            raise ValueError("this network predicts classes or a hazard, no quantiles: set `calibrate` to false")
        if source == "train_leave_one_out" and (ridge is None or schedule is None or loss_function is None):
            raise ValueError(
                "`calibration_source` train_leave_one_out needs the leave-one-out ridge and the head's schedule of "
                "recipe closed_form; with another recipe calibrate on the validation split"
            )
        self.network, self.loader, self.path, self.objects = network, loader, Path(path), dict(objects)
        self.levels, self.source, self.symmetric = check_quantiles(quantiles), source, symmetric
        self.group = _numbers([str(item["group"]) for item in items])
        self.loss_function, self.schedule, self.ridge, self.seed, self.parts = (
            loss_function, schedule, ridge, seed, parts,
        )  # fmt: skip
        self.record, self.device = None if record is None else Path(record), torch.device(device)
        patients, needed = int(self.group.max()) + 1 if len(items) else 0, patients_needed(self.levels, symmetric)
        if patients < needed:
            raise ValueError(
                f"the {source} source has {patients} patients, and the levels {list(self.levels)} need {needed} to be "
                "calibrated: raise `validation_fraction`, or set `calibration_source` to train_leave_one_out"
            )
        if patients < FEW_PATIENTS:
            logger.warning(
                f"calibration on {patients} patients ({source}): the factors are noisy, and rounding up to the next "
                f"patient widens intervals by up to 1/{patients + 1} of the cohort; ten or more are better"
            )

    def __call__(self) -> dict[str, Any]:
        """Calibrate now, in all processes together; returns what ``record`` holds."""
        head = self.network.head
        head.reset_parameters()
        training = self.network.training
        self.network.eval()
        pred, truth, group = self._validation() if self.source == "validation" else self._left_out()
        known = torch.isfinite(truth[:, 0])
        pred, truth, group = pred[known], truth[known], group[known]
        widths = width_factors(pred, truth, self.levels, group, self.symmetric)
        head.widths.copy_(widths)
        broadcast_module(head)
        self.network.train(training)
        result = {
            "source": self.source,
            "patients": int(group.unique().numel()),
            "visits": len(pred),
            "quantiles": list(self.levels),
            "widths": [round(float(w), 6) for w in widths],
            "below_before": patient_shares(pred, truth, group),
            "below_after": patient_shares(stretched(pred, widths), truth, group),
        }
        save_together(self.objects, self.path)
        if self.record is not None and rank() == 0:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(self.record, json.dumps(result, indent=2) + "\n")
        logger.info(f"calibrated on {result['patients']} patients ({self.source}): factors {result['widths']}")
        return result

    @torch.no_grad()
    def _validation(self) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions ``(R, Q)``, truths ``(R, 1)`` and patients ``(R,)`` by the network, on the normalised scale."""
        rows: dict[str, list[Tensor]] = {"pred": [], "label": [], "scan_index": []}
        count, prepare = 0, PrepareVisits()
        for batch in tqdm(self.loader, desc="calibrate", unit="batch", leave=False, disable=rank() > 0):
            image, label, _, kwargs = prepare(batch, self.device)
            if label is None:
                raise ValueError("the scans to calibrate on have no known outcome: check the cohort's target column")
            rows["pred"].append(self.network(image, **kwargs))
            rows["label"].append(label)
            rows["scan_index"].append(kwargs["scan_index"] + count)
            count += len(batch["subject"])
        all_rows = gather_visits({key: torch.cat(values) for key, values in rows.items()}, count)
        return self._of_patients(all_rows["pred"], all_rows)

    def _left_out(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same of the training split, by heads that were fitted without the patient."""
        assert self.loss_function is not None  # of the constructor's checks
        network = copy.deepcopy(self.network)  # whose basis may be fitted anew
        fit = _LeaveOneOutFeatures(
            network, self.loader, self.loss_function, self.schedule, self.ridge, self.seed, self.device
        )
        features, rows = fit.features()
        pred = features.new_zeros((len(rows["label"]), len(self.levels)), dtype=torch.float32)
        for held in tqdm(self._held(), desc="calibrate", unit="head", leave=False, disable=rank() > 0):
            out = torch.isin(rows["scan_index"], held.to(rows["scan_index"]))
            head = copy.deepcopy(network.head)
            kept = rows if self.parts == 1 else {key: value[~out] for key, value in rows.items()}
            fit_head(head, features, kept, self.loss_function, fit.schedule or HeadSchedule(), self.seed)
            with torch.no_grad():
                pred[out] = head(features[rows["scan_index"][out]].float(), rows["tabular"][out])
        return self._of_patients(pred, rows)

    def _held(self) -> list[Tensor]:
        """Scans of each part of the patients."""
        scans = np.arange(len(self.group))
        if self.parts == 1:
            return [torch.from_numpy(scans)]
        split = GroupKFold(min(self.parts, int(self.group.max()) + 1), shuffle=True, random_state=self.seed)
        return [torch.from_numpy(held) for _, held in split.split(scans, groups=self.group.numpy())]

    def _of_patients(self, pred: Tensor, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        scan = rows["scan_index"].cpu()
        if int(scan.max()) + 1 != len(self.group):
            raise ValueError(
                f"the loader gave {int(scan.max()) + 1} scans, `items` names the patients of {len(self.group)}: "
                "give the loader and the items of one split"
            )
        return pred.detach().double().cpu(), rows["label"].double().cpu(), self.group[scan]


class _LeaveOneOutFeatures(FitBasisAndHead):
    """The features that the head was fitted on, of all training scans."""

    def features(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Scan features ``(S, rank)``, left out along the ridge's directions, and the visits' rows."""
        trains, rows = collect_trains(self.network, self.loader, self.device)
        return self._supervised(trains, rows).detach(), rows


def _numbers(names: Sequence[str]) -> Tensor:
    return torch.from_numpy(np.unique(names, return_inverse=True)[1].astype(np.int64).reshape(-1))
