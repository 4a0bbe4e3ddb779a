"""What MONAI Label's own ``monaibundle`` app runs of the bundle: its transforms and inferer, from ``inference.json``.

That app knows nothing of visits and tabular values: it calls transforms on the request, then ``inferer(image,
network)``. So tabular values travel in the image's metadata, as MONAI's own do.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from cpic_monai.attribution import Explained, label_map
from cpic_monai.inferers import QuantileInferer
from cpic_monai.label.bundle import LabelBundle

__all__ = ["RequestInferer", "RequestedPatchesd", "RequestedResultd"]

TABULAR = "tabular"
OPEN: dict[str, LabelBundle] = {}


def opened(root: str) -> LabelBundle:
    """The bundle of a folder, opened once a process, with the weights that are there now."""
    if root not in OPEN:
        OPEN[root] = LabelBundle(root)
    OPEN[root].refresh()
    return OPEN[root]


class RequestedPatchesd:
    """From a request to the patches that the network asks for: MetaTensor ``(N, C, p, p, p)`` under ``image``.

    Parameters
    ----------
    bundle_root
        The bundle's folder.

    Notes
    -----
    Leaves the item under ``requested``, and the scan's shape and affine in the image's metadata.
    """

    def __init__(self, bundle_root: str) -> None:
        self.bundle_root = bundle_root

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """See the class; raises what :meth:`LabelBundle.predict` does."""
        out = dict(data)
        bundle = opened(self.bundle_root)
        item, notes = bundle.item(str(out["image"]), {str(k): v for k, v in out.items()})
        scan = bundle.view(item)
        voxels = bundle.network.voxels(item["subject"])
        volume = scan.volumes[0]
        meta = {"spatial_shape": list(volume.shape), "original_affine": volume.affine, TABULAR: item["tabular"]}
        patches = bundle.network.source([scan]).patches(voxels)[0]
        out["image"] = MetaTensor(patches, affine=torch.from_numpy(volume.affine), meta=meta)
        out["requested"] = {"item": item, "notes": notes, "scan": scan, "voxels": voxels}
        return out


class RequestInferer(QuantileInferer):
    """As its base; called as ``inferer(image, network)`` it takes the tabular values from the image's metadata.

    The quantiles of one scan are then ``(1, V, Q)``: the app splits batches by their first axis.
    """

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """See the class."""
        tabular = inputs.meta.get(TABULAR) if isinstance(inputs, MetaTensor) and not args and not kwargs else None
        if tabular is None:
            return super().__call__(inputs, network, *args, **kwargs)
        index = torch.zeros(len(tabular), dtype=torch.int64, device=inputs.device)
        return network(inputs.as_tensor(), tabular.to(inputs.device), index)[None]


class RequestedResultd:
    """From quantiles ``(V, Q)`` under ``pred`` to JSON under ``result`` and a label map of the picked voxels.

    Parameters
    ----------
    bundle_root
        The bundle's folder.

    Notes
    -----
    All picked voxels have the value 1: attributions need gradients, which this app does not compute.
    """

    def __init__(self, bundle_root: str) -> None:
        self.bundle_root = bundle_root

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """See the class."""
        out = dict(data)
        bundle, asked = opened(self.bundle_root), out.pop("requested")
        grid = bundle.network.grid
        codes = torch.unique(grid.encode(asked["voxels"]))
        voxels = grid.decode(codes[grid.inside(codes)])
        quantiles = torch.as_tensor(out["pred"]).as_subclass(Tensor).detach().cpu()
        explained = Explained(quantiles, voxels, torch.zeros(len(voxels), dtype=torch.float64))
        result = bundle.result(asked["item"], explained, asked["notes"])
        for key in ("raised_by", "lowered_by", "visit", "classes"):
            result["looked_at"].pop(key, None)
        scan = asked["scan"]
        out["result"] = result
        out["pred"] = MetaTensor(
            torch.from_numpy(label_map(scan, explained))[None], affine=torch.from_numpy(scan.volumes[0].affine)
        )
        return out
