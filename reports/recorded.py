"""Lines of our own record store as rows of a measured table: the fastest build of each kernel on each problem."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from einsight.reports.measured import COLUMNS, TEXTS, Column, Measured
from einsight.sim.workload import element_type
from einsight.tuner.record import Measurement, Status, read

FRAMEWORK = "einsight"
SIZES = {"batch": "b", "seq_q": "m", "seq_kv": "n", "heads_q": "h", "heads_kv": "g", "head_dim": "e"}


def read_records(path: Path) -> tuple[Measured, dict[str, int]]:
    """(rows, reason and number of the lines that are no such rows). Raises RecordError."""
    fastest: dict[tuple[Any, ...], float] = {}
    left_out: dict[str, int] = {}
    for line in read(path):
        why = why_no_row(line)
        if why:
            left_out[why] = left_out.get(why, 0) + 1
            continue
        row = _row(line)
        fastest[row] = min(fastest.get(row, np.inf), 1e3 * line.time_s)
    columns = list(zip(*((*row, ms) for row, ms in fastest.items()), strict=True)) or [()] * len(COLUMNS)
    made: dict[str, Column] = {
        name: np.array(values, dtype=np.str_ if name in TEXTS else np.float64)
        for name, values in zip(COLUMNS, columns, strict=True)
    }
    return Measured(**made), left_out


def why_no_row(line: Measurement) -> str | None:
    """What a measured table cannot say about this measurement, or None."""
    told = line.workload
    if line.status is not Status.OK:
        return f"record: status {line.status.value}"
    if line.cache != "warm":
        return "record: cold caches; tables are of repeated, warm measurements"
    if not isinstance(told.get("sizes"), Mapping) or not set(SIZES.values()) <= set(told["sizes"]):
        return "record: no attention sizes"
    if told.get("bias") or "align" in told:
        return "record: a bias, or a mask aligned to the first key, has no column"
    if told["sizes"].get("f", told["sizes"]["e"]) != told["sizes"]["e"]:
        return "record: values of another width than keys have no column"
    mask = told.get("mask", [])
    causal = "causal" in mask or told["sizes"]["m"] == 1
    if not causal or any(m != "causal" and set(m) != {"window"} for m in mask):
        return "record: only causal masks and windows have a column"
    return None if element_type(str(told.get("dtype"))) else "record: element types by tensor have no column"


def _row(line: Measurement) -> tuple[Any, ...]:
    told = line.workload
    sizes = [told["sizes"][SIZES[name]] for name in SIZES]
    window = next((m["window"] for m in told.get("mask", []) if m != "causal"), 0)
    named = (line.environment.device, FRAMEWORK, line.kernel, told.get("phase", "prefill"))
    return (*named, *sizes, str(told["dtype"]), str(told["dtype"]), window)
