"""From a cohort to items with tensors: split, then encode with what the training items alone taught."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cpic_monai.cohorts.cohort import Cohort
from cpic_monai.cohorts.folds import split
from cpic_monai.cohorts.tabular import TabularEncoder
from cpic_monai.cohorts.target import TargetScaler
from cpic_monai.cohorts.trained_on import TrainedOn

__all__ = ["ItemEncoder", "Splits", "load_splits", "prepare"]


class ItemEncoder:
    """Tabular encoder and target scaler together: what inference needs of the training cohort.

    Parameters
    ----------
    state
        What `state_dict` gave (for instance read from a checkpoint), or None for an encoder still to be fitted.
    outputs
        Names of the columns that the network predicts. They are kept with the state, for a network's weights do not
        say what its outputs mean.

    Raises
    ------
    ValueError
        If the state is that of other outputs.
    """

    def __init__(self, state: Mapping[str, Any] | None = None, outputs: Sequence[str] | None = None) -> None:
        self.tabular, self.target = TabularEncoder(), TargetScaler()
        self.outputs = None if outputs is None else [str(name) for name in outputs]
        if state is not None:
            self.load_state_dict(state)

    def fit(self, cohort: Cohort, items: Sequence[Mapping[str, Any]]) -> ItemEncoder:
        """Learn from training `items` of `cohort`; the cohort gives the columns and the way to normalise, no values."""
        self.tabular = TabularEncoder(cohort.columns).fit(items)
        self.target = TargetScaler(cohort.scaler.mode, cohort.scaler.factor).fit(items)
        return self

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the F tabular features."""
        return self.tabular.feature_names

    def apply(self, items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Encode items.

        Returns
        -------
        list
            New dicts with ``subject, group, image, strata`` and the float32 tensors ``tabular`` (V, F) and ``label``,
            ``offset``, ``scale``, ``visit`` (V, 1); target = label * scale + offset, NaN where unknown.
        """
        encoded = []
        for item in items:
            new: dict[str, Any] = {key: item[key] for key in ("subject", "group", "image", "strata")}
            new["tabular"] = self.tabular.transform(item)
            new |= self.target.transform(item)
            new["visit"] = torch.as_tensor(np.array(item["visit"], np.float32)[:, None])
            encoded.append(new)
        return encoded

    def state_dict(self) -> dict[str, Any]:
        """Plain containers: loads with ``torch.load(weights_only=True)``."""
        state = {"tabular": self.tabular.state_dict(), "target": self.target.state_dict()}
        return state if self.outputs is None else {**state, "outputs": list(self.outputs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> ItemEncoder:
        """Restore what `state_dict` gave; states of before outputs were kept load as they did."""
        there = state.get("outputs")
        if there is not None and self.outputs is not None and list(there) != self.outputs:
            raise ValueError(
                f"the checkpoint predicts {', '.join(there)}, this configuration {', '.join(self.outputs)}: set the "
                "config keys `quantiles`, `classes` and the task's overlay as in the checkpoint's training"
            )
        self.outputs = self.outputs or (None if there is None else list(there))
        self.tabular.load_state_dict(state["tabular"])
        self.target.load_state_dict(state["target"])
        return self


@dataclass
class Splits:
    """Encoded items of each split and the encoder that made them."""

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    encoder: ItemEncoder

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the F tabular features."""
        return self.encoder.feature_names

    def trained_on(self, fit_on_validation: bool = False) -> TrainedOn:
        """Whom a network that these splits train learns from, or is chosen by."""
        return TrainedOn(self.train, self.validation, fit_on_validation)

    def state_dict(self) -> dict[str, Any]:
        """What was learnt from the training items, for the checkpoint."""
        return self.encoder.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore an encoder (items that are encoded already stay as they are)."""
        self.encoder.load_state_dict(state)

    def apply(self, items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Encode further items (of another cohort of the same columns) as the training items were."""
        return self.encoder.apply(items)


def prepare(
    cohort: Cohort,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    state: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    trained_on: Mapping[str, Any] | None = None,
) -> Splits:
    """Encode splits of a cohort, fitting on ``splits["train"]`` alone.

    Parameters
    ----------
    cohort
        Gives the columns and the target's mode.
    splits
        ``train``, ``validation`` and ``test`` items, as `split` gives them.
    state
        A fitted encoder's `state_dict` to use instead of fitting (evaluation of a checkpoint).
    outputs
        See :class:`ItemEncoder`.
    trained_on
        State of the checkpoint's :class:`cpic_monai.cohorts.TrainedOn`: none of them may count as held out.

    Raises
    ------
    ValueError
        If the checkpoint's outputs are others, or it has learned from a group that would count as held out.
    """
    if trained_on is not None:
        TrainedOn.of(trained_on).check_held_out(splits, cohort.name)
    encoder = ItemEncoder(state, outputs)
    if state is None:
        encoder.fit(cohort, splits["train"])
    train, validation, test = (encoder.apply(splits[name]) for name in ("train", "validation", "test"))
    return Splits(train, validation, test, encoder)


def load_splits(
    cohort: Cohort,
    fold: int = 0,
    folds: int = 5,
    validation_fraction: float = 0.15,
    seed: int = 0,
    stratify: bool = False,
    state: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    trained_on: Mapping[str, Any] | None = None,
) -> Splits:
    """`split` and `prepare` in one call, for configs."""
    parts = split(cohort, fold, folds, validation_fraction, seed, stratify)
    return prepare(cohort, parts, state, outputs, trained_on)
