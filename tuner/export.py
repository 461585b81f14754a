"""What others read: `triton.Config` lists, the lookup file that kernels load, Kernel Tuner cache, T4."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from einsight.kernels.catalog import KERNELS
from einsight.kernels.lookup import Entry, Lookup
from einsight.tuner.record import Measurement
from einsight.tuner.recorded import from_measurements, to_kernel_tuner, to_t4, triton_configs
from einsight.tuner.store import ranked

KINDS = ("triton", "lookup", "t4", "kernel-tuner")
TRITON_TOP = 8  # how many configurations a `triton.Config` list keeps


class ExportError(ValueError):
    """What was measured cannot be written as asked."""


def export(
    measurements: Sequence[Measurement], kind: str, path: Path, order: Sequence[Measurement] | None = None
) -> None:
    """Write measurements of one subject in one of KINDS. A lookup that exists keeps its other entries.

    order   the successful ones, the best first, where something else than their times decides it (a race)
    """
    order = ranked(measurements) if order is None else order
    if not order:
        raise ExportError(f"{path}: nothing to export, no configuration has a time")
    if kind == "triton":
        text = triton_configs([m.configuration for m in order[:TRITON_TOP]], order[0].kernel in KERNELS)
    elif kind == "lookup":
        return write_lookup(path, order[0].kernel, [entry_of(order[0])])
    elif kind in KINDS:
        recorded = from_measurements(path.stem, measurements)
        text = json.dumps(to_t4(recorded) if kind == "t4" else to_kernel_tuner(recorded), indent=1) + "\n"
    else:
        raise ExportError(f"--as: got {kind!r}, expected one of {', '.join(KINDS)}")
    write(path, text)


def write_lookup(path: Path, kernel: str, entries: Iterable[Entry]) -> None:
    """Add entries to a lookup file of the kernel. Raises LookupFileError for a file that is none, ExportError for another
    kernel's."""
    lookup = Lookup.read(path) if path.exists() else Lookup(kernel, ())
    if lookup.kernel != kernel:
        raise ExportError(f"{path}: is the lookup file of {lookup.kernel}, expected one of {kernel} or a new file")
    for entry in entries:
        lookup = lookup.with_entry(entry)
    write(path, json.dumps(lookup.as_json(), indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def entry_of(best: Measurement) -> Entry:
    return Entry(
        best.environment.device, dict(best.workload), dict(best.configuration), best.time_s, best.source_hash,
    )  # fmt: skip

