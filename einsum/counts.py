"""How often each operator of a cascade is applied, per Einsum and operator class, as formulas in the sizes.

Definitions
- An operator in a value expression is applied once per point of *its own* variables (`GM[m]*2` is M applications even
  inside an Einsum over m and n), at the points that the Einsum's predicate leaves; once, if on sizes alone.
- A `*` at the root whose products are summed is a multiply-accumulate, class `macc`: one per point.
- Any other reduction of k existing points into one is k - 1 applications of its operator; nothing for an empty one.
- Not counted: index expressions (the coordinate n1*N0+n0 of a chunked rank, wherever it stands), predicates, unary
  minus, views, literals.
- An Einsum with several reductions sums the variables that no reduction names first, then takes them as written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from einsight.einsum.domain import Domain
from einsight.einsum.expression import OPERATORS, Apply, Expression, Number, conjuncts, variables
from einsight.einsum.formula import Formula, PointSet, constant, single
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
        entries = (e for e in self.entries if einsum is None or e.einsum == einsum)
        entries = (e for e in entries if klass is None or e.klass == klass)
        return replace(self, entries=tuple(e for e in entries if where is None or where(e)))

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
        """One row per Einsum, one column per class, totals last. Formulas, with the point sets they use listed below as
        #1, #2, ...; numbers instead when sizes are given."""
        classes = list(self.group_by("klass"))
        found = dict.fromkeys(p for e in self.entries for p in e.formula.point_sets)
        names = {p: f"#{k}" for k, p in enumerate(found, start=1)}
        rows = [["", *classes]]
        for name, part in [*self.group_by("einsum").items(), ("total", self)]:
            by_class = part.group_by("klass")
            rows.append([name, *(_cell(by_class.get(k), sizes, names) for k in classes)])
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        if sizes is None:
            lines += [f"{name} = {_meaning(p)}" for p, name in names.items()]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def _cell(part: Counts | None, sizes: Mapping[str, Any] | None, names: Mapping[PointSet, str]) -> str:
    if part is None:
        return ""
    formula = part.total()
    return formula.text(names) if sizes is None else f"{formula.evaluate(sizes):,}"


def _meaning(points: PointSet) -> str:
    return f"number of points {str(points)[1:]}" if points.kept else f"1 if {str(points)[2:-1]}, else 0"


@lru_cache(maxsize=1024)
def count(cascade: Cascade) -> Counts:
    """The counts of a (composed) cascade; formulas over the sizes that `bind` gives, chunk counts (N1) included.

    Raises ValueError when a predicate is not over coordinates and sizes alone.
    """
    resolved = resolve(cascade)
    plain = Domain(resolved, {})
    entries: list[Count] = []
    for statement in resolved.statements:
        if isinstance(statement, Iterate):
            domain = Domain(resolved, {statement.variable: statement.bound})
            entries += (e for einsum in statement.body for e in _einsum_counts(domain, einsum))
        else:
            einsum = Einsum(statement.output, statement.expression) if isinstance(statement, Initial) else statement
            entries += _einsum_counts(plain, einsum)
    return Counts(cascade.name, tuple(e for e in entries if e.formula))


# --- read-outs


def matmul_flops(counts: Counts, causal: str = "exact") -> Formula:
    """FLOPs as flash-attention reports them: 2 per multiply-accumulate of the matrix products, unmasked points only.

    causal   "exact": the points of the mask, N(N+1)/2 for N queries and keys.
             "half": half the diagonal left out, so that this mask has N*N/2 points, as flash-attention's benchmarks
             count (`benchmarks/benchmark_flash_attention.py`; with M < N the mean number of keys is (N-M+N)/2, as in
             `hopper/benchmark_attn.py`). Windows and other masks are exact in both.
    """
    if causal not in ("exact", "half"):
        raise ValueError(f'causal points are counted "exact" or "half", not {causal!r}')
    maccs = counts.filter(klass=MACC, where=lambda c: c.matmul).total()
    if causal == "exact":
        return 2 * maccs
    strict = {p: single(replace(p, clauses=_strict(p.clauses[0]))) for p in maccs.point_sets if _is_causal(p)}
    return maccs + maccs.replace(strict)


def _is_causal(points: PointSet) -> bool:
    """One order between two coordinates and nothing else."""
    if len(points.clauses) != 1 or len(points.ranges) != 2 or points.exists:
        return False
    clause = points.clauses[0]
    return isinstance(clause, Apply) and clause.op in ("<", "<=", ">", ">=")


def _strict(clause: Expression) -> tuple[Expression, ...]:
    """The order with its boundary removed: n <= m becomes n+1 <= m."""
    assert isinstance(clause, Apply)
    left, right = clause.args
    if clause.op in ("<", "<="):
        return (Apply(clause.op, (Apply("+", (left, Number(1))), right)),)
    return (Apply(clause.op, (left, Apply("+", (right, Number(1))))),)


def weighted(counts: Counts, weights: Mapping[str, float], sizes: Mapping[str, Any]) -> Any:
    """Sum of weight * number over the operator classes: the work of a target that spends `weights[class]` (cycles, say)
    on one application. ValueError names a class of the cascade without a weight."""
    numbers = counts.evaluate(sizes)
    unknown = [k for k in numbers if k not in weights]
    if unknown:
        known = ", ".join(sorted(weights)) or "none"
        raise ValueError(f"{counts.cascade}: no weight for {', '.join(unknown)}; the target gives {known}")
    return sum(weights[k] * n for k, n in numbers.items())


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
    for node in _operators(root, domain.positions):
        klass = OPERATORS[node.op].klass
        if klass and not (is_macc and node is root):
            own_points = domain.points(variables(node), clauses) if variables(node) else constant(1)
            sums[klass] = sums.get(klass, constant(0)) + own_points
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


def _operators(node: Expression, coordinates: frozenset[Expression]) -> Iterator[Apply]:
    """Operators applied to values. A node used twice counts twice; index arithmetic (n1*N0+n0 is n) does not count."""
    if isinstance(node, Apply) and node not in coordinates:
        yield node
        for argument in node.args:
            yield from _operators(argument, coordinates)


def _is_matmul(einsum: Einsum) -> bool:
    assert isinstance(einsum.expression, Apply)
    left, right = (variables(a) & einsum.output_variables for a in einsum.expression.args)
    return bool(left - right) and bool(right - left)
