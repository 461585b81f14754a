"""A bias that is a contraction folds into the score's contraction: same results, counts of the wider rank, same passes."""

from __future__ import annotations

import numpy as np
import pytest

from einsight.einsum.compose import compose
from einsight.einsum.concatenate import concatenate, concatenation
from einsight.einsum.counts import count, matmul_flops
from einsight.einsum.evaluate import evaluate
from einsight.einsum.expression import Expression
from einsight.einsum.format import format_cascade
from einsight.einsum.ir import Cascade
from einsight.einsum.library import fragment, load
from einsight.einsum.parse import check, parse_expression
from einsight.einsum.passes import analyse
from einsight.einsum.resolve import bind, required_sizes

CAUSAL = parse_expression("n <= m + N - M")
SIZES = {"B": 2, "G": 2, "J": 3, "M": 5, "N": 9, "N0": 4, "E": 3, "F": 2, "R": 4, "LOW_RANK_R": 2}
HOSTS = ("naive", "stable", "stable_deferred", "two_pass", "one_pass", "split_kv")


def composed(host: str, *fragments: str, mask: Expression | None = None, outer: bool = True) -> Cascade:
    return compose(load(host), [fragment(f) for f in fragments], mask, outer=outer)


def sizes_of(cascade: Cascade, **more: int) -> dict[str, int]:
    every = {**SIZES, **more}
    return {name: every[name] for name in required_sizes(cascade)}


def inputs_of(cascade: Cascade) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {t.name: rng.normal(size=[SIZES[r] for r in t.ranks]) for t in cascade.inputs}


@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["dense", "causal"])
@pytest.mark.parametrize("bias", ["low_rank", "low_rank_scale"])
@pytest.mark.parametrize("host", HOSTS)
def test_the_result_is_the_same(host: str, bias: str, mask: Expression | None) -> None:
    before = composed(host, bias, mask=mask)
    after = concatenate(before)
    inputs = inputs_of(before)
    wide = sizes_of(after, E_R=SIZES["E"] + SIZES["R"])
    expected = evaluate(before, sizes_of(before), inputs)["AV"]
    np.testing.assert_allclose(evaluate(after, wide, inputs)["AV"], expected, rtol=1e-12, atol=1e-13)


def test_what_it_writes() -> None:
    text = format_cascade(concatenate(composed("stable", "low_rank", outer=False)))
    assert "Q_PQ[m,e_r] = select(e_r < E, Q[m,min(e_r,E-1)], PQ[m,max(e_r-E,0)])" in text
    assert "K_PK[n,e_r] = select(e_r < E, K[n,min(e_r,E-1)], PK[n,max(e_r-E,0)])" in text
    assert "SB[m,n]     = Q_PQ[m,e_r] * K_PK[n,e_r]" in text
    assert check(text) == concatenate(composed("stable", "low_rank", outer=False))


@pytest.mark.parametrize("host", HOSTS)
def test_the_kernel_is_the_unbiased_one_at_the_wider_rank(host: str) -> None:
    """Counts of the packed cascade: those of the host without a bias, its score rank grown from E to E + R."""
    found = concatenation(composed(host, "low_rank"))
    assert found is not None
    packed, plain = found.packed, composed(host)
    wide = bind(packed, {n: found.sizes(SIZES)[n] for n in required_sizes(packed)})
    as_plain = bind(plain, {n: {**SIZES, "E": SIZES["E"] + SIZES["R"]}[n] for n in required_sizes(plain)})
    assert count(packed).evaluate(wide) == count(plain).evaluate(as_plain)
    assert analyse(packed).total == analyse(plain).total


def test_matmul_work_is_that_of_two_contractions() -> None:
    """2 M N (E + R + F) multiply-accumulates a head before and after; after, no addition of two scores is left."""
    before = composed("one_pass", "low_rank", outer=False)
    after = concatenate(before)
    s = SIZES
    flops = 2 * s["M"] * s["N"] * (s["E"] + s["R"] + s["F"])
    wide = bind(after, sizes_of(after, E_R=s["E"] + s["R"]))
    assert matmul_flops(count(before)).evaluate(bind(before, sizes_of(before))) == flops
    assert matmul_flops(count(after)).evaluate(wide) == flops
    adds = [count(c).evaluate(z)["add"] for c, z in ((before, bind(before, sizes_of(before))), (after, wide))]
    assert adds[0] - adds[1] == s["M"] * s["N"]


def test_grouped_heads_lose_the_sharing_of_the_keys() -> None:
    found = concatenation(composed("one_pass", "low_rank"))
    assert found is not None and found.operands == {"Q_PQ": ("Q", "PQ"), "K_PK": ("K", "PK")}
    wide = {t.name: t.ranks for t in found.packed.inputs}
    assert wide["K_PK"] == ("B", "G", "J", "N", "E_R") and wide["V"] == ("B", "G", "N", "F")


def test_two_biases_fold_one_after_the_other() -> None:
    before = composed("one_pass", "low_rank", "low_rank")
    after = concatenate(before)
    (rank,) = {r.name for r in after.ranks} - {r.name for r in before.ranks} - {"E_R"}
    assert not any(e.name.endswith("B") and e.name != "LOW_RANK_SB" for e in after.einsums)
    inputs = inputs_of(before)
    wide = sizes_of(after, **{"E_R": 3 + 4, rank: 3 + 4 + 2})
    expected = evaluate(before, sizes_of(before), inputs)["AV"]
    np.testing.assert_allclose(evaluate(after, wide, inputs)["AV"], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "fragments", [(), ("dense_bias",), ("alibi",), ("toeplitz",), ("softcap", "low_rank"), ("distance",)]
)
def test_nothing_else_folds(fragments: tuple[str, ...]) -> None:
    """Behind a softcap the score is no contraction any more."""
    before = composed("one_pass", *fragments)
    assert concatenation(before) is None and concatenate(before) == before


def test_a_score_that_is_read_twice_does_not_fold() -> None:
    text = format_cascade(composed("stable", "low_rank", outer=False))
    text = text.replace("out AV[m,f]", "out AV[m,f]\nout QK[m,n]")
    assert concatenation(check(text)) is None
