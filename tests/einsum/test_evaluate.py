"""What a cascade computes, against attention written without the cascade language."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import attention_reference as reference
import numpy as np
import pytest
from attention_cases import FRAGMENTS, MASKS, Array, predicate
from hypothesis import given, settings
from hypothesis import strategies as st
from scalar_evaluator import run

from einsight.einsum.compose import IllegalComposition, compose
from einsight.einsum.errors import CascadeError
from einsight.einsum.evaluate import EvaluationError, evaluate
from einsight.einsum.format import format_cascade
from einsight.einsum.ir import Cascade
from einsight.einsum.library import FOLDER, fragment, fragments, listing, load
from einsight.einsum.parse import check, parse
from einsight.einsum.resolve import SizeError, required_sizes

SOFTMAX = [c.name for c in listing() if c.computes == "softmax_attention"]

GQA = {"B": 2, "G": 2, "J": 3, "M": 5, "N": 11, "N0": 4, "E": 3, "F": 2}
SHAPES = {
    "whole tiles": {"B": 1, "G": 1, "J": 1, "M": 6, "N": 16, "N0": 4, "E": 5, "F": 7},
    "ragged": {"B": 1, "G": 1, "J": 1, "M": 7, "N": 11, "N0": 4, "E": 3, "F": 2},
    "gqa": GQA,
    "mqa decode": {"B": 2, "G": 1, "J": 4, "M": 1, "N": 9, "N0": 4, "E": 3, "F": 2},
    "tile longer than the keys": {"B": 1, "G": 2, "J": 1, "M": 3, "N": 5, "N0": 8, "E": 2, "F": 2},
    "tiles of one key": {"B": 1, "G": 1, "J": 1, "M": 3, "N": 4, "N0": 1, "E": 2, "F": 2},
}


def _inputs(sizes: Mapping[str, int]) -> dict[str, Array]:
    rng = np.random.default_rng(sizes["M"] * 1000 + sizes["N"])
    B, G, J, M, N, E, F = (sizes[r] for r in "BGJMNEF")
    return {
        "Q": rng.normal(size=(B, G, J, M, E)),
        "K": rng.normal(size=(B, G, N, E)),
        "V": rng.normal(size=(B, G, N, F)),
    }


def _sizes_for(cascade: Cascade, sizes: Mapping[str, int]) -> dict[str, int]:
    """Only what the cascade asks for: an untiled one has no N0."""
    known = required_sizes(cascade)
    return {name: size for name, size in sizes.items() if name in known}


@cache
def _expected(shape: str, fragment_case: str, mask: str) -> tuple[dict[str, int], dict[str, Array], Array]:
    case = FRAGMENTS[fragment_case]
    sizes = {**SHAPES[shape], **case.sizes}
    sizes["U"] = sizes["M"] + sizes["N"] - 1
    inputs = _inputs(sizes)
    added = case.inputs(np.random.default_rng(7), sizes)
    if "T" in added:
        sizes["U"] = added["T"].shape[-1]
    S = case.score(reference.scores(inputs["Q"], inputs["K"]), added)
    keep = MASKS[mask].matrix(sizes["M"], sizes["N"])
    assert keep.any(axis=1).all(), "a row without keys belongs in a test of its own"
    wanted = reference.softmax_attention(S, inputs["V"], keep, added[case.sink] if case.sink else None)
    return sizes, {**inputs, **added}, wanted


def _check(base: str, shape: str, fragment_case: str, mask: str) -> None:
    sizes, inputs, wanted = _expected(shape, fragment_case, mask)
    parts = [fragment(name) for name in FRAGMENTS[fragment_case].fragments]
    cascade = compose(load(base), parts, MASKS[mask].expression)
    found = evaluate(cascade, _sizes_for(cascade, sizes), inputs)
    np.testing.assert_allclose(found["AV"], wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("base", SOFTMAX)
def test_softmax_cascades_compute_attention_under_every_mask(base: str, shape: str) -> None:
    for mask in MASKS:
        _check(base, shape, "none", mask)


@pytest.mark.parametrize("fragment_case", [name for name in FRAGMENTS if name != "none"])
@pytest.mark.parametrize("base", SOFTMAX)
def test_every_legal_combination_computes_what_it_says(base: str, fragment_case: str) -> None:
    needed = {m.role for n in FRAGMENTS[fragment_case].fragments for m in _marks_used(fragment(n))}
    if missing := needed - {m.role for m in load(base).marks}:
        with pytest.raises(IllegalComposition, match=sorted(missing)[0]):
            _check(base, "gqa", fragment_case, "dense")
        return
    for mask in MASKS:
        _check(base, "gqa", fragment_case, mask)


def _marks_used(part: Cascade) -> tuple[object, ...]:
    return (part.extends, *part.reads)


def test_every_shipped_fragment_has_a_reference() -> None:
    assert set(fragments()) == {name for case in FRAGMENTS.values() for name in case.fragments}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("fragment_case", ["none", "dense_bias", "low_rank", "alibi", "softcap_alibi"])
def test_sigmoid_attention(fragment_case: str, mask: str) -> None:
    case = FRAGMENTS[fragment_case]
    sizes, inputs, _ = _expected("gqa", fragment_case, mask)
    offset = -np.log(sizes["N"])
    S = case.score(reference.scores(inputs["Q"], inputs["K"]), inputs)
    wanted = reference.sigmoid_attention(S, inputs["V"], MASKS[mask].matrix(sizes["M"], sizes["N"]), offset)
    cascade = compose(load("sigmoid"), [fragment(n) for n in case.fragments], MASKS[mask].expression)
    # sigmoid's own offset keeps the name BIAS; the fragment's input is renamed
    given = {f"DENSE_BIAS_{n}" if n == "BIAS" else n: a for n, a in inputs.items()} | {"BIAS": np.asarray(offset)}
    found = evaluate(cascade, _sizes_for(cascade, sizes), given)
    np.testing.assert_allclose(found["AV"], wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_attention(shape: str) -> None:
    inputs = _inputs(SHAPES[shape])
    cascade = compose(load("linear"))
    found = evaluate(cascade, _sizes_for(cascade, SHAPES[shape]), inputs)
    np.testing.assert_allclose(found["AV"], reference.linear_attention(**inputs), rtol=0, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 14), st.sampled_from(SOFTMAX))
def test_any_sizes(M: int, N: int, N0: int, base: str) -> None:
    sizes = {"B": 1, "G": 1, "J": 1, "M": M, "N": N, "N0": N0, "E": 2, "F": 3}
    inputs = _inputs(sizes)
    cascade = compose(load(base))
    wanted = reference.softmax_attention(
        reference.scores(inputs["Q"], inputs["K"]), inputs["V"], np.ones((M, N), dtype=bool)
    )
    found = evaluate(cascade, _sizes_for(cascade, sizes), inputs)["AV"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)


def test_per_head_and_composed_agree() -> None:
    inputs = _inputs(GQA)
    cascade = compose(load("one_pass"))
    whole = evaluate(cascade, GQA, inputs)["AV"]
    one = {"Q": inputs["Q"][1, 0, 2], "K": inputs["K"][1, 0], "V": inputs["V"][1, 0]}
    head = evaluate(load("one_pass"), _sizes_for(load("one_pass"), GQA), one)["AV"]
    np.testing.assert_allclose(head, whole[1, 0, 2], rtol=0, atol=1e-15)


# -- numbers that are hard ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", SOFTMAX)
def test_large_logits_stay_finite_exactly_in_stable_cascades(base: str) -> None:
    sizes = {"B": 1, "G": 1, "J": 1, "M": 4, "N": 8, "N0": 4, "E": 3, "F": 2}
    inputs = _inputs(sizes) | {"Q": 1000 * _inputs(sizes)["Q"]}
    cascade = compose(load(base))
    found = evaluate(cascade, _sizes_for(cascade, sizes), inputs)["AV"]
    assert np.isfinite(found).all() == load(base).stable


def test_a_first_tile_without_keys_does_no_harm() -> None:
    for base in SOFTMAX:
        _check(base, "ragged", "none", "first_keys_hidden")  # two of three tiles are empty, the last is ragged


@pytest.mark.parametrize("base", SOFTMAX)
def test_a_row_without_keys_is_zero_or_nan_and_never_a_number_from_elsewhere(base: str) -> None:
    """Causal with more queries than keys: the first M - N rows see nothing. What comes out depends on the division."""
    sizes = {"B": 1, "G": 1, "J": 1, "M": 6, "N": 4, "N0": 2, "E": 3, "F": 2}
    inputs = _inputs(sizes)
    cascade = compose(load(base), mask=MASKS["causal"].expression)
    found = evaluate(cascade, _sizes_for(cascade, sizes), inputs)["AV"][0, 0, 0]
    wanted = reference.softmax_attention(
        reference.scores(inputs["Q"], inputs["K"]), inputs["V"], MASKS["causal"].matrix(6, 4)
    )[0, 0, 0]
    np.testing.assert_allclose(found[2:], wanted[2:], rtol=0, atol=1e-13)
    divides_weights = base in ("naive", "stable", "two_pass", "flash1")  # the empty sum of absent weights is 0
    assert (found[:2] == 0).all() if divides_weights else np.isnan(found[:2]).all()


# -- semantics ----------------------------------------------------------------------------------------------------


def _run(body: str, sizes: Mapping[str, int], declarations: str = "rank M, N", **inputs: object) -> dict[str, Array]:
    names = {"A": "A[m,n]", "X": "X[n]", "C": "C[]"}
    read = "\n".join(f"in {names[name]}" for name in inputs)
    cascade = parse(f"cascade t\n{declarations}\n{read}\n{body}\n")
    return evaluate(cascade, sizes, inputs, intermediates=True)  # type: ignore[arg-type]


A = np.arange(12.0).reshape(3, 4)
SIZES = {"m": 3, "n": 4}


def test_absent_points_are_nan_and_readers_skip_them() -> None:
    found = _run("out Z[m]\nT[m,n] = A[m,n] + 0 where n < m\nZ[m] = T[m,n]", SIZES, A=A)
    kept = np.tril(np.ones((3, 4), dtype=bool), -1)
    assert np.isnan(found["T"][~kept]).all()
    np.testing.assert_array_equal(found["Z"], np.where(kept, A, 0).sum(1))


@pytest.mark.parametrize(("op", "identity"), [("+", 0), ("*", 1), ("max", -np.inf), ("min", np.inf)])
def test_an_empty_reduction_gives_the_identity(op: str, identity: float) -> None:
    found = _run(f"out Z[m]\nZ[m] = A[m,n] :: {op}(n) where n < m", SIZES, A=A)
    assert found["Z"][0] == identity
    assert found["Z"][1] == A[1, 0]


def test_sums_come_before_the_named_reductions() -> None:
    text = "cascade t\nrank M, N, E\nin P[m,e] R[n,e]\nout Z[m]\nZ[m] = P[m,e] * R[n,e] :: max(n)\n"
    rng = np.random.default_rng(3)
    p, r = rng.normal(size=(3, 2)), rng.normal(size=(4, 2))
    found = evaluate(parse(text), {"m": 3, "n": 4, "e": 2}, {"P": p, "R": r})["Z"]
    np.testing.assert_allclose(found, (p @ r.T).max(axis=1), atol=1e-15)


def test_rank_variables_sizes_and_rank_0_inputs_are_values() -> None:
    found = _run("out Z[m,n]\nZ[m,n] = C[] * (n - m) / N", SIZES, C=2.0)
    np.testing.assert_array_equal(found["Z"], [[2.0 * (n - m) / 4 for n in range(4)] for m in range(3)])


def test_index_arithmetic_is_whole_and_floors() -> None:
    x = np.arange(4.0)
    found = _run("out Z[m,n]\nZ[m,n] = X[(n-m-1) % 4] + X[floordiv(n,2)]", SIZES, X=x)
    np.testing.assert_array_equal(found["Z"], [[x[(n - m - 1) % 4] + x[n // 2] for n in range(4)] for m in range(3)])


def test_select_takes_one_side_without_a_warning() -> None:
    with np.errstate(all="raise"):
        found = _run("out Z[n]\nZ[n] = select(X[n] > 0, log(X[n]), 0)", {"n": 3}, "rank N", X=[-1.0, 1.0, np.e])
    np.testing.assert_allclose(found["Z"], [0, 0, 1], atol=1e-15)


def test_a_shifted_left_hand_side_is_scattered() -> None:
    found = _run("out Z[n]\nZ[n1*N0+n0] = X[n1*N0+n0] where n1*N0+n0 < N", {"n": 5, "n0": 2}, "rank N = N1 * N0",
                 X=np.arange(5.0))  # fmt: skip
    np.testing.assert_array_equal(found["Z"], np.arange(5.0))


def test_a_non_finite_value_under_the_mask_stays_out_of_a_contraction() -> None:
    """0 * inf would be NaN: the contraction must not see keys that the mask hides."""
    sizes = {"B": 1, "G": 1, "J": 1, "M": 3, "N": 4, "E": 2, "F": 2}
    inputs = _inputs(sizes)
    clean = evaluate(compose(load("stable"), mask=predicate("n < 3")), sizes, inputs)["AV"]
    inputs["V"] = inputs["V"].copy()
    inputs["V"][..., 3, :] = np.inf
    found = evaluate(compose(load("stable"), mask=predicate("n < 3")), sizes, inputs)["AV"]
    np.testing.assert_allclose(found, clean, atol=1e-15)


# -- errors -------------------------------------------------------------------------------------------------------


def test_reading_out_of_range_names_einsum_index_and_range() -> None:
    with pytest.raises(EvaluationError, match=r"Einsum Z: index n\+1 of X\[n\+1\] reaches 4; valid are 0\.\.3"):
        _run("out Z[n]\nZ[n] = X[n+1]", {"n": 4}, "rank N", X=np.zeros(4))
    found = _run("out Z[n]\nZ[n] = X[n+1] where n+1 < N", {"n": 4}, "rank N", X=np.arange(4.0))["Z"]
    np.testing.assert_array_equal(found, [1, 2, 3, np.nan])


def test_reading_a_later_step_is_an_error() -> None:
    text = (
        "cascade t\nrank N\nin X[n]\nout Z[]\ninit R[0] = 0\n"
        "iterate n < N {\n  T[n]   = R[n+1] + X[n]\n  R[n+1] = R[n] + T[n]\n}\nZ[] = R[N]\n"
    )
    with pytest.raises((EvaluationError, CascadeError), match=r"later|after|not computed|no step"):
        evaluate(parse(text), {"n": 3}, {"X": np.ones(3)})


def test_an_output_that_no_line_computes_is_an_error() -> None:
    with pytest.raises((EvaluationError, CascadeError), match="Z is never computed"):
        _run("out Z[n]\nY[n] = X[n] + 1", {"n": 4}, "rank N", X=np.zeros(4))


def test_inputs_are_checked_by_name_and_shape() -> None:
    good = {"Q": np.zeros((3, 2)), "K": np.zeros((4, 2)), "V": np.zeros((4, 5))}
    sizes = {"m": 3, "n": 4, "e": 2, "f": 5}
    with pytest.raises(EvaluationError, match=r"K has shape \(4, 3\); expected \(4, 2\) \(N=4, E=2\)"):
        evaluate(load("stable"), sizes, good | {"K": np.zeros((4, 3))})
    with pytest.raises(EvaluationError, match="V has no value; it reads Q, K, V"):
        evaluate(load("stable"), sizes, {k: v for k, v in good.items() if k != "V"})
    with pytest.raises(EvaluationError, match="no input W"):
        evaluate(load("stable"), sizes, good | {"W": np.zeros(3)})
    for wrong in ("abc", [[1.0], [2.0, 3.0]], np.zeros((3, 2), complex)):
        with pytest.raises(EvaluationError, match="input Q is no array of real numbers"):
            evaluate(load("stable"), sizes, good | {"Q": wrong})


# -- every line matters -------------------------------------------------------------------------------------------


def _statement_lines(text: str) -> list[int]:
    return [
        i for i, line in enumerate(text.splitlines())
        if "=" in line.split("#")[0] and not line.startswith(("rank", "paper", "let"))
    ]  # fmt: skip


@pytest.mark.parametrize("base", [c.name for c in listing()])
def test_deleting_any_line_is_an_error_or_changes_the_output(base: str) -> None:
    text = (FOLDER / f"{base}.casc").read_text()
    lines = text.splitlines()
    for number in _statement_lines(text):
        shorter = "\n".join(lines[:number] + lines[number + 1 :]) + "\n"
        with pytest.raises((CascadeError, EvaluationError, SizeError)):
            found = _output_of(shorter, base)
            if not np.allclose(found, _output_of(text, base), equal_nan=True):
                raise EvaluationError("changed")


@pytest.mark.parametrize(
    ("base", "old", "new"),
    [
        ("stable", "exp(QK[m,n] - GM[m])", "exp(QK[m,n] * GM[m])"),
        ("stable", "A[m,n] * V[n,f]", "A[m,n] + V[n,f]"),
        ("one_pass", "SLD[n1,m] + SPD[n1,m]", "SLD[n1,m] - SPD[n1,m]"),
        ("one_pass", "RM[n1,m] - RM[n1+1,m]", "RM[n1,m]"),
        ("one_pass", "init RM[0,m]    = -1e30", "init RM[0,m]    = 1e30"),
        ("split_kv", "SLD[n1,m] * PRM[n1,m]", "SLD[n1,m] * LM[n1,m]"),
        ("linear", "FQ[m,e] * KS[e]", "FQ[m,e] - KS[e]"),
    ],
)
def test_changing_one_line_changes_the_output(base: str, old: str, new: str) -> None:
    text = (FOLDER / f"{base}.casc").read_text()
    assert old in text
    before, after = _output_of(text, base), _output_of(text.replace(old, new), base)
    assert not np.allclose(after, before, equal_nan=True)


def test_any_common_shift_cancels() -> None:
    """Softmax does not know which number was subtracted: the maximum is there for stability alone."""
    text = (FOLDER / "stable.casc").read_text()
    for other in ("exp(QK[m,n] + GM[m])", "exp(QK[m,n] - 3)"):
        after = _output_of(text.replace("exp(QK[m,n] - GM[m])", other), "stable")
        np.testing.assert_allclose(after, _output_of(text, "stable"), atol=1e-14)


def test_a_tiled_cascade_without_its_guard_refuses_ragged_keys() -> None:
    text = (FOLDER / "one_pass.casc").read_text().replace(" where n1*N0+n0 < N", "")
    with pytest.raises(SizeError, match=r"N=11 is not a multiple of N0=4.*where n1\*N0\+n0 < N"):
        _output_of(text, "one_pass")


def _output_of(text: str, base: str) -> Array:
    cascade = parse(text)
    rng = np.random.default_rng(5)
    sizes = {"M": 5, "N": 11, "N0": 4, "E": 3, "F": 2, "R": 2}
    inputs = {t.name: rng.normal(size=[sizes[r] for r in t.ranks]) for t in load(base).inputs}
    found = evaluate(cascade, _sizes_for(load(base), sizes), inputs)
    return np.concatenate([found[t.name].ravel() for t in cascade.outputs])


def test_printing_and_reading_back_keeps_the_result() -> None:
    parts = [fragment("low_rank"), fragment("softcap")]
    cascade = compose(load("flash1"), parts, MASKS["sink_window"].expression)
    assert parse(format_cascade(cascade)) == cascade


# -- a cascade with lets and two position ranks -------------------------------------------------------------------

GNA = """
cascade gna
computes softmax_attention
rank Y, X, V, U, E, F    # queries (y,x), keys (v,u)
rank WY, WX, SY, SX      # window and stride; nothing walks them
in  Q[y,x,e] K[v,u,e] VV[v,u,f]
out AV[y,x,f]
let LY = min(floordiv(y,SY)*SY + floordiv(SY,2), Y-1)    # the leader of the stride group
let LX = min(floordiv(x,SX)*SX + floordiv(SX,2), X-1)
let HY = min(max(LY - floordiv(WY,2), 0), Y-WY)          # where its window starts, shifted at the border
let HX = min(max(LX - floordiv(WX,2), 0), X-WX)
QK[y,x,v,u] = Q[y,x,e] * K[v,u,e] where HY <= v && v < HY+WY && HX <= u && u < HX+WX
GM[y,x]     = QK[y,x,v,u] :: max(v,u)
SN[y,x,v,u] = exp(QK[y,x,v,u] - GM[y,x])
SD[y,x]     = SN[y,x,v,u]
NV[y,x,f]   = SN[y,x,v,u] * VV[v,u,f]
AV[y,x,f]   = NV[y,x,f] / SD[y,x]
"""


@pytest.mark.parametrize(
    ("Y", "X", "WY", "WX", "SY", "SX"), [(5, 4, 3, 2, 1, 1), (6, 4, 3, 4, 2, 1), (7, 5, 4, 3, 3, 2), (4, 4, 4, 4, 4, 4)]
)
def test_a_two_dimensional_window_written_once(Y: int, X: int, WY: int, WX: int, SY: int, SX: int) -> None:
    rng = np.random.default_rng(Y)
    q, k, v = rng.normal(size=(Y, X, 3)), rng.normal(size=(Y, X, 3)), rng.normal(size=(Y, X, 2))

    def span(i: int, length: int, window: int, stride: int) -> range:
        leader = min(i // stride * stride + stride // 2, length - 1)
        first = min(max(leader - window // 2, 0), length - window)
        return range(first, first + window)

    keep = np.zeros((Y * X, Y * X), dtype=bool)
    for y, x in np.ndindex(Y, X):
        for a in span(y, Y, WY, SY):
            for b in span(x, X, WX, SX):
                keep[y * X + x, a * X + b] = True
    flat = [a.reshape(1, 1, Y * X, -1) for a in (q, k, v)]
    S = reference.scores(flat[0][:, :, None], flat[1])
    wanted = reference.softmax_attention(S, flat[2], keep).reshape(Y, X, 2)
    sizes = {"Y": Y, "X": X, "V": Y, "U": X, "E": 3, "F": 2, "WY": WY, "WX": WX, "SY": SY, "SX": SX}
    found = evaluate(check(GNA), sizes, {"Q": q, "K": k, "VV": v})["AV"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)


def test_a_mask_may_come_from_a_table() -> None:
    """A block list as an input: where TABLE[floordiv(m,2),floordiv(n,2)] is not 0."""
    text = (FOLDER / "stable.casc").read_text().replace("rank M, N,", "rank M, N, C, D,")
    text = text.replace("V[n,f]\nout", "V[n,f] TABLE[c,d]\nout", 1)
    sizes = {"M": 4, "N": 6, "C": 2, "D": 3, "E": 3, "F": 2}
    table = np.array([[1, 0, 1], [0, 1, 0]])
    host = parse(text)
    keep = np.repeat(np.repeat(table, 2, axis=0), 2, axis=1) == 1
    inputs = {"B": 1, "G": 1, "J": 1, **sizes}
    arrays = _inputs(inputs)
    condition = parse(
        "cascade p\nrank M, N, C, D\nin TABLE[c,d]\nout Z[m,n]\n"
        "Z[m,n] = m+n where TABLE[floordiv(m,2),floordiv(n,2)] != 0\n"
    ).einsums[0].predicate
    found = evaluate(compose(host, mask=condition, shared={"TABLE": ["b", "g"]}), inputs, arrays | {"TABLE": table})
    wanted = reference.softmax_attention(reference.scores(arrays["Q"], arrays["K"]), arrays["V"], keep)
    np.testing.assert_allclose(found["AV"], wanted, rtol=0, atol=1e-13)


# -- against a point-by-point evaluator ---------------------------------------------------------------------------

CLAUSES = ["n <= m", "m >= 1", "n < 2", "(m+n) % 2 == 0", "m == n || m > 1", "floordiv(m,2)*2 <= n", "n != 1"]


@st.composite
def _small_cascades(draw: st.DrawFn) -> str:
    """Two Einsums over m and n: any reductions, any predicates, absent and empty points handed on."""

    def where(allowed: list[str]) -> str:
        clauses = draw(st.lists(st.sampled_from(allowed), max_size=2)) if allowed else []
        return f" where {' && '.join(f'({c})' for c in clauses)}" if clauses else ""

    def reductions(variables: list[str]) -> str:
        named = draw(st.permutations(variables))[: draw(st.integers(0, len(variables)))]
        folds = [f"{draw(st.sampled_from(['max', 'min', '+', '*']))}({v})" for v in named]
        return f" :: {', '.join(folds)}" if folds else ""

    kept = draw(st.sampled_from([["m", "n"], ["n", "m"], ["m"], ["n"], []]))
    first = draw(st.sampled_from(["A[m,n] + X[n]", "A[m,n] * X[n]", "A[m,n] * X[n] * Y[m]", "max(A[m,n], m - n)",
                                  "select(n < m, A[m,n], X[n] * C[])", "A[m,n] * (A[m,n] - Y[m])"]))  # fmt: skip
    output = f"T[{','.join(kept)}]"
    second = draw(st.sampled_from([f"{output} + X[n] + Y[m]", f"max({output}, A[m,n])", f"A[m,n] - {output}"]))
    last = draw(st.sampled_from([["m", "n"], ["m"], ["n"], []]))
    gone = [[v for v in "mn" if v not in names] for names in (kept, last)]
    return (
        "cascade t\nrank M, N\nin A[m,n] X[n] Y[m] C[]\n"
        f"out Z[{','.join(last)}]\n"
        f"{output} = {first}{reductions(gone[0])}{where(CLAUSES)}\n"
        f"Z[{','.join(last)}] = {second}{reductions(gone[1])}{where(CLAUSES)}\n"
    )


@settings(max_examples=200, deadline=None)
@given(_small_cascades(), st.integers(1, 4), st.integers(1, 4))
def test_all_points_at_once_is_point_by_point(text: str, M: int, N: int) -> None:
    rng = np.random.default_rng(M * 10 + N)
    inputs = {"A": rng.normal(size=(M, N)), "X": rng.normal(size=N), "Y": rng.normal(size=M), "C": np.asarray(0.7)}
    sizes = {"M": M, "N": N}
    slow = run(parse(text), sizes, {k: dict(np.ndenumerate(a)) for k, a in inputs.items()})
    fast = evaluate(parse(text), sizes, inputs, intermediates=True)
    for name, array in fast.items():
        for place, value in np.ndenumerate(array):
            wanted = slow.values.get(name, {}).get(place, np.nan)
            assert value == pytest.approx(wanted, rel=1e-12, abs=1e-12, nan_ok=True), f"{name}{list(place)}\n{text}"
