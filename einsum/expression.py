"""Expressions of the cascade language: four frozen node kinds and the pure functions that walk them.

    Number      3, 0.5, inf
    Symbol      n1 (a rank variable: lower case), N0 (the size of a rank: upper case), HI (a `let`: upper case)
    Access      K[n1*N0+n0, e]
    Apply       exp(x), a + b, a < b, select(c, a, b): every operator and function

Index expressions and predicates use the same nodes as values do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Span:
    """Where a node stands in its file: 1-based line, 1-based column, length in characters."""

    line: int
    column: int
    length: int = 1


@dataclass(frozen=True, slots=True)
class Number:
    value: float
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Symbol:
    """A rank variable (`n1`), the size of a rank (`N1`) or a `let` name."""

    name: str
    span: Span | None = field(default=None, compare=False, repr=False)

    @property
    def is_variable(self) -> bool:
        return self.name[:1].islower()


@dataclass(frozen=True, slots=True)
class Access:
    """One element of a tensor; a rank-0 tensor is written `CAP[]`."""

    tensor: str
    indices: tuple[Expression, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Apply:
    """An operator or function of `OPERATORS` applied to its arguments."""

    op: str
    args: tuple[Expression, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


Expression = Number | Symbol | Access | Apply


@dataclass(frozen=True, slots=True)
class Operator:
    """`klass` is the class under which an application on values is counted (None: never counted, e.g. unary minus)."""

    name: str
    arity: int
    klass: str | None


OPERATORS: Mapping[str, Operator] = {
    op.name: op
    for op in (
        Operator("+", 2, "add"), Operator("-", 2, "sub"), Operator("*", 2, "mul"), Operator("/", 2, "div"),
        Operator("%", 2, "mod"), Operator("floordiv", 2, "floordiv"), Operator("neg", 1, None),
        Operator("max", 2, "max"), Operator("min", 2, "min"), Operator("exp", 1, "exp"), Operator("log", 1, "log"),
        Operator("sigmoid", 1, "sigmoid"), Operator("tanh", 1, "tanh"), Operator("softplus", 1, "softplus"),
        Operator("rsqrt", 1, "rsqrt"), Operator("relu", 1, "relu"), Operator("abs", 1, "abs"),
        Operator("cos", 1, "cos"), Operator("sin", 1, "sin"),
        Operator("select", 3, "select"),
        Operator("<", 2, "cmp"), Operator("<=", 2, "cmp"), Operator(">", 2, "cmp"), Operator(">=", 2, "cmp"),
        Operator("==", 2, "cmp"), Operator("!=", 2, "cmp"), Operator("&&", 2, "logic"), Operator("||", 2, "logic"),
    )
}  # fmt: skip

REDUCERS: Mapping[str, float] = {"+": 0.0, "*": 1.0, "max": float("-inf"), "min": float("inf")}
"""Reduction operators and the identity that an empty reduction yields."""


DEPTH = 64
"""Levels an expression of a file may have. Expressions are walked recursively; this keeps them off Python's limit."""


def children(node: Expression) -> tuple[Expression, ...]:
    """What stands directly below the node."""
    return node.indices if isinstance(node, Access) else node.args if isinstance(node, Apply) else ()


def walk(node: Expression) -> Iterator[Expression]:
    """The node and everything below it, outermost first."""
    yield node
    for child in children(node):
        yield from walk(child)


def variables(node: Expression) -> frozenset[str]:
    """Rank variables that occur anywhere in the expression, index expressions included."""
    return frozenset(n.name for n in walk(node) if isinstance(n, Symbol) and n.is_variable)


def accesses(node: Expression) -> tuple[Access, ...]:
    """Every tensor access, in reading order."""
    return tuple(n for n in walk(node) if isinstance(n, Access))


def rewrite(node: Expression, change: Callable[[Expression], Expression]) -> Expression:
    """The expression with `change` applied to every node, innermost first."""
    if isinstance(node, Access):
        node = Access(node.tensor, tuple(rewrite(i, change) for i in node.indices), node.span)
    elif isinstance(node, Apply):
        node = Apply(node.op, tuple(rewrite(a, change) for a in node.args), node.span)
    return change(node)


def substitute(node: Expression, values: Mapping[str, Expression]) -> Expression:
    """The expression with every symbol named in `values` replaced."""
    return rewrite(node, lambda n: values.get(n.name, n) if isinstance(n, Symbol) else n)


def conjuncts(predicate: Expression | None) -> tuple[Expression, ...]:
    """The predicate as a flat tuple of clauses joined by `&&`; empty for None."""
    if predicate is None:
        return ()
    if isinstance(predicate, Apply) and predicate.op == "&&":
        return conjuncts(predicate.args[0]) + conjuncts(predicate.args[1])
    return (predicate,)


def conjunction(clauses: tuple[Expression, ...]) -> Expression | None:
    """The clauses joined by `&&`, duplicates dropped in order; None for no clause."""
    result: Expression | None = None
    for clause in dict.fromkeys(clauses):
        result = clause if result is None else Apply("&&", (result, clause))
    return result
