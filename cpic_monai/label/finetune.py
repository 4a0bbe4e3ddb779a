"""Fine-tuning on submitted outcomes: the head, or basis and head, on a frozen encoder; or some epochs of it before."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from cpic_monai.atomic import write_text_atomically
from cpic_monai.batches import collate_visits
from cpic_monai.cohorts.trained_on import TrainedOn
from cpic_monai.engines import Recipe
from cpic_monai.handlers import FitBasisAndHead
from cpic_monai.handlers.checkpoint import save_atomically
from cpic_monai.handlers.fit import HeadSchedule, collect_trains, fit_head
from cpic_monai.label.bundle import LabelBundle
from cpic_monai.label.request import RequestError
from cpic_monai.losses import PinballLoss
from cpic_monai.networks import CPICNet, LeaveOneOutRidge
from cpic_monai.tensor_train import TensorTrain

__all__ = ["FineTuning", "fine_tune", "last_fine_tuning"]

logger = logging.getLogger(__name__)
REFITS = ("auto", "head", "basis")
LEAST_SCANS = 3  # of the leave-one-out ridge


@dataclass(frozen=True)
class FineTuning:
    """What is fitted to the submitted outcomes.

    Attributes
    ----------
    refit
        ``head``: the quantile head goes on from its weights, on the features of the cohort that the bundle was trained
        on; a single outcome is enough. ``basis``: the submitted scans become the basis, and the head is fitted anew,
        as at the end of a training epoch; the former cohort has no part in the result. ``auto``: ``basis`` from twice
        as many scans as the network's rank on, else ``head``.
    epochs
        Epochs of the encoder before that, by the recipe ``closed_form``; needs ``basis``.
    learning_rate
        Of those epochs.
    head
        Schedule of the head where it goes on; where it is fitted anew, :class:`HeadSchedule` at its defaults.
    seed
        Of the head's weights and noise, and of the order of scans.
    """

    refit: str = "auto"
    epochs: int = 0
    learning_rate: float = 1e-3
    head: HeadSchedule = field(default_factory=lambda: HeadSchedule(steps=100, learning_rate=1e-3, fresh=False))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.refit not in REFITS:
            raise RequestError(f"refit {self.refit!r} is none of {', '.join(REFITS)}")
        if self.epochs < 0:
            raise RequestError(f"max_epochs must be 0 or more, found {self.epochs}")

    def way(self, scans: int, rank: int) -> str:
        """``head`` or ``basis``.

        Raises
        ------
        RequestError
            If there are too few scans for what is asked.
        """
        if not scans:
            raise RequestError(
                "no outcome was submitted: PUT /datastore/label?image=ID&tag=final with a JSON file of target, visits "
                "and tabular"
            )
        wanted = "basis" if self.epochs and self.refit == "auto" else self.refit
        if wanted == "auto":
            wanted = "basis" if scans >= 2 * rank else "head"
        if wanted == "basis" and scans < LEAST_SCANS:
            raise RequestError(
                f"refit 'basis' needs at least {LEAST_SCANS} scans with outcomes, found {scans}; use 'head'"
            )
        if wanted == "head" and self.epochs:
            raise RequestError("epochs of the encoder change the features: leave refit out, or ask for refit 'basis'")
        return wanted


def fine_tune(bundle: LabelBundle, items: Sequence[Mapping[str, Any]], how: FineTuning | None = None) -> dict[str, Any]:
    """Fit the bundle to outcomes and replace its checkpoint.

    It starts from the weights that the bundle came with, however often it is called: the first time they are kept as
    ``models/pretrained.pt``. So the result depends on the outcomes alone.

    Parameters
    ----------
    bundle
        Read again afterwards.
    items
        Of :meth:`cpic_monai.label.request.Expected.submitted`, one a scan.
    how
        See :class:`FineTuning`.

    Returns
    -------
    dict
        ``refit, scans, rows, epoch, total_epochs, loss_before, loss_after`` (pinball loss on the submitted outcomes
        themselves, in normalised units), ``total_time`` (s), ``at``, ``head`` (its schedule), ``calibration``
        (``none``, or ``dropped`` where the bundle's intervals were calibrated); also written to
        ``models/finetuned.json``.

    Raises
    ------
    RequestError
        If there are too few scans for what is asked.
    """
    how, begun = how or FineTuning(), time.time()
    bundle.refresh()
    network = copy.deepcopy(bundle.network)  # requests go on with the old one, also if this fails
    way = how.way(len(items), network.rank)
    pretrained = _keep_pretrained(bundle.checkpoint)
    network.load_state_dict(pretrained["model"])
    calibrated = bool((network.head.widths != 1).any())
    if calibrated:
        logger.warning("the bundle's intervals were calibrated; those of the fine-tuned head are not")
    loss = PinballLoss(bundle.quantiles)
    data = Dataset(bundle.encoder.apply(items), bundle.pipeline("preprocessing"))
    size = int(bundle.get("batch_size", 20))
    loader = DataLoader(data, batch_size=size, collate_fn=collate_visits)
    device = network.device
    trains, rows = collect_trains(network, loader, device)
    before = _loss(network, trains, rows, loss)
    if how.epochs:
        _train_encoder(network, data, loss, how, size, device)
        trains, rows = collect_trains(network, loader, device)
    if way == "basis":
        ridge = LeaveOneOutRidge().to(device)
        FitBasisAndHead(network, loader, loss, HeadSchedule(), ridge=ridge, seed=how.seed, device=device)()
    else:
        features = network.basis(trains).detach()
        fit_head(network.head, features, rows, loss, replace(how.head, fresh=False), how.seed)
    stats = {
        "refit": way,
        "scans": len(items),
        "rows": int(sum(len(item["target"]) for item in items)),
        "epoch": how.epochs,
        "total_epochs": max(how.epochs, 1),
        "loss_before": before,
        "loss_after": _loss(network, trains, rows, loss),
        "total_time": round(time.time() - begun, 2),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "head": asdict(how.head) if way == "head" else asdict(HeadSchedule()),
        "calibration": "dropped" if calibrated else "none",
    }
    state = {"model": network.state_dict(), "encoder": bundle.encoder.state_dict(), "finetuned": stats}
    if "trained_on" in pretrained:  # a packed bundle has no such record
        record = TrainedOn.of(pretrained["trained_on"])
        record.learn(items)
        state["trained_on"] = record.state_dict()
    save_atomically(state, bundle.checkpoint)
    write_text_atomically(bundle.checkpoint.with_name("finetuned.json"), json.dumps(stats, indent=2) + "\n")
    bundle.refresh()
    logger.info(f"fine-tuned on {len(items)} scans ({way}): pinball loss {before:.4f} -> {stats['loss_after']:.4f}")
    return stats


def last_fine_tuning(bundle: LabelBundle) -> dict[str, Any]:
    """What :func:`fine_tune` returned the last time for this bundle; empty if never."""
    file = bundle.checkpoint.with_name("finetuned.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _keep_pretrained(checkpoint: Path) -> dict[str, Any]:
    """State that fine-tuning starts from: the checkpoint if it is no fine-tuned one, which is then kept."""
    kept = checkpoint.with_name("pretrained.pt")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if "finetuned" not in state:
        save_atomically(state, kept)
    elif not kept.is_file():
        raise FileNotFoundError(f"{kept} is missing: {checkpoint.name} is fine-tuned, and its start cannot be found")
    else:
        state = torch.load(kept, map_location="cpu", weights_only=True)
    return state if "model" in state else {"model": state}


@torch.no_grad()
def _loss(network: CPICNet, trains: list[TensorTrain], rows: Mapping[str, Tensor], loss: nn.Module) -> float:
    """Mean pinball loss of all rows."""
    return float(loss(network.predict(network.basis(trains), rows["tabular"], rows["scan_index"]), rows["label"]))


def _train_encoder(
    network: CPICNet, data: Dataset, loss: nn.Module, how: FineTuning, size: int, device: torch.device
) -> None:
    """Epochs of the recipe ``closed_form`` at the voxels that the bundle looks at."""
    method = Recipe("closed_form", network, loss).to(device)
    generator = torch.Generator().manual_seed(how.seed)
    # A batch needs three scans: one scan left over would stop the leave-one-out ridge.
    drop = len(data) > size and 0 < len(data) % size < LEAST_SCANS
    loader = DataLoader(
        data, batch_size=size, shuffle=True, drop_last=drop, collate_fn=collate_visits, generator=generator
    )
    SupervisedTrainer(
        device=device,
        max_epochs=how.epochs,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.RAdam(method.parameters, lr=how.learning_rate),
        loss_function=method.loss,
        inferer=method.inferer,
        prepare_batch=method.prepare_batch,
        decollate=False,
    ).run()
    network.eval()
