"""Many measured-like cases at once: columns in, times out, through the same estimate as `predict`.

Rows that share what the model's shape depends on (dtypes, window, whether keys and values are equally wide) are one
vectorised call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from einsight.einsum import library
from einsight.einsum.compose import compose
from einsight.sim.estimate import Estimate, estimate
from einsight.sim.family import Family
from einsight.sim.hardware import DTYPE_BYTES, Gpu
from einsight.sim.interval import ends, limiting
from einsight.sim.mask import Blocks, Causal, Mask, Restriction, Window
from einsight.sim.plan import Plan, plan
from einsight.sim.schedule import Array

CASCADE = "one_pass"
"""The cascade that the fused softmax kernels of the measured tables implement."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Attention cases as columns of one length. Causal, the last query at the last key; `window` 0 means none.

    chunk   length of the chunks that attend to themselves alone, in place of the window; 0 means none
    kv_dtype, read_dtype  of the cache that holds the keys and of what the kernel reads: not the same where a prefill takes
                          them as they were computed
    """

    batch: Array
    seq_q: Array
    seq_kv: Array
    heads_q: Array
    heads_kv: Array
    head_dim: Array
    value_dim: Array
    window: Array
    chunk: Array
    dtype: NDArray[np.str_]
    kv_dtype: NDArray[np.str_]
    read_dtype: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.batch)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Rows:
        """The rows at `index`."""
        return Rows(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def groups(rows: Rows) -> Iterator[tuple[Plan, Mask, NDArray[np.int64]]]:
    """(plan inputs, mask, positions) of every set of rows that one estimate can take."""
    shape = np.stack([
        np.unique(rows.dtype, return_inverse=True)[1], np.unique(rows.kv_dtype, return_inverse=True)[1],
        np.unique(rows.read_dtype, return_inverse=True)[1],
        rows.window.astype(np.int64), rows.chunk.astype(np.int64), rows.chunk < rows.seq_kv, rows.value_dim != rows.head_dim,
        rows.seq_q > 1,
    ], axis=1)  # fmt: skip
    _, inverse = np.unique(shape, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    for index in np.split(order, np.flatnonzero(np.diff(inverse.ravel()[order])) + 1):
        first = index[0]
        kept: list[Restriction] = [Causal()] if rows.seq_q[first] > 1 else []  # the last query sees every key
        if rows.window[first] > 0 and not rows.chunk[first]:
            kept.append(Window(int(rows.window[first])))
        if 0 < rows.chunk[first] < rows.seq_kv[first]:
            kept.append(_chunks(int(rows.chunk[first]), int(rows.seq_kv[index].max())))
        dtypes = (str(column[first]) for column in (rows.dtype, rows.kv_dtype, rows.read_dtype))
        yield attention_plan(*dtypes), Mask(tuple(kept)), index


def _chunks(size: int, keys: int) -> Blocks:
    """The blocks on the diagonal of up to `keys` keys."""
    return Blocks(size, keep=tuple((i, i) for i in range(-(-keys // size))))


@lru_cache(maxsize=64)
def attention_plan(dtype: str, kv_dtype: str, read_dtype: str) -> Plan:
    """The fused plan of softmax attention with these element types: of queries, of the cache, of the keys as read."""
    made = plan(compose(library.load(CASCADE)), True, {"K": read_dtype, "V": read_dtype, "Q": dtype}, dtype)
    return made if read_dtype == kv_dtype else replace(made, kv_dtype=kv_dtype, stored=DTYPE_BYTES[kv_dtype])


def sizes_of(rows: Rows) -> dict[str, Array]:
    """Rank sizes of every row by upper-case name."""
    return {
        "B": rows.batch, "G": rows.heads_kv, "J": rows.heads_q / rows.heads_kv, "M": rows.seq_q, "N": rows.seq_kv,
        "E": rows.head_dim, "F": rows.value_dim,
    }  # fmt: skip


def estimates(
    rows: Rows, gpu: Gpu, family: Family, warm: bool = True
) -> Iterator[tuple[NDArray[np.int64], Estimate]]:
    """(positions, estimate) per group of rows; warm, because measured tables replay the same buffers."""
    for made, mask, index in groups(rows):
        yield index, estimate(made, mask, sizes_of(rows.take(index)), warm, gpu, family)


def times(rows: Rows, gpu: Gpu, family: Family, warm: bool = True) -> Array:
    """Predicted seconds of every row."""
    out = np.empty(len(rows))
    for index, found in estimates(rows, gpu, family, warm):
        out[index] = found.time_s
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """Seconds of every row with the 90 % interval, the resource that limits it, and where the constants come from."""

    time_s: Array
    low_s: Array
    high_s: Array
    bound: NDArray[np.str_]
    notes: tuple[str, ...]


def predicted(rows: Rows, gpu: Gpu, family: Family, phase: str, framework: str = "", warm: bool = True) -> Predicted:
    """Every row under `family` with the constants fitted nearest to the device, the dtypes and the framework."""
    n = len(rows)
    time, low, high = np.empty(n), np.empty(n), np.empty(n)
    bound, notes = np.full(n, "", dtype="<U24"), dict[str, None]()
    for made, mask, index in groups(rows):
        fitted, note = family.on(gpu, phase, made.dtype, made.kv_dtype, framework)
        found = estimate(made, mask, sizes_of(rows.take(index)), warm, gpu, fitted)
        time[index], (low[index], high[index]) = found.time_s, ends(found, fitted)
        bound[index] = limiting(found)
        notes |= dict.fromkeys([note] if note else [])
    return Predicted(time, low, high, bound, tuple(notes))
