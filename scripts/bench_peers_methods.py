"""The methods that ``bench_peers`` compares: what a prediction and a training step of each one is.

Every method imports what it needs when it is loaded, so that a process holds no other method's libraries.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench_peers_job import BRIGHTEST, Job
from bench_peers_work import LEARNING_RATE, Scans, Work, basis_of, predicting, stepping
from torch import Tensor


def load(job: Job) -> Callable[[Scans], Work]:
    """Import what the job's method needs; returns what builds it around the scans."""
    if job.method.startswith("resnet34"):
        return _resnet34(job)
    if job.method.startswith("scalar_ca"):
        from bench_peers_scalar import scalar_ca

        return scalar_ca(job)
    return _cpic(job)


def reader(job: Job) -> Callable[[], Scans]:
    """Import what reading the job's scans needs; returns what opens or makes them."""
    if not job.from_files:
        return lambda: torch.rand(job.batch, 1, *job.size)
    from cpic_monai.transforms import HUWindow, VirtualScan
    from cpic_monai.volumes import open_volume

    window = HUWindow(0.0, float(BRIGHTEST))
    return lambda: [VirtualScan(open_volume(path), intensity=window) for path in job.files]


def _resnet34(job: Job) -> Callable[[Scans], Work]:
    from monai.networks.nets import resnet34

    def build(scans: Scans) -> Work:
        stride = (1, 2, 2) if job.method == "resnet34_strided" else 1
        network = resnet34(spatial_dims=3, n_input_channels=1, num_classes=3, conv1_t_stride=stride)
        if job.phase == "predict":
            return Work(predicting(network, scans), lambda: 0)
        from cpic_monai.losses import PinballLoss

        loss, label = PinballLoss(), torch.randn(job.batch, 1)
        optimizer = torch.optim.RAdam(network.parameters(), lr=LEARNING_RATE)
        return Work(stepping(lambda: loss(network(scans), label), optimizer), lambda: 0)

    return build


def _cpic(job: Job) -> Callable[[Scans], Work]:
    """C-PIC at the paper's OSIC settings; a training step is the trainer's, one visit a scan."""
    from cpic_monai.networks import CPICNet

    recipe_name = "closed_form" if job.method == "cpic" else "paper"
    if job.phase == "train":
        from cpic_monai.engines import Recipe
        from cpic_monai.losses import PinballLoss

        if recipe_name == "closed_form" and job.batch < 4:
            raise ValueError(
                f"cpic trains on leave-one-out residuals, for which a batch of {job.batch} is too small: give --batch "
                "4 or more, or take --methods cpic_paper"
            )

    def build(scans: Scans) -> Work:
        sets = "scan" if job.method == "cpic_paper" else "cohort"
        network = CPICNet(job.size, rank=10, channels=16, index_sets=sets, encoder=job.method != "tt_mlp")

        def evaluations() -> int:
            return len(network.looked_at(scans[:1])[0])

        if job.phase == "predict" or recipe_name == "paper":
            with torch.no_grad():
                network.basis.fit(basis_of(network.decompose(scans)))
        if job.phase == "predict":
            return Work(predicting(network, scans), evaluations)
        recipe = Recipe(recipe_name, network.train(), PinballLoss())
        optimizer = torch.optim.RAdam(recipe.parameters, lr=LEARNING_RATE)
        batch = {
            "image": scans,
            "tabular": torch.randn(job.batch, 1),
            "label": torch.randn(job.batch, 1),
            "scan_index": torch.arange(job.batch),
            "subject": [f"scan {n}" for n in range(job.batch)],
        }

        def loss() -> Tensor:
            image, label, args, kwargs = recipe.prepare_batch(batch)
            return recipe.loss(recipe.inferer(image, network, *args, **kwargs), label)

        return Work(stepping(loss, optimizer), evaluations)

    return build
