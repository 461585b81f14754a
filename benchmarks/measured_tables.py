"""The folder of measured tables that a benchmark is given: the first argument, EINSIGHT_REFERENCE, or beside the checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", ROOT.parent / "shared" / "reference")) / "measured"


def given_files() -> list[Path]:
    """Its .csv and .csv.gz files, sorted. Ends the program with code 2 and a message where there are none."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCE
    files = sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")])
    if not files:
        print(f"{folder}: no measured tables; name a folder, or set EINSIGHT_REFERENCE", file=sys.stderr)
        sys.exit(2)
    return files
