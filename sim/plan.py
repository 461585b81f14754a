"""A workload on a family, before any hardware: its kernels, the bytes of its elements, what a mask costs per score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np

from einsight.einsum.counts import Counts, count
from einsight.einsum.expression import OPERATORS, Apply, variables, walk
from einsight.einsum.ir import Cascade, Tensor
from einsight.einsum.passes import PassAnalysis, analyse
from einsight.einsum.resolve import resolve
from einsight.sim.columns import HEADS_OF_A_KEY, kernels
from einsight.sim.hardware import DTYPE_BYTES, Architecture
from einsight.sim.mask import Mask
from einsight.sim.mask_predicate import predicate
from einsight.sim.schedule import ONE, ZERO, Array
from einsight.sim.traffic import OUTER, elements
from einsight.sim.work import KEY, QUERY, KernelWork, walks


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What the models need of one workload, sizes aside.

    widths  bytes per element of every tensor
    dtype, kv_dtype  of the arithmetic (the widest operand's) and of the narrowest tensor that streams by key
    pairs   Einsums that walk queries and keys: a mask thins them out
    stored  bytes per element of the cache that new keys are written to, where the kernel does not read them from there
    """

    cascade: Cascade
    works: tuple[KernelWork, ...]
    counts: Counts
    passes: PassAnalysis
    widths: Mapping[str, float]
    dtype: str
    kv_dtype: str
    pairs: frozenset[str]
    stored: float | None = None

    @property
    def main(self) -> KernelWork:
        """The last kernel, which walks queries and keys: its tile is the mapping's."""
        return self.works[-1]

    @property
    def splittable(self) -> bool:
        """One sweep over the keys, whose running state can be merged; more sweeps would need a grid-wide barrier. Blocks
        that hold keys are enough of themselves, and the chunks of a recurrence wait for each other."""
        return len(self.main.sweeps) == 1 and self.main.grid == "query"


def plan(cascade: Cascade, fused: bool, dtypes: Mapping[str, str], default: str) -> Plan:
    """The plan of a composed, unmasked cascade. `dtypes`: element types by input tensor, `default` for the rest."""
    resolved = resolve(cascade)
    names = {t.name for t in (*resolved.inputs, *resolved.outputs)} | {e.name for e in resolved.einsums}
    widths = {name: DTYPE_BYTES[dtypes.get(name, default)] for name in names}
    operands = {a.tensor for e in resolved.einsums for a in e.reads if _in_matmul(resolved, e.name)}
    used = [dtypes.get(t.name, default) for t in resolved.inputs if t.name in operands]
    dtype = max(used or [default], key=lambda d: DTYPE_BYTES[d])
    keyed = [dtypes.get(t.name, default) for t in resolved.inputs if KEY in t.ranks and t.name in operands]
    narrow = min(keyed or [dtype], key=lambda d: DTYPE_BYTES[d])
    pairs = frozenset(e.name for e in resolved.einsums if walks(resolved, e, QUERY) and walks(resolved, e, KEY))
    return Plan(resolved, kernels(resolved, fused), count(resolved), analyse(resolved, KEY), widths, dtype, narrow, pairs)


def _in_matmul(cascade: Cascade, einsum: str) -> bool:
    return any(c.matmul for c in count(cascade) if c.einsum == einsum)


def row_bytes(plan: Plan, sizes: Mapping[str, Array]) -> Array:
    """Bytes that one query row keeps on chip as operands of the main kernel."""
    kept = (t for t in plan.main.residents if QUERY in t.ranks)
    unit = _unit(sizes)
    return _sum(elements(t, unit) * plan.widths[t.name] for t in kept)


def key_bytes(plan: Plan, sizes: Mapping[str, Array]) -> Array:
    """Bytes that one key streams through shared memory in the widest sweep of the main kernel (0 without sweeps)."""
    unit = _unit(sizes)
    per_sweep = [
        _sum(elements(t, unit) * plan.widths[t.name] for t in s.streams if QUERY not in t.ranks)
        for s in plan.main.sweeps
    ]
    return reduce(np.maximum, per_sweep, ZERO)


def head_dim(plan: Plan, sizes: Mapping[str, Array]) -> Array:
    """The widest feature vector of a query or a key: what tile tables are indexed by."""
    unit = _unit(sizes)
    per_tensor = [elements(t, unit) for t in _vectors(plan)]
    return reduce(np.maximum, per_tensor, ONE)


@lru_cache(maxsize=512)
def _vectors(plan: Plan) -> tuple[Tensor, ...]:
    """Operands of the main kernel with one feature vector per query or key."""
    operands = dict.fromkeys((*plan.main.residents, *(t for s in plan.main.sweeps for t in s.streams)))
    return tuple(t for t in operands if len(_features(t)) == 1 and {QUERY, KEY} & set(t.ranks))


def _features(tensor: Tensor) -> list[str]:
    return [r for r in tensor.ranks if r not in OUTER and r not in (QUERY, KEY)]


POSITIONS = (*OUTER, HEADS_OF_A_KEY, QUERY, KEY, f"{QUERY}0", f"{QUERY}1", f"{KEY}0", f"{KEY}1")


def _unit(sizes: Mapping[str, Array]) -> dict[str, Array]:
    """Sizes of one query, one key and one head."""
    return {**sizes, **dict.fromkeys(POSITIONS, ONE)}


def mask_operations(mask: Mask, arch: Architecture) -> float:
    """fp32-pipe operations per score of a masked tile: the predicate's operators that depend on the key, the comparison
    with the end of the keys, and one select. The edge of a sliding window is applied in the same step as causality."""
    return sum(arch.operators[k].get("vector", 0.0) for k in (*_mask_classes(mask), "cmp", "select"))


@lru_cache(maxsize=1024)
def _mask_classes(mask: Mask) -> tuple[str, ...]:
    """Operator classes of the mask's predicate that are applied once per key."""
    where = predicate(mask if mask.gna or mask.blocks else Mask(tuple(r for r in mask.restrictions if r.kind == "causal")))
    applied = [n for n in walk(where) if isinstance(n, Apply) and KEY.lower() in variables(n)] if where else []
    return tuple(k for k in (OPERATORS[n.op].klass for n in applied) if k is not None)


def _sum(values: object) -> Array:
    total: Array = ZERO
    for value in values:  # type: ignore[attr-defined]
        total = total + value
    return total
