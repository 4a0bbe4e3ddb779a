"""Check a packed bundle as the MONAI model zoo's CI does in full mode, offline and without installing anything.

directory, versions, metadata, properties, network (input and output), checkpoint (its export to TorchScript). Beyond
the zoo's checks, the training config's properties are looked up, and the exported network has to predict what the
network itself predicts, to 1e-5. All checks run; status 1 if one fails. Code and configs of the bundle are executed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ckpt_export, create_workflow, verify_metadata, verify_net_in_out
from monai.bundle.properties import TrainProperties
from monai.data import load_net_with_metadata
from monai.utils import BundleProperty, BundlePropertyConfig

SCHEMA = Path(__file__).with_name("bundle_schema.json")
NECESSARY = ("LICENSE", "configs/metadata.json")
PREFERRED = ("models/model.pt", "configs/inference.json", "configs/train.json", "docs/README.md")
PARITY = 1e-5


@dataclass(frozen=True)
class Bundle:
    """A packed bundle, and a folder for what the checks write."""

    root: Path
    scratch: Path

    @property
    def metadata_file(self) -> str:
        """``configs/metadata.json``."""
        return str(self.root / "configs" / "metadata.json")

    @property
    def inference_file(self) -> str:
        """``configs/inference.json``."""
        return str(self.root / "configs" / "inference.json")

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Content of ``configs/metadata.json``."""
        return json.loads(Path(self.metadata_file).read_text(encoding="utf-8"))


def check_directory(bundle: Bundle) -> None:
    """The files that the zoo wants are there, and nothing would have to be downloaded."""
    missing = [name for name in (*NECESSARY, *PREFERRED) if not (bundle.root / name).is_file()]
    if missing:
        raise FileNotFoundError(f"the bundle lacks {', '.join(missing)}; make it with pack_bundle.py")
    large = sorted(path.name for path in bundle.root.glob("large_files.*"))
    if large:
        raise ValueError(f"{', '.join(large)} names files to download; this check is offline: put them in place")


def check_versions(bundle: Bundle, released: Path | None = None) -> None:
    """The version is in the changelog, and was not released before (``released``: the zoo's ``model_info.json``)."""
    version, changelog = bundle.metadata.get("version"), bundle.metadata.get("changelog")
    if not version or not changelog:
        raise ValueError(f"{bundle.metadata_file} needs `version` and `changelog`, found {version!r} and {changelog!r}")
    if version not in changelog:
        raise ValueError(f"version {version} is missing in `changelog` of {bundle.metadata_file}: {sorted(changelog)}")
    known = json.loads(released.read_text(encoding="utf-8")) if released else {}
    if f"{bundle.root.name}_v{version}" in known:
        raise ValueError(f"{bundle.root.name} {version} was released before: raise `version` in {bundle.metadata_file}")


def check_metadata(bundle: Bundle, schema: Path = SCHEMA) -> None:
    """The metadata follow the schema."""
    if not schema.is_file():
        raise FileNotFoundError(f"no schema at {schema}")
    verify_metadata(meta_file=bundle.metadata_file, filepath=str(schema))


def check_properties(bundle: Bundle) -> None:
    """Inference has MONAI's properties, instantiated on a phantom; training has all that are required."""
    from cpic_monai.cohorts import write_phantom_cohort

    cohort = bundle.scratch / "phantom"
    write_phantom_cohort(cohort, subjects=2, shape=(16, 48, 48), workers=1, progress=False)
    workflow = create_workflow(
        config_file=bundle.inference_file, workflow_type="inference", logging_file=False,
        bundle_root=str(bundle.root), output_dir=str(bundle.scratch), dataset_dir=str(cohort),
        models_dir=str(bundle.root / "models"),
    )  # fmt: skip
    wrong = workflow.check_properties()
    parser = ConfigParser(ConfigParser.load_config_file(str(bundle.root / "configs" / "train.json")))
    for name, about in TrainProperties.items():
        if about[BundleProperty.REQUIRED] and parser.get(str(about[BundlePropertyConfig.ID])) is None:
            wrong.append(f"train: {name}")
    if wrong:
        raise ValueError(f"properties missing or under a wrong name: {', '.join(wrong)}")


def check_network(bundle: Bundle) -> None:
    """The network takes and gives what the metadata say."""
    verify_net_in_out(
        net_id="network_def", meta_file=bundle.metadata_file, config_file=bundle.inference_file, device="cpu",
        bundle_root=str(bundle.root),
    )  # fmt: skip


def check_checkpoint(bundle: Bundle) -> None:
    """The checkpoint fits the network strictly, exports to TorchScript, and the export predicts the same."""
    weights, exported = bundle.root / "models" / "model.pt", bundle.scratch / "verify_model.ts"
    ckpt_export(
        net_id="network_def", filepath=str(exported), ckpt_file=str(weights), meta_file=bundle.metadata_file,
        config_file=bundle.inference_file, bundle_root=str(bundle.root),
    )  # fmt: skip
    workflow = create_workflow(
        config_file=bundle.inference_file, workflow_type="inference", logging_file=False,
        bundle_root=str(bundle.root), device="$torch.device('cpu')",
    )  # fmt: skip
    network = workflow.network_def.eval()
    image = bundle.metadata["network_data_format"]["inputs"]["image"]
    scans = torch.rand((2, image["num_channels"], *image["spatial_shape"]))
    shipped = bundle.root / "models" / "model.ts"
    with torch.no_grad():
        expected = network(scans)
        for path in (exported, *([shipped] if shipped.is_file() else [])):
            script, _, _ = load_net_with_metadata(str(path), map_location=torch.device("cpu"))
            difference = float((script(scans) - expected).abs().max())
            if not difference <= PARITY:
                raise ValueError(f"{path.name} predicts something else than {weights.name}: {difference:.1e}")


CHECKS: dict[str, Callable[..., None]] = {
    "directory": check_directory,
    "versions": check_versions,
    "metadata": check_metadata,
    "properties": check_properties,
    "network": check_network,
    "checkpoint": check_checkpoint,
}


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=Path(__file__).resolve().parents[1], help="its folder; "
                        "by default the one that this script lies in")  # fmt: skip
    parser.add_argument("--schema", type=Path, default=SCHEMA, help="JSON schema of the metadata")
    parser.add_argument("--model_info", type=Path, help="the zoo's model_info.json, with the versions released so far")
    given = parser.parse_args(arguments)
    options: dict[str, dict[str, Any]] = {
        "versions": {"released": given.model_info},
        "metadata": {"schema": given.schema},
    }
    root = given.bundle.expanduser().resolve()
    sys.path.insert(0, str(root))  # the bundle's own package, not an installed one
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Bundle(root, Path(scratch))
        for name, check in CHECKS.items():
            try:
                check(bundle, **options.get(name, {}))
            except Exception as error:  # every check runs, whatever the one before met
                failed += 1
                print(f"{name}: FAILED: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            else:
                print(f"{name}: ok", flush=True)
    print(f"{root.name}: {len(CHECKS) - failed} of {len(CHECKS)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
