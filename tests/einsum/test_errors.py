# ruff: noqa: E501  (one bad input a line)
"""Each bad input gives one clear message: the place, the text underlined, what was expected, the likely fix."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass

import pytest

from einsight.einsum.errors import SHOWN, CascadeError, Problem, did_you_mean, render
from einsight.einsum.lint import warnings
from einsight.einsum.parse import check, parse, parse_file

HEADER = """\
cascade probe
computes softmax_attention
rank M, N = N1 * N0, E, F
in Q[m,e] K[n,e] V[n,f]
out Z[m]
"""
STEPS = """\
BK[n1,n0] = K[n1*N0+n0,0] where n1*N0+n0 < N
init RM[0] = 0
iterate n1 < N1 {
  L[n1] = BK[n1,n0]
  %s
}
Z[m] = Q[m,e] * RM[N1]
"""
GOOD_STEP = "RM[n1+1] = RM[n1] + L[n1]"


@dataclass(frozen=True)
class Bad:
    """`text` holds the fault between « and », which is what the message must underline."""

    id: str
    text: str
    says: str
    expected: str = ""
    hint: str = ""


def body(text: str) -> str:
    return HEADER + text + "\n"


def step(text: str) -> str:
    return HEADER + STEPS % text


FRAGMENT = "fragment bump\nrank M, N\nin T[m,n]\n{}extends score S[m,n]\nSB[m,n] = S[m,n] + T[m,n]\n{}"

BAD = [
    # names
    Bad("unknown tensor", body("Z[m] = Q[m,e] * «KK»[n,e]"), "Einsum Z reads KK, which is not an input", hint="Did you mean K?"),
    Bad("unknown variable", body("Z[m] = Q[m,e] * K[«k»,e]"), "unknown rank variable k", hint="Declare `rank K`, or use n."),
    Bad("unknown size", body("Z[m] = Q[m,e] * «NN»"), "unknown size NN", hint="Did you mean N?"),
    Bad("tensor without brackets", body("Z[m] = Q[m,e] * «K»"), "the tensor K stands without its indices", "`K[n,e]`"),
    Bad("unknown function", body("Z[m] = «expp»(Q[m,e])"), "unknown function expp", "one of floordiv, max", "Did you mean exp?"),
    Bad("unknown line", HEADER + "«rnak» R\nZ[m] = Q[m,e]", "a line cannot start with `rnak`", "an Einsum", "Did you mean rank?"),
    Bad("defined below", body("Z[m] = «A»[m]\nA[m] = Q[m,e]"), "Einsum Z reads A, which is defined below, in line 7"),
    Bad("reads itself", body("Z[m] = «Z»[m] + Q[m,e]"), "Z reads itself", hint="`init` and `iterate`"),
    Bad("assigned twice", body("Z[m] = Q[m,e]\n«Z»[m] = K[m,e]"), "Z is already defined in line 6", "a new name"),
    Bad("input assigned", body("«Q»[m,e] = 1\nZ[m] = Q[m,e]"), "Q is already defined in line 4"),
    Bad("lower-case tensor", body("«z»[m] = Q[m,e]\nZ[m] = Q[m,e]"), "the tensor name z is lower case", hint="Write Z[...]"),
    # ranks and indices
    Bad("number of ranks", body("Z[m] = «Q[m]» * K[n,e]"), "Q has 2 ranks (M,E), indexed with 1", "`Q[m,e]`"),
    Bad("index above", body("Z[m] = Q[m,e] * K[«n+1»,e]"), "the index n+1 of K reaches N (valid: 0..N - 1) at n=N-1",
        "inside the rank", "Add `where n+1 < N`"),
    Bad("index below", body("Z[m] = Q[m,e] * K[«n-1»,e]"), "reaches -1 (valid: 0..N - 1) at n=0", hint="Add `where n-1 >= 0`"),
    Bad("index far above", body("Z[m] = Q[m,e] * K[«n+N»,e]"), "reaches 2*N - 1"),
    Bad("division by zero", body("Z[m] = Q[m,e] * K[n%«0»,e]"), "`%` by zero", "a divisor that is not 0"),
    Bad("division by nothing", body("Z[m] = Q[m,e] * K[n,e] where floordiv(n, «m-m») == 0"), "`floordiv` by zero"),
    Bad("size as index", body("Z[m] = Q[m,e] * K[«N»,e]"), "the index N of K reaches N"),
    Bad("data as index", body("Z[m] = Q[m,e] * K[«Q[m,e]»,e]"), "an index cannot read the tensor Q"),
    Bad("division in index", body("Z[m] = Q[m,e] * K[«n/2»,e]"), "`/` cannot stand in an index", hint="floordiv(a, b)"),
    Bad("fraction as index", body("Z[m] = Q[m,e] * K[«0.5»,e]"), "an index is a whole number"),
    Bad("written at an expression", body("Z[«m+1»] = Q[m,e]"), "Z is written at m+1", "a rank variable"),
    Bad("diagonal output", HEADER + "«A[m,m]» = Q[m,e]\nZ[m] = A[m,m]", "A has m twice on the left-hand side"),
    Bad("rank twice", "cascade x\nrank M, «M»\nin Q[m]\nout Z[m]\nZ[m] = Q[m]", "rank M is declared twice"),
    Bad("rank lower case", "cascade x\nrank M, «q»\nin Q[m]\nout Z[m]\nZ[m] = Q[m]", "the rank q is not upper case", "`rank Q`"),
    Bad("rank reserved", "cascade x\nrank M, «MAX»\nin Q[m]\nout Z[m]\nZ[m] = Q[m]", "max is a word of the language"),
    Bad("three parts", "cascade x\nrank M, N = N2 * N1 «*» N0\nin Q[m]\nout Z[m]\nZ[m] = Q[m]", "a rank is cut in two only"),
    # reductions and predicates
    Bad("reduces the output", body("Z[m] = Q[m,e] * K[n,e] :: «+(m)»"), "+(m) reduces m, but m is on the left-hand side of Z"),
    Bad("reduces nothing", body("Z[m] = Q[m,e] :: «max(n)»"), "max(n) reduces n, which Z does not use"),
    Bad("no such reduction", body("Z[m] = Q[m,e] :: «mean»(e)"), "`mean` is not a reduction", "max(n)"),
    Bad("predicate on a stranger", body("Z[m] = Q[m,e] where «n» < N"), "the predicate uses n, which Z does not walk", "e, m"),
    Bad("predicate not a predicate", body("Z[m] = Q[m,e] where «m»"), "this is not true or false", "a comparison"),
    Bad("predicate on data", body("Z[m] = Q[m,e] where «Q[m,e]» > 0"), "a predicate cannot read the tensor Q"),
    Bad("comparison as value", body("Z[m] = «Q[m,e] > 0»"), "a comparison is not a number", hint="select(condition, a, b)"),
    Bad("chained comparison", body("Z[m] = Q[m,e] where 0 < m «<» M"), "comparisons do not chain", hint="a <= b && b < c"),
    Bad("reduction after where", body("Z[m] = Q[m,e] where m < 3 «::» max(e)"), "`::` stands after `where`"),
    # outputs and header
    Bad("never computed", HEADER.replace("Z[m]", "«Z[m]»") + "Y[m] = Q[m,e]", "output Z is never computed (declared in line 5)"),
    Bad("output ranks", body("«Z[e]» = Q[m,e]"), "Z[e] does not have the ranks of the output", "`Z[m]`, as declared"),
    Bad("no output", "cascade x\nrank M\nin Q[m]\nA[m] = Q[m]", "cascade x has no output", "`out AV[m,f]`"),
    Bad("no heading", "rank M\nin Q[m]\nout Z[m]\nZ[m] = Q[m]", "the file does not say what it is", "`cascade NAME`"),
    Bad("two headings", "cascade x\n«cascade» y\nrank M\nin Q[m]\nout Z[m]\nZ[m] = Q[m]", "the file is already cascade x"),
    Bad("input twice", "cascade x\nrank M\nin Q[m] «Q[m]»\nout Z[m]\nZ[m] = Q[m]", "Q is declared twice"),
    Bad("input with an expression", "cascade x\nrank M\nin Q[m] P[«m+1»]\nout Z[m]\nZ[m] = Q[m]", "P is declared with an index"),
    Bad("stable maybe", "cascade x\nstable «maybe»\nrank M\nin Q[m]\nout Z[m]\nZ[m] = Q[m]", "`stable` is followed by `maybe`",
        "`stable yes` or `stable no`"),
    Bad("paper without quotes", "cascade x\npaper «Dao»\nrank M\nin Q[m]\nout Z[m]\nZ[m] = Q[m]", "`paper` is followed by `Dao`"),
    Bad("paper not closed", "cascade x\npaper «\"»Dao\nrank M\nin Q[m]\nout Z[m]\nZ[m] = Q[m]", "the string is not closed"),
    Bad("outer rank", "cascade x\nrank M\nin «Q[m]» over h\nout Z[m]\nZ[m] = Q[m]", "h is not an outer rank variable", "b, g, j, none"),
    Bad("mark unknown", HEADER + "score «QK»[m,n]\nZ[m] = Q[m,e]", "score QK is not computed here"),
    Bad("mark transposed", HEADER + "score «S[n,m]»\nS[m,n] = Q[m,e] * K[n,e]\nZ[m] = S[m,n]", "is not how S is written", "`score S[m,n]`"),
    Bad("mark twice", HEADER + "score A[m]\nscore «A[m]»\nA[m] = Q[m,e]\nZ[m] = A[m]", "two tensors are marked as score"),
    # lets
    Bad("let below", body("let A = «B» + 1\nlet B = M\nZ[m] = Q[m,e] where m < A"), "`let A` uses B, which is not defined above"),
    Bad("let of a rank", body("let «M» = 3\nZ[m] = Q[m,e]"), "M is already a rank"),
    Bad("let of data", body("let A = «Q[m,e]»\nZ[m] = Q[m,e]"), "a `let` cannot read the tensor Q", hint="Write an Einsum."),
    Bad("let too large", body("let A0 = M+M\n" + "".join(f"let {'«' * (i == 12)}A{i}{'»' * (i == 12)} = A{i - 1}+A{i - 1}\n"
        for i in range(1, 40)) + "Z[m] = Q[m,e] where m < A39"), "`let A12`, written out, has"),
    # iteration
    Bad("future step", step("RM[n1+1] = RM[«n1+2»] + L[n1]"), "RM is read at step n1+2 of its own iteration, which is computed later"),
    Bad("next step early", step("RM[n1+1] = RM[«n1+1»] + L[n1]"), "read at step n1+1 of its own iteration"),
    Bad("last value inside", step("RM[n1+1] = RM[«N1»] + L[n1]"), "RM is read at step N1 inside the block that computes it"),
    Bad("no next step", step("«RM[n1]» = L[n1]"), "this step does not write the next one", "n1+1 in RM[...]"),
    Bad("no first value", HEADER + (STEPS % "«RM[n1+1]» = RM[n1] + L[n1]").replace("init RM[0] = 0\n", "RM[n1] = 0\n").replace("RM[n1] =", "RX[n1] =")
        .replace("= RM[n1] +", "="), "RM has no value before the first step", "`init RM[0] = ...`"),
    Bad("does not carry the step", step(GOOD_STEP + "\n  «X» = L[n1]").replace("«X»", "«X[]»"), "does not carry n1"),
    Bad("other bound", HEADER + (STEPS % GOOD_STEP).replace("n1 < N1 {", "n1 < «N0» {"), "n1 runs to N1, but the block says N0"),
    Bad("init never continued", HEADER + "init «RX[0,m]» = 0\nZ[m] = Q[m,e]".replace("init «RX[0,m]»", "init «RX[0,m]»"),
        "RX has an initial value but no step that continues it"),
    Bad("init without a step", HEADER + "init «RX[m]» = 0\nZ[m] = Q[m,e]", "does not say which index counts the steps"),
    Bad("block not closed", HEADER + (STEPS % GOOD_STEP).replace("}\n", "").replace("iterate n1", "iterate «n1»"), "this block is not closed"),
    Bad("block never opened", body("«}»\nZ[m] = Q[m,e]"), "`}` closes nothing"),
    Bad("header in a block", HEADER + (STEPS % GOOD_STEP).replace("}\n", "  «rank» R\n}\n"), "`rank` cannot stand in an iterate block"),
    Bad("empty block", body("iterate «n1» < N1 {\n}\nZ[m] = Q[m,e]"), "the iterate block is empty"),
    # fragments
    Bad("fragment extends nothing", "fragment x\nrank M\nin T[m]\nSB[m] = T[m]", "does not say what it extends", "`extends score S[m,n]`"),
    Bad("cascade extends", HEADER + "extends score «S[m,n]»\nZ[m] = Q[m,e]", "only a fragment extends something", hint="`fragment probe`"),
    Bad("fragment without mark", FRAGMENT.format("", "").replace("S[m,n]\nSB", "«S[m,n]»\nSB"), "marks no new score"),
    Bad("fragment with output", FRAGMENT.format("out «SB[m,n]»\n", "score SB[m,n]"), "fragment bump has an output"),
    Bad("fragment of no role", "fragment x\nrank M\nextends «scores» S[m]\nSB[m] = S[m]\nscore SB[m]", "no cascade marks a `scores`",
        hint="Did you mean score?"),
    # form
    Bad("bracket not closed", body("Z[m] = Q[m,e] * K[n,e«»"), "found the end of the line inside brackets", "`]` to close `K[` opened in column 18"),
    Bad("parenthesis not closed", body("Z[m] = exp(Q[m,e]«»"), "inside brackets", "`)` to close `exp(` opened in column 11"),
    Bad("operand missing", body("Z[m] = Q[m,e] *«»"), "found the end of the line", "a tensor, a rank variable"),
    Bad("two operands", body("Z[m] = Q[m,e] «K»[n,e]"), "found `K` after the end of the statement", "an operator"),
    Bad("single equals", body("Z[m] = Q[m,e] where m «=» 3"), "found `=`", hint="Equality is written =="),
    Bad("power", body("Z[m] = Q[m,e] *«*» 2"), "found `*`", hint="There is no power operator"),
    Bad("word operator", body("Z[m] = Q[m,e] where m < 3 «and» m > 1"), "found `and`", hint="Write &&."),
    Bad("strange character", body("Z[m] = Q[m,e] «×» K[n,e]"), "the character `×`", hint="Did you mean *?"),
    Bad("factor without sign", body("Z[m] = «2»m * Q[m,e]"), "`2` runs into `m`", hint="Write 2*m"),
    Bad("assignment without brackets", body("Z[m] = Q[m,e]\n«Y» = 3"), "Y has no brackets", hint="let Y = ..."),
    Bad("arguments", body("Z[m] = «max»(Q[m,e], 0, 1)"), "max has 3 arguments", "2", "Nest it"),
    Bad("number too large", body("Z[m] = «1e999» * Q[m,e]"), "too large", hint="inf"),
    Bad("nested too deeply", body("Z[m] = " + "(" * 64 + "«1»" + ")" * 64), "more than 64 levels"),
    Bad("too many terms", body("Z[m] = «Q»[m,e]" + " + 1" * 70), "more than 64 levels", hint="Split it"),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=[b.id for b in BAD])
def test_one_clear_message(bad: Bad) -> None:
    text = bad.text.replace("«", "").replace("»", "")
    with pytest.raises(CascadeError) as caught:
        check(text, "probe.casc")
    problems = caught.value.problems
    assert len(problems) == 1, str(caught.value)
    (problem,) = problems
    assert bad.says in problem.message
    assert bad.expected in (problem.expected or "")
    assert bad.hint in (problem.hint or "")
    if "«" in bad.text:
        before, marked = re.split("«", bad.text)[0], re.split("[«»]", bad.text)[1]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        assert problem.span is not None
        assert (problem.span.line, problem.span.column) == (line, column)
        source = text.split("\n")[line - 1]
        assert source[column - 1 : column - 1 + problem.span.length].startswith(marked)
        shown = str(caught.value).split("\n")
        assert shown[0].startswith(f"probe.casc:{line}:{column}: ")
        if len(source) <= 100:
            assert shown[1] == f"{line:>5} | {source}"
            assert shown[2].index("^") == len("    1 | ") + column - 1


def test_at_least_thirty_kinds() -> None:
    assert len({b.says for b in BAD}) >= 30


def test_all_faults_of_a_file_are_reported_together_in_order() -> None:
    text = "cascade x\nrank M, N E\nin Q[m\nout Z[m]\nA[m] = B[m]\nlett C = 1\nZ[m] = A[m,m] + 2 2\n"
    with pytest.raises(CascadeError) as caught:
        check(text)
    assert [p.span.line for p in caught.value.problems if p.span] == [2, 3, 5, 6, 7]


def test_a_faulty_line_causes_no_second_message() -> None:
    """The names of a line that does not parse are not reported as unknown where they are used."""
    text = HEADER.replace("in Q[m,e] K[n,e]", "in Q[m,e] K[n,e") + "A[m,n] = Q[m,e] * K[n,e]\nZ[m] = A[m,n] * V[n,0]\n"
    with pytest.raises(CascadeError) as caught:
        check(text)
    assert len(caught.value.problems) == 1


def test_parse_checks_the_form_only() -> None:
    assert parse("cascade x\nA[m] = B[m]").name == "x"


def test_a_guarded_index_is_not_reported() -> None:
    """The same accesses without the guard are refused."""
    for text, guard in (
        ("Z[m] = Q[m,e] * K[n+1,e] where n+1 < N", " where n+1 < N"),
        ("A[m,n] = Q[m,e] where n > 0\nZ[m] = A[m,n] * K[n-1,0]", " where n > 0"),
        ("let H = n+1\nZ[m] = Q[m,e] * K[H,e] where H < N", " where H < N"),
    ):
        assert check(body(text)).name == "probe"
        with pytest.raises(CascadeError, match="reaches"):
            check(body(text.replace(guard, "")))


def test_a_let_in_an_index_is_seen_through() -> None:
    with pytest.raises(CascadeError, match="reaches N"):
        check(body("let H = n+1\nZ[m] = Q[m,e] * K[H,e]"))


def test_history_of_an_iterative_tensor_can_be_read_after_its_block() -> None:
    text = HEADER + (STEPS % GOOD_STEP).replace(" where n1*N0+n0 < N", "")
    check(text.replace("RM[N1]", "RM[n1+1]"))
    with pytest.raises(CascadeError, match=r"reaches N1 \+ 1 \(valid: 0..N1\)"):
        check(text.replace("RM[N1]", "RM[n1+2]"))


def test_a_file_that_cannot_be_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CascadeError, match="cannot be read: No such file"):
        parse_file(tmp_path / "absent.casc")
    (tmp_path / "binary.casc").write_bytes(b"cascade \xff\xfe")
    with pytest.raises(CascadeError, match="not UTF-8"):
        parse_file(tmp_path / "binary.casc")
    with pytest.raises(CascadeError, match="cannot be read"):
        parse_file(tmp_path)


WARNED = [
    ("A[m] = Q[m,e]\nB[m,n] = Q[m,e] * K[n,e]\nZ[m] = A[m] + B[m,n]", "A[m] is added N times"),
    ("Z[m] = Q[m,e] * K[n,e] :: max(n)", "Z reduces in the order +(e), then max(n)"),
    ("A[m] = Q[m,e]\nZ[m] = Q[m,e]", "A is computed but never read"),
    ("Z[m] = Q[m,e] * K[m,e]", "rank N of K is indexed by m, which walks M"),
    ("S[m,n] = Q[m,e] * K[n,e]\nZ[m] = S[m,n] * K[n1*N0+n0,0] where n1*N0+n0 < N", "walks n and also its chunk n1, n0"),
]


@pytest.mark.parametrize(("text", "says"), WARNED, ids=[w for _, w in WARNED])
def test_warnings_leave_the_cascade_legal(text: str, says: str) -> None:
    cascade = check(body(text))
    assert any(says in w.message for w in warnings(cascade)), warnings(cascade)


def test_unused_inputs_and_a_missing_word_are_warned_about() -> None:
    found = [w.message for w in warnings(check("cascade x\nrank M\nin Q[m] K[m]\nout Z[m]\nZ[m] = Q[m]"))]
    assert found == ["input K is never read", "the cascade does not say what it computes"]


def test_a_sum_inside_a_factor_is_no_warning() -> None:
    assert warnings(check(body("Z[m] = (Q[m,e] + 1) * K[n,e] * V[n,f]"))) == ()


def test_rendering_is_bounded() -> None:
    problems = [Problem(f"fault {i}") for i in range(SHOWN + 5)]
    assert render("f", "", problems).endswith("f: and 5 more problems")
    text = "cascade x\n" + "A[m] = " + "B[m] + " * 10_000
    with pytest.raises(CascadeError) as caught:
        check(text)
    assert len(str(caught.value)) < 2000


def test_near_names() -> None:
    assert did_you_mean("k", ["K", "Q"]) == "Did you mean K?"
    assert did_you_mean("SNN", ["SN", "GM"]) == "Did you mean SN?"
    assert did_you_mean("zebra", ["K", "Q"]) is None


def test_an_error_survives_the_way_between_processes() -> None:
    with pytest.raises(CascadeError) as caught:
        check(body("Z[m] = KK[m]"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
