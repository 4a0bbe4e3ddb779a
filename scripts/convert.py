"""Turn scans of any readable format into OME-Zarr stores that are read chunk by chunk.

Run it again after an interruption: finished stores are kept. Give a folder, scans, or one CSV (with its image column);
for a CSV a copy that names the stores is written beside them, or to --table. Ends with status 1 if a scan failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from typing import Any

from cpic_monai.cohorts import find_scans
from cpic_monai.volumes.convert import SUFFIX, Settings, convert_scans, convert_table, store_folder, store_place
from cpic_monai.volumes.store_access import is_url
from cpic_monai.volumes.write_chunked import DEFAULT_LEVELS, chunk_edge


def _storage(text: str) -> dict[str, Any]:
    """Settings of a key-value store."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object such as {{"aws_region": "eu-central-1"}}')
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="a folder (searched to any depth), scans, or one .csv or .tsv")
    parser.add_argument("--output", required=True, help="folder, or s3:// or gs:// URL, that the stores are written to")
    parser.add_argument("--storage", type=_storage, help="settings of the store of --output, as JSON: region, endpoint")
    parser.add_argument("--table", help="of a CSV: file for its copy; needed if --output is an s3:// or gs:// URL")
    parser.add_argument("--image_column", nargs="+", default=["image"], help="of a CSV; several for several channels")
    parser.add_argument("--patch_size", type=int, default=9, help="voxels of a patch's edge; sets the chunks (9: 32)")
    parser.add_argument("--levels", type=int, default=DEFAULT_LEVELS, help="most levels of the pyramid; 1: the scan")
    parser.add_argument("--workers", type=int, default=1, help="scans converted at a time")
    parser.add_argument("--overwrite", action="store_true", help="replace stores, also finished ones")
    parser.add_argument("--verify", action="store_true", help="read every store back and compare checksums")
    parser.add_argument("--resample_gaps", action="store_true", help="DICOM: interpolate where slice gaps vary")
    parser.add_argument("--allow_tilt", action="store_true", help="DICOM: accept a gantry tilt, under a sheared affine")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if min(given.patch_size, given.levels, given.workers) < 1:
        parser.error("--patch_size, --levels and --workers must be 1 or more")
    options = {"resample_gaps": given.resample_gaps, "allow_tilt": given.allow_tilt}
    settings = Settings(given.patch_size, given.levels, given.overwrite, given.verify, options, given.storage)
    tables = [s for s in given.sources if s.lower().endswith((".csv", ".tsv"))]
    if tables and len(given.sources) > 1:
        parser.error("give one table, or folders and scans")
    if given.table and not tables:
        parser.error(f"--table {given.table}: is for the copy of a CSV, and the sources are none")
    try:
        output = store_folder(given.output, given.storage)
    except ValueError as error:
        parser.error(f"--output {error}")
    if tables and not given.table and is_url(output):
        parser.error(f"--output {output} is a URL: name a local file for the copy of {tables[0]} with --table")
    try:
        if tables:
            copy, done = convert_table(tables[0], given.image_column, output, settings, given.workers, copy=given.table)
            print(f"table: {copy}")
        else:
            scans = find_scans(given.sources, stores_of=None if is_url(output) else output)
            pairs = {store_place(output, f"{name}{SUFFIX}"): str(path) for name, path in scans.items()}
            done = convert_scans(pairs, settings, given.workers)
    except (FileNotFoundError, ValueError) as error:  # of the sources as a whole: scans that fail are listed below
        parser.error(str(error))
    counts = Counter(conversion.status for conversion in done)
    print(f"{output}: {counts['written']} written, {counts['kept']} kept, {counts['failed']} failed; "
          f"chunks of {chunk_edge(given.patch_size)} voxels")  # fmt: skip
    for conversion in done:
        if conversion.status == "failed":
            print(f"failed: {conversion.source}: {conversion.reason}", file=sys.stderr)
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # how many files were found and passed over
    sys.exit(main())
