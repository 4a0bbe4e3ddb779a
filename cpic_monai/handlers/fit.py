"""The second half of the closed-form recipe: basis on all training scans, then the quantile head on frozen features."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from tqdm import tqdm

from cpic_monai.distributed import broadcast_module, gather_trains, gather_visits, rank
from cpic_monai.handlers.share import share_index_sets
from cpic_monai.networks import CPICNet, LeaveOneOutRidge, QuantileHead
from cpic_monai.networks.basis import mean_inner
from cpic_monai.tensor_train import TensorTrain, concatenate

logger = logging.getLogger(__name__)
#: Of a collated batch, what the fits need of every visit; ``scan_index`` counts on over batches.
VISITS = ("tabular", "label", "scan_index", "group")


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
    principal
        Standard deviation of the features along principal directions, beside those of the ridge regression.
    ridge_steps
        Steps that tune the ridge's penalty and weights to all training scans.
    """

    steps: int = 300
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    jitter: float = 0.1
    fresh: bool = True
    principal: float = 1.0
    ridge_steps: int = 25


class FitBasisAndHead:
    """Fit the canonical basis, and the head by the pinball loss, when an epoch ends and before it is validated.

    Parameters
    ----------
    network
        To be fitted; its encoder is left as it is.
    loader
        Batches of all training scans without augmentation, sampled at the network's present voxels. Of several
        processes each gives the scans dealt to it (:func:`cpic_monai.distributed.deal`); all fit on all scans.
    loss_function
        Of quantiles ``(R, Q)`` and normalised targets ``(R, 1)``.
    schedule
        See :class:`HeadSchedule`, or a dictionary of its fields. ``None`` fits the basis alone (joint recipe).
    ridge
        Of the closed-form recipe: its directions come first in the basis.
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
        ridge: LeaveOneOutRidge | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.ridge = ridge
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
        share_index_sets(self.network)
        # Weights that learn by their gradient have nothing to be fitted to: no pass over the scans for them.
        if self.schedule is not None or not self.network.basis.learned:
            self._fit()
        # Equal by construction; bit for bit also where processes compute on unlike hardware.
        broadcast_module(self.network)
        self.network.train(training)

    def _fit(self) -> None:
        trains, rows = collect_trains(self.network, self.loader, self.device)
        if self.schedule is None:
            self.network.basis.fit(trains)
            return
        features = self._supervised(trains, rows)
        loss = fit_head(self.network.head, features, rows, self.loss_function, self.schedule, self.seed)
        logger.info(f"basis of {len(features)} scans, head fitted to a loss of {loss:.4f}")

    def _supervised(self, trains: list[TensorTrain], rows: dict[str, Tensor]) -> Tensor:
        """Fit the basis with the ridge's directions first; returns features ``(S, rank)`` to fit the head on.

        Along the ridge's directions these are leave-one-out features.
        """
        schedule = self.schedule or HeadSchedule()
        if self.ridge is None:
            return self.network.basis.fit(trains, principal=schedule.principal)
        products = mean_inner(trains, trains)
        visits = (rows["tabular"], rows["scan_index"], rows["label"], rows["group"])
        tuned = tune_ridge(self.ridge, products, *visits, steps=schedule.ridge_steps)
        dual, left_out = tuned.scan_effects(products, *visits)
        scale = left_out.std(0).clamp_min(1e-9)
        features = self.network.basis.fit(trains, dual / scale, schedule.principal)
        width = min(dual.shape[1], features.shape[1])
        return torch.cat([(left_out / scale)[:, :width], features[:, width:]], dim=1)


def tune_ridge(
    ridge: LeaveOneOutRidge,
    gram: Tensor,
    tabular: Tensor,
    scan_index: Tensor,
    target: Tensor,
    group: Tensor | None = None,
    steps: int = 40,
) -> LeaveOneOutRidge:
    """A copy whose penalty and weights minimise the leave-one-out error on all training scans together."""
    tuned = copy.deepcopy(ridge)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=0.1)
    gram = gram.detach()
    for _ in range(steps):
        optimizer.zero_grad()
        (tuned(gram, tabular, scan_index, target, group) - target).square().mean().backward()
        optimizer.step()
    return tuned


@torch.no_grad()
def collect_trains(
    network: CPICNet, loader: Iterable[dict[str, Any]], device: torch.device
) -> tuple[list[TensorTrain], dict[str, Tensor]]:
    """Trains of the scans, one a draw, and what :data:`VISITS` names of their visits, of all processes."""
    parts: list[list[TensorTrain]] = []
    rows: dict[str, list[Tensor]] = {key: [] for key in VISITS}
    count = 0
    for batch in tqdm(loader, desc="decompose scans", unit="batch", leave=False, disable=rank() > 0):
        image = batch["image"].to(device) if isinstance(batch["image"], Tensor) else batch["image"]
        parts.append(network.decompose(image, batch["subject"]))
        for key in VISITS:
            rows[key].append(batch[key].to(device) + (count if key == "scan_index" else 0))
        count += len(batch["subject"])
    if not parts:
        raise ValueError("no training scans to fit the basis on: the loader is empty")
    trains = [concatenate(draw) for draw in zip(*parts, strict=True)]
    return gather_trains(trains), gather_visits({key: torch.cat(values) for key, values in rows.items()}, count)


def fit_head(
    head: QuantileHead,
    features: Tensor,
    rows: dict[str, Tensor],
    loss_function: nn.Module,
    schedule: HeadSchedule,
    seed: int = 0,
) -> float:
    """Train the head on features ``(S, rank)`` that stay as they are; returns the last loss."""
    with torch.random.fork_rng(devices=[features.device] if features.is_cuda else []):
        torch.manual_seed(seed)
        if schedule.fresh:
            for module in head.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]
        head.reset_parameters()  # a calibration belongs to the weights it was made for
        optimizer = torch.optim.RAdam(
            head.parameters(),
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            decoupled_weight_decay=True,
        )
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)
        head.train()
        loss = features.new_zeros(())
        for _ in range(schedule.steps):
            noisy = features + schedule.jitter * torch.randn_like(features)
            optimizer.zero_grad()
            loss = loss_function(head(noisy[rows["scan_index"]].float(), rows["tabular"]), rows["label"])
            loss.backward()
            optimizer.step()
            decay.step()
        optimizer.zero_grad()
        head.eval()
    return float(loss.detach())
