"""How often each operator of a cascade is applied, per Einsum and operator class, as formulas in the sizes.

Definitions
- An operator in a value expression is applied once per point of *its own* variables (`GM[m]*2` is M applications even
  inside an Einsum over m and n), at the points that the Einsum's predicate leaves.
- A `*` at the root whose products are summed is a multiply-accumulate, class `macc`: one per point.
- Any other reduction of k existing points into one is k - 1 applications of its operator; nothing for an empty one.
- Not counted: index expressions, predicates, unary minus, views, literals.
- An Einsum with several reductions sums the variables that no reduction names first, then takes them as written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from einsight.einsum import points
from einsight.einsum.expression import (
    OPERATORS,
    Apply,
    Expression,
    Symbol,
    conjuncts,
    rewrite,
    variables,
)
from einsight.einsum.formula import Formula, PointSet, constant, factor, polynomial
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate
from einsight.einsum.resolve import resolve

MACC = "macc"


@dataclass(frozen=True, slots=True)
class Count:
    """Applications of one operator class in one Einsum.

    matmul   a macc whose two operands each carry an output variable that the other lacks: a matrix product
    reduces  the variables folded, when the operator is the Einsum's reduction (a macc included)
    """

    einsum: str
    klass: str
    formula: Formula
    matmul: bool = False
    reduces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Counts:
    """All counts of a cascade. Every question is a filter, a grouping or a sum over it."""

    cascade: str
    entries: tuple[Count, ...]

    def __iter__(self) -> Iterator[Count]:
        return iter(self.entries)

    def filter(
        self, einsum: str | None = None, klass: str | None = None, where: Callable[[Count], bool] | None = None
    ) -> Counts:
        """The entries of one Einsum and/or class, and/or those for which `where` holds."""
        chosen = (
            e
            for e in self.entries
            if (einsum is None or e.einsum == einsum) and (klass is None or e.klass == klass) and (not where or where(e))
        )
        return replace(self, entries=tuple(chosen))

    def group_by(self, what: str) -> dict[str, Counts]:
        """Parts by "klass" or "einsum", in the order in which they first appear."""
        if what not in ("klass", "einsum"):
            raise ValueError(f'counts are grouped by "klass" or "einsum", not {what!r}')
        keys = dict.fromkeys(getattr(e, what) for e in self.entries)
        return {k: self.filter(**{what: k}) for k in keys}

    def total(self) -> Formula:
        """The sum over all entries (of one class, usually: classes are not alike)."""
        return sum((e.formula for e in self.entries), constant(0))

    def evaluate(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Operator class -> number, from bound sizes (see `bind`); arrays of sizes give arrays."""
        return {klass: part.total().evaluate(sizes) for klass, part in self.group_by("klass").items()}

    def table(self, sizes: Mapping[str, Any] | None = None) -> str:
        """One row per Einsum, one column per class, totals last; numbers instead of formulas when sizes are given."""
        classes = list(self.group_by("klass"))
        rows = [["", *classes]]
        for name, part in [*self.group_by("einsum").items(), ("total", self)]:
            by_class = part.group_by("klass")
            rows.append([name, *(_cell(by_class.get(k), sizes) for k in classes)])
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def _cell(part: Counts | None, sizes: Mapping[str, Any] | None) -> str:
    if part is None:
        return ""
    formula = part.total()
    return str(formula) if sizes is None else f"{formula.evaluate(sizes):,}"


@lru_cache(maxsize=1024)
def count(cascade: Cascade) -> Counts:
    """The counts of a (composed) cascade; formulas over the sizes that `bind` gives, chunk counts (N1) included.

    Raises ValueError when a predicate is not over coordinates and sizes alone.
    """
    resolved = resolve(cascade)
    entries: list[Count] = []
    for statement in resolved.statements:
        if isinstance(statement, Iterate):
            limits = {statement.variable: statement.bound}
            for einsum in statement.body:
                entries += _einsum_counts(Domain(resolved, limits), einsum)
        else:
            einsum = Einsum(statement.output, statement.expression) if isinstance(statement, Initial) else statement
            entries += _einsum_counts(Domain(resolved, {}), einsum)
    return Counts(cascade.name, tuple(e for e in entries if e.formula))


# --- one Einsum


def _einsum_counts(domain: Domain, einsum: Einsum) -> list[Count]:
    clauses = conjuncts(einsum.predicate)
    folded = [c for c in clauses if variables(c) & einsum.reduced]
    own = variables(einsum.expression).union(*(variables(c) for c in folded))
    stages = _stages(einsum)
    sums: dict[str, Formula] = {}
    found: list[Count] = []

    root = einsum.expression
    is_macc = bool(stages) and stages[0][0] == "+" and isinstance(root, Apply) and root.op == "*"
    for node in _operators(root):
        klass = OPERATORS[node.op].klass
        if klass and not (is_macc and node is root):
            sums[klass] = sums.get(klass, constant(0)) + domain.points(variables(node), clauses)
    found += [Count(einsum.name, klass, formula) for klass, formula in sums.items()]

    for step, (op, names) in enumerate(stages):
        before = domain.points(own, clauses)
        own -= names
        order = tuple(sorted(names))
        if step == 0 and is_macc:
            found.append(Count(einsum.name, MACC, before, _is_matmul(einsum), order))
        else:
            klass = OPERATORS[op].klass or op
            found.append(Count(einsum.name, klass, before - domain.points(own, clauses), reduces=order))
    return found


def _stages(einsum: Einsum) -> list[tuple[str, frozenset[str]]]:
    """(operator, variables) from the innermost reduction outwards; neighbours with the same operator are one."""
    named = [(r.op, frozenset(r.variables) & einsum.reduced) for r in einsum.reductions]
    rest = einsum.reduced.difference(*(names for _, names in named))
    stages: list[tuple[str, frozenset[str]]] = []
    for op, names in [("+", rest), *named]:
        if names and stages and stages[-1][0] == op:
            stages[-1] = (op, stages[-1][1] | names)
        elif names:
            stages.append((op, names))
    return stages


def _operators(node: Expression) -> Iterator[Apply]:
    """Operators applied to values: not those inside index expressions. A node used twice counts twice."""
    if isinstance(node, Apply):
        yield node
        for argument in node.args:
            yield from _operators(argument)


def _is_matmul(einsum: Einsum) -> bool:
    assert isinstance(einsum.expression, Apply)
    left, right = (variables(a) & einsum.output_variables for a in einsum.expression.args)
    return bool(left - right) and bool(right - left)


# --- points of an iteration space, as a formula


@dataclass(frozen=True, slots=True)
class Domain:
    """Where variables walk: over their rank, or up to the bound of the iterate block they stand in."""

    cascade: Cascade
    limits: Mapping[str, Expression]

    def extent(self, variable: str) -> Expression:
        return self.limits.get(variable, Symbol(variable.upper()))

    def order(self, variable: str) -> tuple[int, str]:
        """Place in the cascade's declaration of ranks: the order in which a formula lists its factors."""
        names = [n.lower() for r in self.cascade.ranks for n in (r.name, *r.parts)]
        return (names.index(variable) if variable in names else len(names), variable)

    def points(self, kept: frozenset[str], clauses: tuple[Expression, ...]) -> Formula:
        """Number of points of the kept variables that the clauses leave; other variables only need some value."""
        names = kept.union(*(variables(c) for c in clauses))
        extents = {v: self.extent(v) for v in sorted(names, key=self.order)}
        exists = names - kept
        extents, exists, clauses = self._join_chunks(extents, exists, clauses)
        clauses = tuple(c for c in clauses if not _always(c, extents))
        total = constant(1)
        for group, own in points.components(tuple(extents), clauses):
            ranges = tuple((v, extents[v]) for v in group)
            total = total * self._component(ranges, exists & frozenset(group), own)
        return total

    def _component(
        self, ranges: tuple[tuple[str, Expression], ...], exists: frozenset[str], clauses: tuple[Expression, ...]
    ) -> Formula:
        if not clauses:
            total = constant(1)
            for variable, extent in ranges:
                if variable not in exists:
                    size = polynomial(extent)
                    total = total * (factor(PointSet(((variable, extent),), (), ())) if size is None else size)
            return total
        for rank in self.cascade.ranks:
            if len(rank.parts) == 2 and {v for v, _ in ranges} == {p.lower() for p in rank.parts}:
                guard = _below(self.cascade.position(rank.name, self.cascade.family(rank.name)-{rank.name.lower()}), rank.name)
                if clauses == (guard,) and exists == {rank.parts[1].lower()}:
                    return factor(rank.parts[0])  # N1 = ceil(N/N0): every chunk starts below N
        return factor(PointSet(ranges, tuple(v for v, _ in ranges if v in exists), clauses))

    def _join_chunks(
        self, extents: dict[str, Expression], exists: frozenset[str], clauses: tuple[Expression, ...]
    ) -> tuple[dict[str, Expression], frozenset[str], tuple[Expression, ...]]:
        """(n1, n0) as the one variable n, where the clauses use them only as n1*N0+n0; guarded, n walks 0 .. N-1."""
        for rank in self.cascade.ranks:
            parts = frozenset(p.lower() for p in rank.parts)
            whole = rank.name.lower()
            if len(parts) != 2 or not parts <= set(extents) or whole in extents or len(parts & exists) == 1:
                continue
            position = self.cascade.position(rank.name, parts)
            by_position = tuple(rewrite(c, lambda n, p=position, w=whole: Symbol(w) if n == p else n) for c in clauses)
            if by_position == clauses or any(variables(c) & parts for c in by_position):
                continue
            guarded = _below(Symbol(whole), rank.name) in by_position
            size = Symbol(rank.name) if guarded else Apply("*", tuple(extents[p.lower()] for p in rank.parts))
            joined = {(whole if v in parts else v): (size if v in parts else e) for v, e in extents.items()}
            extents, clauses = joined, by_position
            exists = (exists - parts) | {whole} if parts <= exists else exists
        return extents, exists, clauses


def _below(position: Expression | None, size: str) -> Expression | None:
    return None if position is None else Apply("<", (position, Symbol(size)))


def _always(clause: Expression, extents: Mapping[str, Expression]) -> bool:
    """`n < N` for an n that walks 0 .. N-1."""
    return (
        isinstance(clause, Apply)
        and clause.op == "<"
        and isinstance(clause.args[0], Symbol)
        and extents.get(clause.args[0].name) == clause.args[1]
    )
