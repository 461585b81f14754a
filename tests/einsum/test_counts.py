"""Counts: closed forms as expressions in the sizes, and against an evaluator that counts what it applies."""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np
import pytest
from scalar_evaluator import run

from einsight.einsum.compose import compose
from einsight.einsum.counts import Counts, count, matmul_flops, weighted
from einsight.einsum.expression import Apply, Expression, Number, Symbol
from einsight.einsum.format import format_cascade
from einsight.einsum.formula import Formula, single
from einsight.einsum.ir import Cascade
from einsight.einsum.library import fragment, fragments, load, names
from einsight.einsum.parse import parse
from einsight.einsum.resolve import bind, required_sizes

B, G, J, M, N, N1, E, F = (single(s) for s in ("B", "G", "J", "M", "N", "N1", "E", "F"))
SIZES = {"m": 6, "n": 16, "e": 5, "f": 7, "r": 3, "n0": 4}


def op(name: str, *args: Expression) -> Apply:
    return Apply(name, args)


m, n, big_m, big_n = (Symbol(s) for s in "mnMN")
CAUSAL = op("<=", n, op("-", op("+", m, big_n), big_m))
WINDOW = op("&&", CAUSAL, op(">", n, op("-", op("-", op("+", m, big_n), big_m), Number(3))))
SINK = op("&&", CAUSAL, op("||", op("<", n, Number(2)), WINDOW.args[1]))
PREFIX = op("||", op("<", n, Number(4)), CAUSAL)
BEFORE = op("<", n, m)  # the first query has no key at all
DILATED = op("&&", CAUSAL, op("==", op("%", n, Number(3)), op("%", m, Number(3))))
MASKS = {"dense": None, "causal": CAUSAL, "window": WINDOW, "sink": SINK, "prefix": PREFIX, "before": BEFORE,
         "dilated": DILATED}  # fmt: skip


def bound(cascade: Cascade, sizes: dict[str, int]) -> dict[str, int]:
    wanted = set(required_sizes(cascade))
    return bind(cascade, {k: v for k, v in sizes.items() if k.upper() in wanted})


def by_entry(counts: Counts, sizes: dict[str, int]) -> dict[tuple[str, str], int]:
    found = {(e.einsum, e.klass): 0 for e in counts}
    for e in counts:
        found[e.einsum, e.klass] += e.formula.evaluate(sizes)
    return {k: v for k, v in found.items() if v}


def applied(cascade: Cascade, sizes: dict[str, int]) -> dict[tuple[str, str], int]:
    rng = random.Random(1)
    inputs = {
        t.name: {p: rng.uniform(-1, 1) for p in product(*(range(sizes[r]) for r in t.ranks))} for t in cascade.inputs
    }
    return dict(run(cascade, sizes, inputs).applied)


# --- closed forms


def test_one_pass() -> None:
    counts = count(load("one_pass"))
    expected = {
        "macc": M * N * (E + F), "exp": M * N + M * N1, "sub": M * N + M * N1, "max": M * (N - N1) + M * N1,
        "add": M * (N - N1) + M * N1 + M * N1 * F, "mul": M * N1 * (1 + F), "div": M * F,
    }  # fmt: skip
    assert {k: part.total() for k, part in counts.group_by("klass").items()} == expected
    assert str(counts.filter("BQK", "macc").total()) == "M*N*E"
    assert str(counts.filter(klass="macc").total()) == "M*N*(E + F)"


TABLE = {
    "naive": {"macc": 1152, "exp": 96, "add": 90, "div": 96},
    "naive_deferred": {"macc": 1152, "exp": 96, "add": 90, "div": 42},
    "stable": {"macc": 1152, "max": 90, "sub": 96, "exp": 96, "add": 90, "div": 96},
    "stable_deferred": {"macc": 1152, "max": 90, "sub": 96, "exp": 96, "add": 90, "div": 42},
    "two_pass": {"macc": 1176, "mul": 96, "max": 90, "sub": 120, "exp": 120, "add": 72, "div": 96},
    "split_kv": {"macc": 1344, "max": 90, "sub": 120, "exp": 120, "add": 72, "div": 42},
    "one_pass": {"macc": 1152, "mul": 192, "max": 96, "sub": 120, "exp": 120, "add": 264, "div": 42},
}


@pytest.mark.parametrize("name", TABLE)
def test_operations_of_the_library(name: str) -> None:
    cascade = load(name)
    assert count(cascade).evaluate(bound(cascade, SIZES)) == TABLE[name]


@pytest.mark.parametrize("name", [x for x in names() if load(x).mark("score")])
def test_causal_points_are_exact(name: str) -> None:
    cascade = compose(load(name), mask=op("<=", n, m), outer=False)
    sizes = bound(cascade, {**SIZES, "m": 16})
    score = load(name).mark("score")
    assert score is not None
    assert count(cascade).filter(score.tensor, "macc").total().evaluate(sizes) == 16 * 17 // 2 * 5


def test_all_sizes_of_a_chunk_give_the_same_products() -> None:
    cascade = compose(load("one_pass"), mask=CAUSAL)
    counts = count(cascade).filter(klass="macc")
    whole = count(compose(load("stable"), mask=CAUSAL)).filter(klass="macc")
    assert counts.total() == whole.total()


def test_outer_ranks_multiply() -> None:
    dense = count(compose(load("stable"))).filter(klass="macc").total()
    assert dense == B * G * J * M * N * (E + F)
    shared = compose(load("stable"), [fragment("alibi")])
    positions = count(shared).filter("SB", "sub").total()  # n - (m+N-M): no head and no batch has its own
    assert positions == M * N + M


# --- against the evaluator that counts

SMALL = {"m": 4, "n": 7, "e": 2, "f": 3, "n0": 3, "b": 1, "g": 2, "j": 2, "r": 2, "x": 2, "u": 12, "w": 2}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", names())
def test_counts_are_what_is_applied(name: str, mask: str) -> None:
    base = load(name)
    if MASKS[mask] is not None and base.mark("score") is None:
        pytest.skip("no score to mask")
    cascade = compose(base, mask=MASKS[mask], outer=False)
    for sizes in (SMALL, {**SMALL, "m": 6, "n": 6, "n0": 2}, {**SMALL, "m": 1, "n": 8, "n0": 8}):
        full = bound(cascade, sizes)
        assert by_entry(count(cascade), full) == applied(cascade, full)


@pytest.mark.parametrize("part", fragments())
@pytest.mark.parametrize("name", ["one_pass", "stable"])
def test_counts_of_composed_cascades(name: str, part: str) -> None:
    cascade = compose(load(name), [fragment(part)], CAUSAL)
    full = bound(cascade, {**SMALL, "m": 3, "n": 5})
    assert by_entry(count(cascade), full) == applied(cascade, full)


ODD = """
cascade odd
rank M = M1 * M0, N = N1 * N0, E
in Q[m,e] K[n,e] W[m,n]
in VW[m,n1,n0]
out Z[m1,m0] Y[m] X[e] T[m,n] U[m,n1,n0] P[m]
let LOW = max(m - 2, 0)
BQ[m1,m0,e] = Q[m1*M0+m0,e] where m1*M0+m0 < M
S[m1,m0,n] = BQ[m1,m0,e] * K[n,e] where n <= m1*M0+m0
G[m1,m0] = S[m1,m0,n] :: max(n)
Z[m1,m0] = exp(G[m1,m0]) + sigmoid(m1*M0+m0) * -G[m1,m0]
T[m,n] = W[m,n] * exp(Q[m,0]) * 2 where n >= LOW && n <= m
Y[m] = T[m,n] :: max(n)
U[m,n1,n0] = exp(VW[m,n1,n0]) where n1*N0+n0 <= m
P[m] = Q[m,e] * K[n,e] :: max(n)
X[e] = W[m,n] * (K[n,e] - 1) :: max(n), min(m) where m != n
"""


def test_chunks_of_queries_lets_and_two_reductions() -> None:
    cascade = parse(ODD)
    for sizes in ({"m": 5, "n": 3, "e": 3, "m0": 2, "n0": 2}, {"m": 4, "n": 6, "e": 1, "m0": 4, "n0": 3}):
        full = bind(cascade, sizes)
        assert by_entry(count(cascade), full) == applied(cascade, full)


def test_the_counting_evaluator_computes_attention() -> None:
    cascade = compose(load("one_pass"), mask=CAUSAL, outer=False)
    full = bound(cascade, {"m": 4, "n": 6, "e": 3, "f": 2, "n0": 4})
    rng = np.random.default_rng(0)
    arrays = {t.name: rng.normal(size=[full[r] for r in t.ranks]) for t in cascade.inputs}
    state = run(cascade, full, {k: dict(np.ndenumerate(a)) for k, a in arrays.items()})
    score = arrays["Q"] @ arrays["K"].T
    score[np.arange(6)[None, :] > np.arange(4)[:, None] + 2] = -np.inf
    weights = np.exp(score - score.max(axis=1, keepdims=True))
    expected = weights / weights.sum(axis=1, keepdims=True) @ arrays["V"]
    for place, value in np.ndenumerate(expected):
        assert math.isclose(state.values["AV"][place], value, rel_tol=1e-12)


# --- the cascade text is the only source


def changed(name: str, old: str, new: str) -> Counts:
    text = format_cascade(load(name))
    assert old in text
    return count(parse(text.replace(old, new)))


def test_another_operator_moves_to_another_class() -> None:
    before, after = count(load("stable")), changed("stable", "exp(", "sigmoid(")
    assert before.filter("SN", "exp").total() == after.filter("SN", "sigmoid").total() == M * N
    assert not after.filter(klass="exp").entries


def test_deleting_a_line_changes_the_counts() -> None:
    text = "\n".join(x for x in format_cascade(load("stable")).splitlines() if not x.startswith("A[m,n]"))
    after = count(parse(text.replace("= A[m,n] * V", "= SN[m,n] * V")))
    assert "div" not in after.group_by("klass")
    assert not after.filter(einsum="A").entries


def test_a_predicate_restricts_and_its_evaluation_is_free() -> None:
    after = changed("stable", "QK[m,n] = Q[m,e] * K[n,e]", "QK[m,n] = Q[m,e] * K[n,e] where n < M")
    assert not after.filter(klass="cmp").entries
    assert after.filter("SN", "exp").total().evaluate({"M": 4, "N": 10}) == 4 * 4


# --- formulas


def test_arrays_of_sizes_in_one_go() -> None:
    rng = np.random.default_rng(0)
    cases = 100_000
    sizes = {s: rng.integers(1, 9000, cases) for s in ("B", "G", "J", "M", "N", "N1")} | {"E": 128, "F": 64}
    flops = count(compose(load("one_pass"))).filter(klass="macc").total()
    small = {k: v % 100 + 1 for k, v in sizes.items()}
    found = flops.evaluate(small)
    assert found.dtype == np.int64
    one = {k: int(v[17]) if isinstance(v, np.ndarray) else v for k, v in small.items()}
    assert found[17] == flops.evaluate(one)
    huge = flops.evaluate({**sizes, "M": sizes["M"] * 1000, "B": sizes["B"] * 1000})
    assert huge.dtype == np.float64  # int64 would wrap around
    exact = flops.evaluate({k: int(np.max(v)) * 10**6 for k, v in sizes.items()})
    assert isinstance(exact, int) and exact > 2**100


def test_masked_formulas_take_arrays_too() -> None:
    points = count(compose(load("stable"), mask=CAUSAL, outer=False)).filter("SN", "exp").total()
    lengths = np.array([[1, 5], [64, 5]])
    assert points.evaluate({"M": lengths, "N": 64}).tolist() == [
        [sum(64 - k + i + 1 for i in range(k)) for k in row] for row in lengths.tolist()
    ]


def test_formula_algebra_and_text() -> None:
    assert (M + N) * (M - N) == M * M - N * N
    assert str((M + N) * (M - N)) == "M^2 - N^2"
    assert str(2 * M * N + 4 * N) == "2*N*(M + 2)"
    assert str(M - M) == "0" and str(Formula()) == "0" and M - M == 0
    assert hash(M * N) == hash(N * M)
    with pytest.raises(KeyError, match="size N is missing; known sizes: M"):
        (M * N).evaluate({"M": 3})


def test_the_table_names_einsums_classes_and_point_sets() -> None:
    counts = count(compose(load("one_pass"), mask=CAUSAL, outer=False))
    text = str(counts)
    header, first = text.splitlines()[:2]
    assert header.split() == ["macc", "max", "exp", "sub", "add", "mul", "div"]
    assert first.split() == ["BQK", "#1*E"]
    assert "#1 = number of points (m,n: n <= m+N-M)" in text
    sizes = bound(load("one_pass"), {**SIZES, "m": 16})
    assert counts.table(sizes).splitlines()[1].split() == ["BQK", "680"]


# --- read-outs


@pytest.mark.parametrize("name", ["stable", "one_pass", "split_kv", "naive_deferred"])
def test_matmul_flops_follow_flash_attention(name: str) -> None:
    heads, d, length = 3, 64, 128
    sizes = {"b": 2, "g": heads, "j": 1, "m": length, "n": length, "e": d, "f": d, "n0": 32}
    dense = compose(load(name))
    causal = compose(load(name), mask=CAUSAL)
    full = bound(dense, sizes)
    assert matmul_flops(count(dense)).evaluate(full) == 4 * 2 * heads * length * length * d
    assert matmul_flops(count(causal), "half").evaluate(full) == 4 * 2 * heads * length * length * d // 2
    assert matmul_flops(count(causal)).evaluate(full) == 4 * 2 * heads * d * length * (length + 1) // 2
    decode = {**full, "M": 1}
    assert matmul_flops(count(causal), "half").evaluate(decode) == 2 * 2 * heads * (2 * d) * (length - 0.5)


def test_windows_are_exact_in_both_conventions() -> None:
    counts = count(compose(load("stable"), mask=WINDOW))
    assert matmul_flops(counts) == matmul_flops(counts, "half")
    with pytest.raises(ValueError, match="'dense'"):
        matmul_flops(counts, "dense")


def test_only_matrix_products_are_matmuls() -> None:
    split = count(load("split_kv"))
    assert {c.einsum for c in split if c.klass == "macc"} == {"BQK", "SLNV", "SD", "SNV"}
    assert {c.einsum for c in split if c.matmul} == {"BQK", "SLNV"}
    biased = count(compose(load("stable"), [fragment("low_rank")]))
    assert len({c.einsum for c in biased if c.matmul}) == 3


def test_weights_of_a_target() -> None:
    cascade = load("stable")
    full = bound(cascade, SIZES)
    weights = {"macc": 1, "max": 1, "sub": 1, "exp": 6, "add": 1, "div": 1}
    assert weighted(count(cascade), weights, full) == 1152 + 90 + 96 + 6 * 96 + 90 + 96
    with pytest.raises(ValueError, match="stable: no weight for exp; the target gives add, div, macc"):
        weighted(count(cascade), {k: v for k, v in weights.items() if k != "exp"}, full)


def test_grouping_by_anything_else_is_refused() -> None:
    with pytest.raises(ValueError, match="'colour'"):
        count(load("stable")).group_by("colour")


def test_conditions_on_sizes_and_on_values() -> None:
    text = "cascade t\nrank M, N, E, L\nin Q[m,e] K[n,e] W[m,n]\nout S[m,n]\nS[m,n] = Q[m,e] * K[n,e] * rsqrt(E) where "
    counts = count(parse(text + "n <= m && L > 3\n"))
    assert "#2 = 1 if L > 3, else 0" in str(counts)
    assert counts.evaluate({"M": 2, "N": 3, "E": 4, "L": 4}) == {"macc": 12, "mul": 12, "rsqrt": 1}
    assert counts.evaluate({"M": 2, "N": 3, "E": 4, "L": 3})["macc"] == 0
    with pytest.raises(ValueError, match="the predicate uses the values of W; expected coordinates and sizes only"):
        count(parse(text + "W[m,n] > 0\n")).evaluate({"M": 2, "N": 3, "E": 4})
