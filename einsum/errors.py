"""What is wrong with a cascade file, and how it is shown: place, line, underline, expectation, likely fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from einsight.einsum.expression import Span

SHOWN = 20
"""Problems printed in full; a file that is not a cascade at all would fill the screen otherwise."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: what was found, where, what was expected instead, and the likely fix (both may be unknown)."""

    message: str
    span: Span | None = None
    expected: str | None = None
    hint: str | None = None


class CascadeError(ValueError):
    """A cascade text that cannot be used. `problems` holds every fault found, in file order; `str()` shows them."""

    def __init__(self, file: str, text: str, problems: Iterable[Problem]) -> None:
        self.file, self.text = file, text
        self.problems = tuple(sorted(problems, key=_place))
        super().__init__(file, text, self.problems)

    def __str__(self) -> str:
        return render(self.file, self.text, self.problems)


def render(file: str, text: str, problems: Iterable[Problem]) -> str:
    """The problems as text, each with `file:line:column`, the line and the place underlined."""
    found = tuple(problems)
    lines = text.split("\n")
    blocks = [_block(file, lines, problem) for problem in found[:SHOWN]]
    if len(found) > SHOWN:
        blocks.append(f"{file}: and {len(found) - SHOWN} more problems")
    return "\n".join(blocks)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, whatever its case; None when nothing is near."""
    by_fold = {name.lower(): name for name in known if name != word}
    near = get_close_matches(word.lower()[:80], by_fold, n=1)
    return by_fold[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`Did you mean K?`, or None when nothing is near."""
    near = nearest(word, known)
    return f"Did you mean {near}?" if near else None


def _place(problem: Problem) -> tuple[int, int]:
    return (problem.span.line, problem.span.column) if problem.span else (0, 0)


def _block(file: str, lines: list[str], problem: Problem) -> str:
    span = problem.span
    where = f"{file}:{span.line}:{span.column}" if span else file
    shown = [f"{where}: {problem.message}"]
    if span and span.line <= len(lines):
        shown += _underlined(lines[span.line - 1].rstrip("\r"), span)
    if problem.expected:
        shown.append(f"    expected: {problem.expected}")
    if problem.hint:
        shown.append(f"    {problem.hint}")
    return "\n".join(shown)


def _underlined(line: str, span: Span, width: int = 100) -> list[str]:
    """The line and a line of carets below it; of a very long line only the part around the place."""
    start = span.column - 1
    first = max(0, start - width // 2) if len(line) > width else 0
    part = line[first : first + width].replace("\t", " ")
    part = "".join(c if c.isprintable() else "?" for c in part)
    carets = "^" * max(1, min(span.length, len(part) - (start - first)))
    margin = f"{span.line:>5} | "
    return [margin + part, " " * (len(margin) - 2) + "| " + " " * (start - first) + carets]
