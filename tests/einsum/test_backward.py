"""The backward cascades against derivatives of attention that no formula of theirs enters: complex steps and differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from einsight.einsum.compose import compose
from einsight.einsum.definitions import attention_backward
from einsight.einsum.evaluate import evaluate
from einsight.einsum.library import fragment, load
from einsight.einsum.parse import parse_expression

Array = NDArray[Any]
B, G, J, M, N, E, F, R = 2, 2, 3, 4, 6, 3, 5, 2
SIZES = {"B": B, "G": G, "J": J, "M": M, "N": N, "E": E, "F": F}
RANKS = {"Q": "BGJME", "K": "BGNE", "V": "BGNF", "DO": "BGJMF", "BIAS": "BGJMN", "PQ": "BGJMR", "PK": "BGJNR"}
CAUSAL = "n <= m + N - M"


def draw(*names: str) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    return {name: rng.standard_normal([{**SIZES, "R": R}[r] for r in RANKS[name]]) for name in names}


def forward(given: Mapping[str, Array], keep: NDArray[np.bool_]) -> tuple[Array, Array]:
    """(output, log-sum-exp) of attention with whatever bias is given; real or complex."""
    score = np.einsum("bgjme,bgne->bgjmn", given["Q"], given["K"])
    if "BIAS" in given:
        score = score + given["BIAS"]
    if "PQ" in given:
        score = score + np.einsum("bgjmr,bgjnr->bgjmn", given["PQ"], given["PK"])
    weight = np.where(keep, np.exp(score), 0.0)
    total = weight.sum(-1)
    return np.einsum("bgjmn,bgnf->bgjmf", weight / total[..., None], given["V"]), np.log(total)


def gradient(loss: Callable[[Mapping[str, Array]], complex], given: Mapping[str, Array], name: str) -> Array:
    """d loss / d given[name], element by element: Im loss(x + ih) / h has no cancellation and is exact to rounding."""
    out = np.empty(given[name].shape)
    for at in np.ndindex(out.shape):
        moved = given[name].astype(complex)
        moved[at] += 1e-30j
        out[at] = loss({**given, name: moved}).imag / 1e-30
    return out


CASES = {
    "backward": ("Q", "K", "V"),
    "backward_dense_bias": ("Q", "K", "V", "BIAS"),
    "backward_low_rank": ("Q", "K", "V", "PQ", "PK"),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_derivatives_with_heads_that_share_keys(name: str, causal: bool) -> None:
    given, slopes = draw(*CASES[name]), draw("DO")["DO"]
    keep = np.tril(np.ones((M, N), dtype=bool), N - M) if causal else np.ones((M, N), dtype=bool)
    output, logs = forward(given, keep)
    cascade = compose(load(name), mask=parse_expression(CAUSAL) if causal else None)
    sizes = SIZES | ({"R": R} if "PQ" in given else {})
    found = evaluate(cascade, sizes, {**given, "O": output, "DO": slopes, "L": logs})
    for operand in CASES[name]:
        true = gradient(lambda x: complex((forward(x, keep)[0] * slopes).sum()), given, operand)
        made = found[f"D{operand}"]
        if operand == "BIAS":  # no element where the mask leaves no score
            assert np.array_equal(np.isnan(made), np.broadcast_to(~keep, made.shape))
            made = np.nan_to_num(made)
        np.testing.assert_allclose(made, true, atol=1e-12, err_msg=operand)


def test_gradients_are_the_slopes_of_differences() -> None:
    given, slopes = draw("Q", "K", "V", "BIAS"), draw("DO")["DO"]
    keep = np.ones((M, N), dtype=bool)
    output, logs = forward(given, keep)
    found = evaluate(compose(load("backward_dense_bias")), SIZES, {**given, "O": output, "DO": slopes, "L": logs})
    for operand in ("Q", "K", "V", "BIAS"):
        step = np.zeros(given[operand].shape)
        at = tuple(n // 2 for n in step.shape)
        step[at] = 1e-5
        above, below = (forward({**given, operand: given[operand] + s * step}, keep)[0] for s in (1, -1))
        assert found[f"D{operand}"][at] == pytest.approx(((above - below) * slopes).sum() / 2e-5, abs=1e-8)


def test_an_added_bias_changes_the_weights_and_no_formula() -> None:
    """One head with ALiBi composed in, against the definition with the bias as a matrix."""
    rng = np.random.default_rng(2)
    q, do, o = rng.standard_normal((3, M, E))
    k, v = rng.standard_normal((2, N, E))
    bias = -0.25 * (np.arange(M)[:, None] + N - M - np.arange(N))
    logs = rng.standard_normal(M)
    cascade = compose(load("backward"), [fragment("alibi")], outer=False)
    inputs = {"Q": q, "K": k, "V": v, "O": o, "DO": do, "L": logs, "SLOPE": np.array(0.25)}
    found = evaluate(cascade, {"M": M, "N": N, "E": E, "F": E}, inputs)
    for name, true in zip(("DQ", "DK", "DV"), attention_backward(q, k, v, o, do, logs, bias), strict=False):
        np.testing.assert_allclose(found[name], true, atol=1e-13)
