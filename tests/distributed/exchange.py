"""What one process and two must compute alike. Run as a script it is one process of a group."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from planted import planted_items
from scans import small_network
from torch import Tensor

from cpic_monai import distributed
from cpic_monai.batches import collate_visits
from cpic_monai.cross.bank import ScanIndexSets
from cpic_monai.engines import Recipe
from cpic_monai.handlers import AverageGradients, BestCheckpoint, FitBasisAndHead, LastCheckpoint
from cpic_monai.handlers.select import select_index_sets
from cpic_monai.handlers.share import share_index_sets
from cpic_monai.losses import PinballLoss
from cpic_monai.metrics.named import named_metrics
from cpic_monai.networks import CPICNet, LeaveOneOutRidge

Result = dict[str, Any]


def cohort() -> list[dict[str, Any]]:
    """Eleven scans of two or three visits: neither scans nor visits are dealt evenly to two processes."""
    return planted_items(6, seed=1, visits=2) + planted_items(5, seed=2, visits=3)


def batch(network: CPICNet, items: list[dict[str, Any]]) -> dict[str, Any]:
    """This process's part of a batch."""
    mine = [items[i] for i in distributed.deal(items, least=1)]
    patches = network.source([item["image"] for item in mine]).patches(network.voxels())
    return collate_visits([{**item, "image": scan} for item, scan in zip(mine, patches, strict=True)])


def weights(*modules: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for module in modules for p in module.parameters()])


def learning(recipe: str) -> Result:
    """Weights and losses of three steps of MONAI's trainer; processes start from different weights."""
    torch.manual_seed(distributed.rank())
    network = small_network(tabular_hidden=(8, 4), joint_hidden=(16, 8), batch_norm=recipe == "paper")
    method = Recipe(recipe, network, PinballLoss())
    optimizer = torch.optim.RAdam(method.parameters, lr=0.03)
    losses: list[float] = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=[batch(network, cohort())],
        epoch_length=1,
        network=network,
        optimizer=optimizer,
        loss_function=method.loss,
        inferer=method.inferer,
        prepare_batch=method.prepare_batch,
        decollate=False,
        train_handlers=[AverageGradients(optimizer, [network, method.ridge])],
    )
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: torch.manual_seed(7))  # the head's noise
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output["loss"].item()))
    trainer.run()
    return {"weights": weights(network, method.ridge), "losses": torch.tensor(losses), "basis": network.basis.vectors}


def fitting() -> Result:
    """Voxels chosen by all processes' scans, then basis and head of all."""
    torch.manual_seed(0)
    network = small_network(tabular_hidden=(8, 4), joint_hidden=(16, 8))
    select_index_sets(network, cohort(), scans=5, draws=2, seed=3)
    codes = network.indices.codes()
    schedule = {"steps": 10, "ridge_steps": 3}
    items, half = cohort(), 6
    loader = [batch(network, items[:half]), batch(network, items[half:])]
    FitBasisAndHead(network, loader, PinballLoss(), schedule, LeaveOneOutRidge())()
    return {"codes": codes, "head": weights(network.head), "basis": network.basis.vectors, "scans": network.basis.scans}


def scoring() -> Result:
    """Metrics of eleven rows, six of them in the first of two processes."""
    generator = torch.Generator().manual_seed(5)
    pred, truth = torch.rand((11, 3), generator=generator).sort(1).values * 900, torch.full((11, 1), 400.0)
    truth += 100 * torch.rand((11, 1), generator=generator)
    mine = list(distributed.deal(pred))
    scores = {}
    for name, metric in named_metrics((0.2, 0.5, 0.8)).items():
        metric(pred[mine], truth[mine])
        scores[name] = float(metric.aggregate())
    return scores


def following() -> Result:
    """Index sets of subjects that another process sees in the next epoch."""
    network = small_network(index_sets="scan").train()
    assert isinstance(network.indices, ScanIndexSets)
    items, world = cohort(), distributed.world_size()
    for epoch in range(world):
        mine = items[(distributed.rank() + epoch) % world :: world]
        network.decompose([item["image"] for item in mine], [item["subject"] for item in mine])
        if epoch == 0:
            own = seeds_of(network.indices, mine)
            share_index_sets(network)
            first = seeds_of(network.indices, items)
    return {"own": own, "first": first, "then": seeds_of(network.indices, items)}


def seeds_of(sets: ScanIndexSets, items: list[dict[str, Any]]) -> dict[str, Any]:
    """A copy of the seeds of each subject."""
    found = {item["subject"]: sets.kept([item["subject"]]) for item in items}
    return {subject: codes.clone() for subject, codes in found.items() if codes is not None}


def checkpoints(folder: Path) -> Result:
    """Who writes, and what a process sees once the handler is through."""
    network = small_network(index_sets="scan")
    network.indices.seeds = {f"of rank {distributed.rank()}": torch.tensor([1, 2, 3])}
    engine = Engine(lambda e, b: None)
    vars(engine.state).update(epoch=1, iteration=4, best_metric_epoch=1, best_metric=0.5)
    BestCheckpoint(folder / "model.pt", {"model": network})(engine)
    LastCheckpoint(folder / "last.pt", {"model": network})(engine)
    best, last = (torch.load(folder / name, weights_only=True) for name in ("model.pt", "last.pt"))
    return {
        "subjects": sorted(best["model"]["indices._extra_state"]["digests"]),
        "epoch": last["epoch"],
        "files": sorted(p.name for p in folder.glob("*.pt")),
    }


def resuming(folder: Path) -> str:
    """The error where a machine lacks the checkpoint that others have."""
    path = folder / f"only{distributed.rank()}" / "last.pt"
    if distributed.rank() == 0:
        path.parent.mkdir()
        torch.save({"epoch": 1, "iteration": 1}, path)
    try:
        LastCheckpoint(path, {}, resume=True).attach(Engine(lambda e, b: None))
    except FileNotFoundError as error:
        return str(error)
    return ""


def made_first(folder: Path) -> str:
    """Who wrote a file that every process wants."""
    path = folder / "made.txt"

    def make(word: str) -> str:
        if not path.exists():
            path.write_text(f"{word} {distributed.rank()}")
        return path.read_text()

    return distributed.first(make, "by rank")


def unlike_rows() -> str:
    """The error where processes hold rows of different sizes."""
    try:
        distributed.gather_rows(torch.zeros(2, 3 + distributed.rank()), "rows of a test")
    except ValueError as error:
        return str(error)
    return ""


def results() -> Result:
    return {
        "closed_form": learning("closed_form"), "paper": learning("paper"), "fitting": fitting(),
        "scoring": scoring(), "following": following(),
    }  # fmt: skip


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.start(timeout_minutes=2)
    found = results()
    found |= {"checkpoints": checkpoints(folder), "resuming": resuming(folder), "unlike": unlike_rows()}
    found["made"] = made_first(folder)
    if distributed.rank() == 1:
        torch.save(found, folder / "rank1.out")
        os._exit(9)  # as if killed: nothing is said, nothing is tidied up
    try:
        distributed.gather_objects("is anyone there?")
    except distributed.LostProcessError as error:
        found["lost"] = str(error)
    torch.save(found, folder / "rank0.out")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
