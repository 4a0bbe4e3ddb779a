"""Cross-approximation of the encoding as one scalar tensor by tntorch, driven as the paper's code drives it.

The encoding is a tensor of binary modes: the bits of the axes, one axis after the other and finest bit first, then
those of the channel. ``tntorch.cross`` finds index sets of rank 10 in 15 sweeps with detached evaluations;
``tntorch.cross_forward`` then interpolates once more at these sets, differentiably. Both in prediction and in training,
one scan after the other. A value asked for is one channel of one voxel, for which the encoder makes all channels.

In ``scalar_ca`` our own vectorised patches and encoder serve the values; in ``scalar_ca_paper`` cubes are cut and
encoded as in the paper's code. Features and head are C-PIC's own: inner products with a basis of such trains.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch
from bench_peers_job import Job
from bench_peers_work import LEARNING_RATE, Scans, Work, basis_of, stepping
from torch import Tensor

RANK, CHANNELS, SWEEPS = 10, 16, 15
#: Points that the paper's code encodes at a time.
MOST_POINTS = 10_000


def scalar_ca(job: Job) -> Callable[[Scans], Work]:
    """Import tntorch; returns what builds the method around a dense batch."""
    import tntorch

    from cpic_monai.networks import CPICNet
    from cpic_monai.networks.patch_source import DenseSource
    from cpic_monai.tensor_train import TensorTrain, concatenate

    if job.phase == "train":
        from cpic_monai.losses import PinballLoss

    def build(scans: Scans) -> Work:
        network = CPICNet(job.size, rank=RANK, channels=CHANNELS)
        domain, place = binary_modes(network.grid.padded_shape, network.grid.strides)
        calls = [0, 0]  # values asked for, trains made

        def decompose(image: Tensor) -> TensorTrain:
            """The train of one scan ``(1, 1, D, H, W)``, cores float64 ``(1, r, 2, r')``."""
            source = DenseSource(image, network.patch_size)

            def value(digits: Tensor) -> Tensor:
                codes, channel = place(digits.long())
                calls[0] += len(codes)
                voxels = network.grid.decode(codes)
                if job.method == "scalar_ca_paper":
                    encoded = torch.cat([encode_as_published(network, image, v) for v in voxels.split(MOST_POINTS)])
                else:
                    encoded = network.encode(source.patches(voxels))[0]
                return encoded.gather(1, channel[:, None])[:, 0]

            with contextlib.redirect_stdout(io.StringIO()):  # tntorch advertises maxvolpy on every call
                _, info = tntorch.cross(
                    function=value,
                    domain=domain,
                    function_arg="matrix",
                    ranks_tt=RANK,
                    max_iter=SWEEPS,
                    return_info=True,
                    verbose=False,
                    suppress_warnings=True,
                    detach_evaluations=True,
                )
            calls[1] += 1
            train = tntorch.cross_forward(info, function=value, domain=domain, function_arg="matrix")
            return TensorTrain(tuple(core[None].double() for core in train.cores))

        def decompose_all() -> list[TensorTrain]:
            return [concatenate([decompose(image) for image in scans.split(1)])]

        def evaluations() -> int:
            return round(calls[0] / calls[1])

        with torch.no_grad():
            network.basis.fit(basis_of(decompose_all()))
        if job.phase == "predict":
            network.eval()

            def run() -> Tensor:
                with torch.no_grad():
                    return network.predict(network.basis(decompose_all()))

            return Work(run, evaluations)

        loss, label = PinballLoss(), torch.randn(job.batch, 1)
        optimizer = torch.optim.RAdam(network.train().parameters(), lr=LEARNING_RATE)

        def forward() -> Tensor:
            trains = decompose_all()
            network.basis.update(trains)
            return loss(network.predict(network.basis(trains)), label)

        return Work(stepping(forward, optimizer), evaluations)

    return build


def binary_modes(
    padded: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[list[Tensor], Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """The domain of a scan's binary modes, and the map of digits ``(M, K)`` to codes and channels, int64 ``(M,)``."""
    bits = [step << level for n, step in zip(padded, strides, strict=True) for level in range(n.bit_length() - 1)]
    channel_bits = [1 << level for level in range(CHANNELS.bit_length() - 1)]
    weights, channel_weights = torch.tensor(bits), torch.tensor(channel_bits)

    def place(digits: Tensor) -> tuple[Tensor, Tensor]:
        return (digits[:, : len(bits)] * weights).sum(1), (digits[:, len(bits) :] * channel_weights).sum(1)

    return [torch.arange(2) for _ in (*bits, *channel_bits)], place


def encode_as_published(network: Any, image: Tensor, voxels: Tensor) -> Tensor:
    """All channels ``(M, 16)`` as the paper's code makes them: cubes cut one by one, layers in torch's own layout."""
    reach = network.patch_size // 2
    cubes = []
    for voxel in voxels.tolist():
        pad: list[int] = []
        part = image[0, 0]
        for axis, (v, n) in enumerate(zip(voxel, image.shape[2:], strict=True)):
            low, high = max(v - reach, 0), min(v + reach + 1, n)
            part = part.narrow(axis, low, high - low)
            pad = [low - (v - reach), v + reach + 1 - high, *pad]
        cubes.append(torch.nn.functional.pad(part, pad))
    return network.encoder.layers(torch.stack(cubes)[:, None]).flatten(1)
