"""A composed cascade as an array design sees it: Einsums on units, tensors with the place and pass of their birth.

Ranks are compared by canonical name: the chunks n1 and n0 together walk N; n1 alone walks N1. An array folds n values
in n steps, the first against the identity that the accumulator starts with; so every reduction counts its points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from einsight.einsum.counts import MACC, count
from einsight.einsum.expression import Apply, Expression, variables
from einsight.einsum.formula import Formula, constant, single
from einsight.einsum.ir import Cascade, Einsum, Iterate
from einsight.einsum.passes import analyse
from einsight.einsum.resolve import resolve
from einsight.sim.work import KEY, QUERY

Ranks = frozenset[str]
OUTER = frozenset({"B", "G", "J"})
CHUNK, INNER = f"{KEY}1", f"{KEY}0"
"""Names of the key rank's chunks and of the positions in a chunk, where a cascade partitions it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """An Einsum on a unit.

    unit        2d | 1d
    ranks, out  canonical ranks of its iteration space and of its result
    work        (operator class, applications) per entry of the cascade's counts
    loop        the loop over the keys it runs in, from 1
    reads       tensors read, in order; `previous` of these (also) in the state that the step before left,
                `same_step` of these in the state of this step
    """

    name: str
    unit: str
    ranks: Ranks
    out: Ranks
    matmul: bool
    work: tuple[tuple[str, Formula], ...]
    loop: int
    reads: tuple[str, ...]
    previous: frozenset[str]
    same_step: frozenset[str]

    @property
    def reduced(self) -> Ranks:
        return self.ranks - self.out

    @property
    def walk(self) -> str:
        """pairs (queries and keys), chunks (queries and summaries of key chunks), rows, keys, or nothing."""
        if QUERY in self.ranks:
            return "pairs" if KEY in self.ranks else "chunks" if CHUNK in self.ranks else "rows"
        return "keys" if self.ranks & {KEY, CHUNK} else "nothing"


@dataclass(frozen=True, slots=True)
class Datum:
    """A tensor. `carried`: it goes from one step of the loop to the next; `rows`: its ranks when the loop has ended."""

    name: str
    ranks: Ranks
    role: str  # input | output | inner
    carried: bool = False

    @property
    def rows(self) -> Ranks:
        return self.ranks - {CHUNK} if self.carried else self.ranks

    @property
    def over_pairs(self) -> bool:
        return {QUERY, KEY} <= self.ranks


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """Stages in program order, and every tensor they touch."""

    cascade: Cascade
    stages: tuple[Stage, ...]
    data: Mapping[str, Datum]

    def producer(self, tensor: str) -> Stage | None:
        return next((s for s in self.stages if s.name == tensor), None)

    def readers(self, tensor: str) -> tuple[Stage, ...]:
        return tuple(s for s in self.stages if tensor in s.reads)

    def changes_units(self, tensor: Datum) -> bool:
        """Whether another array than the one that computes it reads the tensor."""
        producer = self.producer(tensor.name)
        return producer is not None and any(s.unit != producer.unit for s in self.readers(tensor.name))

    def on(self, unit: str) -> tuple[Stage, ...]:
        return tuple(s for s in self.stages if s.unit == unit)


@lru_cache(maxsize=512)
def flow(cascade: Cascade, on_2d: tuple[str, ...]) -> Flow:
    """The flow of a composed, unmasked cascade; `on_2d`: classes of Einsums (matmul, pairs) that take the 2-D array."""
    resolved = resolve(cascade)
    passes = analyse(resolved, KEY)
    loops = {n: passes.stage.get(n, 0) or passes.after.get(n, 0) + 1 for n in (e.name for e in resolved.einsums)}
    carried = {e.name for e, block in resolved.placed() if _ahead(e.output.indices, block)}
    stages = tuple(_stage(resolved, e, on_2d, loops[e.name], carried, block) for e, block in resolved.placed())
    outputs = {t.name for t in resolved.outputs}
    data = {t.name: Datum(t.name, _of_input(resolved, t.ranks), "input") for t in resolved.inputs}
    data |= {s.name: Datum(s.name, s.out, "output" if s.name in outputs else "inner", s.name in carried) for s in stages}
    return Flow(resolved, stages, data)


def _stage(
    cascade: Cascade, einsum: Einsum, on_2d: tuple[str, ...], loop: int, carried: set[str], block: Iterate | None
) -> Stage:
    ranks = canonical(cascade, einsum.variables)
    counts = [c for c in count(cascade) if c.einsum == einsum.name]
    matmul = any(c.matmul for c in counts)
    classes = {"matmul": matmul, "pairs": {QUERY, KEY} <= ranks}
    work = []
    for c in counts:
        folded = c.formula
        if c.reduces and c.klass != MACC:  # n values take n steps, not n - 1
            folded = folded + _points(cascade, einsum.variables - frozenset(c.reduces))
        work.append((c.klass, folded))
    earlier = [bool(block) and a.tensor in carried and not _ahead(a.indices, block) for a in einsum.reads]
    reads = list(zip((a.tensor for a in einsum.reads), earlier, strict=True))
    return Stage(
        einsum.name, "2d" if any(classes[c] for c in on_2d) else "1d", ranks,
        canonical(cascade, einsum.output_variables), matmul, tuple(work), loop,
        tuple(dict.fromkeys(t for t, _ in reads)),
        frozenset(t for t, before in reads if before), frozenset(t for t, before in reads if not before),
    )  # fmt: skip


def canonical(cascade: Cascade, names: frozenset[str]) -> Ranks:
    """Rank names of variables; all chunks of a rank together are the rank, and those of the keys are N1 and N0."""
    found = {v.upper() for v in names}
    for rank in cascade.ranks:
        if rank.parts and set(rank.parts) <= found:
            found = found - set(rank.parts) | {rank.name}
        elif rank.name == KEY and len(rank.parts) == 2:
            own = dict(zip(rank.parts, (CHUNK, INNER), strict=True))
            found = {own.get(name, name) for name in found}
    return frozenset(found)


def _of_input(cascade: Cascade, ranks: tuple[str, ...]) -> Ranks:
    return canonical(cascade, frozenset(r.lower() for r in ranks))


def _points(cascade: Cascade, names: frozenset[str]) -> Formula:
    """The number of points of these variables, without predicates."""
    product = constant(1)
    for rank in sorted(canonical(cascade, names)):
        product = product * single(rank)
    return product


def _ahead(indices: tuple[Expression, ...], block: Iterate | None) -> bool:
    """Whether the element belongs to the next step of the loop, as in `RM[n1+1,m]`."""
    return block is not None and any(isinstance(i, Apply) and block.variable in variables(i) for i in indices)
