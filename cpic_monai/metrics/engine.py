"""All metrics as Ignite handlers for an evaluator that does not decollate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import CumulativeIterationMetric

from cpic_monai.metrics.named import named_metrics


class EngineMetrics:
    """mLLL, RMSE, MAE, R2, pinball loss and coverage, one of which is the key metric.

    Parameters
    ----------
    quantiles
        Levels of the predictions' columns.
    sigma_min, error_max
        Clips of mLLL in the target's unit.
    metrics
        Others by name, in the place of these (of classes, of survival).
    """

    def __init__(
        self,
        quantiles: Sequence[float] = (0.2, 0.5, 0.8),
        sigma_min: float = 70.0,
        error_max: float = 1000.0,
        metrics: Mapping[str, CumulativeIterationMetric] | None = None,
    ) -> None:
        self.metrics: dict[str, CumulativeIterationMetric] = {
            **(named_metrics(quantiles, sigma_min, error_max) if metrics is None else metrics)
        }

    def key(self, name: str) -> dict[str, IgniteMetricHandler]:
        """The key metric alone.

        Raises
        ------
        KeyError
            For an unknown name.
        """
        if name not in self.metrics:
            raise KeyError(f"key_metric.name is {name!r}; choose among {', '.join(self.metrics)}")
        return {name: self._handler(name)}

    def others(self, name: str) -> dict[str, IgniteMetricHandler]:
        """All but the key metric."""
        return {other: self._handler(other) for other in self.metrics if other != name}

    def _handler(self, name: str) -> IgniteMetricHandler:
        return IgniteMetricHandler(metric_fn=self.metrics[name], output_transform=from_engine(["pred", "label"]))
