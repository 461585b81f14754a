"""The size of an Einsum's iteration space, and of its projections, as a formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from einsight.einsum.expression import Apply, Expression, Symbol, rewrite, variables
from einsight.einsum.formula import Formula, PointSet, constant, polynomial, single
from einsight.einsum.ir import Cascade, Rank
from einsight.einsum.points import components

Ranges = dict[str, Expression]


@dataclass(frozen=True, slots=True)
class Domain:
    """Where variables walk: over their rank, or up to the bound (in `limits`) of the iterate block they stand in."""

    cascade: Cascade
    limits: Mapping[str, Expression]
    known: dict[tuple[frozenset[str], tuple[Expression, ...]], Formula] = field(default_factory=dict, repr=False)

    def points(self, kept: frozenset[str], clauses: tuple[Expression, ...]) -> Formula:
        """Number of points of the kept variables that the clauses leave; other variables only need some value.

        Variables that no clause ties together become separate factors, in the order in which ranks are declared.
        """
        if (kept, clauses) not in self.known:
            self.known[kept, clauses] = self._points(kept, clauses)
        return self.known[kept, clauses]

    def _points(self, kept: frozenset[str], clauses: tuple[Expression, ...]) -> Formula:
        names = kept.union(*(variables(c) for c in clauses))
        ranges = {v: self._extent(v) for v in sorted(names, key=self._order)}
        exists = names - kept
        for rank in self.cascade.ranks:
            if len(rank.parts) == 2:
                clauses = tuple(self._plain_guard(rank, c) for c in clauses)
                ranges, exists, clauses = self._join_chunks(rank, ranges, exists, clauses)
        clauses = tuple(c for c in clauses if not _always(c, ranges))
        total = constant(1)
        for group, own in components(tuple(ranges), clauses):
            total = total * self._factor({v: ranges[v] for v in group}, exists & frozenset(group), own)
        return total

    @property
    def positions(self) -> frozenset[Expression]:
        """The coordinates of partitioned ranks: n1*N0+n0."""
        chunked = (r for r in self.cascade.ranks if len(r.parts) == 2)
        return frozenset(self._guard(r).args[0] for r in chunked)

    def _extent(self, variable: str) -> Expression:
        limit = self.limits.get(variable, Symbol(variable.upper()))
        return Symbol(self.cascade.size_of(limit.name.lower())) if isinstance(limit, Symbol) else limit

    def _order(self, variable: str) -> tuple[int, str]:
        names = [n.lower() for r in self.cascade.ranks for n in (r.name, *r.parts)]
        return (names.index(variable) if variable in names else len(names), variable)

    def _guard(self, rank: Rank) -> Apply:
        """n1*N0+n0 < N: the points of the last chunk that exist."""
        position = self.cascade.position(rank.name, frozenset(p.lower() for p in rank.parts))
        assert position is not None
        return Apply("<", (position, Symbol(rank.name)))

    def _plain_guard(self, rank: Rank, clause: Expression) -> Expression:
        guard = self._guard(rank)
        return guard if margin(clause) == margin(guard) else clause

    def _join_chunks(
        self, rank: Rank, ranges: Ranges, exists: frozenset[str], clauses: tuple[Expression, ...]
    ) -> tuple[Ranges, frozenset[str], tuple[Expression, ...]]:
        """(n1, n0) as the one variable n, where the clauses use them only as n1*N0+n0; guarded, n walks 0 .. N-1."""
        whole, parts = rank.name.lower(), frozenset(p.lower() for p in rank.parts)
        if not parts <= set(ranges) or whole in ranges or len(parts & exists) == 1:
            return ranges, exists, clauses
        position = self.cascade.position(rank.name, parts)
        joined = tuple(rewrite(c, lambda n: Symbol(whole) if n == position else n) for c in clauses)
        if joined == clauses or any(variables(c) & parts for c in joined):
            return ranges, exists, clauses
        guarded = self._guard(rank) in clauses
        outer, inner = (ranges[p.lower()] for p in rank.parts)
        size = Symbol(rank.name) if guarded else Apply("*", (outer, inner))
        ranges = {(whole if v in parts else v): (size if v in parts else e) for v, e in ranges.items()}
        return ranges, (exists - parts) | {whole} if parts <= exists else exists, joined

    def _factor(self, ranges: Ranges, exists: frozenset[str], clauses: tuple[Expression, ...]) -> Formula:
        """One group of variables that clauses tie together."""
        if not clauses:
            return _box(ranges, exists)
        for rank in self.cascade.ranks:
            chunked = len(rank.parts) == 2 and set(ranges) == {p.lower() for p in rank.parts}
            if chunked and exists == {rank.parts[1].lower()} and clauses == (self._guard(rank),):
                return single(rank.parts[0])  # N1 = ceil(N/N0): every chunk starts below N
        return single(PointSet(tuple(ranges.items()), tuple(v for v in ranges if v in exists), clauses))


def _box(ranges: Ranges, exists: frozenset[str]) -> Formula:
    total = constant(1)
    for variable, extent in ranges.items():
        if variable not in exists:
            size = polynomial(extent)
            total = total * (single(PointSet(((variable, extent),), (), ())) if size is None else size)
    return total


def margin(clause: Expression) -> Formula | None:
    """The polynomial p, variables included, of an order clause that says p >= 0 over the integers."""
    if not isinstance(clause, Apply) or clause.op not in ("<", "<=", ">", ">="):
        return None
    left, right = (polynomial(a) for a in clause.args)
    if left is None or right is None:
        return None
    difference = right - left if clause.op in ("<", "<=") else left - right
    return difference - 1 if clause.op in ("<", ">") else difference


def _always(clause: Expression, ranges: Mapping[str, Expression]) -> bool:
    """`n < N` for an n that walks 0 .. N-1, and `n >= 0`."""
    found = margin(clause)
    for variable in variables(clause):
        size = polynomial(ranges[variable])
        if found == single(variable) or (size is not None and found == size - 1 - single(variable)):
            return True
    return False
