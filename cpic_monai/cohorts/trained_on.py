"""Whom a checkpoint has learned from, so that nobody of them is counted as held out later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["TrainedOn"]

DIGITS = 16


class TrainedOn:
    """The groups (patients) that trained a network or chose its checkpoint, as digests of their names.

    Digests keep names out of the checkpoint; they are no anonymisation, for who knows a name can look it up.

    Parameters
    ----------
    items
        Of the training and validation splits; ``group`` names the patient.
    fit_on_validation
        Whether basis and head were fitted to the validation split too.
    """

    def __init__(self, items: Iterable[Mapping[str, Any]] = (), fit_on_validation: bool = False) -> None:
        self.groups, self.fit_on_validation = sorted({_digest(item) for item in items}), bool(fit_on_validation)

    def state_dict(self) -> dict[str, Any]:
        """Plain containers, for the checkpoint."""
        return {"groups": list(self.groups), "fit_on_validation": self.fit_on_validation}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.groups = [str(digest) for digest in state["groups"]]
        self.fit_on_validation = bool(state["fit_on_validation"])

    def check_held_out(self, items: Sequence[Mapping[str, Any]], name: str) -> None:
        """Check that none of these test items is of a group that was learned from.

        Parameters
        ----------
        items
            Of the test split.
        name
            Of the cohort, for the message.

        Raises
        ------
        ValueError
            Naming the first such group.
        """
        known, test = set(self.groups), {str(item["group"]): _digest(item) for item in items}
        learned = sorted(group for group, digest in test.items() if digest in known)
        if learned:
            raise ValueError(
                f"{name}: the checkpoint was trained on, or chosen by, {len(learned)} of the {len(test)} groups that "
                f"would be counted as held out, the first is {learned[0]}: set `seed`, `fold`, `folds`, "
                "`validation_fraction`, `stratify` and the column of groups as in its training"
            )


def _digest(item: Mapping[str, Any]) -> str:
    return hashlib.sha256(str(item["group"]).encode()).hexdigest()[:DIGITS]
