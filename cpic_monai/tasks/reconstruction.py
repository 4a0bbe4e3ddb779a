"""Reconstruction of scans (paper Fig. 1): batches with patches to decode, and what a trained autoencoder reaches."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.engines import Evaluator
from monai.engines.utils import PrepareBatch
from torch import Tensor

from cpic_monai.batches import collate_visits
from cpic_monai.engines import run_over
from cpic_monai.networks.autoencoder import TensorTrainAutoencoder
from cpic_monai.report import write_metrics
from cpic_monai.tasks.reconstruction_picture import write_picture

__all__ = ["PrepareTargets", "ReconstructionEvaluation", "collate_targets"]

logger = logging.getLogger(__name__)


def collate_targets(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """:func:`cpic_monai.batches.collate_visits` with the patches to decode.

    Returns
    -------
    dict
        Besides: ``centres`` int64 ``(S, M, 3)``, ``target`` float32 ``(S, M, C, *patch_shape)``.
    """
    return {**collate_visits(items), **{key: torch.stack([i[key] for i in items]) for key in ("centres", "target")}}


class PrepareTargets(PrepareBatch):
    """A batch of :func:`collate_targets` as ``(image, target, args, kwargs)`` of the autoencoder's call."""

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Tensor, tuple, dict[str, Any]]:
        """Move patches to ``device``; lazy scans and voxel numbers stay on the host."""

        def move(value: Any) -> Any:
            return value.to(device, non_blocking=non_blocking, **kwargs) if isinstance(value, Tensor) else value

        names = {"centres": batchdata["centres"], "subjects": batchdata["subject"]}
        return move(batchdata["image"]), move(batchdata["target"]), (), names


class ReconstructionEvaluation:
    """Errors of held-out scans' patches at several ranks, and a picture of one scan.

    Writes ``metrics.json`` and ``reconstruction.png``. A split has ``n`` (scans), ``psnr_constant`` (that of the best
    constant, the mean of the split's own patches), and ``psnr_rank_R``, ``mse_rank_R`` for each rank, from trains
    truncated to ``R``. Every number is a mean over scans.

    Parameters
    ----------
    evaluator
        With ``decollate=False`` and the metrics ``psnr`` and ``mse`` of the network's patches.
    network
        The autoencoder that it evaluates.
    loaders
        Split name to loader of :func:`collate_targets` batches, with places that are the same in every pass.
    scans
        Items with a lazy scan under ``image``; the first is drawn.
    output_dir
        Made where missing.
    ranks
        Ranks to truncate to.
    window
        Intensities drawn black and white; their difference is the range that PSNR refers to.

    Raises
    ------
    ValueError
        If a rank is larger than the network's, or no split has a scan.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        network: TensorTrainAutoencoder,
        loaders: Mapping[str, Any],
        scans: Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        ranks: Sequence[int],
        window: Sequence[float] = (0.0, 1.0),
    ) -> None:
        wrong = [r for r in ranks if not 1 <= r <= network.rank]
        if wrong or not ranks:
            raise ValueError(
                f"config key `ranks` is {list(ranks)}: give ranks from 1 to `rank`, which is {network.rank}"
            )
        self.evaluator, self.network, self.loaders, self.scans = evaluator, network, dict(loaders), scans
        self.output_dir, self.ranks, self.window = Path(output_dir), sorted(ranks), (window[0], window[1])

    def run(self) -> dict[str, dict[str, float]]:
        """Evaluate, draw, and return the content of ``metrics.json``."""
        metrics = {split: self._evaluate(loader) for split, loader in self.loaders.items() if len(loader)}
        if not metrics:
            raise ValueError("no held-out scan to reconstruct; check the cohort, `folds` and `validation_fraction`")
        write_metrics(metrics, self.output_dir / "metrics.json")
        for split, entry in metrics.items():
            logger.info(f"{split}: " + ", ".join(f"{name} {value:.4g}" for name, value in entry.items()))
        write_picture(self.network, self.scans[0], self.ranks, self.output_dir / "reconstruction.png", self.window)
        return metrics

    def _evaluate(self, loader: Any) -> dict[str, float]:
        engine, targets = self.evaluator, list[Tensor]()
        out: dict[str, float] = {}

        def collect() -> None:
            targets.append(engine.state.output["label"].cpu())

        for rank in self.ranks:
            self.network.kept_rank = rank
            targets.clear()
            run_over(engine, loader, collect)
            out |= {f"{name}_rank_{rank}": float(engine.state.metrics[name]) for name in ("psnr", "mse")}
        self.network.kept_rank = None
        known = torch.cat(targets).flatten(1)
        # The batches' mean PSNR is that of scans, as MONAI's PSNRMetric reduces it.
        errors = (known - known.mean()).square().mean(1)
        spread = self.window[1] - self.window[0]
        return {"n": len(known), "psnr_constant": 20 * math.log10(spread) - 10 * float(errors.log10().mean())} | out
