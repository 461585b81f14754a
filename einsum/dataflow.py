"""Order and indices: every tensor computed once and before it is read, every index inside its rank, every reduction
over something. The checks walk the statements in program order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from einsight.einsum.errors import Problem, did_you_mean
from einsight.einsum.expression import (
    Access,
    Apply,
    Expression,
    Number,
    Span,
    Symbol,
    accesses,
    variables,
    walk,
)
from einsight.einsum.format import format_expression
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate, Statement
from einsight.einsum.kinds import Header, Kind, name_span, problems_in
from einsight.einsum.lets import written_out
from einsight.einsum.ranges import escape, size


@dataclass(frozen=True, slots=True)
class Known:
    """A tensor as far as it is known: its ranks, the place of its iterate rank, the block and line that write it."""

    ranks: tuple[str, ...]
    span: Span | None
    step: int | None = None
    block: Iterate | None = None
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class _Scope:
    """Names while the Einsums are walked. `known` grows; `written` are those of `block` so far."""

    names: Header
    later: Mapping[str, Span | None]
    known: dict[str, Known]
    written: set[str]
    block: Iterate | None = None

    def inside(self, block: Iterate) -> _Scope:
        return _Scope(self.names, self.later, self.known, set(), block)


def statement_problems(
    cascade: Cascade, names: Header, lets: Mapping[str, Expression], known: dict[str, Known]
) -> Iterator[Problem]:
    """Everything wrong with the statements. `known` holds what exists before them, and gains what they define."""
    later = {e.name: e.output.span for e in reversed(cascade.einsums)}
    scope = _Scope(names, later, known, set())
    for written in cascade.statements:
        yield from _kinds(written, names)
        statement = written_out(written, lets)
        if isinstance(statement, Einsum):
            yield from _einsum(statement, scope)
        elif isinstance(statement, Initial):
            yield from _initial(statement, scope)
        else:
            yield from _iterate(statement, scope)
    for name, tensor in known.items():
        if tensor.step is not None and tensor.block is None and name not in names.excused:
            message = f"{name} has an initial value but no step that continues it"
            yield Problem(message, tensor.span, f"an Einsum for {name} in an `iterate` block")


def _kinds(statement: Statement, names: Header) -> Iterator[Problem]:
    """Expressions of the right kind, every name in them known."""
    for part in statement.body if isinstance(statement, Iterate) else (statement,):
        yield from problems_in(part.expression, Kind.VALUE, names)
        if isinstance(part, Einsum) and part.predicate is not None:
            yield from problems_in(part.predicate, Kind.PREDICATE, names)


def _einsum(einsum: Einsum, scope: _Scope) -> Iterator[Problem]:
    yield from _predicate(einsum, scope.names)
    guarded = _guarded_variables(einsum, scope.known)
    for access in einsum.reads:
        yield from _read(access, guarded, einsum.name, scope)
    yield from _reductions(einsum)
    yield from _output(einsum, scope)
    before = scope.known.get(einsum.name)
    step = _step_of(einsum.output, scope)
    if step is None and before is not None:
        step = before.step
    scope.known[einsum.name] = Known(plain_ranks(einsum.output), einsum.output.span, step, scope.block, bool(guarded))
    scope.written.add(einsum.name)


def _predicate(einsum: Einsum, names: Header) -> Iterator[Problem]:
    if einsum.predicate is None:
        return
    loose = variables(einsum.predicate) - einsum.variables - names.excused
    for node in walk(einsum.predicate):
        if isinstance(node, Symbol) and node.name in loose and node.name in names.known:
            yield Problem(
                f"the predicate uses {node.name}, which {einsum.name} does not walk",
                node.span,
                ", ".join(sorted(einsum.variables)) or "no rank variable",
            )


def _guarded_variables(einsum: Einsum, known: Mapping[str, Known]) -> frozenset[str]:
    """Variables that some predicate, own or inherited, may keep in bounds."""
    own = variables(einsum.predicate) if einsum.predicate is not None else frozenset()
    inherited = (variables(a) for a in einsum.reads if a.tensor in known and known[a.tensor].guarded)
    return own.union(*inherited)


def _reductions(einsum: Einsum) -> Iterator[Problem]:
    seen: set[str] = set()
    for reduction in einsum.reductions:
        for name in reduction.variables:
            what = f"{reduction.op}({name})"
            if name in einsum.output_variables:
                yield Problem(
                    f"{what} reduces {name}, but {name} is on the left-hand side of {einsum.name}",
                    reduction.span,
                    ", ".join(sorted(einsum.reduced)) or "no reduction",
                    f"Drop {name} on the left, or the reduction.",
                )
            elif name not in einsum.variables:
                yield Problem(
                    f"{what} reduces {name}, which {einsum.name} does not use on the right-hand side",
                    reduction.span,
                    ", ".join(sorted(einsum.reduced)) or "no reduction",
                    did_you_mean(name, einsum.reduced),
                )
            elif name in seen:
                yield Problem(f"{name} is reduced twice", reduction.span, "one reduction for each variable")
            seen.add(name)


def _output(einsum: Einsum, scope: _Scope) -> Iterator[Problem]:
    name, span = einsum.name, name_span(einsum.output)
    if name in scope.names.excused:
        return
    yield from tensor_name(name, span)
    before = scope.known.get(name)
    step = _step_of(einsum.output, scope)
    continues = before is not None and before.step is not None and before.block is None and scope.block is not None
    if before is not None and not continues:
        line = f" in line {before.span.line}" if before.span else ""
        yield Problem(f"{name} is already defined{line}", span, "a new name", _once(name))
    for place, index in enumerate(einsum.output.indices):
        if place != step:
            yield from output_index(index, name, scope.names)
    plain = [i.name for i in einsum.output.indices if isinstance(i, Symbol)]
    for repeated in sorted({v for v in plain if plain.count(v) > 1}):
        yield Problem(
            f"{name} has {repeated} twice on the left-hand side", einsum.output.span, "distinct rank variables"
        )
    if scope.block is not None:
        yield from _in_step(einsum, scope.block, before, step)


def _once(name: str) -> str:
    """The fix for a second assignment."""
    return f"A tensor is assigned once; call this one {name}2, say. Steps are written with `init` and `iterate`."


def output_index(index: Expression, name: str, names: Header) -> Iterator[Problem]:
    if isinstance(index, Symbol) and index.is_variable:
        yield from problems_in(index, Kind.INDEX, names)
    else:
        hint = "Only an iterative tensor is written one step ahead, inside its `iterate` block."
        yield Problem(
            f"{name} is written at {format_expression(index, tight=True)}", index.span, "a rank variable", hint
        )


def _in_step(einsum: Einsum, block: Iterate, before: Known | None, step: int | None) -> Iterator[Problem]:
    """What an Einsum in an `iterate` block writes must differ from step to step."""
    v, name = block.variable, einsum.name
    if step is not None and before is None:
        first = ",".join("0" if i == step else format_expression(x) for i, x in enumerate(einsum.output.indices))
        yield Problem(
            f"{name} has no value before the first step",
            einsum.output.span,
            f"`init {name}[{first}] = ...` above the block",
        )
    elif step is None and before is not None and before.step is not None:
        yield Problem(
            f"{name} has an initial value, but this step does not write the next one",
            einsum.output.span,
            f"{v}+1 in {name}[...]",
        )
    elif step is None and v not in einsum.output_variables:
        message = f"{name} is computed in every step of {v} but does not carry {v}"
        yield Problem(message, einsum.output.span, f"{v} among its indices, or the Einsum outside the block")
    elif step is not None and before is not None and before.step is not None and before.step != step:
        yield Problem(
            f"{name} steps along another index than its `init`", einsum.output.span, f"{v}+1 in place {before.step + 1}"
        )


def _initial(initial: Initial, scope: _Scope) -> Iterator[Problem]:
    names, output = scope.names, initial.output
    for access in accesses(initial.expression):
        yield from _read(access, frozenset(), output.tensor, scope)
    steps = [i for i, index in enumerate(output.indices) if isinstance(index, Number)]
    if len(steps) != 1 or output.indices[steps[0]] != Number(0):
        yield Problem(
            f"`init {output.tensor}` does not say which index counts the steps",
            output.span,
            f"one 0, as in `init {output.tensor}[0,m] = 0`",
        )
    for place, index in enumerate(output.indices):
        if place not in steps:
            yield from output_index(index, output.tensor, names)
    for name in sorted(variables(initial.expression) - variables(output) - names.excused):
        yield Problem(
            f"`init {output.tensor}` uses {name} on the right-hand side only",
            initial.expression.span,
            "no reduction",
            "Reduce in an Einsum above.",
        )
    if output.tensor in scope.known and output.tensor not in names.excused:
        yield Problem(f"{output.tensor} is already defined", name_span(output), "one `init` for each tensor")
    scope.known[output.tensor] = Known(plain_ranks(output), output.span, steps[0] if steps else None)


def _iterate(block: Iterate, scope: _Scope) -> Iterator[Problem]:
    names, v = scope.names, block.variable
    yield from problems_in(Symbol(v, block.span), Kind.INDEX, names)
    if block.bound != Symbol(v.upper()) and v in names.variables:
        found = format_expression(block.bound)
        yield Problem(
            f"{v} runs to {v.upper()}, but the block says {found}", block.bound.span, f"`iterate {v} < {v.upper()} {{`"
        )
    if not block.body:
        yield Problem("the iterate block is empty", block.span, "at least one Einsum")
    inside = scope.inside(block)
    for einsum in block.body:
        yield from _einsum(einsum, inside)


def tensor_name(name: str, span: Span | None) -> Iterator[Problem]:
    if not name[:1].isupper():
        yield Problem(
            f"the tensor name {name} is lower case", span, "an upper-case first letter", f"Write {name.upper()}[...]."
        )


def plain_ranks(access: Access) -> tuple[str, ...]:
    """Rank of each index; the variable of `n1+1`, and `0` for the start of an iterative tensor."""
    return tuple(next((v.upper() for v in sorted(variables(i))), "0") for i in access.indices)


# --- reads ----------------------------------------------------------------------------------------------------------


def _read(access: Access, guarded: frozenset[str], reader: str, scope: _Scope) -> Iterator[Problem]:
    if access.tensor in scope.names.excused:
        return
    tensor = scope.known.get(access.tensor)
    if tensor is None:
        yield _unknown(access, reader, scope)
        return
    if len(access.indices) != len(tensor.ranks):
        ranks = f" ({','.join(tensor.ranks)})" if tensor.ranks else ""
        noun = "rank" if len(tensor.ranks) == 1 else "ranks"
        example = f"`{access.tensor}[{','.join(r.lower() for r in tensor.ranks)}]`"
        yield Problem(
            f"{access.tensor} has {len(tensor.ranks)} {noun}{ranks}, indexed with {len(access.indices)}",
            access.span,
            example,
        )
        return
    own_step = scope.block is not None and tensor.block in (scope.block, None)
    for place, index in enumerate(access.indices):
        if place == tensor.step and own_step and scope.block is not None:
            yield from _step_read(access, index, scope.block.variable, access.tensor in scope.written)
        elif (
            scope.block is not None
            and tensor.block is scope.block
            and tensor.ranks[place] == scope.block.variable.upper()
        ):
            yield from _step_read(access, index, scope.block.variable, written=False)
        if not variables(index) & guarded:
            yield from _in_range(access, index, tensor, place, scope)


def _unknown(access: Access, reader: str, scope: _Scope) -> Problem:
    name, span = access.tensor, name_span(access)
    below = scope.later.get(name)
    if name == reader and scope.block is None:
        return Problem(
            f"{reader} reads itself",
            span,
            "tensors defined above",
            "A recurrence is written with `init` and `iterate`.",
        )
    if name in scope.later and scope.later[name] is not None and below is not None:
        return Problem(
            f"Einsum {reader} reads {name}, which is defined below, in line {below.line}", span, "tensors defined above"
        )
    hint = did_you_mean(name, scope.known)
    return Problem(
        f"Einsum {reader} reads {name}, which is not an input and not defined above", span, ", ".join(scope.known), hint
    )


def _step_read(access: Access, index: Expression, variable: str, written: bool) -> Iterator[Problem]:
    """In its own block a tensor can be read at the step at hand, earlier ones, and the next once that is written."""
    shown = format_expression(index, tight=True)
    if index == Number(0):
        return
    shift = _shift(index, variable)
    if shift is None:
        hint = f"Inside the block read {access.tensor} at {variable}; its last value exists after the closing brace."
        yield Problem(
            f"{access.tensor} is read at step {shown} inside the block that computes it", index.span, variable, hint
        )
    elif shift > 1 or (shift == 1 and not written):
        message = f"{access.tensor} is read at step {shown} of its own iteration, which is computed later"
        yield Problem(message, index.span, f"{variable}, or {variable}+1 below the Einsum that writes it")


def _in_range(access: Access, index: Expression, tensor: Known, place: int, scope: _Scope) -> Iterator[Problem]:
    rank = tensor.ranks[place]
    if rank not in scope.names.known:
        return
    extent = size(rank) + (1 if place == tensor.step else 0)
    out = escape(index, extent)
    if out is not None:
        shown = format_expression(index, tight=True)
        at = f" at {out.place}" if out.place else ""
        message = f"the index {shown} of {access.tensor} reaches {out.coordinate} (valid: 0..{extent - 1}){at}"
        guard = f"{shown} < {extent}" if out.above else f"{shown} >= 0"
        yield Problem(message, index.span, "an index inside the rank", f"Add `where {guard}`." if out.place else None)


def _shift(index: Expression, variable: str) -> float | None:
    """k of an index v+k or v-k."""
    match index:
        case Symbol(name=name) if name == variable:
            return 0
        case Apply(op="+" | "-" as op, args=(Symbol(name=name), Number(value=k))) if name == variable:
            return k if op == "+" else -k
    return None


def _step_of(output: Access, scope: _Scope) -> int | None:
    """The place of `n1+1` in an output inside `iterate n1`."""
    if scope.block is None:
        return None
    next_step = Apply("+", (Symbol(scope.block.variable), Number(1)))
    return next((i for i, index in enumerate(output.indices) if index == next_step), None)
