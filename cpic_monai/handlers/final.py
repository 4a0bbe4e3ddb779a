"""The last fit: basis and head of the best checkpoint on training and validation scans together."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpic_monai.handlers.checkpoint import save_together
from cpic_monai.handlers.fit import FitBasisAndHead

logger = logging.getLogger(__name__)


class Chain:
    """Batches of several loaders, one after the other, from the start again each time."""

    def __init__(self, loaders: Sequence[Iterable[Any]]) -> None:
        self.loaders = list(loaders)

    def __iter__(self) -> Iterator[Any]:
        """All batches."""
        for loader in self.loaders:
            yield from loader


class FinalFit:
    """Fit basis and head to all scans that are not held out, once validation has chosen the epoch.

    The encoder and the voxels stay those of the best checkpoint. A tenth more scans cost seconds here, for the fit is
    in closed form but for a small head; a network that is trained as a whole would have to be trained anew. The
    validation scans are learned from thereby: their metrics afterwards are no estimate.

    Parameters
    ----------
    fit
        Fits to training scans at the end of every epoch; here to those of ``loaders`` in their place.
    loaders
        Of training and validation scans, without augmentation.
    path, objects
        The checkpoint to write again, as :class:`cpic_monai.handlers.BestCheckpoint` does.
    calibrates_on_validation
        Whether the result will be calibrated on the validation scans.

    Raises
    ------
    ValueError
        Where the head is not fitted on frozen features (recipe ``paper``), or the validation scans are wanted for
        calibration.
    """

    def __init__(
        self,
        fit: FitBasisAndHead,
        loaders: Sequence[Iterable[Any]],
        path: str | Path,
        objects: Mapping[str, Any],
        calibrates_on_validation: bool = False,
    ) -> None:
        if fit.schedule is None:
            raise ValueError(
                "`fit_on_validation` fits basis and head on frozen features, and this recipe trains the head with the "
                "encoder: set `fit_on_validation` to false, or `recipe` to closed_form"
            )
        if calibrates_on_validation:
            raise ValueError(
                "scans that were learned from say nothing about errors on new ones: with `fit_on_validation` set "
                "`calibration_source` to train_leave_one_out"
            )
        self.fit = copy.copy(fit)
        self.fit.loader = Chain(loaders)
        self.path, self.objects = Path(path), dict(objects)

    def __call__(self) -> None:
        """Fit now, in all processes together, and write the checkpoint."""
        self.fit()
        save_together(self.objects, self.path)
        logger.info(f"basis and head fitted to training and validation scans; saved {self.path.name}")
