"""What kind of expression stands where: values, predicates, indices. Names are looked up in the cascade's header."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice, zip_longest

from einsight.einsum.errors import Problem, did_you_mean
from einsight.einsum.expression import (
    DEPTH,
    Access,
    Apply,
    Expression,
    Number,
    Span,
    Symbol,
    children,
    walk,
)
from einsight.einsum.formula import polynomial
from einsight.einsum.ir import Cascade

COMPARISONS = frozenset(("<", "<=", ">", ">=", "==", "!="))
LOGIC = frozenset(("&&", "||"))
INDEX_OPERATORS = frozenset(("+", "-", "*", "%", "floordiv", "min", "max", "neg"))
DIVISOR_NODES = 12
"""Divisors longer than this are not looked into: whether they are 0 depends on sizes anyway."""
NODES = 10_000
"""Nodes that a `let` may stand for once the `let`s it uses are written out."""


class Kind(StrEnum):
    """The value says how a message names it."""

    VALUE = "a value"
    PREDICATE = "a predicate"
    INDEX = "an index"
    DEFINITION = "a `let`"


@dataclass(frozen=True, slots=True)
class Header:
    """The names that a cascade declares before its Einsums. Nothing is claimed about `excused` names."""

    sizes: tuple[str, ...]
    variables: tuple[str, ...]
    lets: tuple[str, ...]
    predicates: frozenset[str]
    known: frozenset[str]
    tensors: Mapping[str, tuple[str, ...]]
    excused: frozenset[str]

    def is_predicate(self, node: Expression) -> bool:
        """Whether the expression yields true or false."""
        return _is_predicate(node, self.predicates)


def header(cascade: Cascade, excused: frozenset[str]) -> Header:
    """Declared sizes (ranks and their chunks), their variables, and `let`s with those that are predicates."""
    sizes = tuple(dict.fromkeys(name for rank in cascade.ranks for name in (rank.name, *rank.parts)))
    variables = tuple(size.lower() for size in sizes)
    predicates: set[str] = set()
    for let in cascade.lets:
        if _is_predicate(let.expression, predicates):
            predicates.add(let.name)
    lets = tuple(let.name for let in cascade.lets)
    known = frozenset((*sizes, *variables, *lets))
    tensors = {tensor.name: tensor.ranks for tensor in cascade.inputs}
    return Header(sizes, variables, lets, frozenset(predicates), known, tensors, excused)


def _is_predicate(node: Expression, lets: Set[str]) -> bool:
    if isinstance(node, Symbol):
        return node.name in lets
    return isinstance(node, Apply) and (node.op in COMPARISONS or node.op in LOGIC)


def problems_in(node: Expression, kind: Kind, names: Header) -> Iterator[Problem]:
    """Everything wrong with an expression that stands where `kind` is wanted. Tensor accesses are not looked up."""
    if kind in (Kind.VALUE, Kind.PREDICATE) and names.is_predicate(node) != (kind is Kind.PREDICATE):
        yield _wrong_kind(node, kind)
        return
    if kind is Kind.DEFINITION and names.is_predicate(node):
        kind = Kind.PREDICATE
    yield from _inside(node, kind, names)


def _inside(node: Expression, kind: Kind, names: Header) -> Iterator[Problem]:
    if isinstance(node, Symbol):
        yield from _symbol(node, names)
    elif isinstance(node, Number):
        if kind is Kind.INDEX and not float(node.value).is_integer():
            yield Problem("an index is a whole number", node.span)
    elif isinstance(node, Access):
        if kind is not Kind.VALUE:
            yield Problem(
                f"{kind} cannot read the tensor {node.tensor}",
                node.span,
                "rank variables, sizes and numbers",
                "What is read and computed may not depend on data."
                if kind is not Kind.DEFINITION
                else "Write an Einsum.",
            )
        ranks = names.tensors.get(node.tensor, ())
        for index, rank in zip_longest(node.indices, ranks[: len(node.indices)]):
            if isinstance(index, Symbol):
                yield from _symbol(index, names, rank)
            else:
                yield from problems_in(index, Kind.INDEX, names)
    else:
        yield from _operator(node, kind, names)


def _operator(node: Apply, kind: Kind, names: Header) -> Iterator[Problem]:
    if kind is Kind.INDEX and node.op not in INDEX_OPERATORS:
        hint = "Integer division is floordiv(a, b)." if node.op == "/" else None
        yield Problem(f"`{node.op}` cannot stand in an index", node.span, ", ".join(sorted(INDEX_OPERATORS)), hint)
        return
    if node.op in ("%", "floordiv") and _is_zero(node.args[1]):
        yield Problem(f"`{node.op}` by zero", node.args[1].span, "a divisor that is not 0 whatever the sizes")
    for position, argument in enumerate(node.args):
        wants_predicate = node.op in LOGIC or (node.op == "select" and position == 0)
        if names.is_predicate(argument) != wants_predicate:
            yield _wrong_kind(argument, Kind.PREDICATE if wants_predicate else Kind.VALUE)
        else:
            yield from _inside(argument, kind, names)


def _is_zero(node: Expression) -> bool:
    """Whether a divisor is 0 at every size and coordinate: `0`, `m - m`. Long ones are not judged."""
    form = polynomial(node) if len(tuple(islice(walk(node), DIVISOR_NODES + 1))) <= DIVISOR_NODES else None
    return form is not None and not form.terms


def _symbol(node: Symbol, names: Header, rank: str | None = None) -> Iterator[Problem]:
    """An unknown name. `rank` is the rank that it indexes, where that is known."""
    name = node.name
    if name in names.known or name in names.excused:
        return
    if node.is_variable:
        near = did_you_mean(name, names.variables)
        use = f", or use {rank.lower()}." if rank else f", or: {near}" if near else "."
        yield Problem(
            f"unknown rank variable {name}",
            node.span,
            ", ".join(names.variables),
            f"Declare `rank {name.upper()}`{use}",
        )
    elif name in names.tensors:
        fix = f"`{name}[{','.join(r.lower() for r in names.tensors[name])}]`"
        yield Problem(f"the tensor {name} stands without its indices", node.span, fix)
    else:
        near = did_you_mean(name, (*names.sizes, *names.lets))
        hint = near or f"A tensor is written {name}[...]; a size is declared with `rank {name}`."
        yield Problem(f"unknown size {name}", node.span, ", ".join((*names.sizes, *names.lets)), hint)


def _wrong_kind(node: Expression, wanted: Kind) -> Problem:
    if wanted is Kind.PREDICATE:
        return Problem("this is not true or false", node.span, "a comparison such as `n <= m`")
    return Problem("a comparison is not a number", node.span, "a value", "Write select(condition, a, b).")


def let_problems(cascade: Cascade, names: Header) -> Iterator[Problem]:
    """Each `let` has a name of its own, uses what stands above it, and stays of a bearable size when written out."""
    ranks, lets = frozenset(names.sizes), frozenset(names.lets)
    measured: dict[str, tuple[int, int]] = {}
    for let in cascade.lets:
        if not let.name[:1].isupper():
            yield Problem(
                f"the `let` name {let.name} is lower case", let.span, "an upper-case name", f"Write {let.name.upper()}."
            )
        if let.name in ranks or let.name in measured:
            yield Problem(
                f"{let.name} is already {'a rank' if let.name in ranks else 'a `let`'}", let.span, "a new name"
            )
        for node in walk(let.expression):
            if (
                isinstance(node, Symbol)
                and node.name in lets
                and node.name not in measured
                and node.name not in ranks
            ):
                yield Problem(f"`let {let.name}` uses {node.name}, which is not defined above it", node.span)
        yield from problems_in(let.expression, Kind.DEFINITION, names)
        levels, nodes = measure(let.expression, measured)
        if levels > DEPTH or nodes > NODES:
            message = f"`let {let.name}`, written out, has {nodes} nodes in {levels} levels"
            yield Problem(message, let.span, f"at most {NODES} nodes in {DEPTH} levels")
            return
        measured[let.name] = levels, nodes


def measure(node: Expression, lets: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Levels and nodes of the expression with its `let`s written out."""
    if isinstance(node, Symbol):
        return lets.get(node.name, (1, 1))
    below = [measure(child, lets) for child in children(node)]
    return 1 + max((d for d, _ in below), default=0), 1 + sum(n for _, n in below)


def name_span(access: Access) -> Span | None:
    """The place of the tensor's name in an access."""
    return Span(access.span.line, access.span.column, len(access.tensor)) if access.span else None
