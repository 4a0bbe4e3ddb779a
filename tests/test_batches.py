"""Batches of scans with any number of visits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scans import images, lazy, small_network

from cpic_monai.batches import PrepareVisits, ToUnits, collate_visits, patient_number


def item(name: str, visits: int, start: float = 0.0, **more: Any) -> dict[str, Any]:
    rows = torch.arange(start, start + visits)[:, None]
    return {
        "subject": name, "group": name, "image": torch.full((2, 1, 3, 3, 3), start), "tabular": rows.repeat(1, 2),
        "label": rows / 10, "offset": torch.full((visits, 1), 100.0), "scale": torch.full((visits, 1), 2.0),
        "visit": rows, **more,
    }  # fmt: skip


def test_visits_of_all_scans_one_after_the_other() -> None:
    batch = collate_visits([item("a", 2), item("b", 1, 5.0), item("c", 3, 7.0)])
    assert batch["image"].shape == (3, 2, 1, 3, 3, 3)
    assert batch["subject"] == ["a", "b", "c"]
    assert batch["scan_index"].tolist() == [0, 0, 1, 2, 2, 2]
    assert batch["visit"].flatten().tolist() == [0, 1, 5, 7, 8, 9]
    assert batch["tabular"].shape == (6, 2)
    assert {batch[k].dtype for k in ("tabular", "label", "offset", "scale", "visit")} == {torch.float32}
    assert "strata" not in batch


def test_numpy_rows_missing_labels_and_strata() -> None:
    items = [item("a", 1, strata={"sex": "F"}), item("b", 2, strata={"sex": "M", "smoker": "no"})]
    items[0]["tabular"] = np.zeros((1, 2))
    del items[1]["label"]
    batch = collate_visits(items)
    assert "label" not in batch
    assert batch["tabular"].dtype == torch.float32
    assert batch["strata"] == {"sex": ["F", "M"], "smoker": ["", "no"]}


def test_visits_of_a_patient_have_one_number() -> None:
    items = [item("a", 1, group="p"), item("b", 2, group="q"), item("c", 1, group="p"), item("d", 1)]
    del items[3]["group"]
    batch = collate_visits(items)
    assert batch["patient"] == ["p", "q", "p", "d"]
    group = batch["group"]
    assert group.dtype == torch.int64
    assert group[0] == group[3] != group[1] == group[2] != group[4], "without a patient a scan is its own"
    assert group[4] == patient_number("d")
    assert patient_number("ID00007637202177411956430") == -4355714905343994600, "the same in every process and run"


def test_lazy_scans_stay_a_list() -> None:
    scans = lazy(images(2))
    batch = collate_visits([item("a", 1, image=scans[0]), item("b", 1, image=scans[1])])
    assert batch["image"] == scans


@pytest.mark.parametrize("with_label", [True, False])
def test_prepared_batch_is_a_call_of_the_network(with_label: bool) -> None:
    network = small_network(tabular_features=2)
    patches = network.source(images(2)).patches(network.voxels())
    batch = collate_visits([item("a", 2, image=patches[0]), item("b", 1, image=patches[1])])
    image, label, args, kwargs = PrepareVisits(with_label)(batch, "cpu")
    assert label is not None
    assert torch.equal(label, batch["label"])
    assert args == ()
    assert ("label" in kwargs) == with_label
    kwargs.pop("label", None)
    assert ("group" in kwargs) == with_label
    kwargs.pop("group", None)
    assert network(image, *args, **kwargs).shape == (3, 3)
    assert kwargs["subjects"] == ["a", "b"]


def test_prepare_moves_tensors_and_leaves_scans() -> None:
    scans = lazy(images(1))
    batch = collate_visits([item("a", 1, image=scans[0])])
    del batch["label"]
    image, label, _, kwargs = PrepareVisits()(batch, "cpu", dtype=torch.float64)
    assert image is batch["image"]
    assert label is None
    assert kwargs["tabular"].dtype == torch.float64


def test_back_to_units_by_hand() -> None:
    data: dict[str, Any] = {
        "pred": torch.tensor([[-1.0, 0.0, 1.0], [0.5, 0.5, 2.0]]), "label": torch.tensor([[0.25], [1.0]]),
        "scale": torch.tensor([[100.0], [10.0]]), "offset": torch.tensor([[2000.0], [5.0]]), "subject": ["a"],
    }  # fmt: skip
    out = ToUnits()(data)
    assert out["pred"].tolist() == [[1900, 2000, 2100], [10, 10, 25]]
    assert out["label"].tolist() == [[2025], [15]]
    assert out["subject"] == ["a"]
    assert data["pred"][0, 0] == -1, "the batch given is left alone"
    assert "label" not in ToUnits()({k: v for k, v in data.items() if k != "label"})
    assert ToUnits()({**data, "label": None})["label"] is None
