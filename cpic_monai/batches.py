"""Batches of scans with any number of visits each: one scan is read once a step, however many rows it gives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines.utils import PrepareBatch
from torch import Tensor

from cpic_monai.distributed import gather_visits

ROW_KEYS = ("tabular", "label", "offset", "scale", "visit")


def collate_visits(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate cohort items into one batch.

    Returns
    -------
    dict
        ``image``: patches stacked ``(S, N, C, p, p, p)``, or the list of lazy scans. ``tabular, label, offset, scale,
        visit``: rows of all scans one after the other, float32 ``(R, ...)``. ``scan_index``: int64 ``(R,)``. ``group``:
        int64 ``(R,)``, the same number for all visits of a patient (:func:`patient_number`).
        ``subject``, ``patient``: names of the scans, and of their patients. ``strata``: subgroup name to one value a
        scan.
    """
    images = [item["image"] for item in items]
    patients = [str(item.get("group", item["subject"])) for item in items]
    visits = torch.tensor([len(item["tabular"]) for item in items])
    batch: dict[str, Any] = {
        "image": torch.stack([torch.as_tensor(i) for i in images]) if isinstance(images[0], Tensor) else images,
        "subject": [str(item["subject"]) for item in items],
        "patient": patients,
        "scan_index": torch.repeat_interleave(torch.arange(len(items)), visits),
        "group": torch.repeat_interleave(torch.tensor([patient_number(name) for name in patients]), visits),
    }
    for key in ROW_KEYS:
        if all(key in item for item in items):
            batch[key] = torch.cat([torch.as_tensor(item[key], dtype=torch.float32) for item in items])
    if all("strata" in item for item in items):
        names = sorted(set().union(*(item["strata"] for item in items)))
        batch["strata"] = {name: [item["strata"].get(name, "") for item in items] for name in names}
    return batch


def patient_number(name: str) -> int:
    """A number of 64 bits that stands for a patient's name, the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


class PrepareVisits(PrepareBatch):
    """A collated batch as ``(image, label, args, kwargs)`` of the network's call.

    Parameters
    ----------
    with_label
        True gives the inferer targets and patients, too (the leave-one-out recipe predicts each from the others).
    gather
        True gives visits of all processes' scans, for an inferer that gathers their tensor trains; images and subjects
        stay those of this process.
    """

    def __init__(self, with_label: bool = False, gather: bool = False) -> None:
        self.with_label, self.gather = with_label, gather

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Tensor | None, tuple, dict[str, Any]]:
        """Move tensors to ``device``; lazy scans stay where they are and are read by the network."""

        def move(value: Any) -> Any:
            return value.to(device, non_blocking=non_blocking, **kwargs) if isinstance(value, Tensor) else value

        keys = ("tabular", "scan_index", "label", *(("group",) if self.with_label else ()))
        rows: dict[str, Any] = {key: move(batchdata[key]) for key in keys if key in batchdata}
        if self.gather:
            rows = gather_visits(rows, len(batchdata["subject"]))
        label = rows.get("label") if self.with_label else rows.pop("label", None)
        return move(batchdata["image"]), label, (), {**rows, "subjects": batchdata["subject"]}


class ToUnits:
    """Postprocessing: predictions and targets from the network's scale back to the target's unit.

    Works on the whole batch dictionary of an evaluator with ``decollate=False``: ``pred`` ``(R, Q)`` and ``label``
    ``(R, 1)`` become ``value * scale + offset``, e.g. mL of FVC.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """See the class."""
        out = dict(data)
        for key in ("pred", "label"):
            if out.get(key) is not None:
                value = out[key].float()
                out[key] = value * out["scale"].to(value.device) + out["offset"].to(value.device)
        return out
