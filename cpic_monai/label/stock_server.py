"""MONAI Label's server where torch is a CPU build but torchvision is not, so that torchvision cannot be imported.

``monailabel start_server --uvicorn_app cpic_monai.label.stock_server:app ...``. MONAI Label imports torchvision, for
functions that draw, and torchvision looks for two operators of its compiled part when it is imported. Declaring them is
enough; calling them is still an error. The app of this package does without torchvision and needs none of this.
"""

from __future__ import annotations

import torch

__all__ = ["app"]

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

from monailabel.app import app
