"""A cohort whose outcome is the brightness of one region of the scan."""

from __future__ import annotations

from typing import Any

import torch
from scans import images, lazy

from cpic_monai.batches import collate_visits
from cpic_monai.networks import CPICNet


def planted_items(count: int, seed: int = 0, visits: int = 2) -> list[dict[str, Any]]:
    """Cohort items with lazy scans; the target of all visits is the region's brightness, of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    severity = torch.randn(count, generator=generator)
    image = 0.3 * images(count, seed=seed)
    image[:, :, 1:4, 2:7, 1:6] += 0.5 + 0.2 * severity[:, None, None, None, None].clamp(-2, 2)
    return [
        {
            "subject": f"scan {seed}-{n}", "group": f"scan {seed}-{n}", "image": scan,
            "tabular": torch.randn((visits, 1), generator=generator),
            "label": value.clamp(-2, 2) * torch.ones(visits, 1),
        }
        for n, (scan, value) in enumerate(zip(lazy(image), severity, strict=True))
    ]  # fmt: skip


def planted_batch(network: CPICNet, count: int, seed: int = 0) -> dict[str, Any]:
    """The same collated, with patches sampled at the network's voxels."""
    items = planted_items(count, seed)
    patches = network.source([item["image"] for item in items]).patches(network.voxels())
    return collate_visits([{**item, "image": scan} for item, scan in zip(items, patches, strict=True)])
