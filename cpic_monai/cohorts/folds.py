"""Deterministic splits in which a group (a patient, a family) is never on both sides."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from cpic_monai.cohorts.cohort import Cohort

__all__ = ["split"]

logger = logging.getLogger(__name__)


def split(
    cohort: Cohort,
    fold: int = 0,
    folds: int = 5,
    validation_fraction: float = 0.15,
    seed: int = 0,
    stratify: bool = False,
    bins: int = 4,
) -> dict[str, list[dict[str, Any]]]:
    """Split a cohort into training, validation and test items.

    The split depends on the groups and the arguments alone, not on the order of the items, so that every method given
    the same seed sees the same split. The `folds` test sets are disjoint and cover the cohort.

    Parameters
    ----------
    cohort
        What to split.
    fold, folds
        Which of how many test folds. With ``folds=1`` there is no test set.
    validation_fraction
        Share of the groups outside the test fold that is held out for validation, at least one group unless 0 (about
        that share with `stratify`, which balances the target first).
    seed
        Seed of the shuffling.
    stratify
        Balance the target over the folds: the mean target of an item, in `bins` quantile bins.
    bins
        At most as many bins; fewer where groups are few.

    Returns
    -------
    dict
        ``train``, ``validation`` and ``test``: lists of the cohort's items, in the cohort's order.

    Raises
    ------
    ValueError
        If there are more folds than groups, `fold` is out of range, a target to stratify by is unknown, a subject is in
        several groups, or nothing is left to train on.
    """
    group_of: dict[str, Any] = {}
    for item in cohort.items:
        if group_of.setdefault(item["subject"], item["group"]) != item["group"]:
            raise ValueError(
                f"{cohort.name}: scans of {item['subject']} are in the groups {group_of[item['subject']]} and "
                f"{item['group']}, so some would train and others test: name the patients' column in `group_column`"
            )
    groups = np.array([str(item["group"]) for item in cohort.items])
    count = len(np.unique(groups))
    if folds < 1 or not 0 <= fold < folds:
        raise ValueError(f"fold must be in 0 ... folds - 1 and folds at least 1, found fold={fold}, folds={folds}")
    if folds > count:
        raise ValueError(
            f"folds={folds} is more than the {count} groups of {cohort.name}: lower folds to {count} or less"
        )
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), found {validation_fraction}")

    names = [(str(item["group"]), str(item["subject"]), str(item["image"])) for item in cohort.items]
    order = np.array(sorted(range(len(names)), key=names.__getitem__))
    strata = _strata(cohort, order, bins, folds) if stratify else None
    test = order[:0] if folds == 1 else order[_fold(groups[order], strata, fold, folds, seed)]
    rest = np.array([n for n in order if n not in set(test.tolist())])
    left = len(np.unique(groups[rest]))
    held = 0 if validation_fraction == 0 else max(1, round(validation_fraction * left))
    if held >= left:
        raise ValueError(
            f"{cohort.name}: fold {fold} of {folds} leaves {left} of {count} groups, of which {held} would be held "
            "out for validation: nothing is left to train on; lower validation_fraction or take other folds"
        )
    validation = rest[:0]
    if held:
        # Of left / held parts, the first; another stream of the seed, so that it is not tied to the test folds.
        parts = max(2, round(left / held))
        strata = _strata(cohort, rest, bins, parts) if stratify else None
        if strata is None:
            chosen = np.random.default_rng([seed, fold, 1]).permutation(np.unique(groups[rest]))[:held]
            validation = rest[np.isin(groups[rest], chosen)]
        else:
            validation = rest[_fold(groups[rest], strata, 0, parts, seed + 1000 * (fold + 1))]
    chosen_sets = {"validation": set(validation.tolist()), "test": set(test.tolist())}
    parts_of: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for n, item in enumerate(cohort.items):
        name = next((key for key, members in chosen_sets.items() if n in members), "train")
        parts_of[name].append(item)
    return parts_of


def _fold(groups: np.ndarray, strata: np.ndarray | None, fold: int, folds: int, seed: int) -> np.ndarray:
    """Positions of the given test fold."""
    nothing = np.zeros(len(groups))
    if strata is None:
        splits = GroupKFold(folds, shuffle=True, random_state=seed).split(nothing, groups=groups)
    else:
        splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(nothing, strata, groups)
    parts = [held for _, held in splits]
    if strata is not None and min(map(len, parts)) == 0:  # few, unequal groups: a balanced fold may stay empty
        return _fold(groups, None, fold, folds, seed)
    return np.asarray(parts[fold])


def _strata(cohort: Cohort, order: np.ndarray, bins: int, folds: int) -> np.ndarray | None:
    """Bin (N,) of every item's mean target; None where two bins would not have an item for every fold.

    A bin holds about as many items as another; of targets with few values, such as classes, each value is a bin.
    """
    targets = [np.asarray(cohort.items[n]["target"], float) for n in order]
    means = np.array([t[np.isfinite(t)].mean() if np.isfinite(t).any() else np.nan for t in targets])
    if not np.isfinite(means).all():
        names = [cohort.items[n]["subject"] for n, mean in zip(order, means, strict=True) if np.isnan(mean)]
        raise ValueError(f"{cohort.name}: stratify needs the target of every scan; unknown for {names[:5]}")
    values, strata, counts = np.unique(means, return_inverse=True, return_counts=True)
    few = len(values) <= max(bins, len(getattr(cohort, "classes", ())))
    if few and (counts >= folds).sum() > 1:
        return np.asarray(strata)
    for number in () if few else range(bins, 1, -1):
        edges = np.quantile(means, np.linspace(0, 1, number + 1)[1:-1])
        bin_of = np.searchsorted(edges, means, side="right")
        _, strata, counts = np.unique(bin_of, return_inverse=True, return_counts=True)
        if len(counts) > 1 and counts.min() >= folds:
            return np.asarray(strata)
    logger.warning(f"{cohort.name}: too few scans of alike targets to balance {folds} folds by them: they are not")
    return None
