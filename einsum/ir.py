"""The IR: what a cascade file says, as frozen values. It holds no analysis; see `resolve`, `counts`, `passes`.

A base cascade is written per batch and head. `compose` splices fragments into it, adds masks, and gives every tensor
its outer ranks; what it returns is again a `Cascade`, and all analyses read only that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from einsight.einsum.expression import Access, Apply, Expression, Span, Symbol, accesses, rewrite, variables

MARKS = ("score", "denominator", "maximum", "slope")
"""Tensors that a base cascade marks so that masks and fragments can act on them."""


@dataclass(frozen=True, slots=True)
class Rank:
    """A named rank. `parts` names its chunks, outer first, when it is partitioned: `rank N = N1 * N0`; `like` the rank or
    chunk that it is as large as, when it walks the same coordinates a second time: `rank C = N0`."""

    name: str
    parts: tuple[str, ...] = ()
    like: str = ""
    span: Span | None = field(default=None, compare=False, repr=False)

    @property
    def variable(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output. `outer` lists the outer ranks it carries (`over b, g`); None means the library's rule."""

    name: str
    ranks: tuple[str, ...]
    dtype: str | None = None
    outer: tuple[str, ...] | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Let:
    """A named sub-expression over rank variables and sizes; `resolve` substitutes it."""

    name: str
    expression: Expression
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Mark:
    """`score QK[m,n]`: the access of the cascade that plays a role of `MARKS`."""

    role: str
    access: Access


@dataclass(frozen=True, slots=True)
class Reduction:
    """`:: max(n)`. Variables on the right only that no reduction names are summed."""

    op: str
    variables: tuple[str, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Einsum:
    """`output = expression :: reductions where predicate`."""

    output: Access
    expression: Expression
    reductions: tuple[Reduction, ...] = ()
    predicate: Expression | None = None
    span: Span | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.output.tensor

    @property
    def reads(self) -> tuple[Access, ...]:
        return accesses(self.expression)

    @property
    def output_variables(self) -> frozenset[str]:
        return variables(self.output)

    @property
    def variables(self) -> frozenset[str]:
        """All rank variables of the iteration space (predicate-only variables are not allowed)."""
        return self.output_variables | variables(self.expression)

    @property
    def reduced(self) -> frozenset[str]:
        return self.variables - self.output_variables

    def reducer(self, variable: str) -> str:
        """The operator that folds `variable` (`+` unless a reduction names it)."""
        return next((r.op for r in self.reductions if variable in r.variables), "+")

    @property
    def is_view(self) -> bool:
        """`BK[n1,n0,e] = K[n1*N0+n0,e]`: renames coordinates, computes nothing."""
        return isinstance(self.expression, Access) and not self.reduced


@dataclass(frozen=True, slots=True)
class Initial:
    """`init RM[0,m] = -inf`: the value of an iterative tensor before the first step."""

    output: Access
    expression: Expression
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Iterate:
    """`iterate n1 < N1 { ... }`: the body runs once per step, in order."""

    variable: str
    bound: Expression
    body: tuple[Einsum, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


Statement = Einsum | Initial | Iterate
S = TypeVar("S", Einsum, Initial, Iterate, Statement)


def rewrite_statement(statement: S, change: Callable[[Expression], Expression]) -> S:
    """The statement with `change` applied to every node of its outputs, expressions, predicates and bounds."""
    if isinstance(statement, Iterate):
        body = tuple(rewrite_statement(e, change) for e in statement.body)
        return replace(statement, bound=rewrite(statement.bound, change), body=body)
    output, expression = rewrite(statement.output, change), rewrite(statement.expression, change)
    assert isinstance(output, Access), "a tensor element was rewritten to something else on the left of ="
    statement = replace(statement, output=output, expression=expression)
    if isinstance(statement, Einsum) and statement.predicate is not None:
        statement = replace(statement, predicate=rewrite(statement.predicate, change))
    return statement


@dataclass(frozen=True, slots=True)
class Cascade:
    """A DAG of Einsums in program order, or a fragment of one (`extends` set).

    computes  what the outputs are (`softmax_attention`, `sigmoid_attention`, ...); two cascades with the same word
              are interchangeable algorithms
    paper     where it comes from
    stable    whether large logits are safe (the maximum is subtracted before exp)
    marks     the accesses that masks and fragments act on
    extends   fragments only: the marked access of the host that the fragment replaces, as the fragment names it
    reads     fragments only: further marked accesses of the host that it uses
    """

    name: str
    ranks: tuple[Rank, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    statements: tuple[Statement, ...]
    lets: tuple[Let, ...] = ()
    marks: tuple[Mark, ...] = ()
    extends: Mark | None = None
    reads: tuple[Mark, ...] = ()
    computes: str = ""
    paper: str = ""
    stable: bool = True
    _hash: int = field(default=0, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """A cascade is the key of every analysis' cache: its hash is computed once."""
        parts = (self.name, self.ranks, self.inputs, self.outputs, self.statements, self.lets, self.marks, self.extends)
        object.__setattr__(self, "_hash", hash((*parts, self.reads, self.computes, self.paper, self.stable)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def einsums(self) -> tuple[Einsum, ...]:
        """Every Einsum in program order, iterate bodies included."""
        return tuple(e for e, _ in self.placed())

    def placed(self) -> Iterator[tuple[Einsum, Iterate | None]]:
        """Every Einsum with the iterate block it stands in."""
        for statement in self.statements:
            if isinstance(statement, Einsum):
                yield statement, None
            elif isinstance(statement, Iterate):
                for einsum in statement.body:
                    yield einsum, statement

    def size_of(self, variable: str) -> str:
        """The name of the size up to which a variable walks: its rank's, or that of the rank this one is `like`."""
        found = self.rank(variable.upper())
        return (found.like if found else "") or variable.upper()

    def rank(self, name: str) -> Rank | None:
        return next((r for r in self.ranks if r.name == name), None)

    def mark(self, role: str) -> Access | None:
        return next((m.access for m in self.marks if m.role == role), None)

    def family(self, rank: str) -> frozenset[str]:
        """Variables that walk `rank`: its own and those of its chunks (`N` -> n, n1, n0)."""
        found = self.rank(rank)
        parts = found.parts if found else ()
        return frozenset({rank.lower(), *(p.lower() for p in parts)})

    def position(self, rank: str, present: frozenset[str]) -> Expression | None:
        """The coordinate on `rank` in terms of the variables `present`: n, or n1*N0+n0; None when it is not walked."""
        found = self.rank(rank)
        if rank.lower() in present:
            return Symbol(rank.lower())
        if found and found.parts and all(p.lower() in present for p in found.parts):
            outer, inner = found.parts
            return Apply("+", (Apply("*", (Symbol(outer.lower()), Symbol(inner))), Symbol(inner.lower())))
        return None
