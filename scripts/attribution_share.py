"""Does the attribution land in the fibrosis? Its share there, on held-out phantoms, whose fibrosis is known.

For every patient of the split: the share of the sizes of all attributions at picked voxels that lie in the fibrosis,
and the share of the part that lowers the prediction, which is what fibrosis does; for the value at the last visit,
and for its change since the first ("decline"), of which the level common to all visits is no part. Beside them what
chance gives: the share of the picked voxels, and of the foreground's volume. "Near" counts voxels whose patch, all
that the encoder reads around them, touches the fibrosis. Enrichment is the ratio of mean shares; intervals are a 95 %
bootstrap over patients. References: air; cohort (mean of the basis scans in the checkpoint); training (exact mean
encoding, reads the training scans). Writes attribution_share.json and attribution_share.md. Patients without fibrosis
are left out, and counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from bench_table import markdown
from monai.bundle import ConfigParser
from torch import Tensor
from tqdm import tqdm

from cpic_monai.atomic import write_text_atomically
from cpic_monai.attribution import REFERENCES, explain, mean_encoding, shared_reference
from cpic_monai.networks import CPICNet
from cpic_monai.report.bootstrap import interval, patient_weights
from cpic_monai.transforms import VirtualScan

ROOT = Path(__file__).resolve().parents[1]
#: Compared with these, every share is an enrichment.
CHANCE = ("picked", "foreground")
COLUMNS = ("what", "region", "mean", "sd", "low", "high", "over_picked", "low_p", "high_p", "over_foreground")


def view_mask(scan: VirtualScan, mask: np.ndarray, affine: np.ndarray) -> Tensor:
    """A mask with its (4, 4) voxel to RAS+ mm as the view sees it, bool of the view's shape (nearest voxel)."""
    to_mask = np.linalg.inv(affine) @ scan.affine
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in scan.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    places = np.floor(grid @ to_mask[:3, :3].T + to_mask[:3, 3] + 0.5 + 1e-6).astype(np.int64)
    inside = ((places >= 0) & (places < mask.shape)).all(1)
    seen = np.zeros(len(grid), bool)
    seen[inside] = mask[tuple(places[inside].T)]
    return torch.from_numpy(seen.reshape(scan.shape))


def within(mask: Tensor, reach: int) -> Tensor:
    """True where the cube of ``2 reach + 1`` voxels around a voxel touches the mask."""
    return torch.nn.functional.max_pool3d(mask[None, None].float(), 2 * reach + 1, 1, reach)[0, 0] > 0


def shares(
    network: CPICNet, item: Mapping[str, Any], fibrosis: Tensor, foreground: float, references: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """What lies in the fibrosis, and near it, of one scan: by quantity, then by region."""
    scan = item["image"]
    full = (scan.box((0, 0, 0), scan.shape) > foreground).any(0)
    regions = {"inside": fibrosis, "near": within(fibrosis, network.patch_size // 2 * max(network.scales))}
    found: dict[str, dict[str, float]] = {}
    weights: dict[str, Tensor] = {}
    for name, reference in references.items():
        for what, since in (("", None), (" decline", 0)):  # the value at the last visit; its change since the first
            explained = explain(
                network, scan, item["tabular"], subject=item["subject"], reference=reference, since=since
            )
            if not explained.finite:
                raise ValueError(f"{item['subject']}: attributions are not finite (equal singular values)")
            places = tuple(explained.voxels.T)
            weights["picked"] = torch.ones(len(explained.voxels))
            weights[f"{name}{what}, all"] = explained.attribution.abs()
            weights[f"{name}{what}, lowering"] = -explained.attribution.clamp_max(0)
    for region, where in regions.items():
        found.setdefault("foreground", {})[region] = float((where & full).sum() / full.sum())
        for name, weight in weights.items():
            found.setdefault(name, {})[region] = float(weight[where[places]].sum() / weight.sum())
    return found


def table(patients: Sequence[Mapping[str, Mapping[str, float]]], draws: int = 1000, seed: int = 0) -> list[dict]:
    """Mean, spread and interval of every share, and its ratio to what chance gives."""
    drawn = patient_weights(len(patients), draws, seed) / len(patients)
    rows = []
    for region in ("inside", "near"):
        by_name = {name: np.array([p[name][region] for p in patients]) for name in patients[0]}
        for name, values in by_name.items():
            low, high = interval(drawn @ values)
            row: dict[str, Any] = {
                "what": name,
                "region": region,
                "mean": float(values.mean()),
                "low": low,
                "high": high,
            }
            row["sd"] = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
            for chance in CHANCE:
                row[f"over_{chance}"] = float(values.mean() / by_name[chance].mean())
            with np.errstate(invalid="ignore", divide="ignore"):
                row["low_p"], row["high_p"] = interval((drawn @ values) / (drawn @ by_name["picked"]))
            rows.append(row)
    return rows


def read(bundle: Path, checkpoint: Path, phantom: Path, overrides: Mapping[str, Any]) -> ConfigParser:
    """The bundle's evaluation config for this checkpoint and cohort."""
    os.chdir(bundle)  # configs that take keys from each other name them relative to the bundle's folder
    parser = ConfigParser()
    parser.read_config("configs/evaluate.json")
    parser.resolve_macro_and_relative_ids()
    given = {"ckpt_path": str(checkpoint), "dataset_dir": str(phantom), "phantom_dir": "", **overrides}
    for key, value in given.items():
        parser[key] = value
    return parser


def measure(parser: ConfigParser, phantom: Path, split: str, exact: bool) -> dict[str, Any]:
    """Shares of every patient with fibrosis of the split, and who was left out."""
    network: CPICNet = parser.get_parsed_content("network_def")
    network.load_state_dict(parser.get_parsed_content("checkpoint")["model"])
    network.to(parser.get_parsed_content("device")).eval()
    splits, viewing = parser.get_parsed_content("splits"), parser.get_parsed_content("viewing")
    references: dict[str, Any] = {name: shared_reference(network, name) for name in REFERENCES}
    if exact:
        bar = tqdm(splits.train, desc="mean of the training scans", unit="scan")
        references["training"] = mean_encoding(network, (viewing(item)["image"] for item in bar))
    patients, left_out = {}, []
    for item in tqdm(getattr(splits, split), desc="attribution", unit="scan"):
        file = phantom / "ground_truth" / f"{item['subject']}_fibrosis.nii.gz"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: is {phantom} a phantom cohort?")
        image = nibabel.Nifti1Image.from_filename(file)
        viewed = viewing(item)
        fibrosis = view_mask(viewed["image"], np.asarray(image.dataobj) > 0, image.affine)
        if not fibrosis.any():
            left_out.append(item["subject"])
            continue
        patients[item["subject"]] = shares(
            network, viewed, fibrosis, float(parser.get_parsed_content("foreground")), references
        )
    if not patients:
        raise ValueError(f"none of the {len(left_out)} patients of the split {split!r} has fibrosis")
    return {"split": split, "without_fibrosis": left_out, "patients": patients}


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, required=True, help="models/model.pt of a training on the phantom")
    parser.add_argument("--phantom_dir", type=Path, required=True, help="phantom cohort with its ground_truth/")
    parser.add_argument("--bundle_dir", type=Path, default=ROOT, help="folder that holds configs/ (default: this one)")
    parser.add_argument("--output_dir", type=Path, required=True, help="where JSON and Markdown are written")
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test")
    parser.add_argument("--no_training", action="store_true", help="leave the reference `training` out")
    parser.add_argument("--seed", type=int, default=0, help="of the patients drawn for the intervals")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("KEY", "JSON"), help="a config key as in training"
    )
    given = parser.parse_args(arguments)
    checkpoint, phantom, output = (p.resolve() for p in (given.ckpt, given.phantom_dir, given.output_dir))
    config = read(given.bundle_dir.resolve(), checkpoint, phantom, {key: json.loads(v) for key, v in given.set})
    found = measure(config, phantom, given.split, not given.no_training)
    rows = table(list(found["patients"].values()), seed=given.seed)
    text = markdown(rows, COLUMNS)
    counted, without = len(found["patients"]), len(found["without_fibrosis"])
    left = f"{counted} patients of the {given.split} split; {without} without fibrosis left out"
    write_text_atomically(output / "attribution_share.json", json.dumps({"rows": rows, **found}, indent=2) + "\n")
    write_text_atomically(output / "attribution_share.md", f"{left}.\n\n{text}\n")
    print(f"{left}\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
