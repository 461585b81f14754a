"""How one Einsum's read of another's tensor moves along a rank: point by point, tile by tile, or only once all is done.

The unit is an edge writer -T-> reader. Its relation compares the index with which T is written to the one with which
it is read, on the variables that walk the rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from einsight.einsum.expression import Access, Apply, Expression, Number, Symbol, variables
from einsight.einsum.format import format_expression as text
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate

Polynomial = Mapping[tuple[str, ...], float]


class Relation(Enum):
    POINTWISE = "pointwise"  # coordinate r of the reader needs coordinate r (or r + constant) of the writer
    STREAM = "stream"  # the same, but only tile by tile: T carries the outer chunk alone
    BARRIER = "barrier"  # every coordinate of the reader needs every coordinate of the writer
    PARTIAL = "partial"  # the reader needs some fixed coordinate, so nothing waits for the whole rank
    PLAIN = "plain"  # the writer does not walk the rank
    CARRIED = "carried"  # the value of an earlier step of the same loop


@dataclass(frozen=True, slots=True)
class Family:
    """The variables that walk a rank.

    forms  sets of variables that cover the rank: {n}, and {n1, n0} when it is partitioned
    outer  the variables whose whole range has to pass before the rank is done: n, n1
    inner  for the outer chunk (N1) of a partitioned rank: the variables that its summaries no longer carry (n0)
    """

    rank: str
    forms: tuple[frozenset[str], ...]
    outer: frozenset[str]
    inner: frozenset[str] = frozenset()

    def walked(self, present: frozenset[str]) -> bool:
        """Whether the variables `present` cover the whole rank."""
        return any(form <= present for form in self.forms)


@dataclass(frozen=True, slots=True)
class Node:
    """An Einsum with the loop it stands in. Its variables include the loop's."""

    einsum: Einsum
    loop: Iterate | None
    variables: frozenset[str]


@dataclass(frozen=True, slots=True)
class Edge:
    """`reader` reads `access`, which `writer` computes. `note` says why a relation was assumed rather than derived."""

    writer: Node
    reader: Node
    access: Access
    relation: Relation
    note: str = ""


def family(cascade: Cascade, rank: str) -> Family:
    """The family of a rank, of the outer chunk of a partitioned one, or of its inner chunk.

    Raises ValueError when the cascade declares no such rank.
    """
    found = cascade.rank(rank)
    if found is not None and found.parts:
        parts = tuple(p.lower() for p in found.parts)
        return Family(rank, (frozenset({rank.lower()}), frozenset(parts)), frozenset({rank.lower(), parts[0]}))
    parent = parent_rank(cascade, rank)
    if found is None and parent is None:
        declared = [r.name for r in cascade.ranks] + [p for r in cascade.ranks for p in r.parts]
        raise ValueError(f"cascade {cascade.name} has no rank {rank}; its ranks are {', '.join(declared)}")
    own = frozenset({rank.lower()})
    parts = cascade.rank(parent).parts if parent else ()  # type: ignore[union-attr]
    inner = frozenset(p.lower() for p in parts[1:]) if parts[:1] == (rank,) else frozenset[str]()
    return Family(rank, (own,), own, inner)


def parent_rank(cascade: Cascade, rank: str) -> str | None:
    """The rank that `rank` is a chunk of."""
    return next((r.name for r in cascade.ranks if rank in r.parts), None)


def nodes(cascade: Cascade) -> tuple[Node, ...]:
    """Every Einsum in program order."""
    return tuple(
        Node(e, loop, e.variables | ({loop.variable} if loop else frozenset())) for e, loop in cascade.placed()
    )


@dataclass(frozen=True, slots=True)
class _Index:
    """One rank of a tensor: the index it is written with, the one it is read with, and read - write if a number."""

    write: Expression
    read: Expression
    distance: float | None


def edges(cascade: Cascade, rank: str) -> tuple[Edge, ...]:
    """Every read of an intermediate tensor, in program order of the reader, with its relation along the rank.

    Raises ValueError when an Einsum of a loop reads a value that a later step computes.
    """
    walk = family(cascade, rank)
    every = nodes(cascade)
    writers = {node.einsum.name: node for node in every}
    iterative = {s.output.tensor for s in cascade.statements if isinstance(s, Initial)}
    whole = {r.name: r.parts for r in cascade.ranks if len(r.parts) == 2}
    found = []
    for reader in every:
        for access in dict.fromkeys(reader.einsum.reads):
            if access.tensor in writers:
                writer = writers[access.tensor]
                written = writer.einsum.output.indices
                pairs = zip(written, access.indices, strict=True)
                indices = tuple(_Index(w, r, _distance(w, r, whole)) for w, r in pairs)
                relation, note = _relate(writer, reader, access, indices, walk, access.tensor in iterative)
                found.append(Edge(writer, reader, access, relation, note))
    return tuple(found)


def _relate(
    writer: Node, reader: Node, access: Access, indices: tuple[_Index, ...], walk: Family, iterative: bool
) -> tuple[Relation, str]:
    if writer.loop is not None and writer.loop is reader.loop:
        stepped = (i.distance for i in indices if writer.loop.variable in variables(i.write))
        step = next(stepped, None)
        if step is not None and step > 0:
            raise ValueError(f"{text(reader.einsum.output)} reads {text(access)}, which a later step computes")
        if step is not None and step < 0:
            return Relation.CARRIED, ""
    if not walk.outer & writer.variables:
        return Relation.PLAIN, ""
    carried = [i for i in indices if walk.outer & variables(i.write)]
    if not carried:
        return Relation.BARRIER, ""
    if any(i.distance is not None for i in carried):
        return _inside(indices, walk), ""
    return _elsewhere(writer, reader, carried[0], walk, iterative)


def _inside(indices: tuple[_Index, ...], walk: Family) -> Relation:
    """The outer chunk is read where it was written: are the other variables of the rank, too?"""
    kept: frozenset[str] = frozenset()
    for index in indices:
        mine = variables(index.write) & frozenset().union(*walk.forms)
        if mine and index.distance is not None:
            kept |= mine
        elif mine and not variables(index.read):
            return Relation.PARTIAL
    return Relation.POINTWISE if walk.walked(kept) else Relation.STREAM


def _elsewhere(writer: Node, reader: Node, index: _Index, walk: Family, iterative: bool) -> tuple[Relation, str]:
    """T carries the rank, but is not read at the reader's own coordinate."""
    read = index.read
    if not variables(read):
        # The value after the last step needs every step; any other fixed coordinate needs only itself (and what
        # the loop computed up to there).
        last = writer.loop is not None and iterative and writer.loop.bound == read
        if last and writer.loop is reader.loop:
            raise ValueError(f"{text(reader.einsum.output)} reads the last {writer.einsum.name} inside its own loop")
        return (Relation.BARRIER if last else Relation.PARTIAL), ""
    folded = isinstance(read, Symbol) and read.name in reader.einsum.reduced
    if folded and not walk.outer & reader.variables:
        return Relation.BARRIER, ""  # all of it is reduced, under another variable's name
    what = f"{writer.einsum.name} is written at {text(index.write)} and read at {text(read)}"
    return Relation.BARRIER, f"{what} by {reader.einsum.name}: not a constant shift, taken as a barrier"


def _distance(write: Expression, read: Expression, whole: Mapping[str, tuple[str, ...]]) -> float | None:
    """`read - write` when that is a number: 0 for T[n] read at T[n], -1 for T[n1+1] read at T[n1]; else None."""
    w, r = _polynomial(write, whole), _polynomial(read, whole)
    if w is None or r is None:
        return None
    rest = {k: r.get(k, 0.0) - w.get(k, 0.0) for k in {*r, *w}}
    return rest.get((), 0.0) if not any(v for k, v in rest.items() if k) else None


def _polynomial(node: Expression, whole: Mapping[str, tuple[str, ...]]) -> Polynomial | None:
    """The index as a polynomial over symbols, n1*N0 + n0 folded into n, floordiv(n, N0) into n1; None when it is not one."""
    for rank, (outer, inner) in whole.items():
        if node == Apply("floordiv", (Symbol(rank.lower()), Symbol(inner))):
            return {(outer.lower(),): 1.0}  # the chunk that position n lies in
    terms = _terms(node)
    if terms is None:
        return None
    for rank, (outer, inner) in whole.items():
        product, rest = tuple(sorted((outer.lower(), inner))), (inner.lower(),)
        if terms.get(product) and terms.get(product) == terms.get(rest):
            terms[(rank.lower(),)] = terms.get((rank.lower(),), 0.0) + terms.pop(product)
            del terms[rest]
    return terms


def _terms(node: Expression) -> dict[tuple[str, ...], float] | None:
    if isinstance(node, Number):
        return {(): node.value}
    if isinstance(node, Symbol):
        return {(node.name,): 1.0}
    if not isinstance(node, Apply) or node.op not in ("+", "-", "*", "neg"):
        return None
    parts = [_terms(a) for a in node.args]
    if any(p is None for p in parts):
        return None
    left, right = (parts[0] or {}), (parts[-1] or {})
    if node.op == "neg":
        return {k: -v for k, v in left.items()}
    result: dict[tuple[str, ...], float] = {}
    if node.op == "*":
        for a, x in left.items():
            for b, y in right.items():
                key = tuple(sorted(a + b))
                result[key] = result.get(key, 0.0) + x * y
        return result
    sign = 1.0 if node.op == "+" else -1.0
    return {k: left.get(k, 0.0) + sign * right.get(k, 0.0) for k in {*left, *right}}
