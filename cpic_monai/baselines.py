"""Baselines without a network of their own: kernel ridge regression on voxels, or on the mere size of scans."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel
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
from cpic_monai.volumes import open_volume

__all__ = ["PENALTIES", "CropShapeRidge", "ScanRidge", "VoxelRidge"]

logger = logging.getLogger(__name__)

PENALTIES = tuple(10.0 ** np.arange(-5, 4))


class ScanRidge(ABC):
    """Ridge regression of the target on numbers of a scan, on the tabular values, and on their products.

    A linear model in ``phi x (1, v)`` with ``phi = (1, tabular)`` and ``v`` the scan's numbers: how a scan shifts the
    outcome, and how it changes the effect of the tabular values (for a decline: its slope over weeks). It is fitted in
    its dual form, with the kernel ``phi . phi' (a + <v, v'>)``; the penalty is chosen by cross-validation over groups
    of visits (patients). The quantiles are the prediction plus the quantiles of the residuals of patients left out in
    turn. Which numbers, and how they compare with each other, says a subclass.

    Parameters
    ----------
    splits
        Split name to encoded items with paths under ``image``.
    quantiles
        Levels of the predictions' columns.
    tabular_weight
        ``a``; scans are scaled to a mean squared norm of 1, so 10 penalises tabular effects ten times less.
    penalties
        Of which one is chosen.
    learns_from
        Names of the splits whose outcomes it learns from.

    Raises
    ------
    ValueError
        On calling, if fewer than three patients of these have an outcome.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        quantiles: Sequence[float] = (0.2, 0.5, 0.8),
        tabular_weight: float = 10.0,
        penalties: Sequence[float] = PENALTIES,
        learns_from: Sequence[str] = ("train",),
    ) -> None:
        self.splits = {name: items for name, items in splits.items() if len(items)}
        self.learns_from = [name for name in learns_from if name in self.splits]
        self.quantiles = tuple(quantiles)
        self.tabular_weight, self.penalties = tabular_weight, list(penalties)

    def __call__(self) -> dict[str, pd.DataFrame]:
        """Split name to predictions, rows in the order of the items."""
        items = [item for name in self.learns_from for item in self.splits[name]]
        patients = [str(item.get("group", item["subject"])) for item in items for _ in range(len(item["tabular"]))]
        batch = _without_image(items)
        known = np.isfinite(batch["label"].numpy()[:, 0])
        groups = np.array(patients)[known]
        if len(set(groups)) < 3:
            raise ValueError(
                f"{self} needs at least 3 patients with an outcome to learn from, found {len(set(groups))} (of "
                f"{len(set(patients))}) in {' and '.join(self.learns_from) or 'no split'}"
            )
        numbers = {name: self.numbers(split) for name, split in self.splits.items()}
        learned = np.concatenate([numbers[name] for name in self.learns_from])
        mean = learned.mean(0)
        scale = self.scale(learned - mean)
        scans = (learned - mean) / scale
        kernel = self._kernel(scans, batch, scans, batch)[known][:, known]
        target = batch["label"].numpy()[known, 0].astype(np.float64)
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
            f"{self}: penalty {search.best_params_['alpha']:g}, "
            f"R2 of patients left out {1 - np.mean((target - left_out) ** 2) / np.var(target):.3f}"
        )
        frames = {}
        for name, split in self.splits.items():
            new = _without_image(split)
            products = self._kernel((numbers[name] - mean) / scale, new, scans, batch)
            pred = model.predict(products[:, known])[:, None] + spread
            frames[name] = _rows(new, ToUnits()({**new, "pred": torch.from_numpy(pred)}), name, self.quantiles)
        return frames

    @abstractmethod
    def numbers(self, items: Sequence[dict[str, Any]]) -> np.ndarray:
        """What is known of the scans of these items, float64 ``(S, F)``."""

    @abstractmethod
    def scale(self, centred: np.ndarray) -> np.ndarray:
        """What the numbers ``(S, F)`` of training scans, less their mean, are divided by: ``()`` or ``(F,)``.

        The mean squared norm of a scan's numbers should be 1 behind it, see ``tabular_weight``.
        """

    def _kernel(
        self, new: np.ndarray, new_batch: Mapping[str, Any], scans: np.ndarray, batch: Mapping[str, Any]
    ) -> np.ndarray:
        """Kernel ``(R_new, R)`` of the visits of new scans with those learned from."""
        (a, i), (b, j) = ((part["tabular"].double().numpy(), part["scan_index"].numpy()) for part in (new_batch, batch))
        gram = new @ scans.T
        return (1 + a @ b.T) * (self.tabular_weight + gram[i][:, j])


class VoxelRidge(ScanRidge):
    """Ridge regression on all voxels of scans averaged to a low resolution.

    Parameters
    ----------
    splits, quantiles, tabular_weight, penalties, learns_from
        See :class:`ScanRidge`.
    viewing
        From an item to a lazy scan under ``image``: the config's `viewing`.
    shape
        Voxels along each axis that scans are averaged to.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        viewing: Any,
        shape: Sequence[int] = (16, 32, 32),
        quantiles: Sequence[float] = (0.2, 0.5, 0.8),
        tabular_weight: float = 10.0,
        penalties: Sequence[float] = PENALTIES,
        learns_from: Sequence[str] = ("train",),
    ) -> None:
        super().__init__(splits, quantiles, tabular_weight, penalties, learns_from)
        d, h, w = shape
        self.viewing, self.shape = viewing, (int(d), int(h), int(w))

    def __str__(self) -> str:
        return f"ridge on {self.shape} voxels"

    def numbers(self, items: Sequence[dict[str, Any]]) -> np.ndarray:
        """Averaged voxels float64 ``(S, C * voxels)``."""
        rows = []
        for item in tqdm(Dataset(items, self.viewing), desc="read scans for ridge", unit="scan", leave=False):
            rows.append(adaptive_avg_pool3d(item["image"].whole(), self.shape).flatten())
        return torch.stack(rows).double().numpy()

    def scale(self, centred: np.ndarray) -> np.ndarray:
        """One number: voxels keep their relative contrast."""
        return np.asarray(np.square(centred).sum(1).mean() ** 0.5 or 1.0)


class CropShapeRidge(ScanRidge):
    """Ridge regression on the size of the image alone: what a crop gives away without a look into it.

    Where scans were cropped around what is to be measured, or by a reader who knew the outcome, the number of voxels
    tells something of it. A network that sees the crop's borders can learn that much without any anatomy.

    Parameters
    ----------
    splits, quantiles, tabular_weight, penalties, learns_from
        See :class:`ScanRidge`.
    options
        Of :func:`cpic_monai.volumes.open_volume`: the config's `volume_options`.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[dict[str, Any]]],
        quantiles: Sequence[float] = (0.2, 0.5, 0.8),
        tabular_weight: float = 10.0,
        penalties: Sequence[float] = PENALTIES,
        learns_from: Sequence[str] = ("train",),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(splits, quantiles, tabular_weight, penalties, learns_from)
        self.options = dict(options or {})

    def __str__(self) -> str:
        return "ridge on the crop's shape"

    def numbers(self, items: Sequence[dict[str, Any]]) -> np.ndarray:
        """Voxels along right-left, posterior-anterior and inferior-superior, and their product, float64 ``(S, 4)``."""
        rows = []
        for item in items:
            # Channels of a scan have one grid.
            image = item["image"][0] if isinstance(item["image"], list | tuple) else item["image"]
            volume = open_volume(image, **self.options)
            counts = np.zeros(3)
            counts[nibabel.io_orientation(volume.affine)[:, 0].astype(int)] = volume.shape
            rows.append([*counts, counts.prod()])
        return np.asarray(rows, dtype=np.float64)

    def scale(self, centred: np.ndarray) -> np.ndarray:
        """A number a column: counts along axes and their product count alike; a column without spread has no effect."""
        spread = centred.std(0)
        return np.where(spread > 0, spread, 1.0) * len(spread) ** 0.5
