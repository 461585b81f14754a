"""Which measured rows are set aside, by a rule on the measurements alone: no prediction is ever asked.

A spike is a row more than SPIKE times above both its neighbours in the sequence length, everything else equal, or as
much below both. Time grows with the length, so a kernel does that by itself only where it changes its plan, and then
it does so for many shapes: a spike that any other shape repeats at the same length and head dimension is behaviour and
stays. What remains is noise (a clock that fell, a warm-up that was measured); at most SHARE of a table's rows go, the
largest first.
"""

from __future__ import annotations

import numpy as np

from einsight.reports.measured import Flags, Measured, Numbers, Places, group_ids

SPIKE = 1.5
SHARE = 0.01
SHAPE = ("device", "framework", "kernel", "phase", "dtype", "kv_dtype", "window", "batch", "heads_q", "heads_kv", "head_dim")
REPEATED_AT = ("device", "framework", "kernel", "phase", "head_dim", "seq_kv")
TABLE = ("device", "framework", "phase")

RULE = (
    f"more than {SPIKE:g}x above or below both neighbours in sequence length, all else equal, and no other shape of the "
    f"same kernel, head dimension and length shows the same; at most {100 * SHARE:g} % of a (device, framework, phase) table"
)


def set_aside(measured: Measured) -> Flags:
    """The rows that the rule takes out."""
    deviation = spikes(measured)
    found = np.abs(deviation) > np.log(SPIKE)
    return _at_most(measured, found & ~_repeated(measured, found, deviation), np.abs(deviation))


def spikes(measured: Measured) -> Numbers:
    """log(row / higher neighbour) where it is above both, log(row / lower neighbour) where below both, else 0."""
    out = np.zeros(len(measured))
    if len(measured) < 3:
        return out
    line = _lines(measured)
    order = np.lexsort((measured.seq_kv, line))
    time, line = np.log(measured.latency_ms[order]), line[order]
    higher, lower = np.maximum(time[:-2], time[2:]), np.minimum(time[:-2], time[2:])
    between = (line[:-2] == line[1:-1]) & (line[1:-1] == line[2:])
    middle = time[1:-1]
    out[order[1:-1]] = np.where(between, np.maximum(middle - higher, 0.0) + np.minimum(middle - lower, 0.0), 0.0)
    return out


def _lines(measured: Measured) -> Places:
    """Rows that differ in length only; where queries and keys are equally many, both are the length."""
    square = (measured.phase == "prefill") & (measured.seq_q == measured.seq_kv)
    columns = [measured.column(name) for name in SHAPE]
    return group_ids([*columns, np.where(square, 0.0, measured.seq_q)])[1]


def _repeated(measured: Measured, found: Flags, deviation: Numbers) -> Flags:
    """Spikes that another shape shows too, in the same direction."""
    out = np.zeros(len(measured), dtype=bool)
    where = np.flatnonzero(found)
    if not len(where):
        return out
    among = measured.take(where)
    _, place = group_ids([*(among.column(name) for name in REPEATED_AT), np.sign(deviation[where])])
    out[where] = np.bincount(place)[place] > 1
    return out


def _at_most(measured: Measured, found: Flags, size: Numbers) -> Flags:
    """The largest SHARE of each table, rounded up to a whole row."""
    _, table = group_ids([measured.column(name) for name in TABLE])
    allowed = np.ceil(SHARE * np.bincount(table))
    where = np.flatnonzero(found)
    where = where[np.lexsort((-size[where], table[where]))]
    begins = np.searchsorted(table[where], table[where], side="left")
    keep = where[np.arange(len(where)) - begins < allowed[table[where]]]
    out = np.zeros(len(measured), dtype=bool)
    out[keep] = True
    return out
