"""A serving framework's own kernels around an attention kernel: they write the cache and bring queries into order."""

from __future__ import annotations

from functools import reduce

import numpy as np

from einsight.einsum.ir import Tensor
from einsight.sim.cases import Cases, tile_ones
from einsight.sim.family import Family
from einsight.sim.hardware import Gpu
from einsight.sim.schedule import ONE, ZERO, Array
from einsight.sim.traffic import OUTER, Cache, elements
from einsight.sim.work import KEY, QUERY, KernelWork

WRITER_THREADS = 512.0
"""Most threads of a cache writer's block; it has one per element of a token's keys below that."""


def copied_bytes(work: KernelWork, cases: Cases, family: Family) -> Array:
    """Bytes that a framework's own kernels move around the attention kernel: they read 16-bit activations and write them
    as the cache keeps them."""
    new = np.minimum(cases.sizes[QUERY] / cases.sizes[KEY], 1.0)  # of the keys, those that this call adds
    if work.grid == "column":
        return ZERO
    kept = {t.name: cases.widths[t.name] if cases.stored is None else cases.stored for t in cached(work)}
    keys = sum((elements(t, cases.sizes) * new * (2.0 + kept[t.name]) for t in cached(work)), ZERO)
    rows = sum((elements(t, cases.sizes) * (2.0 + cases.widths[t.name]) for t in work.residents if QUERY in t.ranks), ZERO)
    more = family.constant("uneven_copy") if uneven(work, cases) else 0.0
    return (family.constant("kv_copy") + more) * keys + family.constant("q_copy") * rows


def copy_seconds(work: KernelWork, cases: Cases, gpu: Gpu, family: Family) -> Array:
    """Seconds of those kernels: from and to L2 while that holds the bytes, else HBM, and a writer's threads."""
    moved = copied_bytes(work, cases, family)
    near = gpu.architecture.l2_bytes_per_cycle.value * gpu.sms.value * gpu.boost_hz.value
    if work.grid == "column":
        return ZERO
    threads = np.minimum(cases.sizes["G"] * head_width(work, cases), WRITER_THREADS) * cases.sizes["B"] * cases.sizes[QUERY]
    writer = family.constant("token_cycles") * threads / (gpu.sms.value * gpu.boost_hz.value)
    miss = np.where(cases.warm, Cache(gpu.l2_bytes.value, family.constant("l2_usable")).miss(moved), 1.0)
    return writer + moved * ((1.0 - miss) / near + miss / (gpu.hbm_bytes_per_s.value * family.constant("hbm_fraction")))


def cached(work: KernelWork) -> list[Tensor]:
    """Streamed tensors that a serving framework keeps in a cache: one row per key, KV head and sequence. Factors and points of
    a bias are none, and a kernel that holds keys and walks queries has no cache."""
    streamed = dict.fromkeys(t for s in work.sweeps for t in s.streams if QUERY not in t.ranks)
    return [t for t in streamed if work.grid != "column" and tuple(r for r in t.ranks if r in OUTER) == ("B", "G")]


def head_width(work: KernelWork, cases: Cases) -> Array:
    """Elements of one key, the widest cached tensor's."""
    return reduce(np.maximum, (elements(t, {**tile_ones(cases), KEY: ONE}) for t in cached(work)), ONE)


def uneven(work: KernelWork, cases: Cases) -> bool:
    """Whether a key's streamed tensors (K and V) have different widths, so that one cache layout does not fit both."""
    ones = tile_ones(cases)
    return len({float(np.max(elements(t, ones))) for t in cached(work)}) > 1
