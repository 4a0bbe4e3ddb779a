"""Normalisation of the target, fitted on training items only: target = label * scale + offset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["TargetScaler"]

MODES = ("standardise", "relative_to_first", "constant")


class TargetScaler:
    """Offset and scale of every row of an item.

    Parameters
    ----------
    mode
        ``standardise``: mean and standard deviation of the training targets. ``relative_to_first`` (OSIC): offset is
        the first visit's value, scale is `factor` times it, so that a label of -1 is a loss of 10 % at the default
        factor.
        ``constant`` (BraTS): offset 0 and scale `factor`.
    factor
        See `mode`.
    """

    def __init__(self, mode: str = "standardise", factor: float = 0.1) -> None:
        if mode not in MODES:
            raise ValueError(f"target mode must be one of {MODES}, found {mode!r}")
        if not factor > 0:
            raise ValueError(f"target factor must be positive, found {factor}")
        self.mode, self.factor = mode, float(factor)
        self.mean, self.sd = 0.0, 1.0
        self._fitted = mode != "standardise"

    def fit(self, items: Sequence[Mapping[str, Any]]) -> TargetScaler:
        """Learn mean and sd (``standardise`` alone has something to learn) from training items.

        Raises
        ------
        ValueError
            If no training item has a target, or all are equal.
        """
        if self.mode == "standardise":
            values = np.concatenate([np.asarray(item["target"], float) for item in items])
            values = values[np.isfinite(values)]
            if values.size == 0:
                raise ValueError("no training item has a target: it cannot be standardised")
            self.mean, self.sd = float(values.mean()), float(values.std())
            if not self.sd > 0:
                raise ValueError(f"all {values.size} training targets are {self.mean}: there is nothing to learn")
            self._fitted = True
        return self

    def transform(self, item: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """``label``, ``offset`` and ``scale`` of an item, each (V, 1) float32; the label is NaN where unknown.

        Raises
        ------
        ValueError
            If the first value is needed and missing or not positive.
        """
        if not self._fitted:
            raise RuntimeError("the target scaler is not fitted: call fit(training items) or load_state_dict first")
        target = np.asarray(item["target"], float)
        if self.mode == "standardise":
            offset, scale = self.mean, self.sd
        elif self.mode == "constant":
            offset, scale = 0.0, self.factor
        else:
            offset = float(item["baseline"])
            if not offset > 0:
                raise ValueError(f"subject {item['subject']}: the first value must be positive, found {offset}")
            scale = self.factor * offset
        columns = {"label": (target - offset) / scale, "offset": np.full_like(target, offset)}
        columns["scale"] = np.full_like(target, scale)
        return {key: torch.as_tensor(value[:, None], dtype=torch.float32) for key, value in columns.items()}

    def state_dict(self) -> dict[str, Any]:
        """Mode and what was learnt, as plain values."""
        return {"mode": self.mode, "factor": self.factor, "mean": self.mean, "sd": self.sd, "fitted": self._fitted}

    def load_state_dict(self, state: Mapping[str, Any]) -> TargetScaler:
        """Restore what `state_dict` gave."""
        self.mode, self.factor = str(state["mode"]), float(state["factor"])
        self.mean, self.sd, self._fitted = float(state["mean"]), float(state["sd"]), bool(state["fitted"])
        return self


def fraction_of_first(target_name: str) -> str:
    """Unit of predictions of a target that is relative to its first value, where that value is not known."""
    return f"fraction of the first {target_name}"
