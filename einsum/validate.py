"""What a cascade means, checked without sizes. What depends on sizes is the business of `resolve.bind`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice

from einsight.einsum.dataflow import Known, output_index, plain_ranks, statement_problems, tensor_name
from einsight.einsum.errors import Problem, did_you_mean
from einsight.einsum.expression import OPERATORS, Symbol
from einsight.einsum.format import format_expression
from einsight.einsum.ir import Cascade, Mark, Tensor
from einsight.einsum.kinds import Header, header, let_problems, name_span
from einsight.einsum.lets import let_values
from einsight.einsum.tokens import KEYWORDS

OUTER = ("b", "g", "j")
"""Outer rank variables of the library: batch, KV head, query head within its group."""

PROBLEMS = 100
"""Faults after which a cascade is not looked at further."""

RESERVED = frozenset((*KEYWORDS, *OPERATORS, "where", "over", "none", "inf"))


def validate(cascade: Cascade, excused: frozenset[str] = frozenset()) -> tuple[Problem, ...]:
    """Every fault that can be seen without sizes, the first hundred at most; empty for a sound cascade.

    Nothing is claimed about `excused` names (those of lines that did not parse).
    """
    names = header(cascade, excused)
    of_lets = tuple(islice(let_problems(cascade, names), PROBLEMS))
    values = {} if of_lets else let_values(cascade)
    known = _existing(cascade)
    found = chain(
        _ranks(cascade),
        of_lets,
        _declared(cascade, names),
        _host_tensors(cascade, names),
        statement_problems(cascade, names, values, known),
        _marks(cascade, known, names),
        _outputs(cascade, excused),
    )
    return tuple(dict.fromkeys(islice(found, PROBLEMS)))


# --- header ---------------------------------------------------------------------------------------------------------


def _ranks(cascade: Cascade) -> Iterator[Problem]:
    seen: set[str] = set()
    for rank in cascade.ranks:
        for name in (rank.name, *rank.parts):
            if name != name.upper():
                yield Problem(
                    f"the rank {name} is not upper case",
                    rank.span,
                    f"`rank {name.upper()}`",
                    f"{name.lower()} is then its variable.",
                )
            elif name.lower() in RESERVED:
                yield Problem(f"{name.lower()} is a word of the language", rank.span, "another name for the rank")
            if name in seen:
                yield Problem(f"rank {name} is declared twice", rank.span, "each rank, and each chunk, once")
            seen.add(name)
    alone = [n for rank in cascade.ranks if not rank.like for n in (rank.name, *rank.parts)]
    for rank in cascade.ranks:
        if rank.like and rank.like not in alone:
            yield Problem(f"rank {rank.name} is to be as large as {rank.like}", rank.span, f"one of {', '.join(alone)}",
                          f"A rank that is cut into chunks reads `{rank.name} = CHUNKS * CHUNK`.")  # fmt: skip


def _declared(cascade: Cascade, names: Header) -> Iterator[Problem]:
    seen: set[str] = set()
    for tensor in (*cascade.inputs, *cascade.outputs):
        yield from _tensor(tensor, names)
        if tensor.name in seen:
            yield Problem(f"{tensor.name} is declared twice", tensor.span, "each input and output once")
        seen.add(tensor.name)
    if cascade.extends is None and not cascade.outputs and "out" not in names.excused:
        message = f"cascade {cascade.name} has no output" if cascade.name else "there is no output"
        yield Problem(message, None, "a line such as `out AV[m,f]`")
    if cascade.extends is not None and cascade.outputs:
        message = f"fragment {cascade.name} has an output"
        yield Problem(
            message, cascade.outputs[0].span, f"a mark, `{cascade.extends.role} ...`, on what the host reads instead"
        )


def _tensor(tensor: Tensor, names: Header) -> Iterator[Problem]:
    yield from tensor_name(tensor.name, tensor.span)
    for rank in tensor.ranks:
        if rank not in names.known and rank not in names.excused:
            near = did_you_mean(rank.lower(), names.variables)
            hint = f"Declare `rank {rank}`" + (f", or: {near}" if near else ".")
            yield Problem(
                f"unknown rank variable {rank.lower()} in {tensor.name}", tensor.span, ", ".join(names.variables), hint
            )
    outer = tensor.outer or ()
    for name in outer:
        if name not in OUTER:
            yield Problem(f"{name} is not an outer rank variable", tensor.span, ", ".join((*OUTER, "none")))
    if len(set(outer)) < len(outer):
        yield Problem(f"{tensor.name} names an outer rank twice", tensor.span, "each outer rank once")


# --- the whole ------------------------------------------------------------------------------------------------------


def _outputs(cascade: Cascade, excused: frozenset[str]) -> Iterator[Problem]:
    computed = {e.name: e for e in reversed(cascade.einsums)}
    inputs = {t.name for t in cascade.inputs}
    for tensor in cascade.outputs:
        einsum = computed.get(tensor.name)
        if tensor.name in excused or tensor.name in inputs:
            continue
        if einsum is None:
            line = f" (declared in line {tensor.span.line})" if tensor.span else ""
            yield Problem(
                f"output {tensor.name} is never computed{line}",
                tensor.span,
                f"an Einsum `{tensor.name}[...] = ...`",
                did_you_mean(tensor.name, computed),
            )
        elif plain_ranks(einsum.output) != tensor.ranks:
            declared = f"{tensor.name}[{','.join(r.lower() for r in tensor.ranks)}]"
            yield Problem(
                f"{format_expression(einsum.output)} does not have the ranks of the output",
                einsum.output.span,
                f"`{declared}`, as declared",
            )


def _existing(cascade: Cascade) -> dict[str, Known]:
    """Tensors that exist before the first statement: inputs, and what a fragment reads of its host."""
    known: dict[str, Known] = {}
    for tensor in cascade.inputs:
        known.setdefault(tensor.name, Known(tensor.ranks, tensor.span))
    for mark in _host_marks(cascade):
        known[mark.access.tensor] = Known(plain_ranks(mark.access), mark.access.span)
    return known


def _host_marks(cascade: Cascade) -> tuple[Mark, ...]:
    return (*((cascade.extends,) if cascade.extends else ()), *cascade.reads)


def _host_tensors(cascade: Cascade, names: Header) -> Iterator[Problem]:
    seen = {t.name for t in cascade.inputs}
    for mark in _host_marks(cascade):
        for index in mark.access.indices:
            yield from output_index(index, mark.access.tensor, names)
        if mark.access.tensor in seen:
            yield Problem(f"{mark.access.tensor} is already defined", name_span(mark.access), "a new name")
        seen.add(mark.access.tensor)
    if cascade.reads and cascade.extends is None:
        span = cascade.reads[0].access.span
        yield Problem("only a fragment reads tensors of a host", span, "`in`, or an Einsum")


def _marks(cascade: Cascade, known: Mapping[str, Known], names: Header) -> Iterator[Problem]:
    roles: set[str] = set()
    for mark in cascade.marks:
        name, indices = mark.access.tensor, mark.access.indices
        if mark.role in roles:
            yield Problem(f"two tensors are marked as {mark.role}", mark.access.span, "one such line")
        roles.add(mark.role)
        if name in names.excused:
            continue
        tensor = known.get(name)
        if tensor is None:
            yield Problem(
                f"{mark.role} {name} is not computed here",
                name_span(mark.access),
                ", ".join(known),
                did_you_mean(name, known),
            )
            continue
        wanted = tuple(Symbol(r if i == tensor.step else r.lower()) for i, r in enumerate(tensor.ranks))
        if tensor.step is not None and tensor.block is not None:
            bound = tensor.block.variable.upper()
            wanted = tuple(Symbol(bound) if i == tensor.step else x for i, x in enumerate(wanted))
        if indices != wanted:
            example = f"`{mark.role} {name}[{','.join(s.name for s in wanted)}]`"
            yield Problem(
                f"{mark.role} {format_expression(mark.access)} is not how {name} is written", mark.access.span, example
            )
    if cascade.extends is not None:
        yield from _fragment_mark(cascade, cascade.extends, names)


def _fragment_mark(cascade: Cascade, extends: Mark, names: Header) -> Iterator[Problem]:
    """A fragment marks, in the role it extends, a tensor of its own with the indices of the one it replaces."""
    indices = ",".join(format_expression(i) for i in extends.access.indices)
    for mark in cascade.marks:
        if mark.role != extends.role:
            yield Problem(
                f"a fragment on the {extends.role} cannot mark a {mark.role}",
                mark.access.span,
                f"`{extends.role} ...[{indices}]`",
            )
    own = cascade.mark(extends.role)
    if own is None and extends.role not in names.excused:
        yield Problem(
            f"fragment {cascade.name} marks no new {extends.role}",
            extends.access.span,
            f"a line `{extends.role} ...[{indices}]`",
            "The host reads that tensor in place of the one extended.",
        )
    elif own is not None and own.indices != extends.access.indices and own.tensor not in names.excused:
        yield Problem(
            f"the new {extends.role} has other indices than {format_expression(extends.access)}",
            own.span,
            f"`{own.tensor}[{indices}]`",
        )
    elif own is not None and own.tensor == extends.access.tensor:
        yield Problem(
            f"the fragment's {extends.role} is the host's own", own.span, "a tensor that the fragment computes"
        )
