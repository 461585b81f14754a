"""What each form of line becomes, and that printing is the inverse of parsing."""

from __future__ import annotations

import pytest

from einsight.einsum.errors import CascadeError
from einsight.einsum.expression import Access, Apply, Expression, Number, Span, Symbol
from einsight.einsum.format import format_cascade, format_einsum, format_expression
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate, Let, Mark, Rank, Reduction, Tensor
from einsight.einsum.library import fragment, fragments, load, names
from einsight.einsum.parse import check, parse, parse_expression

m, n, n0, n1, N = (Symbol(name) for name in ("m", "n", "n0", "n1", "N"))


def read(line: str) -> Cascade:
    return parse(f"cascade x\n{line}")


def value(text: str) -> Expression:
    (einsum,) = read(f"Z[m] = {text}").statements
    assert isinstance(einsum, Einsum)
    return einsum.expression


def test_header() -> None:
    cascade = parse('cascade x  # a comment\ncomputes y\npaper "A. Author 2020, eq. 3 # not a comment"\nstable no\n\n')
    assert (cascade.name, cascade.computes, cascade.stable) == ("x", "y", False)
    assert cascade.paper == "A. Author 2020, eq. 3 # not a comment"


def test_ranks_and_lets() -> None:
    assert read("rank M, N = N1 * N0, E").ranks == (Rank("M"), Rank("N", ("N1", "N0")), Rank("E"))
    assert read("let HI = m + 1").lets == (Let("HI", Apply("+", (m, Number(1)))),)


def test_tensors() -> None:
    cascade = read("in Q[m,e] K[n,e] : bf16 over b, g, V[n,f], CAP[] over none\nout AV[m,f] : fp32")
    assert cascade.inputs == (
        Tensor("Q", ("M", "E")),
        Tensor("K", ("N", "E"), "bf16", ("b", "g")),
        Tensor("V", ("N", "F")),
        Tensor("CAP", (), None, ()),
    )
    assert cascade.outputs == (Tensor("AV", ("M", "F"), "fp32"),)


def test_marks() -> None:
    score = Access("S", (m, n))
    assert read("score S[m,n]").marks == (Mark("score", score),)
    found = parse("fragment x\nextends score S[m,n]\nreads maximum G[m]")
    assert found.extends == Mark("score", score)
    assert found.reads == (Mark("maximum", Access("G", (m,))),)


def test_einsum() -> None:
    (einsum,) = read("Z[m] = A[m,n] :: max(n) where n <= m").statements
    assert einsum == Einsum(Access("Z", (m,)), Access("A", (m, n)), (Reduction("max", ("n",)),), Apply("<=", (n, m)))
    (einsum,) = read("Z[m] = A[m,n] :: +(n,n0), +(n1)").statements
    assert isinstance(einsum, Einsum)
    assert einsum.reductions == (Reduction("+", ("n", "n0")), Reduction("+", ("n1",)))


def test_iteration() -> None:
    first, block = read("init R[0] = -inf\niterate n1 < N1 {\nR[n1+1] = R[n1]\n}").statements
    assert first == Initial(Access("R", (Number(0),)), Number(float("-inf")))
    step = Einsum(Access("R", (Apply("+", (n1, Number(1))),)), Access("R", (n1,)))
    assert block == Iterate("n1", Symbol("N1"), (step,))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("m - n - N", "(m - n) - N"),
        ("m - n * N", "m - (n * N)"),
        ("m / n * N", "(m / n) * N"),
        ("-m * n", "(-m) * n"),
        ("- -m", "-(-m)"),
        ("m < n && n < N || m == n", "((m < n) && (n < N)) || (m == n)"),
        ("m || n && N", "m || (n && N)"),
        ("m + 1 < n % 2", "(m + 1) < (n % 2)"),
        ("((m))", "m"),
    ],
)
def test_precedence(text: str, tree: str) -> None:
    assert value(text) == value(tree)


def test_operators_associate_to_the_left() -> None:
    assert value("m - n - N") == Apply("-", (Apply("-", (m, n)), N))
    assert value("m - (n - N)") == Apply("-", (m, Apply("-", (n, N))))


def test_numbers() -> None:
    assert [value(t) for t in ("3", "0.5", ".5", "1e30", "-1e30", "-inf", "2.")] == [
        Number(v) for v in (3, 0.5, 0.5, 1e30, -1e30, float("-inf"), 2)
    ]
    assert value("-(1)") == Apply("neg", (Number(1),))
    assert value("2 - -1") == Apply("-", (Number(2), Number(-1)))


def test_functions_and_tensors_without_ranks() -> None:
    assert value("select(m < n, CAP[], max(m, n))") == Apply(
        "select", (Apply("<", (m, n)), Access("CAP", ()), Apply("max", (m, n)))
    )


def test_a_single_expression() -> None:
    assert parse_expression("n <= m") == Apply("<=", (n, m))
    for text in ("", "n <=", "n <= m m", "n\nm", "n ! m"):
        with pytest.raises(CascadeError):
            parse_expression(text)


def test_spans_point_into_the_text() -> None:
    (einsum,) = read("  Z[m] = Q[m,e] * K[n1*N0+n0,e]").statements
    assert isinstance(einsum, Einsum)
    q, k = einsum.reads
    assert (q.span, k.span) == (Span(2, 10, 6), Span(2, 19, 13))
    assert k.indices[0].span == Span(2, 21, 8)
    assert einsum.expression.span == Span(2, 10, 22)


def test_line_ends_tabs_and_a_byte_order_mark_do_not_matter() -> None:
    text = "cascade x\nrank M\nin Q[m]\nout Z[m]\nZ[m] = Q[m]\n"
    for other in (text.replace("\n", "\r\n"), text.replace(" ", "\t"), "\ufeff" + text, text.rstrip("\n")):
        assert parse(other) == parse(text)


def test_later_faults_are_found_after_an_earlier_one() -> None:
    with pytest.raises(CascadeError) as caught:
        parse("cascade x\nZ[m = 1\nrank M\nZ[m] = )")
    assert [p.span.line for p in caught.value.problems if p.span] == [2, 4]


LIBRARY = [*((load, name) for name in names()), *((fragment, name) for name in fragments())]


@pytest.mark.parametrize(("read_one", "name"), LIBRARY, ids=[name for _, name in LIBRARY])
def test_the_library_prints_and_reads_back(read_one, name: str) -> None:  # type: ignore[no-untyped-def]
    cascade = read_one(name)
    text = format_cascade(cascade)
    assert check(text) == cascade
    assert format_cascade(parse(text)) == text


def test_every_part_of_a_cascade_prints_and_reads_back() -> None:
    text = """\
cascade x
computes y
paper "z"
stable no
rank M, N = N1 * N0
in Q[m] : fp8_e4m3 over b
in K[n] over none
out Z[m]
let HI = min(N,m+1)
score S[m,n]
maximum R[N1,m]

S[m,n] = Q[m] * K[n] where n < HI && (m > 2 || n == 0)
init R[0,m] = -inf
iterate n1 < N1 {
  R[n1+1,m] = max(R[n1,m], K[n1*N0])
}
Z[m] = -(R[N1,m] - (Q[m] - S[m,n])) :: max(n)
"""
    cascade = parse(text)
    assert parse(format_cascade(cascade)) == cascade
    assert format_cascade(parse(format_cascade(cascade))) == format_cascade(cascade)


@pytest.mark.parametrize(
    "text",
    [
        "A[] - (B[] - C[])",
        "(A[] - B[]) * C[]",
        "A[] * (B[] / C[])",
        "-(A[] + B[])",
        "-(1)",
        "A[] - -1",
        "(A[] < B[]) == (C[] < D[])",
        "A[] > 0 && (B[] > 0 || C[] > 0)",
        "max(A[] - 1, exp(-B[]))",
    ],
)
def test_only_needed_brackets_are_printed(text: str) -> None:
    assert format_expression(value(text)) == text


def test_index_arithmetic_is_printed_without_spaces() -> None:
    (einsum,) = read("Z[m] = Q[m + 1 , 2*n] * (m + 1) where m + 1 < N && n > 0").statements
    assert isinstance(einsum, Einsum)
    assert format_einsum(einsum) == "Z[m] = Q[m+1,2*n] * (m+1) where m+1 < N && n > 0"
