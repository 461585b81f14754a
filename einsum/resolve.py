"""From a cascade as written to the cascade that analyses read, and from a user's sizes to every size.

`resolve` leaves three things out of what `counts`, `passes` and `evaluate` have to know: `let` names are substituted,
pure views are inlined (their predicates move to the readers), and each Einsum states its whole predicate, inherited
clauses included.

Inheritance: an Einsum that reads T takes those clauses of T's predicate that use output variables of T only, with
T's indices substituted. A clause on a variable that T reduces stays with T: T's point exists even when nothing is left
to reduce, and then holds the identity of the reduction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import index as as_integer
from typing import SupportsIndex

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
    walk,
)
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate, Mark, Rank, Statement, rewrite_statement


class SizeError(ValueError):
    """The sizes given do not fit the cascade."""


@lru_cache(maxsize=512)
def resolve(cascade: Cascade) -> Cascade:
    """The same cascade without `let`s and pure views, each Einsum with its whole predicate. Idempotent."""
    return _with_inherited_predicates(_without_views(_without_lets(cascade)))


# -- lets ---------------------------------------------------------------------------------------------------------


def _without_lets(cascade: Cascade) -> Cascade:
    values: dict[str, Expression] = {}
    for let in cascade.lets:
        values[let.name] = substitute(let.expression, values)
    if not values:
        return cascade

    def change(node: Expression) -> Expression:
        return values.get(node.name, node) if isinstance(node, Symbol) else node

    return replace(
        cascade,
        lets=(),
        statements=tuple(rewrite_statement(s, change) for s in cascade.statements),
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


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a cascade wants to know: ranks given directly, (rank, outer, inner) partitions, further size symbols."""

    ranks: tuple[str, ...]
    partitions: tuple[tuple[str, str, str], ...]
    parameters: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What a user gives: for a partition the whole and its inner size."""
        partitioned = tuple(n for whole, _, inner in self.partitions for n in (whole, inner))
        return tuple(dict.fromkeys((*self.ranks, *partitioned, *self.parameters)))


def required_sizes(cascade: Cascade) -> tuple[str, ...]:
    """Names of the sizes that `bind` wants, upper case; outer chunk counts (N1) follow and need not be given."""
    return _needs(cascade).names


def bind(cascade: Cascade, sizes: Mapping[str, SupportsIndex]) -> dict[str, int]:
    """Every size of the cascade, by upper-case name.

    Keys may be lower or upper case. Of a partition N = N1 * N0 any two determine the third, N1 = ceil(N/N0).
    Raises SizeError for a size that is missing, unknown, contradictory or below 1, and for an N that N0 does not divide
    unless the cascade guards the last chunk with `where n1*N0+n0 < N`.
    """
    needs = _needs(cascade)
    bound = _upper_case(cascade, sizes)
    wanted = ", ".join(needs.names)
    known = {*needs.names, *(outer for _, outer, _ in needs.partitions)}
    if unknown := [n for n in bound if n not in known]:
        raise SizeError(f"cascade {cascade.name} has no size {', '.join(unknown)} (it needs {wanted})")
    for name in bound:
        if name not in needs.parameters and bound[name] < 1:
            raise SizeError(f"cascade {cascade.name}: size {name} is {bound[name]}; expected at least 1")
    for whole, outer, inner in needs.partitions:
        _complete(bound, whole, outer, inner)
    if missing := [n for n in needs.names if n not in bound]:
        noun = "size" if len(missing) == 1 else "sizes"
        raise SizeError(f"cascade {cascade.name}: missing {noun} {', '.join(missing)} (it needs {wanted})")
    for whole, outer, inner in needs.partitions:
        _check_partition(cascade, bound, whole, outer, inner)
    return bound


def unguarded(cascade: Cascade, rank: str) -> tuple[str, ...]:
    """Einsums that read a partitioned rank through its chunks without the predicate that keeps them below its size."""
    return _unguarded(cascade, rank)


@lru_cache(maxsize=512)
def _needs(cascade: Cascade) -> _Needs:
    partitions = tuple((r.name, r.parts[0], r.parts[1]) for r in cascade.ranks if len(r.parts) == 2)
    of_partitions = {n for p in partitions for n in p}
    ranks = tuple(r.name for r in cascade.ranks if r.name not in of_partitions)
    lets = {let.name for let in cascade.lets}
    symbols = (n for node in _expressions(cascade) for n in walk(node) if isinstance(n, Symbol))
    used = dict.fromkeys(s.name for s in symbols if not s.is_variable)
    parameters = tuple(n for n in used if n not in {*ranks, *of_partitions, *lets})
    return _Needs(ranks, partitions, parameters)


def _expressions(cascade: Cascade) -> Iterator[Expression]:
    yield from (let.expression for let in cascade.lets)
    for statement in cascade.statements:
        if isinstance(statement, Iterate):
            yield statement.bound
        einsums: Iterable[Einsum | Initial] = statement.body if isinstance(statement, Iterate) else (statement,)
        for einsum in einsums:
            yield from (einsum.output, einsum.expression)
            if isinstance(einsum, Einsum) and einsum.predicate is not None:
                yield einsum.predicate


def _upper_case(cascade: Cascade, sizes: Mapping[str, SupportsIndex]) -> dict[str, int]:
    bound: dict[str, int] = {}
    for name, value in sizes.items():
        try:
            size = as_integer(value)
        except TypeError:
            raise SizeError(f"cascade {cascade.name}: size {name} is {value!r}; expected a whole number") from None
        if bound.setdefault(name.upper(), size) != size:
            raise SizeError(f"cascade {cascade.name}: size {name.upper()} is given as {bound[name.upper()]} and {size}")
    return bound


def _complete(bound: dict[str, int], whole: str, outer: str, inner: str) -> None:
    """The third of N, N1, N0 from the other two."""
    given = {n: bound[n] for n in (whole, outer, inner) if n in bound}
    if len(given) != 2:
        return
    if outer not in given:
        bound[outer] = -(-given[whole] // given[inner])
    elif inner not in given:
        bound[inner] = -(-given[whole] // given[outer])
    else:
        bound[whole] = given[outer] * given[inner]


def _check_partition(cascade: Cascade, bound: Mapping[str, int], whole: str, outer: str, inner: str) -> None:
    n, n1, n0 = bound[whole], bound[outer], bound[inner]
    if n1 != -(-n // n0):
        raise SizeError(
            f"cascade {cascade.name}: {outer}={n1} does not match {whole}={n} in chunks of {inner}={n0}; "
            f"expected {outer} = ceil({whole}/{inner}) = {-(-n // n0)}"
        )
    if n % n0 and (names := unguarded(cascade, whole)):
        position = f"{outer.lower()}*{inner}+{inner.lower()}"
        raise SizeError(
            f"cascade {cascade.name}: {whole}={n} is not a multiple of {inner}={n0} and {', '.join(names)} would read "
            f"past the end; choose {inner} that divides {whole}, or add `where {position} < {whole}`"
        )


@lru_cache(maxsize=512)
def _unguarded(cascade: Cascade, rank: str) -> tuple[str, ...]:
    resolved = resolve(cascade)
    found = resolved.rank(rank) or Rank(rank)
    if not found.parts:
        return ()
    parts = frozenset(p.lower() for p in found.parts)
    position = resolved.position(rank, parts)
    assert position is not None
    limit = _polynomial(Apply("-", (position, Symbol(rank))))
    return tuple(
        e.name
        for e in resolved.einsums
        if any(parts <= variables(i) for a in e.reads for i in a.indices)
        and not any(_bound_below(c) == limit for c in conjuncts(e.predicate))
    )


_Polynomial = dict[tuple[str, ...], float]


def _bound_below(clause: Expression) -> _Polynomial | None:
    """The polynomial p of a clause that says p < 0 for integers; None for other clauses."""
    match clause:
        case Apply(op="<", args=(left, right)) | Apply(op=">", args=(right, left)):
            return _polynomial(Apply("-", (left, right)))
        case Apply(op="<=", args=(left, right)) | Apply(op=">=", args=(right, left)):
            return _polynomial(Apply("-", (left, Apply("+", (right, Number(1))))))
    return None


def _polynomial(node: Expression) -> _Polynomial | None:
    """Sums and products of symbols and numbers as {sorted symbol names: coefficient}; None for anything else."""
    match node:
        case Number(value=value):
            return {(): value} if value else {}
        case Symbol(name=name):
            return {(name,): 1.0}
        case Apply(op="neg", args=(inner,)):
            return _polynomial(Apply("*", (Number(-1), inner)))
        case Apply(op="-", args=(left, right)):
            return _polynomial(Apply("+", (left, Apply("neg", (right,)))))
        case Apply(op="+" | "*" as op, args=(left, right)):
            p, q = _polynomial(left), _polynomial(right)
            return None if p is None or q is None else _combined(op, p, q)
    return None


def _combined(op: str, p: _Polynomial, q: _Polynomial) -> _Polynomial:
    terms = (
        [*p.items(), *q.items()]
        if op == "+"
        else [(tuple(sorted(a + b)), x * y) for a, x in p.items() for b, y in q.items()]
    )
    total: _Polynomial = {}
    for names, value in terms:
        total[names] = total.get(names, 0.0) + value
    return {names: value for names, value in total.items() if value}
