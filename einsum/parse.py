"""Cascade text to `Cascade`, by recursive descent. The grammar is in docs/cascade-language.md.

The parser knows the form of each line, not what the names mean (see `validate`). It reads every line even after a
fault, so that all faults of a file are reported together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from einsight.einsum.cursor import Cursor, FaultError, join, shown
from einsight.einsum.errors import CascadeError, Problem, did_you_mean
from einsight.einsum.expression import (
    REDUCERS,
    Expression,
    Number,
    Span,
    Symbol,
)
from einsight.einsum.ir import (
    MARKS,
    Cascade,
    Einsum,
    Initial,
    Iterate,
    Let,
    Mark,
    Rank,
    Reduction,
    Statement,
    Tensor,
)
from einsight.einsum.tokens import KEYWORDS, Line, Token, lines
from einsight.einsum.validate import validate

PROBLEMS = 100
"""Faults after which the rest of a file is not read."""


def parse(text: str, file: str = "<text>") -> Cascade:
    """The cascade that `text` writes, its form checked and its meaning not. Raises `CascadeError`."""
    draft = _read(text)
    if draft.problems:
        raise CascadeError(file, text, draft.problems)
    return draft.cascade()


def check(text: str, file: str = "<text>") -> Cascade:
    """The cascade that `text` writes, form and meaning checked. Raises one `CascadeError` with every fault."""
    draft = _read(text)
    problems = [*draft.problems, *validate(draft.cascade(), excused=frozenset(draft.spoiled))]
    if problems:
        raise CascadeError(file, text, problems)
    return draft.cascade()


def parse_expression(text: str, file: str = "<text>") -> Expression:
    """One expression, such as the predicate `n <= m + N - M`. Raises `CascadeError`."""
    try:
        found = tuple(lines(text))
        if len(found) != 1:
            raise FaultError(f"the text has {len(found)} lines", Span(1, 1), "one expression on one line")
        cursor = Cursor(found[0])
        expression = cursor.expression()
        cursor.end()
    except FaultError as fault:
        raise CascadeError(file, text, [fault.problem]) from None
    return expression


def parse_file(path: str | Path) -> Cascade:
    """The checked cascade in a file. Raises `CascadeError`, also when the file cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise CascadeError(str(path), "", [Problem(f"the file cannot be read: {reason}")]) from None
    return check(text, str(path))


@dataclass
class _Draft:
    """What has been read so far. `spoiled` holds the names in faulty lines: nothing is claimed about them later."""

    kind: str = ""
    name: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    ranks: list[Rank] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    lets: list[Let] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    extends: list[Mark] = field(default_factory=list)
    reads: list[Mark] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    block: Iterate | None = None
    body: list[Einsum] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    spoiled: set[str] = field(default_factory=set)

    def cascade(self) -> Cascade:
        return Cascade(
            name=self.name,
            ranks=tuple(self.ranks),
            inputs=tuple(self.inputs),
            outputs=tuple(self.outputs),
            statements=tuple(self.statements),
            lets=tuple(self.lets),
            marks=tuple(self.marks),
            extends=self.extends[0] if self.extends else None,
            reads=tuple(self.reads),
            computes=self.facts.get("computes", ""),
            paper=self.facts.get("paper", ""),
            stable=self.facts.get("stable", "yes") == "yes",
        )


def _read(text: str) -> _Draft:
    draft = _Draft()
    for line in lines(text.removeprefix("\ufeff")):
        try:
            _statement(Cursor(line), draft)
        except FaultError as fault:
            draft.problems.append(fault.problem)
            _spoil(line, draft)
        if len(draft.problems) >= PROBLEMS:
            return draft
    _finish(draft)
    return draft


def _spoil(line: Line, draft: _Draft) -> None:
    """Names that a faulty line may have meant to define; an `iterate` that fails still opens its block."""
    draft.spoiled |= {t.text for t in line.tokens if t.kind == "name"}
    draft.spoiled |= {t.text.lower() for t in line.tokens if t.kind == "name"}
    first = line.tokens[0]
    if first.text == "iterate" and draft.block is None:
        draft.block = Iterate("", Number(0), (), first.span)
    if first.text in ("cascade", "fragment") and not draft.kind:
        draft.kind = first.text


def _finish(draft: _Draft) -> None:
    """Faults that only the end of the file shows."""
    if draft.block is not None:
        draft.problems.append(
            Problem("this block is not closed", draft.block.span, "a line with `}` before the end of the file")
        )
        _close(draft, complete=False)
    if not draft.kind:
        draft.problems.append(
            Problem("the file does not say what it is", Span(1, 1), "a line `cascade NAME` or `fragment NAME`")
        )
    extended = draft.extends or "extends" in draft.spoiled
    if draft.kind == "fragment" and not extended:
        wanted = f"a line `extends {MARKS[0]} S[m,n]` ({' or '.join(MARKS)})"
        draft.problems.append(Problem(f"fragment {draft.name} does not say what it extends", None, wanted))
    if draft.kind == "fragment" and not draft.extends:
        draft.spoiled.add("out")  # without the line it would pass for a cascade, which needs an output
    if draft.kind == "cascade" and draft.extends:
        access = draft.extends.pop().access
        fix = f"Write `fragment {draft.name}`."
        draft.problems.append(Problem("only a fragment extends something", access.span, hint=fix))
        draft.spoiled.add(access.tensor)


def _close(draft: _Draft, complete: bool = True) -> None:
    """Ends the block. The names of one that is faulty are spoiled: its Einsums cannot be judged."""
    block, body = draft.block, tuple(draft.body)
    draft.block, draft.body = None, []
    if block is not None and block.variable and complete:
        draft.statements.append(Iterate(block.variable, block.bound, body, block.span))
    else:
        draft.spoiled |= {einsum.name for einsum in body}


# --- lines ----------------------------------------------------------------------------------------------------------


def _statement(cursor: Cursor, draft: _Draft) -> None:
    first = cursor.peek
    if first.text == "}":
        if draft.block is None:
            raise FaultError("`}` closes nothing", first.span, "an `iterate` block opened above")
        cursor.take()
        cursor.end()
        _close(draft)
        return
    if first.kind == "name" and cursor.after.text == "[":
        _einsum(cursor, draft)
        return
    reader = _READERS.get(first.text) if first.kind == "name" else None
    if reader is None:
        raise _unknown_line(cursor)
    if draft.block is not None:
        raise FaultError(f"`{first.text}` cannot stand in an iterate block", first.span, "Einsums, then `}`")
    cursor.take()
    reader(cursor, draft, first)
    cursor.end()


def _unknown_line(cursor: Cursor) -> FaultError:
    first = cursor.peek
    expected = "an Einsum such as `Z[m] = A[m,n]`, or a line that starts with " + ", ".join(KEYWORDS)
    if first.kind == "name" and cursor.after.text == "=":
        return FaultError(
            f"{first.text} has no brackets",
            first.span,
            f"`{first.text}[...] = ...`",
            f"A tensor without ranks is written {first.text}[]; a named expression is `let {first.text} = ...`.",
        )
    return FaultError(
        f"a line cannot start with {cursor.found}", first.span, expected, did_you_mean(first.text, KEYWORDS)
    )


def _einsum(cursor: Cursor, draft: _Draft) -> None:
    output = cursor.access()
    cursor.expect("=", f"after {output.tensor}[...]")
    expression = cursor.expression()
    reductions: list[Reduction] = []
    if cursor.accept("::"):
        reductions.append(_reduction(cursor))
        while cursor.accept(","):
            reductions.append(_reduction(cursor))
    predicate = cursor.expression() if cursor.accept("where") else None
    if cursor.peek.text == "::":
        raise FaultError("`::` stands after `where`", cursor.peek.span, "`Z[m] = A[m,n] :: max(n) where n <= m`")
    cursor.end()
    einsum = Einsum(output, expression, tuple(reductions), predicate, output.span)
    if draft.block is None:
        draft.statements.append(einsum)
    else:
        draft.body.append(einsum)


def _reduction(cursor: Cursor) -> Reduction:
    operator = cursor.take()
    if operator.text not in REDUCERS:
        words = ", ".join(f"{op}(n)" for op in REDUCERS)
        raise FaultError(
            f"`{operator.text}` is not a reduction", operator.span, words, did_you_mean(operator.text, REDUCERS)
        )
    opened = cursor.expect("(", "after the reduction's operator")
    names = [cursor.name("a rank variable")]
    while cursor.accept(","):
        names.append(cursor.name("a rank variable"))
    closed = cursor.close(")", operator.text, opened)
    return Reduction(operator.text, tuple(n.text for n in names), join(operator.span, closed.span))


def _heading(cursor: Cursor, draft: _Draft, first: Token) -> None:
    name = cursor.name(f"the name of the {first.text}")
    if draft.kind:
        raise FaultError(f"the file is already {draft.kind} {draft.name}", first.span, "one cascade or fragment a file")
    draft.kind, draft.name = first.text, name.text


def _fact(cursor: Cursor, draft: _Draft, first: Token) -> None:
    value = cursor.take()
    wanted, example = {"paper": ("string", '`paper "Author, year, equation"`'),
                       "computes": ("name", "`computes softmax_attention`"),
                       "stable": ("name", "`stable yes` or `stable no`")}[first.text]  # fmt: skip
    if value.kind != wanted or (first.text == "stable" and value.text not in ("yes", "no")):
        raise FaultError(f"`{first.text}` is followed by {shown(value)}", value.span, example)
    if first.text in draft.facts:
        raise FaultError(f"`{first.text}` stands in the file twice", first.span, "one such line")
    draft.facts[first.text] = value.text.strip('"')


def _rank(cursor: Cursor, draft: _Draft, first: Token) -> None:
    while True:
        name = cursor.name("a rank")
        parts: tuple[str, ...] = ()
        like = ""
        if cursor.accept("="):
            like = cursor.name("the number of chunks, or the rank that it is as large as").text
        if like and cursor.accept("*"):
            parts, like = (like, cursor.name("the chunk length").text), ""
            if cursor.peek.text == "*":
                raise FaultError(
                    "a rank is cut in two only", cursor.peek.span, f"`{name.text} = {parts[0]} * {parts[1]}`"
                )
        draft.ranks.append(Rank(name.text, parts, like, name.span))
        if not cursor.accept(","):
            return


def _let(cursor: Cursor, draft: _Draft, first: Token) -> None:
    name = cursor.name("the name of the expression")
    cursor.expect("=", f"after `let {name.text}`")
    draft.lets.append(Let(name.text, cursor.expression(), name.span))


def _tensors(cursor: Cursor, draft: _Draft, first: Token) -> None:
    target = draft.inputs if first.text == "in" else draft.outputs
    while True:
        target.append(_tensor(cursor))
        if cursor.peek.kind == "end":
            return
        cursor.accept(",")


def _tensor(cursor: Cursor) -> Tensor:
    access = cursor.access()
    ranks = []
    for index in access.indices:
        if not (isinstance(index, Symbol) and index.is_variable):
            raise FaultError(
                f"{access.tensor} is declared with an index that is not a rank variable",
                index.span or Span(1, 1),
                "one rank variable for each rank, as in `in K[n,e]`",
            )
        ranks.append(index.name.upper())
    dtype = cursor.name("a number format such as bf16").text if cursor.accept(":") else None
    outer = _outer(cursor) if cursor.accept("over") else None
    return Tensor(access.tensor, tuple(ranks), dtype, outer, access.span)


def _outer(cursor: Cursor) -> tuple[str, ...]:
    """`over g, j` or `over none`. A comma may also lead to the next tensor, whose name is followed by `[`."""
    names = [cursor.name("outer rank variables, or none").text]
    while cursor.peek.text == "," and cursor.after.kind == "name" and cursor.beyond.text != "[":
        cursor.take()
        names.append(cursor.name("an outer rank variable").text)
    return () if names == ["none"] else tuple(names)


def _mark(cursor: Cursor, draft: _Draft, first: Token) -> None:
    draft.marks.append(Mark(first.text, cursor.access()))


def _host_mark(cursor: Cursor, draft: _Draft, first: Token) -> None:
    role = cursor.name("one of " + ", ".join(MARKS))
    if role.text not in MARKS:
        raise FaultError(
            f"no cascade marks a `{role.text}`", role.span, ", ".join(MARKS), did_you_mean(role.text, MARKS)
        )
    if first.text == "extends" and draft.extends:
        raise FaultError("a fragment extends one tensor", first.span, "one `extends` line")
    (draft.extends if first.text == "extends" else draft.reads).append(Mark(role.text, cursor.access()))


def _init(cursor: Cursor, draft: _Draft, first: Token) -> None:
    output = cursor.access()
    cursor.expect("=", f"after {output.tensor}[...]")
    draft.statements.append(Initial(output, cursor.expression(), output.span))


def _iterate(cursor: Cursor, draft: _Draft, first: Token) -> None:
    variable = cursor.name("the rank variable that counts the steps")
    cursor.expect("<", f"after `iterate {variable.text}`")
    bound = cursor.expression()
    cursor.expect("{", "at the end of the `iterate` line")
    draft.block = Iterate(variable.text, bound, (), variable.span)


_READERS: dict[str, Callable[[Cursor, _Draft, Token], None]] = {
    "cascade": _heading, "fragment": _heading, "computes": _fact, "paper": _fact, "stable": _fact, "rank": _rank,
    "let": _let, "in": _tensors, "out": _tensors, **dict.fromkeys(MARKS, _mark), "extends": _host_mark,
    "reads": _host_mark, "init": _init, "iterate": _iterate,
}  # fmt: skip
