"""A slice and what is left of it at several ranks: of the learned encoding, and of the image itself (Fig. 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from cpic_monai.atomic import replacing
from cpic_monai.networks.autoencoder import TensorTrainAutoencoder
from cpic_monai.tensor_train import tt_svd
from cpic_monai.transforms.virtual_scan import VirtualScan

__all__ = ["truncated_image", "write_picture"]

#: Largest view whose own TT-SVD, which needs all its voxels, is drawn for comparison.
MOST_VOXELS = 1 << 22


def truncated_image(scan: VirtualScan, network: TensorTrainAutoencoder, rank: int) -> Tensor:
    """The intensities themselves as a tensor train of this rank, by TT-SVD: float32 ``(C, D, H, W)``.

    The same unfolding and bond rank as the encoding's, and the best such train but for a factor: what the paper sets
    against the learned encoding. It is dense, for small scans.
    """
    grid = network.grid
    voxels = scan.whole().movedim(0, -1)[None].double()
    return grid.fold(tt_svd(grid.unfold(voxels), rank).full())[0].movedim(-1, 0).float()


@torch.no_grad()
def write_picture(
    network: TensorTrainAutoencoder,
    item: Mapping[str, Any],
    ranks: Sequence[int],
    path: str | Path,
    window: tuple[float, float] = (0.0, 1.0),
) -> Path:
    """Draw the middle slice of a scan's first axis and its reconstructions as a PNG.

    The upper row is decoded from trains truncated to each of ``ranks``, the lower one is :func:`truncated_image`, left
    out for views of more than four million voxels. Each slice is headed by its PSNR.

    Parameters
    ----------
    item
        Has ``image``, a lazy scan of the network's shape, and ``subject``.
    ranks
        Of the columns.
    path
        Written under a temporary name, then renamed.
    window
        Intensities drawn black and white.
    """
    scan: VirtualScan = item["image"]
    middle, (_, height, width) = scan.shape[0] // 2, scan.shape
    start, stop = (middle, 0, 0), (middle + 1, height, width)
    truth = scan.box(start, stop)[0, 0]
    network.eval()
    decoded = []
    for network.kept_rank in ranks:
        trains = network.compress([scan], [str(item["subject"])])
        decoded.append(network.reconstruct(trains, start, stop)[0, 0, 0])
    network.kept_rank = None
    rows = {"decoded": decoded}
    if math.prod(scan.shape) <= MOST_VOXELS:
        rows["image itself"] = [truncated_image(scan, network, rank)[0, middle] for rank in ranks]
    across = 2.4
    figure = Figure(figsize=(across * (len(ranks) + 1), len(rows) * (across * height / width + 0.35)), dpi=120)
    FigureCanvasAgg(figure)
    axes = np.atleast_2d(figure.subplots(len(rows), len(ranks) + 1, squeeze=False))
    for line, (name, slices) in zip(axes, rows.items(), strict=True):
        _show(line[0], truth, f"{item['subject']}, slice {middle}" if line is axes[0] else "", window)
        for place, rank, image in zip(line[1:], ranks, slices, strict=True):
            _show(place, image, f"{name}, rank {rank}: {_psnr(image, truth, window):.1f} dB", window)
    if len(axes) > 1:
        axes[1][0].set_visible(False)
    figure.tight_layout(pad=0.4)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return Path(path)


def _show(axes: Axes, image: Tensor, title: str, window: tuple[float, float]) -> None:
    axes.imshow(image.numpy(), cmap="gray", vmin=window[0], vmax=window[1])
    axes.set_title(title, fontsize=8, parse_math=False)  # a subject's name may hold dollar signs
    axes.set_axis_off()


def _psnr(image: Tensor, truth: Tensor, window: tuple[float, float]) -> float:
    error = (image - truth).square().mean().clamp_min(1e-12).log10().item()
    return 20 * math.log10(window[1] - window[0]) - 10 * error
