"""Where the time of C-PIC goes: the parts of a prediction and of a training step, and the floor that FLOPs set.

The floor of the encoder is its number of floating-point operations over the rate at which this machine multiplies two
large float32 matrices, measured in the same run. A training step is the closed-form recipe's: encode the batch's cross
indices, interpolate, Gram matrix, leave-one-out ridge, backward, RAdam. Patches are gathered from dense images in
memory; ``scripts/bench_scaling.py`` measures reading from files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_table import markdown
from torch import Tensor, nn

from cpic_monai.atomic import write_text_atomically
from cpic_monai.networks import CPICNet, LeaveOneOutRidge, PatchEncoder
from cpic_monai.networks.basis import mean_inner


def encoder_flops(encoder: PatchEncoder) -> int:
    """Floating-point operations (multiplications and additions) of the convolutions for one patch."""
    total, edge = 0, encoder.patch_size
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv3d):
            edge -= layer.kernel_size[0] - 1
            total += 2 * edge**3 * layer.weight.numel()
    return total


def gemm_rate(size: int = 2048, repeats: int = 5, device: str = "cpu") -> float:
    """FLOP/s of a float32 product of two ``size`` x ``size`` matrices: the best of ``repeats``."""
    a, b = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(repeats))


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of ``work``, on a GPU including what it left in the queue."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Step:
    """A prediction or training step cut into its parts; each keeps its seconds in ``parts``."""

    def __init__(self, shape: tuple[int, ...], batch: int, train: bool, device: str) -> None:
        self.network = CPICNet(shape, rank=10, channels=16).to(device)
        self.ridge = LeaveOneOutRidge().to(device)
        self.image = torch.rand(batch, 1, *shape, device=device)
        self.target = torch.randn(batch, 1, device=device)
        self.train, self.device, self.batch = train, device, batch
        parameters = [*self.network.encoder.parameters(), *self.ridge.parameters()]
        self.optimizer = torch.optim.RAdam(parameters, lr=1e-3)
        with torch.no_grad():
            self.network.basis.fit(self.network.decompose(self.image))
        self.network.train(train)

    def run(self) -> dict[str, float]:
        """Seconds of each part, and of the same work undivided (``step``)."""
        parts: dict[str, float] = {}

        def timed(name: str, work: Callable[[], Any]) -> Any:
            held: list[Any] = []
            parts[name] = seconds(lambda: held.append(work()), self.device)
            return held[0]

        with torch.set_grad_enabled(self.train):
            source = self.network.source(self.image)
            patches = timed("gather patches", lambda: source.patches(self.network.voxels()))
            values = timed("encoder forward", lambda: self.network.encode(patches))
            leaf = values.detach().requires_grad_(self.train)
            loss = timed("interpolation, projection, head", lambda: self.learn(leaf))
            if self.train:
                timed("their backward", lambda: loss.backward() or loss)
                timed("encoder backward", lambda: values.backward(leaf.grad) or loss)
                timed("optimizer", lambda: self.optimizer.step() or loss)
                self.optimizer.zero_grad()
        parts["step"] = seconds(self.whole, self.device)
        return parts

    def learn(self, values: Tensor) -> Tensor:
        """What follows the encoder."""
        trains = self.network.indices.decompose(values.to(self.network.algebra))  # type: ignore[operator]  # cohort sets
        if not self.train:
            return self.network.predict(self.network.basis(trains))
        scans = torch.arange(self.batch, device=self.device)
        rows = self.target.new_zeros(self.batch, 1)
        predicted = self.ridge.forward(mean_inner(trains, trains), rows, scans, self.target)
        return (predicted - self.target).square().mean()

    def whole(self) -> None:
        """The step in one piece."""
        with torch.set_grad_enabled(self.train):
            source = self.network.source(self.image)
            loss = self.learn(self.network.encode(source.patches(self.network.voxels())))
            if self.train:
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()


def measure(shape: tuple[int, ...], batch: int, train: bool, repeats: int, device: str) -> dict[str, object]:
    """One row: medians of the parts, the encoder against its floor, the share of everything else."""
    torch.manual_seed(0)
    step = Step(shape, batch, train, device)
    step.run()
    rate, runs = gemm_rate(device=device), [step.run() for _ in range(repeats)]
    rate = max(rate, gemm_rate(device=device))
    parts = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    evaluations = len(step.network.voxels())
    flops = evaluations * batch * encoder_flops(step.network.encoder)  # type: ignore[arg-type]
    encoder = parts["encoder forward"] + parts.get("encoder backward", 0.0)
    # Backward costs two products where forward costs one (the first layer's input gradient is left in the floor).
    floor = flops * (3 if train else 1) / rate
    total = sum(v for name, v in parts.items() if name != "step")
    return {
        "phase": "train" if train else "predict",
        "shape": "x".join(map(str, shape)),
        "batch": batch,
        "evaluations": evaluations,
        "gemm_gflops": rate / 1e9,
        "encoder_floor_s": floor,
        "encoder_s": encoder,
        "encoder_over_floor": encoder / floor,
        "rest_share": 1 - encoder / total,
        "step_s": parts["step"],
        "parts": parts,
    }


def table(rows: list[dict]) -> str:
    """Markdown: one line a row, then one line a part."""
    parts: dict[str, dict[str, object]] = {}
    for row in rows:
        for name, taken in row["parts"].items():
            part = parts.setdefault(name, {"part, seconds": name})
            part[f"{row['phase']} {row['shape']} x{row['batch']}"] = taken
    columns = list(dict.fromkeys(name for part in parts.values() for name in part))
    steps = markdown(rows, [name for name in rows[0] if name != "parts"])
    return f"{steps}\n\n{markdown(list(parts.values()), columns)}"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="32x512x512", help="voxels, e.g. 32x128x128,32x512x512")
    parser.add_argument("--batches", default="1,20", help="scans a step")
    parser.add_argument("--phases", default="predict,train")
    parser.add_argument("--repeats", type=int, default=7, help="timed repetitions after a warm-up")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="write the rows here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for shape in given.shapes.split(","):
        size = tuple(int(n) for n in shape.split("x"))
        for batch in map(int, given.batches.split(",")):
            for phase in given.phases.split(","):
                if phase == "train" and batch < 4:
                    continue  # the leave-one-out ridge needs scans to leave out
                rows.append(measure(size, batch, phase == "train", given.repeats, given.device))
    print(table(rows))
    if given.json:
        machine = {"threads": given.threads, "device": given.device, "torch": torch.__version__}
        write_text_atomically(given.json, json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
