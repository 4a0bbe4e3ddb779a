"""Turn scans of any readable format into OME-Zarr stores that are read chunk by chunk.

Run it again after an interruption: finished stores are kept. Give a folder, scans, or one CSV (with its image column);
for a CSV a copy that names the stores is written beside them. Ends with status 1 if a scan failed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from cpic_monai.cohorts import find_scans
from cpic_monai.volumes.convert import SUFFIX, Settings, convert_scans, convert_table
from cpic_monai.volumes.write_chunked import DEFAULT_LEVELS, chunk_edge


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="a folder (searched to any depth), scans, or one .csv or .tsv")
    parser.add_argument("--output", type=Path, required=True, help="folder that the stores are written to")
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
    settings = Settings(given.patch_size, given.levels, given.overwrite, given.verify, options)
    tables = [s for s in given.sources if s.lower().endswith((".csv", ".tsv"))]
    if tables and len(given.sources) > 1:
        parser.error("give one table, or folders and scans")
    output = given.output.expanduser().resolve()
    if tables:
        copy, done = convert_table(tables[0], given.image_column, output, settings, given.workers)
        print(f"table: {copy}")
    else:
        scans = find_scans(given.sources)
        pairs = {str(output / f"{name}{SUFFIX}"): str(path) for name, path in scans.items()}
        done = convert_scans(pairs, settings, given.workers)
    counts = Counter(conversion.status for conversion in done)
    print(f"{output}: {counts['written']} written, {counts['kept']} kept, {counts['failed']} failed; "
          f"chunks of {chunk_edge(given.patch_size)} voxels")  # fmt: skip
    for conversion in done:
        if conversion.status == "failed":
            print(f"failed: {conversion.source}: {conversion.reason}", file=sys.stderr)
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
