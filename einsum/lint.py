"""Lines of a sound cascade that are legal but seldom meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from einsight.einsum.dataflow import plain_ranks
from einsight.einsum.errors import Problem
from einsight.einsum.expression import Apply, Expression, Symbol, accesses, variables
from einsight.einsum.format import format_expression
from einsight.einsum.ir import Cascade, Initial
from einsight.einsum.lets import let_values, written_out


def warnings(cascade: Cascade) -> tuple[Problem, ...]:
    """What a reader should know about a sound cascade; `errors.render` shows it with its lines."""
    values = let_values(cascade)
    cascade = replace(cascade, statements=tuple(written_out(s, values) for s in cascade.statements))
    return tuple(
        chain(
            _summands(cascade),
            _orders(cascade),
            _unread(cascade),
            _mixed(cascade),
            _foreign(cascade),
            _heading(cascade),
        )
    )


def _summands(cascade: Cascade) -> Iterator[Problem]:
    """`X[m] = A[m] + B[m,k]` adds A[m] K times."""
    for einsum in cascade.einsums:
        summed = {v for v in einsum.reduced if einsum.reducer(v) == "+"}
        for part in _terms(einsum.expression):
            missing = sorted(summed - variables(part))
            if missing and part is not einsum.expression:
                shown, names = format_expression(part), ", ".join(missing)
                times = "*".join(v.upper() for v in missing)
                yield Problem(
                    f"{shown} is added {times} times: the sum over {names} applies to the whole right-hand side",
                    part.span,
                    f"{names} in every summand",
                    "Sum in an Einsum of its own first.",
                )


def _orders(cascade: Cascade) -> Iterator[Problem]:
    """`X[m] = A[m,n,e] :: max(n)` sums over e first; the result depends on that order."""
    for einsum in cascade.einsums:
        named = [(r.op, v) for r in einsum.reductions for v in r.variables]
        implied = [("+", v) for v in sorted(einsum.reduced - {v for _, v in named})]
        if len({op for op, _ in implied + named}) > 1:
            order = ", then ".join(f"{op}({v})" for op, v in implied + named)
            message = f"{einsum.name} reduces in the order {order}"
            yield Problem(message, einsum.reductions[0].span, hint="Two Einsums would show it.")


def _terms(node: Expression) -> Iterator[Expression]:
    if isinstance(node, Apply) and node.op in ("+", "-"):
        for argument in node.args:
            yield from _terms(argument)
    else:
        yield node


def _unread(cascade: Cascade) -> Iterator[Problem]:
    kept = {t.name for t in cascade.outputs} | {m.access.tensor for m in cascade.marks}
    initials = (s.expression for s in cascade.statements if isinstance(s, Initial))
    read = {a.tensor for e in (*(e.expression for e in cascade.einsums), *initials) for a in accesses(e)}
    for tensor in cascade.inputs:
        if tensor.name not in read:
            yield Problem(f"input {tensor.name} is never read", tensor.span)
    for einsum in cascade.einsums:
        if einsum.name not in read | kept:
            yield Problem(f"{einsum.name} is computed but never read", einsum.output.span)


def _mixed(cascade: Cascade) -> Iterator[Problem]:
    """An Einsum over n and n1 walks both, independently."""
    for rank in cascade.ranks:
        for einsum in cascade.einsums:
            chunks = ", ".join(p.lower() for p in rank.parts if p.lower() in einsum.variables)
            if rank.variable in einsum.variables and chunks:
                message = f"{einsum.name} walks {rank.variable} and also its chunk {chunks}, as independent variables"
                yield Problem(message, einsum.output.span, "one form of the rank")


def _foreign(cascade: Cascade) -> Iterator[Problem]:
    """`K[m,e]` where K has rank N."""
    ranks: dict[str, tuple[str, ...]] = {t.name: t.ranks for t in cascade.inputs}
    ranks |= {e.name: plain_ranks(e.output) for e in cascade.einsums}
    for einsum in cascade.einsums:
        for access in einsum.reads:
            for rank, index in zip(ranks.get(access.tensor, ()), access.indices, strict=False):
                if not isinstance(index, Symbol) or not index.is_variable:
                    continue
                if cascade.size_of(index.name) != cascade.size_of(rank.lower()):
                    message = (
                        f"rank {rank} of {access.tensor} is indexed by {index.name}, which walks {index.name.upper()}"
                    )
                    yield Problem(message, index.span, rank.lower())


def _heading(cascade: Cascade) -> Iterator[Problem]:
    if cascade.extends is None and not cascade.computes:
        yield Problem(
            "the cascade does not say what it computes",
            None,
            "a line such as `computes softmax_attention`",
            "Results join only with those of the same word.",
        )
