"""`Cascade` to text, the inverse of `parse`: `parse(format_cascade(c)) == c`. Comments are not kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from einsight.einsum.cursor import LEVEL
from einsight.einsum.expression import Access, Expression, Number, Symbol, accesses
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate, Let, Mark, Rank, Reduction, Statement, Tensor

_COMPARISON, _UNARY, _ATOM = 3, 6, 7


def format_cascade(cascade: Cascade) -> str:
    """The cascade as a file that `parse` reads back."""
    return "\n".join([*_header(cascade), "", *_body(cascade), ""])


def format_expression(node: Expression, tight: bool = False) -> str:
    """The expression with only the brackets it needs. `tight` drops the spaces, as index arithmetic is written."""
    if isinstance(node, Number):
        return _number(node.value)
    if isinstance(node, Symbol):
        return node.name
    if isinstance(node, Access):
        return f"{node.tensor}[{','.join(format_expression(i, tight=True) for i in node.indices)}]"
    if node.op == "neg":
        # a bare -1 reads as the number -1, so the negation of a number keeps its brackets
        keep = _level(node.args[0]) < _UNARY or isinstance(node.args[0], Number)
        return "-" + _within(node.args[0], keep, tight)
    if node.op in LEVEL:
        level = LEVEL[node.op]
        tight = tight or (level > _COMPARISON and not accesses(node))
        left = _within(node.args[0], _level(node.args[0]) < level + (level == _COMPARISON), tight)
        right = _within(node.args[1], _level(node.args[1]) <= level, tight)
        return f"{left}{node.op}{right}" if tight else f"{left} {node.op} {right}"
    separator = "," if tight else ", "
    return f"{node.op}({separator.join(format_expression(a, tight) for a in node.args)})"


def format_einsum(einsum: Einsum, width: int = 0) -> str:
    """One Einsum; its output is padded to `width` characters, so that a block's `=` line up."""
    text = f"{format_expression(einsum.output):<{width}} = {format_expression(einsum.expression)}"
    if einsum.reductions:
        text += " :: " + ", ".join(map(_reduction, einsum.reductions))
    if einsum.predicate is not None:
        text += f" where {format_expression(einsum.predicate)}"
    return text


def _header(cascade: Cascade) -> list[str]:
    fragment = cascade.extends is not None
    lines = [f"{'fragment' if fragment else 'cascade'} {cascade.name}"]
    if cascade.computes:
        lines.append(f"computes {cascade.computes}")
    if cascade.paper:
        lines.append(f'paper "{cascade.paper}"')
    if not fragment or not cascade.stable:
        lines.append(f"stable {'yes' if cascade.stable else 'no'}")
    if cascade.ranks:
        lines.append("rank " + ", ".join(map(_rank, cascade.ranks)))
    lines += [f"in {_tensor(t)}" for t in cascade.inputs]
    lines += [f"out {_tensor(t)}" for t in cascade.outputs]
    lines += [f"let {_let(definition)}" for definition in cascade.lets]
    if cascade.extends is not None:
        lines.append(f"extends {_mark(cascade.extends)}")
    lines += [f"reads {_mark(mark)}" for mark in cascade.reads]
    return lines + [_mark(mark) for mark in cascade.marks]


def _body(cascade: Cascade) -> list[str]:
    lines: list[str] = []
    for _, run in groupby(cascade.statements, key=type):
        lines += _run(tuple(run))
    return lines


def _run(statements: Sequence[Statement]) -> list[str]:
    """Lines of neighbours of one kind; the `=` of Einsums and of initial values line up."""
    width = max((len(format_expression(s.output)) for s in statements if not isinstance(s, Iterate)), default=0)
    lines: list[str] = []
    for statement in statements:
        if isinstance(statement, Einsum):
            lines.append(format_einsum(statement, width))
        elif isinstance(statement, Initial):
            value = format_expression(statement.expression)
            lines.append(f"init {format_expression(statement.output):<{width}} = {value}")
        else:
            lines.append(f"iterate {statement.variable} < {format_expression(statement.bound)} {{")
            lines += [f"  {line}" for line in _run(statement.body)]
            lines.append("}")
    return lines


def _within(node: Expression, brackets: bool, tight: bool) -> str:
    text = format_expression(node, tight)
    return f"({text})" if brackets else text


def _level(node: Expression) -> int:
    if isinstance(node, Number | Symbol | Access):
        return _ATOM
    return _UNARY if node.op == "neg" else LEVEL.get(node.op, _ATOM)


def _number(value: float) -> str:
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(float(value))


def _rank(rank: Rank) -> str:
    equals = " * ".join(rank.parts) or rank.like
    return f"{rank.name} = {equals}" if equals else rank.name


def _tensor(tensor: Tensor) -> str:
    text = f"{tensor.name}[{','.join(r.lower() for r in tensor.ranks)}]"
    if tensor.dtype is not None:
        text += f" : {tensor.dtype}"
    if tensor.outer is not None:
        text += f" over {', '.join(tensor.outer) or 'none'}"
    return text


def _let(definition: Let) -> str:
    return f"{definition.name} = {format_expression(definition.expression)}"


def _mark(mark: Mark) -> str:
    return f"{mark.role} {format_expression(mark.access)}"


def _reduction(reduction: Reduction) -> str:
    return f"{reduction.op}({','.join(reduction.variables)})"
