"""No text makes the language crash or hang; what it accepts prints and reads back as the same cascade."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.einsum.errors import CascadeError
from einsight.einsum.expression import OPERATORS, Access, Apply, Expression, Number, Symbol
from einsight.einsum.format import format_cascade, format_expression
from einsight.einsum.ir import Cascade, Einsum
from einsight.einsum.library import FOLDER
from einsight.einsum.lint import warnings
from einsight.einsum.parse import check, parse
from einsight.einsum.tokens import KEYWORDS

FILES = {path.stem: path.read_text() for path in sorted(FOLDER.rglob("*.casc"))}
SIGNS = ("::", "[", "]", "(", ")", "{", "}", ",", ":", "=", "\n", "\n", "#", "\u221e", "\x00")
NAMES = ("Q[m,e]", "K[n,e]", "Z", "A", "m", "n", "n1", "N", "N0", "1", "0.5", "1e999", "inf", "where", "over", "none")
WORDS = (*KEYWORDS, *OPERATORS, *SIGNS, *NAMES)


def outcome(text: str) -> Cascade | CascadeError:
    """The cascade, or what the text is refused for. Anything but a `CascadeError` fails the test."""
    try:
        return check(text)
    except CascadeError as error:
        return error


def is_told_or_reads_back(text: str) -> bool:
    """A refused text has problems on lines of its own, and a message; an accepted one prints and reads back as itself."""
    found = outcome(text)
    if isinstance(found, CascadeError):
        lines = text.count("\n") + 1
        return bool(found.problems and str(found)) and all(p.span is None or 1 <= p.span.line <= lines for p in found.problems)
    warnings(found)
    return parse(format_cascade(found)) == found


@pytest.mark.parametrize("name", FILES)
def test_library_files_are_accepted(name: str) -> None:
    """What the mutations below start from; without it, a language that refuses everything would pass them all."""
    found = outcome(FILES[name])
    assert isinstance(found, Cascade) and found.name == name and is_told_or_reads_back(FILES[name])


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    assert is_told_or_reads_back(text)
    assert is_told_or_reads_back("cascade x\nrank M, N, E\nin Q[m,e] K[n,e]\nout Z[m]\n" + text)


@given(st.lists(st.sampled_from(WORDS), max_size=60))
def test_words_of_the_language_in_any_order(words: list[str]) -> None:
    assert is_told_or_reads_back(" ".join(words))
    assert is_told_or_reads_back("cascade x\nrank M, N = N1 * N0, E\nin Q[m,e] K[n,e]\nout Z[m]\nZ[m] = " + " ".join(words))


@st.composite
def mutated_files(draw: st.DrawFn) -> str:
    """A library file after a few cuts, copies, swaps of lines and replaced words."""
    text = FILES[draw(st.sampled_from(sorted(FILES)))]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.integers(start, min(len(text), start + 12)))
        kind = draw(st.sampled_from(["cut", "copy", "word", "swap", "line"]))
        lines = text.split("\n")
        i, j = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        if kind == "cut":
            text = text[:start] + text[stop:]
        elif kind == "copy":
            text = text[:stop] + text[start:]
        elif kind == "word":
            text = text[:start] + draw(st.sampled_from(WORDS)) + text[stop:]
        elif kind == "swap":
            lines[i], lines[j] = lines[j], lines[i]
            text = "\n".join(lines)
        else:
            text = "\n".join(lines[:i] + lines[i + 1 :])
    return text


@given(mutated_files())
@settings(max_examples=300)
def test_mutated_library_files(text: str) -> None:
    assert is_told_or_reads_back(text)


def leaves() -> st.SearchStrategy[Expression]:
    numbers = st.one_of(st.integers(-(10**6), 10**6), st.floats(allow_nan=False)).map(lambda v: Number(float(v)))
    symbols = st.sampled_from(["m", "n1", "N0", "HI"]).map(Symbol)
    return st.one_of(numbers, symbols, st.just(Access("CAP", ())))


def branches(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    tensors = st.lists(inner, max_size=3).map(lambda i: Access("K", tuple(i)))
    operators = st.sampled_from(sorted(OPERATORS)).flatmap(
        lambda op: st.lists(inner, min_size=OPERATORS[op].arity, max_size=OPERATORS[op].arity).map(
            lambda args: Apply(op, tuple(args))
        )
    )
    return st.one_of(operators, tensors)


@given(st.recursive(leaves(), branches, max_leaves=20))
def test_any_expression_prints_and_reads_back(expression: Expression) -> None:
    text = f"cascade x\nZ[m] = {format_expression(expression)} where {format_expression(expression, tight=True)}"
    (einsum,) = parse(text).statements
    assert isinstance(einsum, Einsum)
    assert einsum.expression == expression
    assert einsum.predicate == expression


HEAD = "cascade x\nrank M, E\nin Q[m,e]\nout Z[m]\n"


def many(line: str, count: int) -> str:
    """The line once for each i below `count`; `j` is i + 1."""
    return "".join(line.format(i=i, j=i + 1) + "\n" for i in range(count))


LARGE = {
    "brackets": HEAD + "Z[m] = " + "(" * 200_000,
    "indices": HEAD + "Z[m] = " + "Q[" * 50_000,
    "calls": HEAD + "Z[m] = " + "exp(" * 100_000,
    "minus": HEAD + "Z[m] = " + "-" * 200_000 + "1",
    "sum": HEAD + "Z[m] = " + "Q[m,e] + " * 20_000 + "1",
    "comparisons": HEAD + "Z[m] = Q[m,e] where " + "m < 3 && " * 20_000 + "m < 3",
    "sums in sums": HEAD + "Z[m] = " + ("1 + " * 60 + "(") * 60 + "1" + ")" * 60,
    "lines": HEAD + "Z[m] = Q[m,e] * 2\n" * 10_000,
    "faults": HEAD + "oops !\n" * 10_000,
    "unknown names": HEAD + many("A{i}[m] = B{i}[m]", 2_000),
    "a chain": HEAD + "A0[m] = Q[m,e]\n" + many("A{j}[m] = A{i}[m] * 2", 2_000) + "Z[m] = A2000[m]",
    "ranks": HEAD + "rank " + ", ".join(f"R{i}" for i in range(20_000)) + "\nZ[m] = Q[m,e]",
    "lets that double": HEAD + "let A0 = M\n" + many("let A{j} = A{i} + A{i}", 200) + "Z[m] = A200*Q[m,e]",
    "lets in a row": HEAD + "let A0 = M\n" + many("let A{j} = A{i}", 3_000) + "Z[m] = A3000*Q[m,e]",
    "products": HEAD + "Z[m] = Q[m," + "*".join(["(e+M+E+m+1)"] * 20) + "]",
    "digits": HEAD + "Z[m] = " + "9" * 100_000,
    "one name": HEAD + "Z[m] = " + "q" * 500_000,
    "comments": "#" * 500_000 + "\n" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_large_and_deep_input_is_answered_soon(name: str) -> None:
    start = time.process_time()
    assert is_told_or_reads_back(LARGE[name])
    assert time.process_time() - start < 10, "reading must stay about linear in the length of the text"
