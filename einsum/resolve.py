"""From a cascade as written to the cascade that analyses read, and from a user's sizes to every size.

`resolve` leaves three things out of what `counts`, `passes` and `evaluate` have to know: `let` names are substituted,
pure views are inlined (their predicates move to the readers), and each Einsum states its whole predicate, inherited
clauses included.

Inheritance: an Einsum that reads T takes those clauses of T's predicate that use output variables of T only, with
T's indices substituted. A clause on a variable that T reduces stays with T: T's point exists even when nothing is left
to reduce, and then holds the identity of the reduction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import SupportsIndex

from einsight.einsum.domain import margin
from einsight.einsum.expression import (
    Access,
    Apply,
    Expression,
    Number,
    Symbol,
    accesses,
    conjunction,
    conjuncts,
    rewrite,
    substitute,
    variables,
)
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate, Mark, Statement
from einsight.einsum.lets import let_values, written_out
from einsight.einsum.sizes import SizeError, complete, partitions, required_sizes

__all__ = ["SizeError", "bind", "required_sizes", "resolve", "unguarded"]


@lru_cache(maxsize=512)
def resolve(cascade: Cascade) -> Cascade:
    """The same cascade without `let`s and pure views, each Einsum with its whole predicate. Idempotent."""
    return _with_inherited_predicates(_without_views(_without_lets(cascade)))


# -- lets ---------------------------------------------------------------------------------------------------------


def _without_lets(cascade: Cascade) -> Cascade:
    values = let_values(cascade)
    return replace(
        cascade,
        lets=(),
        statements=tuple(written_out(s, values) for s in cascade.statements),
        marks=tuple(replace(m, access=_access(substitute(m.access, values))) for m in cascade.marks),
    )


def _access(node: Expression) -> Access:
    assert isinstance(node, Access)
    return node


# -- views --------------------------------------------------------------------------------------------------------


def _without_views(cascade: Cascade) -> Cascade:
    """Readers of `BK[n1,n0,e] = K[n1*N0+n0,e] where p` read K instead, under p. Views that are outputs stay."""
    kept_names = {t.name for t in cascade.outputs} | {
        s.output.tensor for s in cascade.statements if isinstance(s, Initial)
    }
    views: dict[str, Einsum] = {}

    def keep(einsum: Einsum) -> Iterator[Einsum]:
        einsum = _inlined(einsum, views)
        if einsum.name not in kept_names and _is_pure_view(einsum):
            views[einsum.name] = einsum
        else:
            yield einsum

    statements: list[Statement] = []
    for statement in cascade.statements:
        if isinstance(statement, Einsum):
            statements.extend(keep(statement))
        elif isinstance(statement, Iterate):
            body = tuple(e for einsum in statement.body for e in keep(einsum))
            statements.extend([replace(statement, body=body)] if body else [])
        else:
            expression, _ = _read_through(statement.expression, views)
            statements.append(replace(statement, expression=expression))
    marks = tuple(_mark_through(m, views) for m in cascade.marks)
    return replace(cascade, statements=tuple(statements), marks=marks)


def _is_pure_view(einsum: Einsum) -> bool:
    """A view whose every index is a variable of its own, all of them used on the right.

    A view that repeats a tensor along a variable (`T[m,n] = K[n]`) is kept: a sum over m of T is not one of K.
    """
    names = [i.name for i in einsum.output.indices if isinstance(i, Symbol) and i.is_variable]
    return (
        einsum.is_view
        and len(set(names)) == len(einsum.output.indices)
        and variables(einsum.expression) == einsum.output_variables
    )


def _inlined(einsum: Einsum, views: Mapping[str, Einsum]) -> Einsum:
    expression, clauses = _read_through(einsum.expression, views)
    if einsum.predicate is None:
        return replace(einsum, expression=expression, predicate=conjunction(clauses))
    predicate, more = _read_through(einsum.predicate, views)
    return replace(einsum, expression=expression, predicate=conjunction((*conjuncts(predicate), *clauses, *more)))


def _read_through(node: Expression, views: Mapping[str, Einsum]) -> tuple[Expression, tuple[Expression, ...]]:
    """The expression with views replaced by what they show, and the predicates of those views."""
    clauses: list[Expression] = []

    def change(n: Expression) -> Expression:
        if not isinstance(n, Access) or n.tensor not in views:
            return n
        view = views[n.tensor]
        values = _solve(view.output, n)
        clauses.extend(substitute(c, values) for c in conjuncts(view.predicate))
        return substitute(view.expression, values)

    return rewrite(node, change), tuple(clauses)


def _mark_through(mark: Mark, views: Mapping[str, Einsum]) -> Mark:
    expression, _ = _read_through(mark.access, views)
    return replace(mark, access=_access(expression))


# -- predicates ---------------------------------------------------------------------------------------------------


def _with_inherited_predicates(cascade: Cascade) -> Cascade:
    """Repeats until nothing changes: inside an iterate block a tensor may be read before the line that computes it."""
    carried = frozenset(s.output.tensor for s in cascade.statements if isinstance(s, Initial))
    carried |= {e.name for e, block in cascade.placed() if block and _moves_on(e.output, block.variable)}  # no `init`
    while True:
        producers = {e.name: (e, block) for e, block in cascade.placed()}
        statements: list[Statement] = []
        for statement in cascade.statements:
            if isinstance(statement, Einsum):
                statement = _with_inherited(statement, None, producers, carried)
            elif isinstance(statement, Iterate):
                body: list[Einsum] = []
                for einsum in statement.body:
                    body.append(_with_inherited(einsum, statement.variable, producers, carried))
                statement = replace(statement, body=tuple(body))
            statements.append(statement)
        if tuple(statements) == cascade.statements:
            return cascade
        cascade = replace(cascade, statements=tuple(statements))


def _moves_on(output: Access, step: str) -> bool:
    """Whether a line of an iterate block writes another step than the one it stands at: T[n1+1,m]."""
    return any(isinstance(index, Apply) and step in variables(index) for index in output.indices)


def _with_inherited(
    einsum: Einsum,
    step: str | None,
    producers: dict[str, tuple[Einsum, Iterate | None]],
    carried: frozenset[str],
) -> Einsum:
    clauses = list(conjuncts(einsum.predicate))
    for access in (*einsum.reads, *(a for c in clauses for a in accesses(c))):
        if access.tensor in producers:
            producer, block = producers[access.tensor]
            produced_step = block.variable if block and access.tensor in carried else None
            clauses.extend(_inherited(producer, access, step, produced_step))
    einsum = replace(einsum, predicate=conjunction(tuple(clauses)))
    producers[einsum.name] = (einsum, producers[einsum.name][1])
    return einsum


def _inherited(producer: Einsum, access: Access, step: str | None, produced_step: str | None) -> Iterator[Expression]:
    """Clauses of the producer that hold for the element read.

    `produced_step` is the iterate variable when the tensor is carried from step to step. Element 0 of such a tensor
    comes from its `init` line, on which the predicate does not act; a read of an earlier step may be that element, so
    only clauses that do not depend on the step hold for it.
    """
    values = _solve(producer.output, access)
    earlier = False
    if produced_step is not None:
        read_step = values.get(produced_step)
        if isinstance(read_step, Number) and read_step.value < 0:
            return
        earlier = step == produced_step and read_step != Symbol(produced_step)
    for clause in conjuncts(producer.predicate):
        used = variables(clause)
        if not used <= values.keys():
            continue
        # Plain coordinates only: a shifted one would grow by one shift per step, without end.
        if earlier and (produced_step in used or not all(isinstance(values[v], Symbol | Number) for v in used)):
            continue
        yield substitute(clause, values)


def _solve(output: Access, read: Access) -> dict[str, Expression]:
    """Values of the output's variables at the element read: T[n1+1,m] read as T[k,3] gives n1 = k-1, m = 3."""
    values: dict[str, Expression] = {}
    for written, index in zip(output.indices, read.indices, strict=False):
        match written:
            case Symbol(name=name) if written.is_variable:
                values[name] = index
            case Apply(op="+", args=(Symbol(name=name) as symbol, Number(value=shift))) if symbol.is_variable:
                values[name] = _minus(index, shift)
    return values


def _minus(index: Expression, shift: float) -> Expression:
    match index:
        case Number(value=value):
            return Number(value - shift)
        case Apply(op="+", args=(rest, Number(value=value))):
            left = value - shift
            return rest if left == 0 else Apply("+", (rest, Number(left))) if left > 0 else _minus(rest, -left)
    return Apply("-", (index, Number(shift)))


# -- sizes --------------------------------------------------------------------------------------------------------


def bind(cascade: Cascade, sizes: Mapping[str, SupportsIndex]) -> dict[str, int]:
    """Every size of the cascade, by upper-case name.

    Keys may be lower or upper case. Of a partition N = N1 * N0 any two determine the third, N1 = ceil(N/N0).
    Raises SizeError for a size that is missing, unknown, contradictory or below 1, and for an N that N0 does not divide
    unless the cascade guards the last chunk with `where n1*N0+n0 < N`.
    """
    bound = complete(cascade, sizes)
    for whole, outer, inner in partitions(cascade):
        if bound[whole] % bound[inner] and (names := unguarded(cascade, whole)):
            raise SizeError(
                f"cascade {cascade.name}: {whole}={bound[whole]} is not a multiple of {inner}={bound[inner]} and "
                f"{', '.join(names)} would read past the end; choose {inner} that divides {whole}, or add "
                f"`where {outer.lower()}*{inner}+{inner.lower()} < {whole}`"
            )
    return bound


@lru_cache(maxsize=512)
def unguarded(cascade: Cascade, rank: str) -> tuple[str, ...]:
    """Einsums that read a partitioned rank through its chunks without the predicate that keeps them below its size."""
    resolved = resolve(cascade)
    found = resolved.rank(rank)
    parts = frozenset(p.lower() for p in found.parts) if found else frozenset[str]()
    position = resolved.position(rank, parts) if parts else None
    if position is None:
        return ()
    guard = margin(Apply("<", (position, Symbol(rank))))
    return tuple(
        e.name
        for e in resolved.einsums
        if any(parts <= variables(i) for a in e.reads for i in a.indices)
        and not any(margin(c) == guard for c in conjuncts(e.predicate))
    )
