"""Lets, views and inherited predicates; sizes and their errors."""

from __future__ import annotations

import re

import pytest
from attention_cases import FRAGMENTS, MASKS
from hypothesis import given
from hypothesis import strategies as st

from einsight.einsum.compose import IllegalComposition, compose
from einsight.einsum.counts import count
from einsight.einsum.errors import CascadeError
from einsight.einsum.format import format_cascade, format_einsum, format_expression
from einsight.einsum.ir import Cascade
from einsight.einsum.library import fragment, listing, load
from einsight.einsum.parse import check, parse
from einsight.einsum.resolve import SizeError, bind, required_sizes, resolve, unguarded


def _cascade(body: str, head: str = "rank M, N, E\nin A[m,n]\nin X[n]\nout Z[m]") -> Cascade:
    return parse(f"cascade t\n{head}\n{body}\n")


def _lines(cascade: Cascade) -> list[str]:
    return [format_einsum(e) for e in cascade.einsums]


# -- lets and views -----------------------------------------------------------------------------------------------


def test_lets_are_substituted_into_each_other_and_everywhere() -> None:
    cascade = _cascade("let LO = m-W\nlet HI = LO+2*W\nZ[m] = A[m,n] * (n - LO) where LO <= n && n < HI")
    resolved = resolve(cascade)
    assert not resolved.lets
    assert _lines(resolved) == ["Z[m] = A[m,n] * (n-(m-W)) where m-W <= n && n < m-W+2*W"]


def test_a_view_is_read_through_and_its_predicate_moves_to_the_reader() -> None:
    cascade = _cascade("T[n] = X[n+1] where n+1 < N\nZ[m] = A[m,n] * T[n]")
    assert _lines(resolve(cascade)) == ["Z[m] = A[m,n] * X[n+1] where n+1 < N"]


def test_a_view_of_a_view_at_a_shifted_index() -> None:
    cascade = _cascade("T[n] = X[n+1] where n+1 < N\nU[n] = T[2*n]\nZ[m] = A[m,n] * U[n+3]")
    assert _lines(resolve(cascade)) == ["Z[m] = A[m,n] * X[2*(n+3)+1] where 2*(n+3)+1 < N"]


def test_a_tensor_repeated_along_a_rank_is_not_a_view() -> None:
    """The sum over m of T[m,n] = X[n] is M times the sum of X: inlining would lose the factor."""
    cascade = _cascade("T[m,n] = X[n]\nZ[n] = T[m,n]", "rank M, N\nin X[n]\nout Z[n]")
    assert [e.name for e in resolve(cascade).einsums] == ["T", "Z"]


def test_a_view_that_is_an_output_stays() -> None:
    cascade = _cascade("Z[m] = Y[m]", "rank M\nin Y[m]\nout Z[m]")
    assert _lines(resolve(cascade)) == ["Z[m] = Y[m]"]


def test_marks_follow_views() -> None:
    cascade = _cascade("T[n1,n0] = S[n1*N0+n0]\nZ[] = T[n1,n0]", "rank N = N1 * N0\nin X[n]\nout Z[]\nscore T[n1,n0]\n"
                       "S[n] = X[n] * 2")  # fmt: skip
    assert [format_expression(m.access) for m in resolve(cascade).marks] == ["S[n1*N0+n0]"]


# -- predicates ---------------------------------------------------------------------------------------------------


def test_predicates_on_output_variables_are_inherited_and_others_stay() -> None:
    cascade = _cascade("S[m,n] = A[m,n] + 1 where n <= m && n < 3\nG[m] = S[m,n] :: max(n)\nZ[m] = G[m] + 1")
    assert _lines(resolve(cascade)) == [
        "S[m,n] = A[m,n] + 1 where n <= m && n < 3",
        "G[m] = S[m,n] :: max(n) where n <= m && n < 3",
        "Z[m] = G[m] + 1",
    ]


def test_a_clause_on_what_is_left_after_the_reduction_goes_on() -> None:
    cascade = _cascade("S[m,n] = A[m,n] + 1 where m >= 2 && n <= m\nG[m] = S[m,n]\nZ[m] = G[m] + 1")
    assert _lines(resolve(cascade))[2] == "Z[m] = G[m] + 1 where m >= 2"


def test_indices_of_the_reader_are_put_into_the_clause() -> None:
    cascade = _cascade("S[m,n] = A[m,n] + 1 where n <= m\nZ[m] = S[m,2*m] * X[m]")
    assert _lines(resolve(cascade))[1] == "Z[m] = S[m,2*m] * X[m] where 2*m <= m"


def test_clauses_are_not_repeated() -> None:
    cascade = _cascade("S[m,n] = A[m,n] + 1 where n <= m\nT[m,n] = S[m,n] * 2\nZ[m] = S[m,n] * T[m,n] where n <= m")
    assert _lines(resolve(cascade))[2] == "Z[m] = S[m,n] * T[m,n] where n <= m"


RUNNING = """
init R[0,m] = 0
iterate n < N {{
  T[n,m]   = R[n,m] + A[m,n] where {t}
  R[n+1,m] = R[n,m] + T[n,m] where {r}
  U[n,m]   = R[n+1,m] * 2
}}
Z[m] = R[N,m]
"""


def test_running_tensors_hand_on_what_does_not_depend_on_the_step() -> None:
    """T reads the R of the step before, which is written further down: it inherits m < 5 all the same.

    n > 1 holds for the same step's R and for the last one, but not for a step before, which may be the `init` element.
    """
    lines = _lines(resolve(_cascade(RUNNING.format(t="m < 9", r="m < 5 && n > 1"), "rank M, N\nin A[m,n]\nout Z[m]")))
    assert lines == [
        "T[n,m] = R[n,m] + A[m,n] where m < 9 && m < 5",
        "R[n+1,m] = R[n,m] + T[n,m] where m < 5 && n > 1 && m < 9",
        "U[n,m] = R[n+1,m] * 2 where m < 5 && n > 1 && m < 9",
        "Z[m] = R[N,m] where m < 5 && N-1 > 1 && m < 9",
    ]


def test_one_pass_says_everywhere_which_keys_exist() -> None:
    guard = "n1*N0+n0 < N"
    guarded = {e.name: e.predicate is not None for e in resolve(load("one_pass")).einsums}
    tiles = {"BQK", "LM", "SLN", "SLD", "SLNV"}
    assert guarded == {name: name in tiles for name in guarded}
    found = {e.name: format_expression(e.predicate) for e in resolve(load("one_pass")).einsums if e.predicate}
    assert set(found.values()) == {guard}
    assert "K[n1*N0+n0,e]" in format_cascade(resolve(load("one_pass")))


@pytest.mark.parametrize("base", [c.name for c in listing()])
def test_resolving_twice_is_resolving_once(base: str) -> None:
    for case in FRAGMENTS.values():
        for mask in (None, MASKS["sink_window"].expression):
            try:
                cascade = compose(load(base), [fragment(n) for n in case.fragments], mask)
            except IllegalComposition:
                continue
            once = resolve(cascade)
            assert resolve(once) == once
            assert parse(format_cascade(once)) == once
            outputs = {t.name for t in once.outputs}
            assert not once.lets and not any(e.is_view and e.name not in outputs for e in once.einsums)


# -- sizes --------------------------------------------------------------------------------------------------------

GOOD = {"m": 6, "n": 16, "e": 5, "f": 7, "n0": 4}


def test_sizes_are_completed_and_upper_case() -> None:
    assert bind(load("one_pass"), GOOD) == {"M": 6, "N": 16, "E": 5, "F": 7, "N0": 4, "N1": 4}
    assert bind(load("one_pass"), {k.upper(): v for k, v in GOOD.items()}) == bind(load("one_pass"), GOOD)


@given(st.integers(1, 400), st.integers(1, 400))
def test_chunks_cover_the_keys_and_no_chunk_is_empty(n: int, n0: int) -> None:
    bound = bind(load("one_pass"), GOOD | {"n": n, "n0": n0})
    assert (bound["N1"] - 1) * n0 < n <= bound["N1"] * n0


def test_the_number_of_splits_may_be_given_instead_of_their_length() -> None:
    sizes = {"m": 1, "e": 2, "f": 2}
    assert bind(load("split_kv"), sizes | {"n": 100, "n1": 8})["N0"] == 13
    assert bind(load("split_kv"), sizes | {"n0": 16, "n1": 8})["N"] == 128


def test_sizes_that_are_not_ranks_are_asked_for() -> None:
    cascade = _cascade("let LO = m-W\nZ[m] = A[m,n] where LO <= n", "rank M, N\nin A[m,n]\nout Z[m]")
    assert required_sizes(cascade) == ("M", "N", "W")
    assert bind(cascade, {"m": 2, "n": 3, "w": 0})["W"] == 0  # not a rank: 0 is a value like any other


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"m": 6, "n": 16}, "missing sizes E, F, N0 (it needs M, E, F, N, N0)"),
        ({k: v for k, v in GOOD.items() if k != "n"}, "missing size N (it needs"),
        (GOOD | {"z": 3}, "has no size Z (it needs M, E, F, N, N0)"),
        (GOOD | {"e": 0}, "size E is 0; expected at least 1"),
        (GOOD | {"n0": -4}, "size N0 is -4; expected at least 1"),
        (GOOD | {"m": 2.5}, "size m is 2.5; expected a whole number"),
        (GOOD | {"M": 7}, "size M is given as 6 and 7"),
        (GOOD | {"n1": 5}, "N1=5 does not match N=16 in chunks of N0=4; expected N1 = ceil(N/N0) = 4"),
    ],
)
def test_sizes_that_do_not_fit_say_why(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(SizeError, match=re.escape(f"cascade one_pass{'' if message[0] == 'h' else ':'} {message}")):
        bind(load("one_pass"), sizes)


@pytest.mark.parametrize("guard", ["n1*N0+n0 < N", "N > n0+N0*n1", "n1*N0+n0 <= N-1", "0 <= N-n1*N0-n0-1"])
def test_a_guard_is_recognised_however_it_is_written(guard: str) -> None:
    head = "rank N = N1 * N0\nin X[n]\nout Z[]"
    guarded = _cascade(f"BX[n1,n0] = X[n1*N0+n0] where {guard}\nZ[] = BX[n1,n0]", head)
    bare = _cascade("BX[n1,n0] = X[n1*N0+n0]\nZ[] = BX[n1,n0]", head)
    weak = _cascade("BX[n1,n0] = X[n1*N0+n0] where n1*N0+n0 <= N\nZ[] = BX[n1,n0]", head)
    assert bind(guarded, {"n": 10, "n0": 4})["N1"] == 3
    assert bind(guarded, {"n": 3, "n0": 8})["N1"] == 1
    assert bind(bare, {"n": 8, "n0": 4})["N1"] == 2
    for cascade in (bare, weak):
        assert unguarded(cascade, "N") == ("Z",)
        with pytest.raises(SizeError, match=r"N=10 is not a multiple of N0=4 and Z would read past the end"):
            bind(cascade, {"n": 10, "n0": 4})


def test_every_tiled_cascade_of_the_library_is_guarded() -> None:
    for cascade in listing():
        for rank in cascade.ranks:
            assert unguarded(cascade, rank.name) == ()


ALIKE = "cascade x\ncomputes x\nrank N = N1 * N0, C = N0\nin Q[n]\nout Z[n1]\nZ[n1] = Q[n1*N0+c] * Q[n1*N0+n0] where n0 <= c\n"


def test_a_rank_as_large_as_another_takes_its_size() -> None:
    cascade = parse(ALIKE)
    assert required_sizes(cascade) == ("N", "N0")
    assert bind(cascade, {"n": 8, "n0": 4}) == {"N": 8, "N0": 4, "N1": 2, "C": 4} == bind(cascade, {"n": 8, "n0": 4, "c": 4})
    assert count(cascade).filter(klass="macc").total().evaluate(bind(cascade, {"n": 8, "n0": 4})) == 2 * 10
    assert parse(format_cascade(cascade)) == cascade
    with pytest.raises(SizeError, match="size C is 3; expected 4, as N0"):
        bind(cascade, {"n": 8, "n0": 4, "c": 3})
    with pytest.raises(CascadeError, match=r"rank C is to be as large as W\n.*\n.*\n.*expected: one of N, N1, N0"):
        check(ALIKE.replace("C = N0", "C = W"))


def test_a_forgotten_init_does_not_let_predicates_grow_without_end() -> None:
    """A tensor that a loop carries is one by the line that writes its next step; what starts it may be missing."""
    text = format_cascade(load("gla"))
    line = next(line for line in text.splitlines() if line.startswith("init LB"))
    resolved = resolve(parse(text.replace(line + "\n", "")))
    assert max(len(format_expression(e.predicate)) for e in resolved.einsums if e.predicate is not None) < 120
