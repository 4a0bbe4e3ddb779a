"""Pack the bundle: configs, package, docs, weights, in one folder (and zip) that runs from anywhere, nothing installed.

  python scripts/pack_bundle.py --run OUTPUT_DIR     weights and metrics of a training run (its --output_dir)
  python scripts/pack_bundle.py --train              trains on the phantom first, with the default settings

What differs from this checkout: `%` macros are written out, `bundle_root` is the folder that holds the package,
`models/model.pt` is the network's state alone (the tabular encoding lies beside it), and metadata and README carry the
run's settings and metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ckpt_export, run

from cpic_monai.atomic import write_text_atomically
from cpic_monai.cohorts import ItemEncoder
from cpic_monai.export import read_checkpoint, strip_sources, write_weights

ROOT = Path(__file__).resolve().parents[1]
NAME = "cpic_fvc_regression"
PLACE = "$os.path.dirname(os.path.dirname(os.path.abspath(cpic_monai.__file__)))"
SCRIPTS = ("verify_bundle.py", "bundle_schema.json", "convert.py", "compare_reports.py")
#: Of the target, in checkpoints that the packed configs can read.
PACKED_TARGET = "relative_to_first"
FIGURES = {"mlll": "mLLL", "rmse": "RMSE, mL", "mae": "MAE, mL", "r2": "R2", "coverage": "coverage", "n": "visits"}
TABLE = "<!-- metrics: filled in by pack_bundle.py -->"


def write_out(value: Any, configs: Mapping[str, Any]) -> Any:
    """A copy of a config in which every macro ``%configs/<name>.json::id`` is replaced by what it names."""
    if isinstance(value, dict):
        return {key: write_out(part, configs) for key, part in value.items()}
    if isinstance(value, list):
        return [write_out(part, configs) for part in value]
    if isinstance(value, str) and value.startswith("%configs/"):
        path, key = ConfigParser.split_path_id(value[1:])
        return write_out(deepcopy(ConfigParser(configs[Path(path).name])[key]), configs)
    return value


def packed_configs(folder: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every config of the checkout by file name, as the packed bundle carries it.

    Parameters
    ----------
    folder
        ``configs``.
    settings
        Keys of ``train.json`` that the weights were trained with, where they differ from it.

    Raises
    ------
    KeyError
        If a setting is no key of ``train.json``.
    """
    files = sorted(path for path in folder.glob("*.json") if path.name != "metadata.json")
    configs = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in files}
    train = configs["train.json"]
    unknown = sorted(set(settings) - set(train))
    if unknown:
        raise KeyError(f"{', '.join(unknown)}: no key of configs/train.json, so it cannot be packed as a setting")
    train.update(deepcopy(dict(settings)))
    train["bundle_root"] = PLACE
    train["imports"] = [*train["imports"], "$import cpic_monai"]
    packed = {}
    for name, config in configs.items():
        taken = [key for key, value in config.items() if isinstance(value, str) and value.startswith("%configs/")]
        new = write_out(config, configs)
        explained = {key: train["_about_"][key] for key in taken if key in train["_about_"]}
        new["_about_"] = {**explained, **new["_about_"]}
        if name in ("evaluate.json", "inference.json"):
            new["_about_"]["_about_"] = "Keys of the packed bundle, written out; train.json explains the same names."
        packed[name] = new
    # Packed weights carry no record of patients, so what they were fitted to is written out.
    packed["evaluate.json"]["fit_on_validation"] = train["fit_on_validation"]
    return packed


def packed_metadata(
    metadata: Mapping[str, Any], train: Mapping[str, Any], columns: list[str], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """The metadata with the network's input and output as trained, and the test metrics.

    Parameters
    ----------
    metadata
        Of the checkout.
    train
        The packed ``train.json``.
    columns
        Names of the tabular features.
    metrics
        ``eval/metrics.json`` of the run, or empty.
    """
    new = deepcopy(dict(metadata))
    inputs, outputs = (new["network_data_format"][side] for side in ("inputs", "outputs"))
    scales, quantiles = train["scales"], train["quantiles"]
    inputs["image"].update(
        spatial_shape=train["spatial_shape"],
        num_channels=train["image_channels"] * len(scales),
        channel_def={str(k): "image" if s == 1 else f"image, scale {s}" for k, s in enumerate(scales)},
    )
    inputs["tabular"].update(num_channels=len(columns), channel_def={str(k): name for k, name in enumerate(columns)})
    outputs["pred"].update(
        num_channels=len(quantiles), channel_def={str(k): f"quantile {q}" for k, q in enumerate(quantiles)}
    )
    if "test" in metrics:
        new["eval_metrics"] = {name: metrics["test"][name] for name in FIGURES if name in metrics["test"]}
    return new


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """The metrics of each split as a Markdown table, the baselines of the test split below."""
    rows = dict(metrics)
    for name, entry in metrics.get("test", {}).get("baselines", {}).items():
        rows[f"test, {name} baseline"] = entry
    if not rows:
        return "These weights came without metrics."

    def text(value: Any) -> str:
        return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3g}"

    lines = [f"| split | {' | '.join(FIGURES.values())} |", "|---" * (len(FIGURES) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(text(entry.get(name)) for name in FIGURES)} |" for row, entry in rows.items()]
    return "\n".join(lines)


def copy_parts(target: Path) -> None:
    """The package, ``bundle/``, the changelog and the scripts of the packed bundle."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    shutil.copytree(ROOT / "bundle", target, dirs_exist_ok=True, ignore=unwanted)
    shutil.copytree(ROOT / "cpic_monai", target / "cpic_monai", ignore=unwanted)
    shutil.copy2(ROOT / "CHANGELOG.md", target / "docs" / "CHANGELOG.md")
    (target / "scripts").mkdir()
    for name in SCRIPTS:
        shutil.copy2(ROOT / "scripts" / name, target / "scripts" / name)
    (target / "configs").mkdir()
    shutil.copy2(ROOT / "configs" / "logging.conf", target / "configs" / "logging.conf")


def aligned(checkpoint: Path, metrics_file: Path | None) -> Path | None:
    """The file that says that training laid its scans over a template: the run's report, else a template left there."""
    report = metrics_file.with_name("report.json") if metrics_file else None
    if report is not None and report.is_file():
        config = json.loads(report.read_text(encoding="utf-8")).get("provenance", {}).get("config", {})
        if "alignment" in config:
            return report if config["alignment"] else None
    template = checkpoint.with_name("template.nii.gz")
    return template if template.exists() else None


def pack(checkpoint: Path, metrics_file: Path | None, settings: Mapping[str, Any], output: Path) -> Path:
    """Make ``output/cpic_fvc_regression`` and its zip; a former one is replaced once the new one is whole.

    Parameters
    ----------
    checkpoint
        ``models/model.pt`` of a training run, or of a packed bundle.
    metrics_file
        ``eval/metrics.json`` of that run, or None.
    settings
        See :func:`packed_configs`.
    output
        Folder, e.g. ``dist``.

    Raises
    ------
    ValueError
        If the checkpoint is of another cohort than OSIC's layout, or was trained on aligned scans.
    """
    state = read_checkpoint(checkpoint)
    if (mode := state["encoder"]["target"]["mode"]) != PACKED_TARGET:
        raise ValueError(
            f"{checkpoint}: its target is {mode!r}, so it was trained with configs/table.json, brats.json or another "
            f"cohort; the packed bundle reads OSIC's layout, whose target is {PACKED_TARGET!r} (FVC), and would "
            "predict with wrong intensities and units. Serve it from MLflow (docs/reports.md), or predict by "
            "configs/inference_table.json"
        )
    if (sign := aligned(checkpoint, metrics_file)) is not None:
        raise ValueError(
            f"{sign}: the checkpoint was trained with configs/align.json, which the packed configs do not know: "
            "views would lie elsewhere than in training. Pack a run without it, or use configs/inference.json with "
            "configs/align.json"
        )
    metrics = json.loads(metrics_file.read_text(encoding="utf-8")) if metrics_file else {}
    configs = packed_configs(ROOT / "configs", settings)
    metadata = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
    columns = list(ItemEncoder(state["encoder"]).feature_names)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".") as scratch:
        made = Path(scratch) / NAME
        copy_parts(made)
        configs["metadata.json"] = packed_metadata(metadata, configs["train.json"], columns, metrics)
        for name, config in configs.items():
            write_text_atomically(made / "configs" / name, json.dumps(config, indent=4) + "\n")
        readme = made / "docs" / "README.md"
        write_text_atomically(readme, readme.read_text(encoding="utf-8").replace(TABLE, metrics_table(metrics)))
        weights = write_weights(state, made / "models")
        ckpt_export(
            net_id="network_def", filepath=str(weights.with_suffix(".ts")), ckpt_file=str(weights),
            meta_file=str(made / "configs" / "metadata.json"), config_file=str(made / "configs" / "inference.json"),
            bundle_root=str(made),
        )  # fmt: skip
        strip_sources(weights.with_suffix(".ts"))
        archive = Path(shutil.make_archive(str(Path(scratch) / "archive"), "zip", scratch, NAME))
        target = output / NAME
        if target.exists():
            target.rename(Path(scratch) / "former")
        made.rename(target)
        os.replace(archive, output / f"{NAME}.zip")
    return target


def train(output: Path, settings: Mapping[str, Any]) -> None:
    """The checkout's training on the phantom, with ``settings``, into ``output``."""
    before = Path.cwd()
    os.chdir(ROOT)  # the configs name each other relative to the checkout
    try:
        run("training", config_file="configs/train.json", output_dir=str(output), **settings)
    finally:
        os.chdir(before)


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="output_dir of a training run on the phantom")
    source.add_argument("--ckpt", type=Path, help="a checkpoint alone; no metrics are reported then")
    source.add_argument("--train", action="store_true", help="train on the phantom first")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON",
                        help='keys of train.json that differ in that run, e.g. \'{"rank": 20}\'')  # fmt: skip
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder to write to")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.run
        if given.train:
            folder = Path(scratch)
            train(folder, given.settings)
        checkpoint = given.ckpt or folder / "models" / "model.pt"
        metrics = None if given.ckpt else folder / "eval" / "metrics.json"
        target = pack(checkpoint.resolve(), metrics and metrics.resolve(), given.settings, given.output.resolve())
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB, torch {torch.__version__}; check it with scripts/verify_bundle.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
