"""The tasks: classes, and survival with right-censored times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cpic_monai.losses import ClassLoss, CoxLoss
from cpic_monai.metrics import RowMetric, classification_metrics, survival_metrics

__all__ = ["ClassTask", "SurvivalTask", "Task"]


class Task(ABC):
    """What depends on the kind of outcome.

    Attributes
    ----------
    loss
        Of the head's outputs ``(R, K)`` and the labels ``(R, 1)``.
    columns
        Names of the predictions' columns in ``predictions.csv``.
    truths
        Names of the columns that say what came true.
    """

    loss: nn.Module
    columns: tuple[str, ...]
    truths: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Outputs of the head."""
        return len(self.columns)

    @abstractmethod
    def working_response(self, label: Tensor) -> Tensor:
        """What a linear regression on the scans should predict: ``(R, M)``, centred, of labels ``(R, 1)``."""

    @abstractmethod
    def constant(self, label: Tensor) -> Tensor:
        """What is reported for everybody ``(K,)`` by one who has seen these labels ``(R, 1)`` and no scan."""

    @abstractmethod
    def metrics(self) -> dict[str, RowMetric]:
        """New metrics by name."""

    @abstractmethod
    def truth(self, label: Tensor) -> dict[str, list[Any]]:
        """Outcomes ``(R, 1)``, in their own unit, as columns of ``predictions.csv``."""

    def finish(self, outputs: Tensor) -> Tensor:
        """The head's outputs as they are reported."""
        return outputs

    def postprocess(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Postprocessing of an evaluator with ``decollate=False``: ``pred`` as it is reported."""
        out = dict(data)
        out["pred"] = self.finish(out["pred"].float())
        return out


class ClassTask(Task):
    """Classes: logits by cross-entropy, reported as probabilities.

    The ridge regresses on the classes' indicators, centred and of unit variance together.

    Parameters
    ----------
    classes
        Names, in the order of the outputs; labels are their numbers.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(str(name) for name in classes)
        if len(self.classes) < 2:
            raise ValueError(f"a classification needs two classes or more, found {list(self.classes)}")
        self.loss = ClassLoss()
        self.columns, self.truths = tuple(f"p({name})" for name in self.classes), ("truth",)

    def working_response(self, label: Tensor) -> Tensor:
        """Indicators of all classes but the first ``(R, K - 1)``: the first is what the others leave."""
        indicator = nn.functional.one_hot(label[:, 0].long(), len(self.classes))[:, 1:].to(label)
        centred = indicator - indicator.mean(0)
        return centred / centred.square().mean().sqrt().clamp_min(1e-6)

    def finish(self, outputs: Tensor) -> Tensor:
        """Probabilities ``(R, K)``."""
        return outputs.softmax(1)

    def constant(self, label: Tensor) -> Tensor:
        """The classes' shares; one that was not seen counts as half a row, for its log loss is finite then."""
        counts = nn.functional.one_hot(label[:, 0].long(), len(self.classes)).sum(0).double().clamp_min(0.5)
        return counts / counts.sum()

    def metrics(self) -> dict[str, RowMetric]:
        """``auc``, ``accuracy``, ``log_loss``."""
        return {**classification_metrics(len(self.classes))}

    def truth(self, label: Tensor) -> dict[str, list[Any]]:
        """The class's name."""
        return {"truth": [self.classes[int(k)] for k in label[:, 0]]}


class SurvivalTask(Task):
    """Time to an event with right-censoring: a log hazard by Cox's partial likelihood.

    The ridge regresses on the martingale residuals of the model without covariates (event minus the Nelson-Aalen
    cumulative hazard at the row's time): the gradient of the partial likelihood at hazards all equal.

    Parameters
    ----------
    ties
        See :class:`cpic_monai.losses.CoxLoss`.

    References
    ----------
    Therneau, Grambsch and Fleming, "Martingale-based residuals for survival models", Biometrika 77 (1990).
    """

    def __init__(self, ties: str = "efron") -> None:
        self.loss = CoxLoss(ties)
        self.columns, self.truths = ("log_hazard",), ("time", "event")

    def working_response(self, label: Tensor) -> Tensor:
        """Residuals ``(R, 1)`` of unit variance; times are compared among the rows given."""
        time, event = label[:, 0].abs(), (label[:, 0] > 0).to(label)
        at_risk = (time[None, :] >= time[:, None]).sum(1).to(label)
        hazard = event / at_risk  # of each event's moment; those at one time add up
        cumulative = ((time[None, :] <= time[:, None]).to(label) * hazard).sum(1)
        residual = (event - cumulative)[:, None]
        centred = residual - residual.mean(0)
        return centred / centred.square().mean().sqrt().clamp_min(1e-6)

    def constant(self, label: Tensor) -> Tensor:
        """Hazards all equal."""
        return label.new_zeros(1)

    def metrics(self) -> dict[str, RowMetric]:
        """``concordance``, ``cox``."""
        return {**survival_metrics()}

    def truth(self, label: Tensor) -> dict[str, list[Any]]:
        """Time, and 1 for an event or 0 for censoring."""
        time = [float(f"{value:.6g}") for value in label[:, 0].abs().tolist()]  # labels were float32
        return {"time": time, "event": (label[:, 0] > 0).int().tolist()}
