"""An experiment of the results page: what is asked, on which data, of which methods; and its cross-validation.

``scripts/experiments/NAME.json`` holds one; its keys are the fields of :class:`Experiment` but ``name``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cpic_monai.cohorts import write_phantom_cohort
from cpic_monai.cross_validation import CrossValidation

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "scripts" / "experiments"
#: Beside the experiments, but what is asked of them.
TARGETS = "targets.json"
REQUIRED = ("title", "question", "data", "config_files", "methods")
PHANTOM = {"subjects": 100, "shape": [32, 128, 128], "seed": 0}
VARIABLE = re.compile(r"^\$([A-Z][A-Z0-9_]*)(?=/|$)")


@dataclass(frozen=True)
class Experiment:
    """
    One experiment.

    Attributes
    ----------
    name : str
        Of the file.
    title, question : str
        For the page.
    data : str
        ``phantom``, or the cohort's folder below ``$CPIC_DATA``, which then must be set.
    config_files : list of str
        Training configuration and overlays, of all methods.
    methods : mapping
        Name to ``config_files`` (further overlays) and ``overrides``, both optional; the others are compared with the
        first. ``like`` names the method before whose files and overrides these are added to.
    overrides : mapping
        Of all methods. Text that begins with ``$NAME/`` begins with that environment variable's value.
    phantom : mapping
        Parameters of the phantom cohort: ``subjects``, ``shape``, ``seed``.
    folds, seed, stratify, validation_fraction, key_metric
        See :class:`cpic_monai.cross_validation.CrossValidation`.
    seeds : list of int
        If any: every method is trained once a seed, on fold 0 of that seed's split, instead of cross-validated.
    note : str
        For the page, below the tables.
    """

    name: str
    title: str
    question: str
    data: str
    config_files: list[str]
    methods: Mapping[str, Mapping[str, Any]]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    phantom: Mapping[str, Any] = field(default_factory=dict)
    folds: int = 5
    seed: int = 0
    seeds: Sequence[int] = ()
    stratify: bool = False
    validation_fraction: float = 0.15
    key_metric: str | None = None
    note: str = ""

    @classmethod
    def read(cls, path: str | Path) -> Experiment:
        """
        Read an experiment's file.

        Raises
        ------
        ValueError
            If a key is missing or unknown, or a method is like one that does not stand before it; file and keys are
            named.
        """
        path = Path(path)
        given = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in REQUIRED if not given.get(key)]
        unknown = sorted(set(given) - {f.name for f in fields(cls)} | set(given) & {"name"})
        if missing or unknown:
            raise ValueError(
                f"{path}: " + "; ".join([f"lacks {missing}"] * bool(missing) + [f"unknown: {unknown}"] * bool(unknown))
            )
        if given["data"] == "phantom" and (odd := sorted(set(given.get("phantom") or {}) - set(PHANTOM))):
            raise ValueError(f"{path}: phantom has {odd}; it may have {sorted(PHANTOM)}")
        if given["data"] != "phantom" and given.get("phantom"):
            raise ValueError(f"{path}: phantom is given, but data is {given['data']!r}")
        given["methods"] = _written_out(given["methods"], path)
        return cls(name=path.stem, **given)

    def cross_validation(
        self, output_dir: Path, methods: Sequence[str] | None = None, seed: int | None = None
    ) -> CrossValidation:
        """
        Its cross-validation below ``output_dir/NAME``, of these methods; the phantom cohort is made where needed.

        Parameters
        ----------
        output_dir : path
        methods : sequence of str, optional
            All by default.
        seed : int, optional
            One of `seeds`; everything of it is below ``seed_<seed>``.

        Raises
        ------
        ValueError
            If there is no such method, or an environment variable that the overrides name is not set.
        """
        unknown = sorted(set(methods or ()) - set(self.methods))
        if unknown:
            raise ValueError(f"{self.name} has no methods {unknown}; it has {', '.join(self.methods)}")
        folder = output_dir / self.name if seed is None else output_dir / self.name / f"seed_{seed}"
        return CrossValidation(
            folder,
            self.config_files,
            {**self._data(output_dir), **expanded(self.overrides, self.name)},
            {
                name: expanded(given, self.name)
                for name, given in self.methods.items()
                if name in (methods or self.methods)
            },
            folds=self.folds,
            seed=self.seed if seed is None else seed,
            stratify=self.stratify,
            validation_fraction=self.validation_fraction,
            key_metric=self.key_metric,
            tracking_uri=self.tracking_uri(output_dir),
            experiment_name=self.name,
            run_name=self.name,
            logging_file="configs/logging.conf",
        )

    def tracking_uri(self, output_dir: Path) -> str:
        """MLflow's database of the experiment."""
        return f"sqlite:///{(output_dir / self.name / 'mlruns.db').resolve()}"

    def _data(self, output_dir: Path) -> dict[str, Any]:
        if self.data != "phantom":
            return {}
        parameters = {**PHANTOM, **self.phantom}
        size = "x".join(str(n) for n in parameters["shape"])
        name = f"phantom_{size}_{parameters['subjects']}_seed{parameters['seed']}"
        folder = write_phantom_cohort(output_dir / "data" / name, **parameters)
        # Below the checkout by its relative path: a copy of both goes on where this one stopped.
        return {"dataset_dir": str(folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder)}


def _written_out(methods: Mapping[str, Mapping[str, Any]], path: Path) -> dict[str, dict[str, Any]]:
    """Methods without ``like``: with what the method named there has, too."""
    full: dict[str, dict[str, Any]] = {}
    for name, given in methods.items():
        own = dict(given)
        model = own.pop("like", None)
        if model is not None and model not in full:
            raise ValueError(f"{path}: method {name!r} is like {model!r}, which is none of {list(full)} before it")
        files = [*full.get(model, {}).get("config_files", []), *own.get("config_files", [])]
        overrides = {**full.get(model, {}).get("overrides", {}), **own.get("overrides", {})}
        full[name] = own | ({"config_files": files} if files else {}) | ({"overrides": overrides} if overrides else {})
    return full


def expanded(value: Any, name: str) -> Any:
    """
    A copy in which text that begins with ``$NAME/`` begins with that environment variable's value.

    Raises
    ------
    ValueError
        If the variable is not set; experiment and variable are named.
    """
    if isinstance(value, Mapping):
        return {key: expanded(item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [expanded(item, name) for item in value]
    found = VARIABLE.match(value) if isinstance(value, str) else None
    if found is None:
        return value
    if not os.environ.get(found[1]):
        raise ValueError(f"{name}: {value} needs the environment variable {found[1]}: the folder with the cohorts")
    return os.environ[found[1]] + value[found.end() :]


def experiments(folder: Path = FOLDER) -> dict[str, Experiment]:
    """All experiments by name."""
    return {path.stem: Experiment.read(path) for path in sorted(folder.glob("*.json")) if path.name != TARGETS}
