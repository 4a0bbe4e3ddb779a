"""Recipes: what MONAI's ``SupervisedTrainer`` needs to train C-PIC one way or the other; and the runs of engines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import MLFlowHandler
from torch import nn

from cpic_monai.batches import PrepareVisits
from cpic_monai.cross.kinds import is_values_only
from cpic_monai.inferers import JointInferer, LeaveOneOutInferer, LowRankTerm
from cpic_monai.networks import CPICNet, LeaveOneOutRidge, TensorTrainRegression

logger = logging.getLogger(__name__)
RECIPES = ("closed_form", "paper")


class Recipe:
    """The trainer's inferer, loss, batch preparation and optimizer parameters.

    ``closed_form``: the encoder learns from the leave-one-out residual of a ridge regression on the batch's TT Gram
    matrix; basis and quantile head are fitted afterwards on frozen features. ``paper``: encoder and head learn jointly
    by the quantile loss, on a basis that moves with the batches (Algorithm 1). In both, the batch is that of all
    processes together (:mod:`cpic_monai.distributed`).

    Parameters
    ----------
    name
        ``closed_form`` or ``paper``.
    network
        The network to train; its basis moves in training if the recipe wants it to.
    quantile_loss
        Of quantiles ``(R, Q)`` and normalised targets ``(R, 1)``.
    ridge
        A :class:`cpic_monai.networks.LeaveOneOutRidge`, or its kernel and starting values.
    ridge_learning_rate
        Of the ridge's three parameters, which live on a log scale and so take larger steps than weights.
    low_rank_weight
        Weight of the error at held-out voxels in the loss; 0 leaves it out.
    training_draws
        Draws of index sets that training steps will find in the network; the held-out voxels are those of other draws.
    residual_loss
        Of the ridge's predictions and normalised targets; by default their mean squared difference.

    Attributes
    ----------
    low_rank
        The :class:`cpic_monai.inferers.LowRankTerm` of inferer and loss.

    Raises
    ------
    ValueError
        For an unknown name; where there are no held-out voxels for a ``low_rank_weight`` above 0; for ``closed_form``
        with learned weights (``projection`` ``trl``) in the place of a basis; or if the basis would move over index
        sets whose features are values at the voxels of one selection (``tangent``, ``random_voxels``,
        ``picked_values``): those of another selection cannot be compared with them.
    """

    def __init__(
        self,
        name: str,
        network: CPICNet,
        quantile_loss: nn.Module,
        ridge: dict[str, Any] | LeaveOneOutRidge | None = None,
        ridge_learning_rate: float = 0.02,
        low_rank_weight: float = 0.0,
        training_draws: int = 1,
        residual_loss: nn.Module | None = None,
    ) -> None:
        if name not in RECIPES:
            raise ValueError(f"recipe {name!r} is none of {', '.join(RECIPES)}")
        self.name, self.network = name, network
        self.ridge = ridge if isinstance(ridge, LeaveOneOutRidge) else LeaveOneOutRidge(**(ridge or {}))
        closed = name == "closed_form"
        if not closed and is_values_only(network.indices):
            raise ValueError(
                "recipe 'paper' keeps scans of earlier steps in its basis, which cannot be compared once voxels are "
                "chosen anew, unless scans are tensor trains: set `index_sets` to scan or cohort, or `recipe` to "
                "closed_form"
            )
        network.moving_basis = not closed
        if closed and isinstance(network.basis, TensorTrainRegression):
            raise ValueError(
                "recipe 'closed_form' fits a basis to what the ridge regression found, and `projection` trl learns its "
                "weights step by step: set `recipe` to paper (configs/paper.json), or `projection` to basis"
            )
        self.low_rank = LowRankTerm(low_rank_weight, network, training_draws)
        self.inferer = LeaveOneOutInferer(self.ridge, self.low_rank) if closed else JointInferer(self.low_rank)
        self.loss: nn.Module = self.low_rank.added_to((residual_loss or nn.MSELoss()) if closed else quantile_loss)
        self.prepare_batch = PrepareVisits(with_label=closed, gather=True)
        # The head has no part in the leave-one-out loss: it is fitted on its own when an epoch ends.
        self.parameters: list[dict[str, Any]] = [
            {"params": list((network.encoder if closed else network).parameters())},
            {"params": list(self.ridge.parameters()), "lr": ridge_learning_rate},
        ]
        self.fits_head = closed

    def to(self, device: Any) -> Recipe:
        """Move the ridge's parameters."""
        self.ridge.to(device)
        return self


def run_over(engine: Evaluator, loader: Any, collect: Callable[[], None]) -> None:
    """Run an evaluator once over a loader, ``collect`` after every batch; not at all over one without scans."""
    if len(loader):
        with engine.add_event_handler(Events.ITERATION_COMPLETED, collect):
            engine.data_loader = loader
            engine.state.epoch_length = len(loader)
            engine.run()


def train(trainer: Engine, validator: Engine, tracker: MLFlowHandler | None = None) -> None:
    """Run a trainer, unless it was resumed after its last epoch: Ignite would begin anew then.

    Parameters
    ----------
    trainer
        With its handlers attached, so that what it resumes from is loaded.
    validator
        The engine whose best metric chooses the checkpoint.
    tracker
        Its run, which the trainer would begin, is begun for the evaluation that follows if there is nothing to train.

    Raises
    ------
    ValueError
        If there is nothing to validate on.
    RuntimeError
        If no epoch was validated in the end: there is no checkpoint of this run to go on with.
    """
    loader = getattr(validator, "data_loader", None)  # a MONAI evaluator's
    if loader is not None and not len(loader):
        raise ValueError(
            "the validation split is empty, so no epoch could be chosen: raise config key `validation_fraction` (with "
            "`fit_on_validation` basis and head learn from those scans, too, in the end)"
        )
    done, wanted = trainer.state.epoch, trainer.state.max_epochs
    if wanted is not None and done >= wanted > 0:
        logger.info(f"training ended after epoch {done} already (`max_epochs` {wanted}): raise it to go on")
        if tracker is not None:
            tracker.start(trainer)
    else:
        trainer.run()
    if getattr(validator.state, "best_metric_epoch", -1) == -1:
        raise RuntimeError(
            f"no epoch of {trainer.state.epoch} was validated, so there is no checkpoint of this run: raise "
            "`time_limit` or `max_epochs`, or lower `val_interval`"
        )
