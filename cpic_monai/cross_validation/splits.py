"""Who is in which split of which fold, read from the predictions: checked, not assumed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pandas as pd

__all__ = ["TEST", "check_held_out_once", "check_same_splits", "split_checksum"]

TEST = "test"


def split_checksum(folds: Sequence[pd.DataFrame]) -> str:
    """SHA-256 over which subject is in which split of which fold."""
    lines = []
    for k, frame in enumerate(folds):
        lines += [f"{k}\t{split}\t{subject}" for split, subject in sorted(_places(frame))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_held_out_once(name: str, folds: Sequence[pd.DataFrame], everyone_is: bool) -> None:
    """
    Check that no subject is held out in two folds, and, where ``everyone_is``, none in no fold.

    Raises
    ------
    ValueError
        The first such subject is named.
    """
    held: dict[str, int] = {}
    everyone: set[str] = set()
    for k, frame in enumerate(folds):
        everyone |= set(frame["subject"])
        for subject in sorted(frame.loc[frame["split"] == TEST, "subject"].unique()):
            if subject in held:
                raise ValueError(
                    f"{name}: subject {subject} is held out in fold {held[subject]} and in fold {k}; the folds come "
                    "from different splits or a table that has changed between them. Remove the folder and run again"
                )
            held[subject] = k
    never = sorted(everyone - set(held))
    if never and everyone_is:
        raise ValueError(
            f"{name}: {len(never)} of {len(everyone)} subjects are held out in no fold, the first is {never[0]}; the "
            "folds come from different splits or a table that has changed between them. Remove the folder and run again"
        )


def check_same_splits(names: tuple[str, str], first: Sequence[pd.DataFrame], other: Sequence[pd.DataFrame]) -> None:
    """
    Check that the folds of two methods, called ``names``, have the same subjects in the same splits.

    Raises
    ------
    ValueError
        The first fold and subject that differ are named.
    """
    for k, (one, two) in enumerate(zip(first, other, strict=True)):
        apart = sorted(_places(one) ^ _places(two), key=lambda place: place[1])
        if apart:
            split, subject = apart[0]
            where = names[0] if (split, subject) in _places(one) else names[1]
            raise ValueError(
                f"fold {k}: subject {subject} is in the split {split!r} for {where} alone; {names[0]} and "
                f"{names[1]} do not see the same splits and cannot be compared. Use one cohort for all methods"
            )


def _places(frame: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(frame["split"], frame["subject"], strict=True))
