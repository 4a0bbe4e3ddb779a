"""Baselines without a network of their own: kernel ridge regression on the voxels of low-resolution scans."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.data import Dataset
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, GroupKFold, LeaveOneGroupOut, cross_val_predict
from torch.nn.functional import adaptive_avg_pool3d
from tqdm import tqdm

from cpic_monai.batches import ToUnits
from cpic_monai.evaluation import _rows, _without_image
from cpic_monai.transforms.dense import dense

logger = logging.getLogger(__name__)

PENALTIES = tuple(10.0 ** np.arange(-5, 4))


class VoxelRidge:
    """Ridge regression of the target on all voxels, on the tabular values, and on their products.

    A linear model in ``phi x (1, voxels)`` with ``phi = (1, tabular)``: how a scan shifts the outcome, and how it
    changes the effect of the tabular values (for a decline: its slope over weeks). It is fitted in its dual form, with
    the kernel ``phi . phi' (a + <v, v'>)``; the penalty is chosen by cross-validation over groups of visits
    (patients). The quantiles are the prediction plus the quantiles of the residuals of patients left out in turn.

    Parameters
    ----------
    splits
        Split name to encoded items with paths under ``image``; the regression learns from ``train``.
    viewing
        From an item to a lazy scan under ``image``: the config's `viewing`.
    shape
        Voxels along each axis that scans are averaged to.
    quantiles
        Levels of the predictions' columns.
    tabular_weight
        ``a``; scans are scaled to a mean squared norm of 1, so 10 penalises tabular effects ten times less.
    penalties
        Of which one is chosen.

    Raises
    ------
    ValueError
        On calling, if the training split has fewer than three patients.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        viewing: Any,
        shape: Sequence[int] = (16, 32, 32),
        quantiles: Sequence[float] = (0.2, 0.5, 0.8),
        tabular_weight: float = 10.0,
        penalties: Sequence[float] = PENALTIES,
    ) -> None:
        self.splits = {name: items for name, items in splits.items() if len(items)}
        (d, h, w), self.quantiles = shape, tuple(quantiles)
        self.viewing, self.shape = viewing, (int(d), int(h), int(w))
        self.tabular_weight, self.penalties = tabular_weight, list(penalties)

    def __call__(self) -> dict[str, pd.DataFrame]:
        """Split name to predictions, rows in the order of the items."""
        train = self.splits["train"]
        groups = np.concatenate([[str(item.get("group", item["subject"]))] * len(item["tabular"]) for item in train])
        if len(set(groups)) < 3:
            raise ValueError(f"ridge on voxels needs at least 3 patients to learn from, found {len(set(groups))}")
        voxels = {name: self._voxels(items) for name, items in self.splits.items()}
        mean = voxels["train"].mean(0)
        scale = float(np.square(voxels["train"] - mean).sum(1).mean() ** 0.5) or 1.0
        scans = {name: (values - mean) / scale for name, values in voxels.items()}
        batches = {name: _without_image(items) for name, items in self.splits.items()}
        known = np.isfinite(batches["train"]["label"].numpy()[:, 0])
        kernel = self._kernel(scans, batches, "train")[known][:, known]
        target, groups = batches["train"]["label"].numpy()[known, 0].astype(np.float64), groups[known]
        search = GridSearchCV(
            KernelRidge(kernel="precomputed"),
            {"alpha": self.penalties},
            scoring="neg_mean_squared_error",
            cv=GroupKFold(min(5, len(set(groups)))),
        ).fit(kernel, target, groups=groups)
        model = search.best_estimator_
        left_out = cross_val_predict(model, kernel, target, groups=groups, cv=LeaveOneGroupOut())
        spread = np.quantile(target - left_out, self.quantiles)
        logger.info(
            f"ridge on {self.shape} voxels: penalty {search.best_params_['alpha']:g}, "
            f"R2 of patients left out {1 - np.mean((target - left_out) ** 2) / np.var(target):.3f}"
        )
        frames = {}
        for name, batch in batches.items():
            pred = model.predict(self._kernel(scans, batches, name)[:, known])[:, None] + spread
            output = ToUnits()({**batch, "pred": torch.from_numpy(pred)})
            frames[name] = _rows(batch, output, name, self.quantiles)
        return frames

    def _voxels(self, items: Sequence[dict[str, Any]]) -> np.ndarray:
        """Averaged voxels float64 ``(S, C * voxels)``."""
        rows = []
        for item in tqdm(Dataset(items, self.viewing), desc="read scans for ridge", unit="scan", leave=False):
            rows.append(adaptive_avg_pool3d(dense(item["image"]), self.shape).flatten())
        return torch.stack(rows).double().numpy()

    def _kernel(self, scans: Mapping[str, np.ndarray], batches: Mapping[str, Any], name: str) -> np.ndarray:
        """Kernel ``(R, R_train)`` of a split's visits with the training visits."""
        (a, i), (b, j) = (
            (batches[n]["tabular"].double().numpy(), batches[n]["scan_index"].numpy()) for n in (name, "train")
        )
        gram = scans[name] @ scans["train"].T
        return (1 + a @ b.T) * (self.tabular_weight + gram[i][:, j])
