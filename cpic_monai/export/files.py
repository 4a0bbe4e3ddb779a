"""Files of an exported network: ``model.ts`` (TorchScript) and ``model_image.onnx``, ``model_patches.onnx`` (ONNX)."""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from cpic_monai.atomic import replacing
from cpic_monai.export.static import StaticCPIC
from cpic_monai.networks import CPICNet

logger = logging.getLogger(__name__)
FORMS = ("image", "patches")


def export_models(network: CPICNet, folder: str | Path, forms: Sequence[str] = FORMS) -> list[Path]:
    """Write the network as TorchScript (both inputs in one file) and as ONNX (one file an input).

    Parameters
    ----------
    network
        See :class:`cpic_monai.export.StaticCPIC`; stays as it is.
    folder
        Written to: ``model.ts`` and ``model_<form>.onnx``.
    forms
        Inputs that an ONNX file is made for, of ``image`` (dense scan) and ``patches``; none needs no further package.
        ``image`` is left out, with a warning, where the network sees other scales than 1: a dense scan holds none.
    """
    if "image" in forms and network.scales != (1,):
        logger.warning(f"no model_image.onnx: `scales` {[*network.scales]} are not in a dense scan; give patches")
        forms = [form for form in forms if form != "image"]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "model.ts"
    with replacing(script) as temporary:
        torch.jit.save(torch.jit.script(StaticCPIC(network).cpu()), str(temporary))
        strip_sources(temporary)
    return [script, *(export_onnx(network, folder / f"model_{form}.onnx", form) for form in forms)]


def export_onnx(network: CPICNet, path: str | Path, form: str = "image") -> Path:
    """Write the network's prediction as an ONNX model.

    Inputs are ``image``, float32 ``(scans, C, D, H, W)``, or ``patches``, float32 ``(scans, N, C, p, p, p)``;
    ``tabular``, float32 ``(rows, F)`` (only where the head has tabular features); and ``scan_index``, int64
    ``(rows,)``, the scan of each row. Output is ``quantiles``, float32 ``(rows, Q)``. The numbers of scans and rows
    are free. The model's metadata tell where to sample: ``voxels`` (N x 3), ``patch_size``, ``scales``,
    ``spatial_shape``, as JSON.

    Raises
    ------
    ModuleNotFoundError
        If onnx or onnxscript is not installed.
    TypeError, ValueError
        See :class:`cpic_monai.export.StaticCPIC`; for an unknown ``form``, and ``image`` for other scales than 1.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r} is none of {', '.join(FORMS)}")
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"ONNX export needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    path, static = Path(path), StaticCPIC(network).cpu()
    scans, rows = torch.export.Dim("scans"), torch.export.Dim("rows")
    with_tabular = static.tabular is not None
    tabular = torch.zeros(3, static.tabular_features) if with_tabular else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of deprecated calls inside torch
        program = torch.onnx.export(
            static,
            (_example(static, form), tabular, torch.tensor([0, 1, 1])),
            dynamo=True,
            verbose=False,
            input_names=[form, *(["tabular"] if with_tabular else []), "scan_index"],
            output_names=["quantiles"],
            dynamic_shapes=({0: scans}, {0: rows} if with_tabular else None, {0: rows}),
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    facts = {
        "voxels": network.voxels().tolist(),
        "patch_size": network.patch_size,
        "scales": list(network.scales),
        "spatial_shape": list(network.grid.shape),
    }
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.model.metadata_props.update({name: json.dumps(value) for name, value in facts.items()})
    with replacing(path) as temporary:
        program.save(str(temporary), external_data=False)
    return path


def strip_sources(path: str | Path) -> None:
    """Take out of a TorchScript file where each of its lines came from: paths of the machine that wrote it."""
    path = Path(path)
    with replacing(path) as temporary, zipfile.ZipFile(path) as old, zipfile.ZipFile(temporary, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(entry, old.read(entry))


def _example(static: StaticCPIC, form: str) -> Tensor:
    """Two empty scans in the given form."""
    if form == "image":
        return torch.zeros((2, static.in_channels, *static.shape))
    return torch.zeros((2, len(static.voxels), static.in_channels, *(static.patch_size,) * 3))
