"""Composition: a base cascade, the fragments a workload adds to it, its mask and its outer ranks, as one plain cascade.

    compose(load("one_pass"), [fragment("alibi"), fragment("softcap")], mask=causal)

A fragment says `extends score S[m,n]` and ends in a new mark, `score SB[m,n]`. Splicing puts its Einsums right after
the host's marked tensor and lets everything that read that tensor read the fragment's mark. In a host whose score is
written BQK[n1,n0,m] the fragment's own tensors get the same indices, and its inputs are read at the position
n1*N0+n0 in place of n.

A mask is a predicate over positions. It goes to the Einsum that produces the score; readers inherit it (`resolve`), and
what a fragment computes per score element without reading it, such as a low-rank bias, is restricted in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from einsight.einsum.expression import (
    Access,
    Expression,
    Symbol,
    accesses,
    conjunction,
    conjuncts,
    substitute,
    variables,
)
from einsight.einsum.ir import Cascade, Einsum, Iterate, Mark, Rank, Statement, rewrite_statement
from einsight.einsum.resolve import resolve
from einsight.einsum.splice import ROLES, IllegalComposition, host_mark, own_ranks, splice, tensor_names

__all__ = ["OUTER_RANKS", "IllegalComposition", "compose", "own_ranks", "position_names"]

OUTER_RANKS = ("B", "G", "J")
"""Batch, head of K and V, query head within its group: MHA has J = 1, MQA has G = 1."""

QUERY_RANK = "M"


def compose(
    base: Cascade,
    fragments: Sequence[Cascade] = (),
    mask: Expression | None = None,
    outer: bool = True,
    shared: Mapping[str, Iterable[str]] | None = None,
) -> Cascade:
    """The cascade with fragments spliced in, in the order given, then masked, then with outer ranks b, g, j.

    mask    predicate over the positions of the score's ranks (m, n) and over sizes; None leaves the cascade dense
    outer   make batch and head ranks explicit in every tensor: one that walks a query rank and every output carries
            b, g, j, any other input b, g, what `over` says in the file goes before; intermediates carry what they read
    shared  outer ranks that a tensor does not carry in this workload, by tensor name: {"B": ["b"]} for a bias that is
            the same for the whole batch

    Raises IllegalComposition.
    """
    dropped = tuple((name, tuple(ranks)) for name, ranks in (shared or {}).items())
    return _compose(base, tuple(fragments), mask, outer, dropped)


@lru_cache(maxsize=512)
def _compose(
    base: Cascade,
    fragments: tuple[Cascade, ...],
    mask: Expression | None,
    outer: bool,
    shared: tuple[tuple[str, tuple[str, ...]], ...],
) -> Cascade:
    if base.extends is not None:
        raise IllegalComposition(f"{base.name} is a fragment; expected a cascade to compose it with")
    cascade = base
    spliced: list[tuple[Access, str]] = []
    for fragment in fragments:
        mark = host_mark(cascade, fragment)
        cascade, names = splice(cascade, fragment, mark)
        spliced += [(mark, name) for name in names]
    if mask is not None:
        cascade = _masked(cascade, mask, base.mark("score"))
    for mark, name in spliced:
        cascade = _restricted(cascade, name, mark.tensor)
    if outer:
        return _with_outer_ranks(cascade, dict(shared))
    if shared:
        tensors = ", ".join(tensor for tensor, _ in shared)
        raise IllegalComposition(f"{base.name} is composed without outer ranks, so {tensors} can share none")
    return cascade


def position_names(cascade: Cascade) -> tuple[str, ...]:
    """Position variables that a mask of this cascade may use, one per rank that its score walks: ('m', 'n')."""
    score = cascade.mark("score")
    walked = variables(score) if score else frozenset()
    return tuple(r.variable for r in cascade.ranks if cascade.position(r.name, walked) is not None)


# -- masks --------------------------------------------------------------------------------------------------------


def _masked(cascade: Cascade, mask: Expression, score: Access | None) -> Cascade:
    if score is None:
        raise IllegalComposition(f"{cascade.name} has no score ({ROLES['score']}), so it cannot be masked")
    positions: dict[str, Expression] = {}
    for variable in sorted(variables(mask)):
        position = cascade.position(variable.upper(), variables(score))
        if position is None:
            allowed = ", ".join(position_names(cascade))
            raise IllegalComposition(
                f"the mask uses {variable}, which the score of {cascade.name} does not walk; expected one of {allowed}"
            )
        positions[variable] = position
    known = {t.name for t in cascade.inputs}
    if foreign := [a.tensor for a in accesses(mask) if a.tensor not in known]:
        raise IllegalComposition(f"the mask reads {', '.join(foreign)}, which is not an input of {cascade.name}")
    return _with_clauses(cascade, score.tensor, conjuncts(substitute(mask, positions)))


def _restricted(cascade: Cascade, name: str, marked: str) -> Cascade:
    """The spliced Einsum `name` exists only where the tensor it was spliced behind does (keys past the end, mask)."""
    resolved = {e.name: e for e in resolve(cascade).einsums}
    producer, einsum = resolved.get(marked), resolved.get(name)
    if producer is None or einsum is None:  # a pure view: its readers say where they read it
        return cascade
    present = conjuncts(einsum.predicate)
    missing = tuple(
        c
        for c in conjuncts(producer.predicate)
        if variables(c) <= einsum.variables & producer.output_variables and c not in present
    )
    return _with_clauses(cascade, name, missing)


def _with_clauses(cascade: Cascade, name: str, clauses: tuple[Expression, ...]) -> Cascade:
    def change(einsum: Einsum) -> Einsum:
        if einsum.name != name:
            return einsum
        return replace(einsum, predicate=conjunction((*conjuncts(einsum.predicate), *clauses)))

    return _with_einsums(cascade, change)


def _with_einsums(cascade: Cascade, change: Callable[[Einsum], Einsum]) -> Cascade:
    def statements() -> Iterator[Statement]:
        for statement in cascade.statements:
            if isinstance(statement, Iterate):
                yield replace(statement, body=tuple(change(e) for e in statement.body))
            else:
                yield change(statement) if isinstance(statement, Einsum) else statement

    return replace(cascade, statements=tuple(statements()))


# -- outer ranks --------------------------------------------------------------------------------------------------


def _with_outer_ranks(cascade: Cascade, shared: Mapping[str, Iterable[str]]) -> Cascade:
    if clash := [r for r in OUTER_RANKS if cascade.rank(r)]:
        raise IllegalComposition(
            f"{cascade.name} already has rank {', '.join(clash)}; expected a cascade per batch and head, composed once"
        )
    carried = _carried(cascade, shared)

    def change(node: Expression) -> Expression:
        if not isinstance(node, Access):
            return node
        leading = tuple(Symbol(v) for v in carried[node.tensor])
        return replace(node, indices=(*leading, *node.indices))

    def mark(m: Mark) -> Mark:
        access = change(m.access)
        assert isinstance(access, Access)
        return replace(m, access=access)

    inputs, outputs = (
        tuple(replace(t, ranks=(*(v.upper() for v in carried[t.name]), *t.ranks), outer=None) for t in tensors)
        for tensors in (cascade.inputs, cascade.outputs)
    )
    return replace(
        cascade,
        ranks=(*(Rank(r) for r in OUTER_RANKS), *cascade.ranks),
        inputs=inputs,
        outputs=outputs,
        statements=tuple(rewrite_statement(s, change) for s in cascade.statements),
        marks=tuple(mark(m) for m in cascade.marks),
    )


def _carried(cascade: Cascade, shared: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Outer variables of each tensor, in the order b, g, j."""
    order = tuple(r.lower() for r in OUTER_RANKS)
    query = cascade.rank(QUERY_RANK)
    query_ranks = {QUERY_RANK, *(query.parts if query else ())}
    declared: dict[str, frozenset[str]] = {}
    for tensor in (*cascade.inputs, *cascade.outputs):
        everywhere = tensor in cascade.outputs or query_ranks & set(tensor.ranks)
        default = order if everywhere else order[:2]
        declared[tensor.name] = frozenset(v.lower() for v in (default if tensor.outer is None else tensor.outer))
    for name, dropped in shared.items():
        if name not in declared:
            raise IllegalComposition(f"{cascade.name} has no input {name}; expected one of {', '.join(declared)}")
        declared[name] -= {v.lower() for v in dropped}
    found: dict[str, frozenset[str]] = dict.fromkeys(tensor_names(cascade), frozenset()) | declared
    changed = True
    while changed:  # a running tensor is read before the line that computes it
        changed = False
        for einsum in cascade.einsums:
            read = (*einsum.reads, *(accesses(einsum.predicate) if einsum.predicate is not None else ()))
            union = found[einsum.name].union(*(found[a.tensor] for a in read))
            if einsum.name not in declared and union != found[einsum.name]:
                found[einsum.name], changed = union, True
    return {name: tuple(v for v in order if v in vs) for name, vs in found.items()}
