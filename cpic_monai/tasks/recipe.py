"""The two recipes for a task: the ridge regresses on its working response, the head learns by its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cpic_monai.engines import Recipe
from cpic_monai.networks import CPICNet, LeaveOneOutRidge
from cpic_monai.networks.heads import LogitHead
from cpic_monai.tasks.task import Task

__all__ = ["LogitCPICNet", "TaskRecipe", "WorkingRidge"]


class LogitCPICNet(CPICNet):
    """:class:`cpic_monai.networks.CPICNet` whose head's outputs are in no order; ``quantiles`` is their number."""

    head_type = LogitHead


class WorkingRidge(LeaveOneOutRidge):
    """The leave-one-out ridge regression on a task's working response in the place of the label.

    Parameters
    ----------
    task
        Gives the response, of one column or several.
    ridge
        Kernel and starting values, see :class:`cpic_monai.networks.LeaveOneOutRidge`.
    """

    def __init__(self, task: Task, **ridge: Any) -> None:
        super().__init__(**ridge)
        self.task = task

    def forward(
        self, gram: Tensor, tabular: Tensor, scan_index: Tensor, target: Tensor, group: Tensor | None = None
    ) -> Tensor:
        """Labels less the left-out residuals of the response ``(R, M)``: what differs from the label is the error."""
        response = self.task.working_response(target.to(gram.dtype))
        return target.to(gram.dtype) - (response - super().forward(gram, tabular, scan_index, response, group))

    @torch.no_grad()
    def scan_effects(
        self, gram: Tensor, tabular: Tensor, scan_index: Tensor, target: Tensor, group: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Those of the response's columns, ``(S, (1 + F) M)``: what 1 stands for in all columns first, then slopes.

        A basis takes as many of them as it has directions: no class should take all.
        """
        response = self.task.working_response(target.to(gram.dtype))
        effects = super().scan_effects
        columns = [effects(gram, tabular, scan_index, y, group) for y in response.split(1, 1)]
        dual, left_out = zip(*columns, strict=True)
        return torch.stack(dual, 2).flatten(1), torch.stack(left_out, 2).flatten(1)


class TaskRecipe(Recipe):
    """:class:`cpic_monai.engines.Recipe` for a task.

    Parameters
    ----------
    name, network, ridge, ridge_learning_rate, low_rank_weight, training_draws
        As there.
    task
        What is predicted.
    """

    def __init__(
        self,
        name: str,
        network: CPICNet,
        task: Task,
        ridge: dict[str, Any] | None = None,
        ridge_learning_rate: float = 0.02,
        low_rank_weight: float = 0.0,
        training_draws: int = 1,
    ) -> None:
        if not isinstance(network.head, LogitHead) or network.head.quantiles != task.outputs:
            raise ValueError(
                f"{type(network).__name__} has {network.head.quantiles} outputs of a {type(network.head).__name__}, "
                f"the task wants {task.outputs} of a LogitHead: an overlay behind that of the task has replaced "
                "`network_def` by a network of quantiles (configs/resnet.json knows quantiles alone)"
            )
        super().__init__(
            name, network, task.loss, WorkingRidge(task, **(ridge or {})), ridge_learning_rate, low_rank_weight,
            training_draws, ResidualLoss(),
        )  # fmt: skip


class ResidualLoss(nn.Module):
    """Mean squared difference of :class:`WorkingRidge`'s predictions ``(R, M)`` from labels ``(R, 1)``."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Scalar."""
        return (pred - target).square().mean()
