"""Passes of the library's cascades, of other published ones, and the reasons given for them."""

from __future__ import annotations

from itertools import permutations

import pass_oracle as oracle
import pytest

from einsight.einsum.compose import compose
from einsight.einsum.format import format_cascade
from einsight.einsum.ir import Cascade
from einsight.einsum.library import fragment, load, names
from einsight.einsum.parse import parse
from einsight.einsum.passes import analyse, levels
from einsight.einsum.resolve import bind, required_sizes, resolve

# FuseMax, MICRO 2024, Table I and section IV, and the unrolled oracle: passes over N of each input, and what must be
# kept from one pass to the next (tensor: born in, read in).
EVIDENCE = {
    "naive": ({"K": 2, "V": 1}, {"SN": (1, (1, 2))}),
    "naive_deferred": ({"K": 1, "V": 1}, {}),
    "stable": ({"K": 3, "V": 1}, {"QK": (1, (1, 2)), "SN": (2, (2, 3))}),
    "stable_deferred": ({"K": 2, "V": 1}, {"QK": (1, (1, 2))}),
    "two_pass": ({"K": 2, "V": 1}, {"SLN": (1, (1, 2))}),
    "split_kv": ({"K": 1, "V": 1}, {}),
    "flash1": ({"K": 1, "V": 1}, {}),
    "one_pass": ({"K": 1, "V": 1}, {}),
    "sigmoid": ({"K": 1, "V": 1}, {}),
    "linear": ({"K": 1, "V": 1}, {}),
    "lightning": ({"K": 1, "V": 1}, {}),
    "gla": ({"K": 1, "V": 1}, {}),
    "backward": ({"K": 1, "V": 1}, {}),
    "backward_dense_bias": ({"K": 1, "V": 1, "BIAS": 1}, {}),
    "backward_low_rank": ({"K": 1, "V": 1, "PK": 1}, {}),
}


@pytest.mark.parametrize("name", EVIDENCE)
def test_passes_and_live_sets_of_the_library(name: str) -> None:
    passes, live = EVIDENCE[name]
    found = analyse(load(name))
    assert dict(found.passes) == passes
    assert {t.tensor: (t.born, t.read_in) for t in found.live} == live
    assert found.total == max(passes.values()) == found.loops
    assert not found.assumed


@pytest.mark.parametrize("name", names())
def test_every_library_cascade_agrees_with_the_oracle(name: str) -> None:
    cascade = load(name)
    sizes = {"M": 2, "N": 8, "N0": 4, "E": 2, "F": 2, "R": 2}  # chunks of 3: all keys next to the middle query
    bound = bind(cascade, {name: sizes[name] for name in required_sizes(cascade)})
    assert dict(analyse(cascade).passes) == oracle.passes(cascade, bound)
    assert dict(analyse(cascade).passes) == oracle.passes(resolve(cascade), bound)


@pytest.mark.parametrize(("name", "summaries", "tiles"), [("two_pass", 2, 2), ("split_kv", 2, 2), ("one_pass", 1, 2)])
def test_tiles_and_their_summaries_have_passes_of_their_own(name: str, summaries: int, tiles: int) -> None:
    whole, outer, inner = levels(load(name))
    assert (whole.rank, outer.rank, inner.rank) == ("N", "N1", "N0")
    assert outer.total == summaries
    assert inner.total == tiles
    assert [t.tensor for t in inner.live] == ["BQK"]  # a tile of scores must stay on chip


@pytest.mark.parametrize("name", ["one_pass", "split_kv", "flash1"])
def test_passes_over_a_tile_are_those_of_a_rank_with_one_tile(name: str) -> None:
    cascade = load(name)
    single = oracle.passes(cascade, bind(cascade, {"M": 2, "N": 4, "N0": 4, "E": 2, "F": 2}))
    assert dict(analyse(cascade, "N0").passes) == single == {"K": 2, "V": 1}


def test_the_summaries_that_outlive_a_pass() -> None:
    assert {t.tensor for t in analyse(load("two_pass"), "N1").live} == {"LM", "SLD"}
    assert {t.tensor for t in analyse(load("split_kv"), "N1").live} == {"LM", "SLD", "SLNV"}
    assert not analyse(load("one_pass"), "N1").live


def test_the_reason_names_the_einsum_and_its_barrier() -> None:
    found = analyse(load("stable"))
    assert [(s.number, s.einsum, s.barrier) for s in found.chains["K"]] == [
        (1, "QK", "first read"),
        (2, "SN", "full reduction"),
        (3, "A", "full reduction"),
    ]
    report = str(found)
    assert report.splitlines()[0] == "stable: 3 passes over N (K 3, V 1)"
    assert "SN[m,n] needs GM[m], complete only after max(n) over all of QK[m,n]" in report
    assert "A[m,n] needs SD[m], complete only after +(n) over all of SN[m,n]" in report
    assert "live: SN[m,n] is born in pass 2 and read in 2, 3" in report


def test_a_chain_has_one_step_a_pass_and_ends_in_its_number() -> None:
    for name in names():
        for analysis in levels(load(name)):
            for tensor, chain in analysis.chains.items():
                assert [s.number for s in chain] == list(range(1, analysis.passes[tensor] + 1))
                assert {s.einsum for s in chain} <= set(analysis.touches[tensor])


def test_stages_say_what_can_share_a_loop() -> None:
    found = analyse(load("stable"))
    assert found.stage == {"QK": 1, "GM": 1, "SN": 2, "SD": 2, "A": 3, "AV": 3}
    split = analyse(load("split_kv"))
    assert {e for e, s in split.stage.items() if s == 0} == {"GM", "PRM", "SD", "SNV", "AV"}  # the merge
    assert all(split.after[e] == 1 for e in ("PRM", "SD", "SNV", "AV"))
    running = analyse(load("one_pass"))
    assert running.stage["RM"] == 0 and running.after["RM"] == 0  # once a tile, inside the only loop
    assert running.after["AV"] == 1


@pytest.mark.parametrize(
    ("name", "old", "new", "before", "after"),
    [
        ("stable", "exp(QK[m,n] - GM[m])", "exp(QK[m,n])", 3, 2),  # no maximum: the naive cascade
        ("stable", "AV[m,f] = A[m,n] * V[n,f]", "AV[m,f] = SN[m,n] * V[n,f]", 3, 3),  # A is still there, unread
        ("stable", "SD[m] = SN[m,n]", "SD[m] = GM[m]", 3, 2),  # no sum over the keys to wait for
        ("stable_deferred", "exp(QK[m,n] - GM[m])", "exp(QK[m,n])", 2, 1),
        ("one_pass", "exp(BQK[n1,n0,m] - RM[n1+1,m])", "exp(BQK[n1,n0,m] - RM[n1,m])", 1, 1),
        ("two_pass", "exp(BQK[n1,n0,m] - LM[n1,m])", "exp(BQK[n1,n0,m] - GM[m])", 2, 3),
    ],
)
def test_one_changed_line_changes_the_passes(name: str, old: str, new: str, before: int, after: int) -> None:
    text = format_cascade(load(name))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert sum(old in line for line in lines) == 1
    changed = "\n".join(line.replace(old, new) for line in lines)
    if name == "two_pass":  # GM has to be defined before its new reader
        rows = changed.splitlines()
        (maximum,) = [r for r in rows if r.startswith("GM[")]
        rows.remove(maximum)
        rows.insert(next(i for i, r in enumerate(rows) if r.startswith("SLN[")), maximum)
        changed = "\n".join(rows)
    assert analyse(load(name)).total == before
    assert analyse(parse(changed)).total == after


def test_dropping_the_line_that_normalises_the_weights_saves_a_pass() -> None:
    rows = format_cascade(load("stable")).splitlines()
    (division,) = [r for r in rows if r.startswith("A[m,n]")]
    rows.remove(division)
    changed = parse("\n".join(rows).replace("A[m,n] * V[n,f]", "SN[m,n] * V[n,f]"))
    assert analyse(changed).passes == {"K": 2, "V": 1}


FRAGMENTS = ("softcap", "low_rank", "dense_bias", "alibi", "sink")


@pytest.mark.parametrize("name", ["stable", "stable_deferred", "two_pass", "split_kv", "one_pass"])
@pytest.mark.parametrize("added", FRAGMENTS)
def test_fragments_and_outer_ranks_leave_the_passes_of_the_host(name: str, added: str) -> None:
    host = load(name)
    composed = compose(host, (fragment(added),), outer=True)
    found, expected = analyse(composed), EVIDENCE[name][0]
    assert {t: found.passes[t] for t in expected} == expected
    assert found.total == max(expected.values())
    inner = compose(host, (fragment(added),), outer=False)
    assert found.passes == analyse(inner).passes
    assert found.stage == analyse(inner).stage
    bare = analyse(host).stage
    assert {e: s for e, s in found.stage.items() if e in bare} == bare


@pytest.mark.parametrize("name", ["stable", "two_pass", "split_kv"])
def test_a_low_rank_bias_is_read_as_often_as_the_keys(name: str) -> None:
    found = analyse(compose(load(name), (fragment("low_rank"),)))
    assert found.passes["PK"] == found.passes["K"]


def test_fragments_commute_with_the_pass_count() -> None:
    added = [fragment(f) for f in ("softcap", "low_rank", "dense_bias")]
    totals = {analyse(compose(load("stable"), order)).total for order in permutations(added)}
    assert totals == {3}


def cascade(body: str, header: str = "rank M, N, E\nin X[n]\nin Y[n]\nin Q[m]\nout Z[m]") -> Cascade:
    return parse(f"cascade example\n{header}\n\n{body}\n")


@pytest.mark.parametrize(
    ("body", "passes"),
    [
        # FuseMax, Cascades 1 and 2: a running total against its deferral
        ("S[] = X[n]\nZ[m] = S[] * X[n] * Y[n] * Q[m]", {"X": 2, "Y": 1}),
        ("S[] = X[n]\nP[] = X[n] * Y[n]\nZ[m] = S[] * P[] * Q[m]", {"X": 1, "Y": 1}),
        # two reductions in a row, but each tensor is walked once
        ("S[] = X[n]\nP[n] = S[] * Y[n]\nZ[m] = P[n] * Q[m]", {"X": 1, "Y": 1}),
        # slack: the second reduction can wait for the first, and then X comes again
        ("S[] = X[n]\nT[] = S[] * Y[n]\nZ[m] = T[] * X[n] * Q[m]", {"X": 2, "Y": 1}),
        # layer normalisation, with the variance from the deviations and from the squares
        ("A[] = X[n]\nD[n] = X[n] - A[]\nB[] = D[n] * D[n]\nC[n] = D[n] * B[]\nZ[m] = C[n] * Q[m]", {"X": 3}),
        ("A[] = X[n]\nB[] = X[n] * X[n]\nC[n] = (X[n] - A[]) * B[]\nZ[m] = C[n] * Q[m]", {"X": 2}),
    ],
)
def test_small_cascades(body: str, passes: dict[str, int]) -> None:
    found = analyse(cascade(body))
    assert dict(found.passes) == passes
    assert oracle.passes(cascade(body), {"M": 2, "N": 5, "E": 2}) == passes


@pytest.mark.parametrize(
    ("body", "passes"),
    [
        # one key of each tile is no traversal, although every tile gives one
        ("T[n1,n0] = X[n1*N0+n0] * 2\nL[n1] = T[n1,0] * 2\nS[] = L[n1]\nZ[m] = X[n1*N0+n0] * S[] * Q[m]", {"X": 1}),
        ("T[n1,n0] = X[n1*N0+n0] * 2\nL[n1] = T[n1,n0]\nS[] = L[n1]\nZ[m] = X[n1*N0+n0] * S[] * Q[m]", {"X": 2}),
        # the whole rank and its chunks are the same coordinate
        ("T[n] = X[n] * 2\nL[n1] = T[n1*N0+n0] :: max(n0)\nZ[m] = T[n1*N0+n0] * L[n1] * Q[m]", {"X": 1}),
        ("T[n] = X[n] * 2\nL[] = T[n1*N0+n0] :: max(n1,n0)\nZ[m] = T[n] * L[] * Q[m]", {"X": 2}),
    ],
)
def test_small_tiled_cascades(body: str, passes: dict[str, int]) -> None:
    tiled = cascade(body, "rank M, N = N1 * N0\nin X[n]\nin Q[m]\nout Z[m]")
    found = analyse(tiled)
    assert dict(found.passes) == passes
    assert not found.assumed
    assert oracle.passes(tiled, {"M": 2, "N": 6, "N1": 3, "N0": 2}) == passes


def test_the_gradient_needs_one_pass_less_when_its_row_sum_is_taken_over_the_output() -> None:
    header = "rank M, N, E, F\nin Q[m,e] K[n,e] V[n,f] L[m] O[m,f] DO[m,f]\nout DQ[m,e]"
    scores = "S[m,n] = Q[m,e] * K[n,e]\nP[m,n] = exp(S[m,n] - L[m])\nDP[m,n] = DO[m,f] * V[n,f]\n"
    finish = "\nDS[m,n] = P[m,n] * (DP[m,n] - D[m])\nDQ[m,e] = DS[m,n] * K[n,e]"
    over_keys = cascade(scores + "D[m] = P[m,n] * DP[m,n]" + finish, header)
    over_output = cascade(scores + "D[m] = DO[m,f] * O[m,f]" + finish, header)
    assert analyse(over_keys).passes == {"K": 2, "V": 2}  # FlashAttention, section B.4: the second form
    assert analyse(over_output).passes == {"K": 1, "V": 1}


def test_what_cannot_be_proved_is_a_barrier_and_says_so() -> None:
    found = analyse(cascade("T[n] = X[n] * 2\nU[n] = T[N-1-n] + X[n]\nZ[m] = U[n] * Q[m]"))
    assert found.passes["X"] == 2
    assert found.assumed == ("T is written at n and read at N-1-n by U: not a constant shift, taken as a barrier",)
    assert found.chains["X"][1].barrier == "assumed"
    assert "assumed: T is written at n" in str(found)


def test_a_loop_over_another_rank_counts_a_step() -> None:
    body = """init R[0,n] = 0
iterate m < M {
  S[m]     = R[m,n] * X[n]
  U[m,n]   = S[m] * X[n]
  R[m+1,n] = U[m,n] + R[m,n]
}
Z[m] = S[m] * Q[m]"""
    found = analyse(cascade(body))
    assert found.passes["X"] == 2
    assert found.assumed == ("passes are counted per step of the loop over m",)


def test_an_unknown_rank_lists_the_ranks_there_are() -> None:
    with pytest.raises(ValueError, match="no rank W; its ranks are M, N, E, F, N1, N0"):
        analyse(load("one_pass"), "W")


def test_the_query_rank_needs_one_pass_everywhere() -> None:
    for cascade in map(load, names()):
        if cascade.rank("M"):
            assert analyse(cascade, "M").total == 1
