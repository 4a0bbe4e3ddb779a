"""Whom a checkpoint has learned from, so that nobody of them is counted as held out later."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["TrainedOn"]

logger = logging.getLogger(__name__)
DIGITS = 16
ADVICE = (
    "set `seed`, `fold`, `folds`, `validation_fraction`, `stratify` and the column of groups as in the checkpoint's "
    "training"
)
OTHERS = "Where they are other patients with the same names, set `same_cohort` to false"


class TrainedOn:
    """The groups (patients) that trained a network or chose its checkpoint, as digests of their names.

    Digests keep names out of the checkpoint; they are no anonymisation, for who knows a name can look it up.

    Parameters
    ----------
    train, validation
        Items of the splits; ``group`` names the patient.
    fit_on_validation
        Whether basis and head are fitted to the validation split too.

    Attributes
    ----------
    pretrained
        Digests of those that the encoder of a fine-tuned network had learned from before.
    """

    #: A checkpoint of before it was kept lacks it, and is loaded nevertheless.
    optional = True

    def __init__(
        self,
        train: Iterable[Mapping[str, Any]] = (),
        validation: Iterable[Mapping[str, Any]] = (),
        fit_on_validation: bool = False,
    ) -> None:
        self.train, self.validation = (sorted(_digests(items)) for items in (train, validation))
        self.pretrained: list[str] = []
        self.fit_on_validation = bool(fit_on_validation)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> TrainedOn:
        """From what `state_dict` gave."""
        new = cls(fit_on_validation=state["fit_on_validation"])
        new.train, new.validation, new.pretrained = (
            [str(digest) for digest in state[key]] for key in ("train", "validation", "pretrained")
        )
        return new

    def state_dict(self) -> dict[str, Any]:
        """Plain containers, for the checkpoint."""
        return {
            "train": list(self.train),
            "validation": list(self.validation),
            "pretrained": list(self.pretrained),
            "fit_on_validation": self.fit_on_validation,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a checkpoint: it must be of the same splits.

        Raises
        ------
        ValueError
            If it is of others, or was fitted to validation scans, which this run means to hold out.
        """
        other = TrainedOn.of(state)
        if (other.train, other.validation) != (self.train, self.validation):
            raise ValueError(
                f"the checkpoint was trained on {len(other.train)} groups and chosen by {len(other.validation)}, and "
                f"they are not the {len(self.train)} and {len(self.validation)} of this run: {ADVICE}, or choose "
                "another `output_dir`"
            )
        if other.fit_on_validation and not self.fit_on_validation:
            raise ValueError(
                "the checkpoint's basis and head were fitted to the validation scans, which this run would count as "
                "held out: set `fit_on_validation` to true, or train anew"
            )
        self.pretrained = other.pretrained

    def check_held_out(self, splits: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> None:
        """Check that nobody who was learned from is counted as held out.

        Parameters
        ----------
        splits
            Items of ``train``, ``validation`` and ``test``.
        name
            Of the cohort, for the message.

        Raises
        ------
        ValueError
            If a test group trained the checkpoint or chose it, or a validation group trained it; the first is named.
        """
        for split, known in (("test", {*self.train, *self.validation}), ("validation", set(self.train))):
            groups = _digests(splits[split])
            if learned := sorted(groups[digest] for digest in set(groups) & known):
                raise ValueError(
                    f"{name}: the checkpoint was trained on, or chosen by, {len(learned)} of the {len(groups)} groups "
                    f"of the {split} split, which would be counted as held out; the first is {learned[0]}: "
                    f"{ADVICE}. {OTHERS}"
                )
        everyone = {digest for items in splits.values() for digest in _digests(items)}
        if self.train and not everyone & {*self.train, *self.validation}:
            logger.warning(
                f"{name}: none of its groups trained this checkpoint: it is another cohort, or has another column of "
                "groups, and then nobody knows who was held out"
            )
        if met := len(set(_digests(splits["test"])) & set(self.pretrained)):
            logger.warning(f"{name}: {met} test groups trained the encoder that this checkpoint was fine-tuned from")

    def learn(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Take note of further groups that the network is fitted to."""
        self.train = sorted({*self.train, *_digests(items)})

    def include(self, pretrained: Mapping[str, Any], test: Sequence[Mapping[str, Any]]) -> int:
        """Take note of whom a pretrained encoder had learned from; returns how many groups of ``test`` are among them.

        Parameters
        ----------
        pretrained
            State of its checkpoint's record.
        test
            Items of the test split.
        """
        before = TrainedOn.of(pretrained)
        self.pretrained = sorted({*before.train, *before.validation, *before.pretrained})
        return len(set(_digests(test)) & set(self.pretrained))


def _digests(items: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Digest to name of the items' groups."""
    names = {str(item["group"]) for item in items}
    return {hashlib.sha256(name.encode()).hexdigest()[:DIGITS]: name for name in names}
