"""Measured cases beside what the model predicts for them, row by row, joined by kernel, framework and device strings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from einsight.reports.measured import Flags, Measured, Numbers, Places, Text, group_ids
from einsight.reports.outliers import set_aside
from einsight.sim.family import Family, load_family
from einsight.sim.hardware import DTYPE_BYTES, Gpu, find_device, load_gpu
from einsight.sim.kernel_names import (
    acting_phases,
    chunks,
    family_for,
    framework_name,
    known_kernels,
    reads_fresh,
    value_dims,
    windows,
)
from einsight.sim.rows import Rows, predicted
from einsight.sim.workload import element_type

SHORT_MS = 0.015
"""Below this a time is launch noise: the rows are counted and reported apart."""
OUTPUT_BYTES = 2.0
NAME = np.dtype("<U64")


@dataclass(frozen=True, slots=True)
class Unpredicted:
    """Rows that no model covers: why, and how many."""

    reason: str
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Measured rows and, in columns of the same length, what was predicted for them.

    family     "" where nothing was predicted; the times are NaN there
    low_s, high_s   ends of the 90 % interval
    roofline_s the larger of matmul FLOPs over peak and bytes over bandwidth
    bound      the resource that alone would need the most time
    set_aside  noise, by the rule of `outliers`
    notes      where the constants come from
    """

    measured: Measured
    target: Text
    family: Text
    predicted_s: Numbers
    low_s: Numbers
    high_s: Numbers
    roofline_s: Numbers
    bound: Text
    set_aside: Flags
    unpredicted: tuple[Unpredicted, ...]
    notes: tuple[str, ...]

    @property
    def measured_s(self) -> Numbers:
        return self.measured.latency_ms * 1e-3

    @property
    def known(self) -> Flags:
        """Rows with a prediction."""
        return np.asarray(self.family != "")

    @property
    def short(self) -> Flags:
        return self.measured.latency_ms < SHORT_MS

    @property
    def judged(self) -> Flags:
        """Rows that the means are over: predicted, long enough, not set aside."""
        return self.known & ~self.short & ~self.set_aside

    def take(self, index: Flags | Places) -> Comparison:
        """The rows at `index`; what was set aside stays so."""
        return Comparison(
            self.measured.take(index), self.target[index], self.family[index], self.predicted_s[index], self.low_s[index],
            self.high_s[index], self.roofline_s[index], self.bound[index], self.set_aside[index], self.unpredicted, self.notes,
        )  # fmt: skip


def compare(
    measured: Measured, target: str | None = None, family: str | None = None, families: Callable[[str], Family] = load_family
) -> Comparison:
    """Predicts every row that the tables of devices and kernels cover.

    target    profile for all rows ("h200-sxm"), whatever their device says
    family    family for all rows, whatever their kernel says
    families  where families come from; a fit that leaves a device out gives its own
    Raises SpecError for an unknown target or family.
    """
    n = len(measured)
    times, low, high, roofline = (np.full(n, np.nan) for _ in range(4))
    names = {what: np.full(n, "", dtype=NAME) for what in ("target", "family", "bound")}
    unpredicted: dict[str, int] = {}
    notes: dict[str, None] = {}
    for part in parts(measured, target, family):
        index, some, gpu = part.index, measured.take(part.index), part.gpu
        rows = rows_of(some)
        types = str(rows.dtype[0]), str(rows.read_dtype[0])
        why = part.why or (gpu is not None and families(part.family).why_unusable(gpu, *types)) or ""
        if why or gpu is None:
            unpredicted[why] = unpredicted.get(why, 0) + len(index)
            continue
        framework = framework_name(str(some.framework[0]))
        found = predicted(rows, gpu, families(part.family), part.phase, framework)
        times[index], low[index], high[index] = found.time_s, found.low_s, found.high_s
        roofline[index] = plain_roofline_s(rows, gpu)
        names["target"][index], names["bound"][index] = gpu.name, found.bound
        names["family"][index] = families(part.family).name
        notes |= dict.fromkeys(found.notes)
    return Comparison(
        measured, names["target"], names["family"], times, low, high, roofline, names["bound"], set_aside(measured),
        tuple(Unpredicted(*item) for item in unpredicted.items()), tuple(notes),
    )  # fmt: skip


def rows_of(measured: Measured) -> Rows:
    """The columns in the model's words; every row of one framework, kernel and phase."""
    framework = str(measured.framework[0]) if len(measured) else ""
    kernel, phase = (str(c[0]) if len(measured) else "" for c in (measured.kernel, measured.phase))
    window = windows(kernel, framework, phase, measured.head_dim, measured.window)
    chunk = chunks(kernel, framework, phase, measured.head_dim, measured.window)
    dtype, kv_dtype = (_element_types(column) for column in (measured.dtype, measured.kv_dtype))
    return Rows(
        measured.batch, measured.seq_q, measured.seq_kv, measured.heads_q, measured.heads_kv, measured.head_dim,
        value_dims(framework, measured.head_dim), window, chunk,
        dtype, kv_dtype, dtype if reads_fresh(kernel, framework, phase) else kv_dtype,
    )  # fmt: skip


def plain_roofline_s(rows: Rows, gpu: Gpu) -> Numbers:
    """max(matmul FLOPs / peak, bytes / bandwidth) in seconds: the datasheet's peaks, each operand moved once, no launch.

    FLOPs are 2 per multiply-accumulate at the pairs that the causal mask and the window leave.
    Williams, Waterman, Patterson 2009.
    """
    query_heads = rows.batch * rows.heads_q
    pairs, keys = live_pairs(rows.seq_q, rows.seq_kv, rows.window), _keys_read(rows)
    flops = 2.0 * query_heads * pairs * (rows.head_dim + rows.value_dim)
    wide, stored = (_per_type(column, DTYPE_BYTES) for column in (rows.dtype, rows.kv_dtype))
    moved = query_heads * rows.seq_q * (rows.head_dim * wide + rows.value_dim * OUTPUT_BYTES)
    moved = moved + rows.batch * rows.heads_kv * keys * (rows.head_dim + rows.value_dim) * stored
    peaks = {d: gpu.peak_flops_per_s[d].value if d in gpu.peak_flops_per_s else gpu.tensor_flops_per_s(d)
             for d in np.unique(rows.dtype).tolist()}  # fmt: skip
    found: Numbers = np.maximum(flops / _per_type(rows.dtype, peaks), moved / gpu.hbm_bytes_per_s.value)
    return found


def live_pairs(seq_q: Numbers, seq_kv: Numbers, window: Numbers) -> Numbers:
    """Query-key pairs of one head under causality, the last query at the last key, and a window (0: none).

    The query at position x sees min(x, W) keys; x runs from N - M + 1 to N.
    """
    width = np.where(window > 0, window, seq_kv)
    before = seq_kv - seq_q

    def seen_up_to(x: Numbers) -> Numbers:
        inside = np.minimum(x, width)
        return inside * (inside + 1.0) / 2.0 + width * (x - inside)

    return seen_up_to(seq_kv) - seen_up_to(before)


def _keys_read(rows: Rows) -> Numbers:
    reach = rows.window + rows.seq_q - 1.0
    return np.where(rows.window > 0, np.minimum(rows.seq_kv, reach), rows.seq_kv)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows with one device, framework, kernel, phase, pair of dtypes and family; `why` says why there is no prediction.

    phase  of the kernel that ran: the table's, but for single tokens of frameworks that know no other decode
    """

    index: Places
    gpu: Gpu | None = None
    family: str = ""
    why: str = ""
    phase: str = ""


def parts(measured: Measured, target: str | None = None, family: str | None = None) -> Iterator[Part]:
    """Every row once, joined by the tables of devices and kernels or by the target and family given."""
    columns = ("device", "framework", "kernel", "phase", "dtype", "kv_dtype")
    phases = acting_phases(measured.framework, measured.phase, measured.seq_q)
    _, number = group_ids([phases if name == "phase" else measured.column(name) for name in columns])
    order = np.argsort(number, kind="stable")
    for index in np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else ():
        first = {name: str(measured.column(name)[index[0]]) for name in columns} | {"phase": str(phases[index[0]])}
        unknown = [f"{name} '{first[name]}'" for name in ("dtype", "kv_dtype") if element_type(first[name]) is None]
        gpu = _gpu(first["device"], target)
        if unknown or gpu is None:
            device = f"device '{first['device']}' stands in no profile; --target names one for it"
            yield Part(index, why=device if gpu is None else f"{' and '.join(unknown)}: no element type of ours")
            continue
        some = measured.take(index)
        named = np.full(len(index), family or "", dtype=NAME)
        if family is None:
            sizes = some.heads_q, some.heads_kv, some.head_dim, some.batch, some.seq_kv
            cached = str(element_type(first["kv_dtype"]))
            named = family_for(first["kernel"], first["framework"], first["phase"], gpu, *sizes, cached)
        for name in np.unique(named).tolist():
            yield Part(index[named == name], gpu, name, "" if name else _unknown_kernel(first, gpu), first["phase"])


def _unknown_kernel(first: dict[str, str], gpu: Gpu) -> str:
    known = "known, but not there" if first["kernel"].strip().lower() in known_kernels() else "unknown"
    return (
        f"kernel '{first['kernel']}' of {framework_name(first['framework'])} for {first['phase']} on {gpu.name}: {known}; "
        "--family names a family for it"
    )


def _gpu(device: str, target: str | None) -> Gpu | None:
    name = target or find_device(device)
    return load_gpu(name) if name else None


def _element_types(column: Text) -> Text:
    out = np.full(len(column), "", dtype=NAME)
    for text in np.unique(column).tolist():
        out[column == text] = element_type(text) or ""
    return out


def _per_type(column: Text, values: Mapping[str, float]) -> Numbers:
    out = np.empty(len(column))
    for text in np.unique(column).tolist():
        out[column == text] = values[text]
    return out


def beside(compared: Comparison) -> dict[str, list[str]]:
    """The columns that a comparison adds to its rows, as text; empty where nothing was predicted."""

    def ms(seconds: Numbers) -> list[str]:
        return ["" if np.isnan(s) else f"{1e3 * s:.7g}" for s in seconds.tolist()]

    return {
        "predicted_ms": ms(compared.predicted_s), "low_ms": ms(compared.low_s), "high_ms": ms(compared.high_s),
        "family": compared.family.tolist(), "bound": compared.bound.tolist(),
        "set_aside": ["1" if aside else "0" for aside in compared.set_aside.tolist()],
    }  # fmt: skip
