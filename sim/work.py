"""From a composed cascade to the work of its kernels: which Einsums one kernel runs, what one tile of it costs.

Nothing here knows an attention by name. A fused kernel keeps a tile of queries on chip and sweeps the keys: Einsums that
walk the key rank run once per tile, in as many sweeps as the cascade has passes; the others run once per block of rows.
Einsums that walk keys but no queries (the state of linear attention) form a kernel of their own, whose results reach
the others through memory. Unfused, every Einsum is a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from einsight.einsum.counts import Count, count
from einsight.einsum.expression import Apply, Expression, Symbol, variables
from einsight.einsum.formula import PointSet
from einsight.einsum.ir import Cascade, Einsum, Tensor
from einsight.einsum.passes import analyse
from einsight.einsum.resolve import resolve
from einsight.sim.schedule import ZERO, Array

QUERY, KEY = "M", "N"
"""The ranks of query and key positions (vocabulary of the design)."""


@dataclass(frozen=True, slots=True)
class Load:
    """Operations as a plain polynomial in the sizes, ready for arrays: sum of coefficient * product of sizes."""

    terms: tuple[tuple[float, tuple[str, ...]], ...]

    def at(self, sizes: Mapping[str, Array]) -> Array:
        """The number of operations at these sizes (arrays that broadcast)."""
        total: Array = ZERO
        for coefficient, symbols in self.terms:
            term: Array | float = coefficient
            for symbol in symbols:
                term = term * sizes[symbol]
            total = total + term
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """The operations of some Einsums: counts with their formulas, to be evaluated at the sizes of one tile or block."""

    counts: tuple[Count, ...]

    def matmul(self) -> Load:
        """Multiply-accumulates of matrix products."""
        return _matmul(self)

    def unit(self, costs: Costs, unit: str) -> Load:
        """Operations on `unit` of everything that is not a matrix product, by the operator costs of the target."""
        return _unit(self, costs, unit)


Costs = tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
"""Operator class -> unit -> operations, as a value that can be a cache key (see `costs_of`)."""


def costs_of(operators: Mapping[str, Mapping[str, float]]) -> Costs:
    """The operator table of an architecture as a value, the same object for the same table."""
    known = _COSTS.get(id(operators))
    if known is None or known[0] is not operators:
        known = operators, tuple((klass, tuple(units.items())) for klass, units in operators.items())
        _COSTS[id(operators)] = known
    return known[1]


_COSTS: dict[int, tuple[Mapping[str, Mapping[str, float]], Costs]] = {}
"""By identity, since tables cannot be hashed; each entry keeps its table alive, so no identity is used twice."""


@lru_cache(maxsize=4096)
def _matmul(share: Share) -> Load:
    return _load((c, 1.0) for c in share.counts if c.matmul)


@lru_cache(maxsize=4096)
def _unit(share: Share, costs: Costs, unit: str) -> Load:
    table = {klass: dict(units) for klass, units in costs}
    return _load((c, table[c.klass].get(unit, 0.0)) for c in share.counts if not c.matmul)


def _load(weighted: Iterable[tuple[Count, float]]) -> Load:
    terms: dict[tuple[str, ...], float] = {}
    for entry, weight in weighted:
        for monomial, coefficient in entry.formula.terms:
            symbols = tuple(sorted(s for f, power in monomial for _ in range(power) for s in _box(f)))
            terms[symbols] = terms.get(symbols, 0.0) + weight * coefficient
    return Load(tuple((c, symbols) for symbols, c in terms.items() if c))


def _box(factor: str | PointSet) -> tuple[str, ...]:
    """Sizes whose product a tile runs for the factor: a condition of the cascade's own leaves whole tiles to be computed."""
    if isinstance(factor, str):
        return (factor,)
    extents = dict(factor.ranges)
    return tuple(x.name if isinstance(x := extents[v], Symbol) else v.upper() for v in factor.kept)


@dataclass(frozen=True, slots=True, eq=False)
class Reuse:
    """How the products of a tile use operands where that is more than each streamed tensor in one of them.

    again      streamed tensors, once for every product that reads them after the first
    across     operands of products that sum over the rows that the block holds: a block keeps its rows apart in registers,
               so what it made of them passes through shared memory
    converted  score-sized results that become operands of products
    """

    again: tuple[Tensor, ...] = ()
    across: tuple[Tensor, ...] = ()
    converted: int = 1


ONCE = Reuse()


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """One traversal of the keys: what a tile computes, which tensors it streams in, which it writes, and to which it adds
    in memory because other blocks add to the same elements. `scored`: streamed tensors that results with an element per
    query and key are made of (K; a bias)."""

    einsums: tuple[str, ...]
    share: Share
    streams: tuple[Tensor, ...]
    writes: tuple[Tensor, ...] = ()
    sums: tuple[Tensor, ...] = ()
    reuse: Reuse = ONCE
    scored: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class KernelWork:
    """One kernel.

    grid       "query": a block is a tile of query rows; "column": a tile of keys, with the names of queries and keys
               exchanged (`columns`); "key": one head's whole state; "einsum": one Einsum over its whole iteration space
    sweeps     traversals of the keys, in order (none for grid "einsum")
    block      what runs once per block
    residents  tensors loaded once per block
    outputs    tensors written once
    state      tensors a block holds when its sweeps end: what a split run must merge
    """

    name: str
    grid: str
    sweeps: tuple[Sweep, ...]
    block: Share
    residents: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    state: tuple[Tensor, ...]


def walks(cascade: Cascade, einsum: Einsum, rank: str) -> bool:
    """Whether the Einsum's iteration space contains any variable of `rank` (its own or a chunk's)."""
    return bool(einsum.variables & cascade.family(rank))


def _per_key(cascade: Cascade, einsum: Einsum) -> bool:
    """Whether the result has an element per key (all chunks of the key rank), not only a summary per chunk."""
    return cascade.position(KEY, einsum.output_variables) is not None


def tensor_of(cascade: Cascade, name: str) -> Tensor:
    """The tensor with its ranks: as declared for inputs and outputs, from its Einsum's left side otherwise."""
    for tensor in (*cascade.inputs, *cascade.outputs):
        if tensor.name == name:
            return tensor
    einsum = next(e for e in cascade.einsums if e.name == name)
    variables = [sorted(i for i in _symbols(index)) for index in einsum.output.indices]
    return Tensor(name, tuple(cascade.size_of(v[0]) for v in variables if v))


def _symbols(index: Expression) -> set[str]:
    return set(variables(index))


@lru_cache(maxsize=256)
def kernels(cascade: Cascade, fused: bool) -> tuple[KernelWork, ...]:
    """The kernels of a composed cascade, in execution order."""
    cascade = resolve(cascade)
    if not fused:
        return tuple(single_kernel(cascade, e) for e in cascade.einsums)
    key_side = _key_side(cascade)
    groups = (("key", key_side), ("query", tuple(e for e in cascade.einsums if e not in key_side)))
    return tuple(fused_kernel(cascade, grid, members) for grid, members in groups if members)


def _key_side(cascade: Cascade) -> tuple[Einsum, ...]:
    """Einsums from which no query is reachable backwards: they walk keys (or what was reduced over keys), no queries."""
    query_free: dict[str, bool] = {t.name: not _has(cascade, t, QUERY) for t in cascade.inputs}
    chosen: list[Einsum] = []
    touched: set[str] = set()  # query-free results that derive from a walk over keys
    for einsum in cascade.einsums:
        free = not walks(cascade, einsum, QUERY) and all(query_free.get(a.tensor, True) for a in einsum.reads)
        query_free[einsum.name] = query_free.get(einsum.name, True) and free
        if free and (walks(cascade, einsum, KEY) or any(a.tensor in touched for a in einsum.reads)):
            chosen.append(einsum)
            touched.add(einsum.name)
    return tuple(chosen)


def _has(cascade: Cascade, tensor: Tensor, rank: str) -> bool:
    return any(r.lower() in cascade.family(rank) for r in tensor.ranks)


def _counts_of(cascade: Cascade, names: set[str]) -> tuple[Count, ...]:
    return tuple(c for c in count(cascade) if c.einsum in names)


def single_kernel(cascade: Cascade, einsum: Einsum) -> KernelWork:
    reads = dict.fromkeys(a.tensor for a in einsum.reads)
    return KernelWork(
        einsum.name, "einsum", (), Share(_counts_of(cascade, {einsum.name})),
        tuple(tensor_of(cascade, name) for name in reads), (tensor_of(cascade, einsum.name),), (),
    )  # fmt: skip


def fused_kernel(cascade: Cascade, grid: str, members: tuple[Einsum, ...]) -> KernelWork:
    names = {e.name for e in members}
    swept = tuple(e for e in members if walks(cascade, e, KEY))
    swept_names = {e.name for e in swept}
    of = _stages(cascade, swept)
    staged = {stage: _sweep(cascade, swept, of, stage) for stage in sorted(set(of.values()))}
    after = tuple(e for e in members if e.name not in swept_names)
    streamed = {t.name for s in staged.values() for t in s.streams}
    read = dict.fromkeys(a.tensor for e in members for a in e.reads)
    outside = [n for n in read if n not in names and n not in streamed]
    later = {a.tensor for e in cascade.einsums if e.name not in names for a in e.reads}
    written = [n for n in dict.fromkeys(e.name for e in members) if n in later or n in {o.name for o in cascade.outputs}]
    results = [tensor_of(cascade, n) for n in written]
    walked = [t for t in results if grid == "key" and _has(cascade, t, KEY)]  # a block holds a head's state, not these
    sweeps = tuple(replace(s, writes=tuple(t for t in walked if of[t.name] == stage)) for stage, s in staged.items())
    return KernelWork(
        grid, grid, sweeps, Share(_counts_of(cascade, {e.name for e in after})),
        tuple(tensor_of(cascade, n) for n in outside), tuple(t for t in results if t not in walked),
        tuple(tensor_of(cascade, n) for n in _state(cascade, swept)),
    )  # fmt: skip


def _state(cascade: Cascade, swept: tuple[Einsum, ...]) -> list[str]:
    """What a block holds when its sweeps end: results without a key rank, and those carried from step to step."""
    carried = {e.name for e, block in cascade.placed() if block and _steps_ahead(e, block.variable)}
    return [e.name for e in swept if e.name in carried or not e.output_variables & cascade.family(KEY)]


def _steps_ahead(einsum: Einsum, step: str) -> bool:
    """Whether the result belongs to the next step of the loop, as in `RM[n1+1,m] = ...`."""
    return any(isinstance(i, Apply) and step in variables(i) for i in einsum.output.indices)


def _stages(cascade: Cascade, swept: tuple[Einsum, ...]) -> dict[str, int]:
    """The sweep of each Einsum: the pass it belongs to; per-chunk summaries join the first sweep they can."""
    found = analyse(cascade, KEY)
    last = max((found.stage.get(e.name, 0) for e in swept), default=1) or 1
    return {e.name: found.stage.get(e.name) or min(found.after.get(e.name, 0) + 1, last) for e in swept}


def _sweep(cascade: Cascade, swept: tuple[Einsum, ...], of: Mapping[str, int], stage: int) -> Sweep:
    """The Einsums of one pass and, recomputed with them, whatever of earlier passes they read per key."""
    by_name = {e.name: e for e in swept}
    active = {e.name for e in swept if of[e.name] == stage}
    queue = list(active)
    while queue:
        for access in by_name[queue.pop()].reads:
            producer = by_name.get(access.tensor)
            per_key = producer is not None and _per_key(cascade, producer)
            if per_key and access.tensor not in active and stage > of[access.tensor]:
                active.add(access.tensor)
                queue.append(access.tensor)
    ordered = tuple(e for e in swept if e.name in active)
    inside = {e.name for e in swept}
    streams = dict.fromkeys(a.tensor for e in ordered for a in e.reads if a.tensor not in inside)
    tensors = tuple(t for t in (tensor_of(cascade, n) for n in streams) if _has(cascade, t, KEY))
    scoring = [e for e in ordered if _per_key(cascade, e) and e.output_variables & cascade.family(QUERY)]
    read = {a.tensor for e in scoring for a in e.reads}
    return Sweep(
        tuple(e.name for e in ordered), Share(_counts_of(cascade, {e.name for e in ordered})), tensors,
        scored=tuple(t for t in tensors if t.name in read),
    )  # fmt: skip
