"""Checkpoints of training, and weights as a packed bundle carries them.

Training saves one file with the network's state and the tabular encoding. What loads bundles of the model zoo
(``monai.bundle.load``, ``ckpt_export``) expects ``models/model.pt`` to be the network's state and nothing else, so a
packed bundle carries the encoding beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cpic_monai.atomic import write_text_atomically
from cpic_monai.handlers.checkpoint import save_atomically

ENCODING = "encoder.json"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """``model`` (state of the network) and ``encoder`` (tabular encoding and target scale) of either form.

    Of a training run's also ``trained_on`` (:class:`cpic_monai.cohorts.TrainedOn`), unless it is of before that was
    kept; a packed bundle carries no word of its patients.

    Parameters
    ----------
    path
        A file that training wrote, or a packed bundle's ``models/model.pt`` with ``encoder.json`` beside it.

    Raises
    ------
    FileNotFoundError
        If the file, or the encoding that belongs to it, is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train first, or give `ckpt_path` (or `bundle_root`)")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if {"model", "encoder"} <= set(state):
        return {key: state[key] for key in ("model", "encoder", "trained_on") if key in state}
    encoding = path.with_name(ENCODING)
    if not encoding.is_file():
        raise FileNotFoundError(
            f"{path} holds weights without the tabular encoding, and there is no {ENCODING} beside it: "
            "copy that file too, or use a checkpoint that training wrote"
        )
    return {"model": state, "encoder": json.loads(encoding.read_text(encoding="utf-8"))}


def write_weights(checkpoint: Mapping[str, Any], folder: str | Path) -> Path:
    """Write ``model.pt`` and ``encoder.json`` of a packed bundle into ``folder``; returns the former's path.

    Raises
    ------
    ValueError
        If the encoding would not survive being written as text.
    """
    folder = Path(folder)
    encoding = checkpoint["encoder"]
    text = json.dumps(encoding, indent=1)
    if json.loads(text) != encoding:
        raise ValueError(f"the tabular encoding cannot be written as JSON unchanged: {encoding}")
    weights = save_atomically(dict(checkpoint["model"]), folder / "model.pt")
    write_text_atomically(folder / ENCODING, text + "\n")
    return weights
