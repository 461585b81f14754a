"""Cascade text to tokens, line by line. A statement never crosses a line, so a fault spoils only its own line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from einsight.einsum.errors import Problem
from einsight.einsum.expression import Span
from einsight.einsum.ir import MARKS

KEYWORDS = (
    "cascade",
    "fragment",
    "computes",
    "paper",
    "stable",
    "rank",
    "let",
    "in",
    "out",
    *MARKS,
    "extends",
    "reads",
    "init",
    "iterate",
)
"""Words that a line may start with."""

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+) | (?P<comment>\#.*)
      | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<name>[A-Za-z][A-Za-z0-9_]*)
      | (?P<string>"[^"]*")
      | (?P<sign>::|&&|\|\||<=|>=|==|!=|[-+*/%<>=(){}\[\],:])""",
    re.VERBOSE | re.ASCII,
)

_MEANT = {"×": "*", "·": "*", "∗": "*", "÷": "/", "−": "-", "–": "-", "≤": "<=", "≥": ">=", "≠": "!=", "∞": "inf",
          "∧": "&&", "∨": "||", "&": "&&", "|": "||", "!": "!=", "^": "exp or *", ";": "a new line",
          "“": '"', "”": '"', "'": '"'}  # fmt: skip
"""Characters that people write, and what the language has instead."""


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is number, name, string, sign or end (of the line, or of what stands before its comment)."""

    kind: str
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Line:
    """The tokens of one line, an `end` token last; `problem` is set when a character belongs to no token."""

    tokens: tuple[Token, ...]
    problem: Problem | None = None


def lines(text: str) -> Iterator[Line]:
    """Every line that holds more than a comment."""
    for number, content in enumerate(text.split("\n"), start=1):
        line = _line(number, content)
        if len(line.tokens) > 1 or line.problem:
            yield line


def _line(number: int, content: str) -> Line:
    tokens: list[Token] = []
    problem, at = None, 0
    while at < len(content):
        match = _TOKEN.match(content, at)
        if match is None or match.lastgroup is None:
            problem = _strange(number, at, content[at])
            break
        if match.lastgroup == "comment":
            break
        if match.lastgroup != "space":
            tokens.append(Token(match.lastgroup, match[0], Span(number, at + 1, len(match[0]))))
        at = match.end()
    after = tokens[-1].span.column + tokens[-1].span.length if tokens else 1
    tokens.append(Token("end", "", Span(number, after, 1)))
    return Line(tuple(tokens), problem)


def _strange(number: int, at: int, character: str) -> Problem:
    if character == '"':
        message = "the string is not closed"
        return Problem(message, Span(number, at + 1), expected='`"` before the end of the line')
    meant = _MEANT.get(character)
    shown = f"`{character}`" if character.isprintable() else f"U+{ord(character):04X}"
    return Problem(
        f"the character {shown} has no meaning here",
        Span(number, at + 1),
        hint=f"Did you mean {meant}?" if meant else None,
    )
