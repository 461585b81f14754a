"""Passes: how often a cascade must walk a rank of each input, whatever the mapping, and why.

A pass is one traversal of all elements of a rank's fiber. When all of a first traversal must precede any element of a
second one, no schedule can fuse the two (FuseMax, MICRO 2024, section III). We count along the lineage of an input:

    e touches X     e walks the whole rank and reads, at coordinate r, X[r] or a value computed from X[r] at r
    e1 before e2    every point of e1 along the rank precedes every point of e2 in the element dependency graph
    passes(X)       the longest chain e1 before e2 before ... of Einsums that touch X

It is a lower bound for the cascade as written, not for the function: rewriting can lower it. Predicates do not change
it, they only shorten fibers. Sweeps (a pass repeated because another rank is tiled) belong to the mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from einsight.einsum.expression import variables
from einsight.einsum.format import format_expression as text
from einsight.einsum.ir import Cascade
from einsight.einsum.relations import Edge, Family, Node, Relation, edges, family, nodes, parent_rank
from einsight.einsum.resolve import resolve


@dataclass(frozen=True, slots=True)
class Step:
    """Why a pass is needed: `einsum` opens it, and had to wait for `barrier`.

    `barrier` is "first read", "full reduction", "last step" (of a loop) or "assumed".
    """

    number: int
    einsum: str
    barrier: str
    text: str


@dataclass(frozen=True, slots=True)
class Live:
    """A tensor that carries the rank and outlives the pass it is born in: a whole fiber must be kept, or rebuilt.

    `indices` are its rank variables, outermost first.
    """

    tensor: str
    indices: tuple[str, ...]
    born: int
    read_in: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PassAnalysis:
    """Passes over one rank.

    passes   per tensor that carries the rank (inputs; for the outer chunk of a partitioned rank, its summaries)
    stage    per Einsum, the first loop over the rank it can run in; 0 when it does not walk the whole rank
    after    per Einsum, how many loops over the rank must be complete before it can start
    touches  per tensor of `passes`, the Einsums that touch it and the pass over it that each belongs to
    chains   per tensor of `passes`, one step a pass
    live     what outlives a pass
    assumed  index relations that were taken as barriers without proof: `passes` may be too high there
    """

    cascade: str
    rank: str
    passes: Mapping[str, int]
    stage: Mapping[str, int]
    after: Mapping[str, int]
    touches: Mapping[str, Mapping[str, int]]
    chains: Mapping[str, tuple[Step, ...]]
    live: tuple[Live, ...]
    assumed: tuple[str, ...]

    @property
    def total(self) -> int:
        """The most passes that any tensor needs; 0 when nothing carries the rank."""
        return max(self.passes.values(), default=0)

    @property
    def loops(self) -> int:
        """Loops over the rank when each Einsum runs as early as it can; at least `total`."""
        return max(self.stage.values(), default=0)

    def __str__(self) -> str:
        count = ", ".join(f"{t} {n}" for t, n in self.passes.items()) or "nothing carries it"
        lines = [f"{self.cascade}: {self.total} pass{'' if self.total == 1 else 'es'} over {self.rank} ({count})"]
        for tensor, chain in self.chains.items():
            lines.append(f"  {tensor}")
            lines.extend(f"    pass {s.number}: {s.text}" for s in chain)
        for live in self.live:
            reads = ", ".join(str(i) for i in live.read_in)
            name = f"{live.tensor}[{','.join(live.indices)}]"
            lines.append(f"  live: {name} is born in pass {live.born} and read in {reads}")
        lines.extend(f"  assumed: {note}" for note in self.assumed)
        return "\n".join(lines)


def analyse(cascade: Cascade, rank: str = "N") -> PassAnalysis:
    """Passes over `rank` (N), over the tiles of a partitioned rank (N0), or over its tile summaries (N1).

    Tile passes are those within one pass over the parent: its barriers are left out. Summary passes count the
    Einsums that walk N1 without N0. Raises ValueError when the cascade has no such rank.
    """
    return _analyse(resolve(cascade), rank)


def levels(cascade: Cascade, rank: str = "N") -> tuple[PassAnalysis, ...]:
    """The analysis of a rank, then of its chunks, outer first."""
    found = cascade.rank(rank)
    return tuple(analyse(cascade, r) for r in (rank, *(found.parts if found else ())))


@dataclass(frozen=True, slots=True)
class _Reach:
    """The longest chain that reaches an Einsum, and the edges from the last Einsum of that chain to it."""

    count: int = 0
    path: tuple[Edge, ...] = ()


@dataclass(slots=True)
class _Walk:
    """Chains over one root. `same`: no barrier crossed since the last touch; `past`: one was."""

    same: dict[str, _Reach]
    past: dict[str, _Reach]
    number: dict[str, int]  # touching Einsums only
    opened_by: dict[str, str]  # the first Einsum of the pass, upstream of each touching one


@lru_cache(maxsize=1024)
def _analyse(cascade: Cascade, rank: str) -> PassAnalysis:
    walk = family(cascade, rank)
    every, graph = nodes(cascade), _graph(cascade, rank)
    names = tuple(n.einsum.name for n in every)
    roots = _roots(cascade, walk, every)
    chained = {root: _chain(every, graph, _touching(walk, root)) for root in roots}
    chained = {root: found for root, found in chained.items() if found.number}
    stages = _chain(every, graph, lambda node, _number, _edges: _walks(walk, node))
    stage = {name: stages.number.get(name, 0) for name in names}
    after = {name: stages.past[name].count for name in names}
    return PassAnalysis(
        cascade=cascade.name,
        rank=rank,
        passes={root: max(found.number.values()) for root, found in chained.items()},
        stage=stage,
        after=after,
        touches={root: found.number for root, found in chained.items()},
        chains={root: _reasons(every, walk, root, found) for root, found in chained.items()},
        live=_live(walk, every, graph, stage, after),
        assumed=_assumptions(cascade, walk, graph),
    )


def _graph(cascade: Cascade, rank: str) -> tuple[Edge, ...]:
    """Edges without the loop-carried ones; for the inner chunk of a rank also without the barriers of the whole."""
    found = edges(cascade, rank)
    parent = parent_rank(cascade, rank)
    if parent is not None and not family(cascade, rank).inner:
        whole = edges(cascade, parent)
        found = tuple(e for e, w in zip(found, whole, strict=True) if w.relation is not Relation.BARRIER)
    return tuple(e for e in found if e.relation is not Relation.CARRIED)


def _walks(walk: Family, node: Node) -> bool:
    """Whether the Einsum walks the whole rank (for an outer chunk: its summaries only, not the elements below)."""
    return walk.walked(node.variables) and not walk.inner & node.variables


def _roots(cascade: Cascade, walk: Family, every: tuple[Node, ...]) -> tuple[str, ...]:
    """The inputs, or the tensors that summarise the tiles of a partitioned rank."""
    if not walk.inner:
        return tuple(t.name for t in cascade.inputs)
    summaries = (n for n in every if walk.inner & n.variables and not walk.inner & n.einsum.output_variables)
    return tuple(dict.fromkeys(n.einsum.name for n in summaries if walk.outer & n.einsum.output_variables))


_Touch = Callable[[Node, Mapping[str, int], tuple[Edge, ...]], bool]


def _touching(walk: Family, root: str) -> _Touch:
    def touches(node: Node, number: Mapping[str, int], incoming: tuple[Edge, ...]) -> bool:
        if not _walks(walk, node):
            return False
        direct = any(a.tensor == root and walk.walked(variables(a)) for a in node.einsum.reads)
        return direct or any(e.relation is Relation.POINTWISE and e.writer.einsum.name in number for e in incoming)

    return touches


def _chain(every: tuple[Node, ...], graph: tuple[Edge, ...], touches: _Touch) -> _Walk:
    """The longest chains of touching Einsums, in one sweep over the program (order of lines is order of definition)."""
    found = _Walk({}, {}, {}, {})
    for node in every:
        name = node.einsum.name
        incoming = tuple(e for e in graph if e.reader.einsum.name == name)
        same, past = _Reach(), _Reach()
        for edge in incoming:
            before = edge.writer.einsum.name
            if before not in found.same:
                raise ValueError(f"{name} reads {text(edge.access)} before it is defined")
            arriving, crossed = found.same[before], found.past[before]
            if edge.relation is Relation.BARRIER:
                past = max(past, _extend(arriving, edge), key=lambda r: r.count)
            elif edge.relation is not Relation.PARTIAL:  # a fixed coordinate never completes a traversal
                same = max(same, _extend(arriving, edge), key=lambda r: r.count)
            past = max(past, _extend(crossed, edge), key=lambda r: r.count)
        if touches(node, found.number, incoming):
            number = max(1, same.count, past.count + 1)
            found.number[name] = number
            streamed = same.count == number and same.path[0].writer.einsum.name
            found.opened_by[name] = found.opened_by[streamed] if streamed else name
            found.same[name] = _Reach(number)
        else:
            found.same[name] = same
        found.past[name] = past
    return found


def _extend(reach: _Reach, edge: Edge) -> _Reach:
    return _Reach(reach.count, (*reach.path, edge)) if reach.count else reach


def _reasons(every: tuple[Node, ...], walk: Family, root: str, found: _Walk) -> tuple[Step, ...]:
    """One step a pass, first to last, along the longest chain."""
    einsums = {n.einsum.name: n.einsum for n in every}
    last = max(found.number.values())
    name = next(n for n, k in found.number.items() if k == last)
    steps: list[Step] = []
    while True:
        name = found.opened_by[name]
        path, number = found.past[name].path, found.number[name]
        if number == 1 or not path:
            read = next((a for a in einsums[name].reads if a.tensor == root), None)
            what = f"{text(einsums[name].output)} reads {text(read) if read else root}"
            return (Step(number, name, "first read", what), *reversed(steps))
        steps.append(_step(number, name, path, walk))
        name = path[0].writer.einsum.name


def _step(number: int, name: str, path: tuple[Edge, ...], walk: Family) -> Step:
    """The step across the last barrier of the path that leads to `name`."""
    at = max(i for i, edge in enumerate(path) if edge.relation is Relation.BARRIER)
    barrier, writer = path[at], path[at].writer.einsum
    needs = ", which needs ".join(text(edge.access) for edge in reversed(path[at:]))
    start = f"{text(path[-1].reader.einsum.output)} needs {needs}"
    if barrier.note:
        return Step(number, name, "assumed", f"{start}; {barrier.note}")
    over = sorted(walk.outer & barrier.writer.variables - variables(writer.output))
    if not over:
        loop = barrier.writer.loop
        rank = f"the loop over {loop.variable}" if loop else walk.rank
        return Step(number, name, "last step", f"{start}, complete only after the last step of {rank}")
    over = sorted((walk.outer | frozenset().union(*walk.forms)) & writer.reduced)
    sources = [text(a) for a in dict.fromkeys(writer.reads) if walk.outer & variables(a)]
    folds = f"{writer.reducer(over[0])}({','.join(over)}) over all of {', '.join(sources)}"
    return Step(number, name, "full reduction", f"{start}, complete only after {folds}")


def _live(
    walk: Family, every: tuple[Node, ...], graph: tuple[Edge, ...], stage: Mapping[str, int], after: Mapping[str, int]
) -> tuple[Live, ...]:
    """Tensors that carry the whole rank and are read in a later stage than the one they are born in."""
    found = []
    for node in every:
        output = node.einsum.output
        if not walk.walked(variables(output)) or walk.inner & variables(output):
            continue
        born = stage[output.tensor] or after[output.tensor] + 1
        reads = {stage[e.reader.einsum.name] for e in graph if e.access.tensor == output.tensor} - {0}
        if any(r > born for r in reads):
            indices = tuple(sorted(variables(i))[0] for i in output.indices if variables(i))
            found.append(Live(output.tensor, indices, born, tuple(sorted(reads))))
    return tuple(found)


def _assumptions(cascade: Cascade, walk: Family, graph: tuple[Edge, ...]) -> tuple[str, ...]:
    notes = [e.note for e in graph if e.note]
    parent = parent_rank(cascade, walk.rank)
    own = cascade.family(parent or walk.rank)
    for _, loop in cascade.placed():
        inside = [e for e in graph if e.writer.loop is not None and e.writer.loop is e.reader.loop is loop]
        if loop is not None and loop.variable not in own and any(e.relation is Relation.BARRIER for e in inside):
            notes.append(f"passes are counted per step of the loop over {loop.variable}")
    return tuple(dict.fromkeys(notes))
