"""The results page: run its experiments, collect what came out, write the page.

``python scripts/results.py list``
``python scripts/results.py run ixi_age --output_dir DIR`` trains what is missing of an experiment below
``DIR/ixi_age``; started again, it goes on. A fold that fails does not stop the others. Cohorts are
found by the environment variable CPIC_DATA, phantoms are made in ``DIR/data``.
``python scripts/results.py write --output_dir DIR`` puts what is there into ``bundle/docs/results.json`` (methods and
experiments that are not in DIR stay as they are) and writes ``bundle/docs/results.md``.
``python scripts/results.py render`` writes the page from ``results.json`` alone; ``--check`` says whether it is fresh.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from results_collect import collect, describe
from results_experiment import FOLDER, ROOT, TARGETS, experiments
from results_join import joined
from results_page import page, read
from results_run import run_experiment

from cpic_monai.atomic import write_text_atomically
from cpic_monai.cross_validation import SettingsChangedError

DOCS = ROOT / "bundle" / "docs"
RESULTS, PAGE, NOTES = "results.json", "results.md", "results_notes.md"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=Path, default=FOLDER, help="folder of the experiments and targets.json")
    parser.add_argument(
        "--docs", type=Path, default=DOCS, help="folder of results.json, results_notes.md and results.md"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="experiments, their methods, and what they ask")
    run = commands.add_parser("run", help="train what is missing")
    run.add_argument("names", nargs="+", metavar="NAME", help="experiments, or all")
    run.add_argument("--output_dir", type=Path, required=True)
    run.add_argument("--methods", default="", help="only these, separated by commas")
    run.add_argument("--folds", default="", help="only these, separated by commas, from 0")
    write = commands.add_parser("write", help="collect and write the page")
    write.add_argument("--output_dir", type=Path, required=True)
    render = commands.add_parser("render", help="write the page from results.json")
    render.add_argument("--check", action="store_true", help="write nothing; fail if the page is not what it should be")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """See the module."""
    options = arguments(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("output_dir", "experiments", "docs"):
        if name in options:
            setattr(options, name, getattr(options, name).resolve())
    os.chdir(ROOT)  # experiments name configs relative to the checkout
    known = experiments(options.experiments)
    if options.command == "list":
        for name, experiment in known.items():
            seeds = f", {len(experiment.seeds)} seeds" if experiment.seeds else f", {experiment.folds} folds"
            print(f"{name}: {experiment.title}{seeds}: {', '.join(experiment.methods)}\n    {experiment.question}")
        return 0
    if options.command == "run":
        names = list(known) if options.names == ["all"] else options.names
        if unknown := [name for name in names if name not in known]:
            raise SystemExit(f"no experiment {unknown}; there are {', '.join(known)}")
        methods = [name for name in options.methods.split(",") if name]
        folds = [int(k) for k in options.folds.split(",") if k]
        try:
            failed = [entry for n in names for entry in run_experiment(known[n], options.output_dir, methods, folds)]
        except SettingsChangedError as error:
            raise SystemExit(str(error)) from error
        for entry in failed:
            print(f"failed: {entry}")
        return 1 if failed else 0
    if options.command == "write":
        collected = {name: collect(experiment, options.output_dir) for name, experiment in known.items()}
        found = {name: entry for name, entry in collected.items() if entry is not None}
        if not found:
            raise SystemExit(f"{options.output_dir} holds no finished fold of {', '.join(known)}")
        before = read(options.docs / RESULTS)
        merged = before | {name: joined(before.get(name), e, known[name].methods) for name, e in found.items()}
        # In the order of the experiments; what is no experiment any more goes.
        merged = {name: {**merged[name], **describe(known[name])} for name in known if name in merged}
        text = json.dumps(merged, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_text_atomically(options.docs / RESULTS, text)
        print(f"{RESULTS}: {', '.join(found)}")
    text = rendered(options.docs, options.experiments)
    if options.command == "render" and options.check:
        fresh = (options.docs / PAGE).is_file() and (options.docs / PAGE).read_text(encoding="utf-8") == text
        print(f"{PAGE} is " + ("fresh" if fresh else "not what render writes: run python scripts/results.py render"))
        return 0 if fresh else 1
    print(f"wrote {write_text_atomically(options.docs / PAGE, text)}")
    return 0


def rendered(docs: Path, folder: Path = FOLDER) -> str:
    """The page from ``results.json`` and ``results_notes.md`` in `docs` and the targets in `folder`."""
    notes = (docs / NOTES).read_text(encoding="utf-8") if (docs / NOTES).is_file() else ""
    return page(read(docs / RESULTS), read(folder / TARGETS) or [], notes)


if __name__ == "__main__":
    sys.exit(main())
