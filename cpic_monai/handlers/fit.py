"""The second half of the closed-form recipe: basis on all training scans, then the quantile head on frozen features."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from tqdm import tqdm

from cpic_monai.networks import CPICNet
from cpic_monai.tensor_train import TensorTrain, concatenate

logger = logging.getLogger(__name__)


@dataclass
class HeadSchedule:
    """How the head is trained on frozen features (full batches, RAdam, cosine decay).

    Attributes
    ----------
    steps
        Steps of the optimizer.
    learning_rate, weight_decay
        Of RAdam with decoupled weight decay.
    jitter
        Standard deviation of Gaussian noise on the unit-variance scan features: scans are few and rows many, so the
        head would otherwise learn the scans by heart.
    fresh
        True: start from new weights at every fit. False: go on from the last ones.
    """

    steps: int = 300
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    jitter: float = 0.1
    fresh: bool = True


class FitBasisAndHead:
    """Fit the canonical basis, and the head by the pinball loss, when an epoch ends and before it is validated.

    Parameters
    ----------
    network
        To be fitted; its encoder is left as it is.
    loader
        Batches of all training scans without augmentation, sampled at the network's present voxels.
    loss_function
        Of quantiles ``(R, Q)`` and normalised targets ``(R, 1)``.
    schedule
        See :class:`HeadSchedule`; a dictionary of its fields from a config. ``None`` fits the basis alone (joint recipe).
    seed
        Of the head's first weights and the noise.
    device
        Where to compute.
    """

    def __init__(
        self,
        network: CPICNet,
        loader: Iterable[dict[str, Any]],
        loss_function: nn.Module,
        schedule: HeadSchedule | dict[str, Any] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.network, self.loader, self.loss_function, self.seed, self.device = (
            network, loader, loss_function, seed, torch.device(device),
        )  # fmt: skip
        self.schedule = HeadSchedule(**schedule) if isinstance(schedule, dict) else schedule

    def attach(self, engine: Engine) -> None:
        """Run after every training epoch; list it before the ``ValidationHandler``."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine | None = None) -> None:
        """Fit now."""
        training = self.network.training
        self.network.eval()
        trains, rows = collect_trains(self.network, self.loader, self.device)
        features = self.network.basis.fit(trains)
        if self.schedule is not None:
            loss = fit_head(self.network, features, rows, self.loss_function, self.schedule, self.seed)
            logger.info(f"basis of {len(features)} scans, head fitted to a pinball loss of {loss:.4f}")
        self.network.train(training)


@torch.no_grad()
def collect_trains(
    network: CPICNet, loader: Iterable[dict[str, Any]], device: torch.device
) -> tuple[list[TensorTrain], dict[str, Tensor]]:
    """Trains of all scans of a loader, one a draw, and the rows ``tabular``, ``label``, ``scan_index`` of their visits."""
    parts: list[list[TensorTrain]] = []
    rows: dict[str, list[Tensor]] = {"tabular": [], "label": [], "scan_index": []}
    count = 0
    for batch in tqdm(loader, desc="decompose scans", unit="batch", leave=False):
        image = batch["image"].to(device) if isinstance(batch["image"], Tensor) else batch["image"]
        parts.append(network.decompose(image, batch["subject"]))
        for key in ("tabular", "label"):
            rows[key].append(batch[key].to(device))
        rows["scan_index"].append(batch["scan_index"].to(device) + count)
        count += len(batch["subject"])
    if not parts:
        raise ValueError("no training scans to fit the basis on: the loader is empty")
    trains = [concatenate(draw) for draw in zip(*parts, strict=True)]
    return trains, {key: torch.cat(values) for key, values in rows.items()}


def fit_head(
    network: CPICNet,
    features: Tensor,
    rows: dict[str, Tensor],
    loss_function: nn.Module,
    schedule: HeadSchedule,
    seed: int = 0,
) -> float:
    """Train the head on features ``(S, rank)`` that stay as they are; returns the last loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if schedule.fresh:
            for module in network.head.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        optimizer = torch.optim.RAdam(
            network.head.parameters(),
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            decoupled_weight_decay=True,
        )
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)
        network.head.train()
        loss = features.new_zeros(())
        for _ in range(schedule.steps):
            noisy = features + schedule.jitter * torch.randn_like(features)
            optimizer.zero_grad()
            loss = loss_function(network.predict(noisy, rows["tabular"], rows["scan_index"]), rows["label"])
            loss.backward()
            optimizer.step()
            decay.step()
        optimizer.zero_grad()
        network.head.eval()
    return float(loss.detach())
