"""Fragments, masks and outer ranks put together, and what cannot be."""

from __future__ import annotations

import re

import numpy as np
import pytest
from attention_cases import FRAGMENTS, MASKS, predicate

from einsight.einsum.compose import IllegalComposition, compose, position_names
from einsight.einsum.evaluate import evaluate
from einsight.einsum.format import format_cascade, format_einsum, format_expression
from einsight.einsum.ir import Cascade
from einsight.einsum.library import fragment, listing, load
from einsight.einsum.parse import check, parse
from einsight.einsum.resolve import bind, resolve
from einsight.einsum.validate import validate


def _lines(cascade: Cascade) -> dict[str, str]:
    return {e.name: format_einsum(e) for e in cascade.einsums}


CAUSAL = MASKS["causal"].expression


# -- splicing -----------------------------------------------------------------------------------------------------


def test_a_bias_takes_the_place_of_the_score() -> None:
    found = _lines(compose(load("stable"), [fragment("dense_bias")], outer=False))
    assert list(found) == ["QK", "SB", "GM", "SN", "SD", "A", "AV"]
    assert found["SB"] == "SB[m,n] = QK[m,n] + BIAS[m,n]"
    assert found["GM"] == "GM[m] = SB[m,n] :: max(n)"
    assert found["SN"] == "SN[m,n] = exp(SB[m,n] - GM[m])"


def test_in_a_tiled_host_tensors_take_its_indices_and_inputs_its_positions() -> None:
    cascade = compose(load("one_pass"), [fragment("low_rank"), fragment("alibi")], outer=False)
    found = _lines(cascade)
    assert found["B"] == "B[n1,n0,m] = PQ[m,r] * PK[n1*N0+n0,r] where n1*N0+n0 < N"
    assert found["SB"] == "SB[n1,n0,m] = BQK[n1,n0,m] + B[n1,n0,m]"
    assert found["ALIBI_SB"] == "ALIBI_SB[n1,n0,m] = SB[n1,n0,m] + SLOPE[] * (n1*N0+n0-(m+N-M))"
    assert found["LM"] == "LM[n1,m] = ALIBI_SB[n1,n0,m] :: max(n0)"
    assert format_expression(cascade.marks[0].access) == "ALIBI_SB[n1,n0,m]"
    body = next(block for _, block in cascade.placed() if block)
    assert [e.name for e in body.body][:5] == ["BQK", "B", "SB", "ALIBI_SB", "LM"]


def test_a_sink_on_a_running_denominator_comes_after_the_loop() -> None:
    cascade = compose(load("one_pass"), [fragment("sink")], outer=False)
    after = [(e.name, format_einsum(e)) for e, block in cascade.placed() if block is None][-2:]
    assert after == [
        ("DS", "DS[m] = RD[N1,m] + exp(SINK[] - RM[N1,m])"),
        ("AV", "AV[m,f] = RNV[N1,m,f] / DS[m]"),
    ]
    assert _lines(cascade)["SPD"] == "SPD[n1,m] = RD[n1,m] * PRM[n1,m]"  # inside the loop nothing changes
    assert [format_expression(m.access) for m in cascade.marks] == ["BQK[n1,n0,m]", "DS[m]", "RM[N1,m]"]


def test_names_that_collide_get_the_fragments_name() -> None:
    twice = compose(load("stable"), [fragment("low_rank"), fragment("low_rank")], outer=False)
    assert [t.name for t in twice.inputs][3:] == ["PQ", "PK", "LOW_RANK_PQ", "LOW_RANK_PK"]
    assert [r.name for r in twice.ranks][-2:] == ["R", "LOW_RANK_R"]
    assert _lines(twice)["LOW_RANK_B"] == "LOW_RANK_B[m,n] = LOW_RANK_PQ[m,low_rank_r] * LOW_RANK_PK[n,low_rank_r]"
    thrice = compose(load("stable"), [fragment("low_rank")] * 3, outer=False)
    assert thrice.inputs[-1].name == "LOW_RANK_LOW_RANK_PK"
    assert validate(thrice) == ()


def test_fragments_act_in_the_order_given() -> None:
    sizes = {"m": 2, "n": 3, "e": 2, "f": 1}
    rng = np.random.default_rng(0)
    inputs = {"Q": rng.normal(size=(2, 2)), "K": rng.normal(size=(3, 2)), "V": rng.normal(size=(3, 1)),
              "CAP": 0.5, "SLOPE": 2.0}  # fmt: skip
    cap, bias = fragment("softcap"), fragment("alibi")
    first = evaluate(compose(load("stable"), [cap, bias], outer=False), sizes, inputs)["AV"]
    second = evaluate(compose(load("stable"), [bias, cap], outer=False), sizes, inputs)["AV"]
    assert not np.allclose(first, second)


def test_a_fragment_with_lets_and_a_predicate_of_its_own() -> None:
    part = parse(
        "fragment near\nrank M, N\nin WEIGHT[]\nextends score S[m,n]\nlet FAR = abs(n-m)\n"
        "P[m,n] = WEIGHT[] * FAR where FAR < 3\nSB[m,n] = S[m,n] + P[m,n]\nscore SB[m,n]\n"
    )
    found = _lines(resolve(compose(load("one_pass"), [part], outer=False)))
    assert found["P"] == (
        "P[n1,n0,m] = WEIGHT[] * abs(n1*N0+n0-m) where abs(n1*N0+n0-m) < 3 && n1*N0+n0 < N"
    )
    assert found["SN" if "SN" in found else "SLN"].endswith("where n1*N0+n0 < N && abs(n1*N0+n0-m) < 3")


# -- masks --------------------------------------------------------------------------------------------------------


def test_a_mask_is_written_once_and_inherited() -> None:
    cascade = compose(load("stable"), [fragment("softcap")], CAUSAL, outer=False)
    assert [e.name for e in cascade.einsums if e.predicate] == ["QK"]
    assert [e.name for e in resolve(cascade).einsums if e.predicate] == ["QK", "SB", "GM", "SN", "SD", "A", "AV"]


def test_a_mask_uses_positions_of_a_tiled_score() -> None:
    found = _lines(compose(load("one_pass"), [fragment("low_rank")], CAUSAL, outer=False))
    assert found["BQK"] == "BQK[n1,n0,m] = Q[m,e] * BK[n1,n0,e] where n1*N0+n0 <= m+N-M"
    assert found["B"].endswith("where n1*N0+n0 <= m+N-M && n1*N0+n0 < N")  # no bias where no score


def test_the_positions_a_mask_may_use() -> None:
    assert position_names(load("one_pass")) == ("m", "n")
    assert position_names(load("linear")) == ()


# -- outer ranks --------------------------------------------------------------------------------------------------


def test_outer_ranks_follow_the_rule_of_the_library() -> None:
    cascade = compose(load("one_pass"), [fragment("low_rank"), fragment("softcap"), fragment("sink")])
    ranks = {t.name: "".join(t.ranks) for t in (*cascade.inputs, *cascade.outputs)}
    assert ranks == {
        "Q": "BGJME", "K": "BGNE", "V": "BGNF", "PQ": "GJMR", "PK": "GJNR", "CAP": "", "SINK": "GJ", "AV": "BGJMF",
    }  # fmt: skip
    leading = {e.name: format_expression(e.output).split("[")[1].split(",n")[0] for e in cascade.einsums}
    assert leading["BK"] == "b,g"  # shared by the query heads of a group
    assert leading["B"] == "g,j"  # the same for the whole batch
    assert leading["SB"] == "b,g,j"
    assert [r.name for r in cascade.ranks][:3] == ["B", "G", "J"]
    assert all(t.outer is None for t in cascade.inputs)
    assert bind(cascade, {"b": 1, "g": 2, "j": 3, "m": 4, "n": 8, "n0": 4, "e": 2, "f": 2, "r": 1})["J"] == 3


def test_a_running_tensor_carries_what_its_later_lines_read() -> None:
    text = format_cascade(compose(load("one_pass")))
    assert re.search(r"init RD\[b,g,j,0,m\] +=", text)
    assert "RNV[b,g,j,N1,m,f] / RD[b,g,j,N1,m]" in text


def test_a_tensor_may_be_shared_further() -> None:
    cascade = compose(load("stable"), [fragment("dense_bias")], shared={"BIAS": ["g", "J"], "V": ("b",)})
    found = {t.name: "".join(t.ranks) for t in cascade.inputs}
    assert found["BIAS"] == "MN"
    assert found["V"] == "GNF"
    assert _lines(cascade)["SB"] == "SB[b,g,j,m,n] = QK[b,g,j,m,n] + BIAS[m,n]"


def test_an_output_over_fewer_ranks_sums_over_the_others() -> None:
    """The gradient of K in grouped attention is summed over the query heads of the group."""
    text = "cascade dk\nrank M, N, E\nin DS[m,n]\nin Q[m,e]\nout DK[n,e] over b, g\nDK[n,e] = DS[m,n] * Q[m,e]\n"
    cascade = compose(parse(text))
    assert _lines(cascade) == {"DK": "DK[b,g,n,e] = DS[b,g,j,m,n] * Q[b,g,j,m,e]"}
    rng = np.random.default_rng(1)
    ds, q = rng.normal(size=(2, 1, 3, 4, 5)), rng.normal(size=(2, 1, 3, 4, 2))
    found = evaluate(cascade, {"b": 2, "g": 1, "j": 3, "m": 4, "n": 5, "e": 2}, {"DS": ds, "Q": q})["DK"]
    np.testing.assert_allclose(found, np.einsum("bgjmn,bgjme->bgne", ds, q), atol=1e-14)


# -- what comes out is a plain cascade ----------------------------------------------------------------------------


@pytest.mark.parametrize("base", [c.name for c in listing()])
def test_every_composition_validates_and_reads_back(base: str) -> None:
    tried = 0
    for case in FRAGMENTS.values():
        for mask, outer in (("dense", True), ("causal", False), ("gna", True)):
            try:
                cascade = compose(load(base), [fragment(n) for n in case.fragments], MASKS[mask].expression, outer)
            except IllegalComposition:
                continue
            tried += 1
            assert check(format_cascade(cascade)) == cascade
    assert tried


def test_composing_nothing_changes_nothing() -> None:
    for cascade in listing():
        assert compose(cascade, outer=False) == cascade


# -- what cannot be -----------------------------------------------------------------------------------------------

LEGAL = {
    ("softmax_attention", "score"), ("sigmoid_attention", "score"), ("softmax_attention", "sink"),
}  # fmt: skip


@pytest.mark.parametrize("base", [c.name for c in listing()])
def test_the_table_of_what_is_legal(base: str) -> None:
    host = load(base)
    for name, case in FRAGMENTS.items():
        wants_score = any(n != "sink" for n in case.fragments)
        legal = True
        if wants_score:
            legal &= (host.computes, "score") in LEGAL or host.mark("slope") is not None
            legal &= host.mark("slope") is None or not {"softcap", "low_rank_scale"} & set(case.fragments)
        if case.sink:
            legal &= host.computes == "softmax_attention" and host.stable and base != "flash1"
        try:
            compose(host, [fragment(n) for n in case.fragments])
        except IllegalComposition:
            assert not legal, f"{base} with {name}"
        else:
            assert legal, f"{base} with {name}"


@pytest.mark.parametrize(
    ("base", "part", "reason"),
    [
        ("linear", "softcap", r"linear marks no score \(one value per query and key"),
        ("linear", "low_rank", r"linear marks no score .* fragment low_rank extends it"),
        ("sigmoid", "sink", r"sigmoid marks no denominator .* fragment sink extends it"),
        ("naive", "sink", r"naive marks no maximum .* fragment sink reads it"),
        ("flash1", "sink", r"flash1 marks no denominator"),
        ("backward", "softcap", r"backward computes gradients, and fragment softcap does more than add to the score"),
        ("backward", "low_rank_scale", r"its own derivative would be missing; write it into a cascade of its own"),
    ],
)
def test_illegal_compositions_say_why(base: str, part: str, reason: str) -> None:
    with pytest.raises(IllegalComposition, match=reason):
        compose(load(base), [fragment(part)])


def test_masks_that_cannot_be() -> None:
    with pytest.raises(IllegalComposition, match=r"linear has no score .* cannot be masked"):
        compose(load("linear"), mask=CAUSAL)
    with pytest.raises(IllegalComposition, match=r"the mask uses e, which the score of stable does not .* m, n"):
        compose(load("stable"), mask=parse("cascade t\nrank M, E\nin Q[m,e]\nout Z[m,e]\nZ[m,e] = Q[m,e] where e < m\n"
                                           ).einsums[0].predicate)  # fmt: skip
    with pytest.raises(IllegalComposition, match="the mask reads A, which is not an input of stable"):
        compose(load("stable"), mask=predicate("A[m,n] > 0"))


def test_a_cascade_and_a_fragment_are_not_each_other() -> None:
    with pytest.raises(IllegalComposition, match="softcap is a fragment"):
        compose(fragment("softcap"))
    with pytest.raises(IllegalComposition, match="stable is a cascade; expected a fragment"):
        compose(load("naive"), [load("stable")])


def test_outer_ranks_only_once() -> None:
    with pytest.raises(IllegalComposition, match="already has rank B, G, J"):
        compose(compose(load("stable")))
    with pytest.raises(IllegalComposition, match="no input W; expected one of Q, K, V, AV"):
        compose(load("stable"), shared={"W": ["b"]})


FRAGMENT = "fragment f\nrank M, N\n{head}extends score S[m,n]\n{body}\nscore SB[m,n]\n"


@pytest.mark.parametrize(
    ("head", "body", "reason"),
    [
        ("", "T[m] = S[m,n] :: max(n)\nSB[m,n] = S[m,n] - T[m]", "T of fragment f needs all steps of n1 at once"),
        ("reads maximum G[m]\n", "SB[m,n] = S[m,n] - G[m]", "reads the maximum, which is complete only after it"),
        ("", "SB[m,n] = S[m,n] + S[n,m]", "reads S at another element"),
        ("", "T[m,n] = S[m,n] + 1\nSB[m,n] = T[m,n-1] where n >= 1", "indexes its own T by an expression"),
    ],
)
def test_fragments_that_a_loop_cannot_carry(head: str, body: str, reason: str) -> None:
    part = parse(FRAGMENT.format(head=head, body=body))
    with pytest.raises(IllegalComposition, match=reason):
        compose(load("one_pass"), [part])


def test_a_whole_row_fragment_fits_a_cascade_without_a_loop() -> None:
    """Subtracting the row's mean does not change softmax."""
    part = parse(FRAGMENT.format(head="", body="T[m] = S[m,n] / N\nSB[m,n] = S[m,n] - T[m]"))
    rng = np.random.default_rng(2)
    inputs = {"Q": rng.normal(size=(3, 2)), "K": rng.normal(size=(5, 2)), "V": rng.normal(size=(5, 2))}
    sizes = {"m": 3, "n": 5, "e": 2, "f": 2}
    for base, more in (("stable", {}), ("two_pass", {"n0": 2})):
        found = evaluate(compose(load(base), [part], outer=False), sizes | more, inputs)["AV"]
        np.testing.assert_allclose(found, evaluate(load(base), sizes | more, inputs)["AV"], atol=1e-14)


def test_a_fragment_without_effect_is_refused() -> None:
    text = format_cascade(load("stable")).replace("A[m,n]  = SN[m,n] / SD[m]", "A[m,n]  = SN[m,n] / N")
    assert "/ N" in text
    with pytest.raises(IllegalComposition, match="nothing in stable reads SD"):
        compose(parse(text), [fragment("sink")])
