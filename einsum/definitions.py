"""What the word after `computes` means, in plain NumPy without the cascade language; every cascade is held against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einsight.einsum.evaluate import evaluate
from einsight.einsum.ir import Cascade

Array = NDArray[np.float64]

ATTENTION = {"Q": ("M", "E"), "K": ("N", "E"), "V": ("N", "F")}
LARGEST_SIZE, MOST_PRODUCTS = 1024, 2**22
"""Beyond these an error is not worked out: the comparison is meant for sizes that take milliseconds."""


def softmax_attention(Q: Array, K: Array, V: Array) -> Array:
    """Q[m,e], K[n,e], V[n,f] to AV[m,f]; Vaswani et al. 2017, equation 1, the scale folded into Q."""
    score = Q @ K.T
    weight = np.exp(score - score.max(axis=1, keepdims=True))
    return np.asarray(weight / weight.sum(axis=1, keepdims=True) @ V)


def sigmoid_attention(Q: Array, K: Array, V: Array, BIAS: Array) -> Array:
    """Ramapuram et al. 2024, arXiv 2409.04431, equation 2."""
    return np.asarray((1.0 / (1.0 + np.exp(-(Q @ K.T + BIAS)))) @ V)


def linear_attention(Q: Array, K: Array, V: Array) -> Array:
    """Katharopoulos et al. 2020, arXiv 2006.16236, equations 4 and 7: every key, weights before values."""

    def feature(x: Array) -> Array:
        return np.where(x > 0, x + 1.0, np.exp(np.minimum(x, 0.0)))

    weight = feature(Q) @ feature(K).T
    return np.asarray(weight / weight.sum(axis=1, keepdims=True) @ V)


def decayed_linear_attention(Q: Array, K: Array, V: Array, LD: Array) -> Array:
    """Q[n,e], K[n,e], V[n,f] to AV[n,f]: every earlier key and the own one, decayed by exp(LD) a position; Qin et al. 2024,
    arXiv 2401.04658, the product form."""
    apart = np.subtract.outer(np.arange(len(Q)), np.arange(len(K)))
    return np.asarray(np.where(apart >= 0, Q @ K.T * np.exp(LD * np.maximum(apart, 0)), 0.0) @ V)


def gated_linear_attention(Q: Array, K: Array, V: Array, LA: Array) -> Array:
    """Q[n,e], K[n,e], V[n,f] and the logs LA[n,e] of the gates to AV[n,f], position by position: S_n = diag(gate_n) S_(n-1)
    + k_n v_n^T, av_n = q_n S_n; Yang et al. 2023, arXiv 2312.06635, equation 3."""
    state, rows = np.zeros((Q.shape[1], V.shape[1])), []
    for q, k, v, gate in zip(Q, K, V, np.exp(LA), strict=True):
        state = gate[:, None] * state + np.outer(k, v)
        rows.append(q @ state)
    return np.array(rows)


def attention_backward(
    Q: Array, K: Array, V: Array, O: Array, DO: Array, L: Array, bias: Array | float = 0.0  # noqa: E741
) -> tuple[Array, Array, Array, Array]:
    """Gradients of Q[m,e], K[n,e], V[n,f] and of the scores [m,n] from that of the output, DO[m,f], the output O[m,f] and the
    log L[m] of the sum of exp(score); Dao 2023, section 2.3."""
    weight = np.exp(Q @ K.T + bias - L[:, None])
    slope = weight * (DO @ V.T - (O * DO).sum(axis=1, keepdims=True))
    return slope @ K, slope.T @ Q, weight.T @ DO, slope


def softmax_attention_backward(**given: Array) -> tuple[Array, ...]:
    """(DQ, DK, DV)."""
    return attention_backward(**given)[:3]


def dense_bias_backward(BIAS: Array, **given: Array) -> tuple[Array, ...]:
    """(DQ, DK, DV, DBIAS[m,n])."""
    return attention_backward(**given, bias=BIAS)


def low_rank_backward(PQ: Array, PK: Array, **given: Array) -> tuple[Array, ...]:
    """(DQ, DK, DV, DPQ[m,r], DPK[n,r]) under the bias PQ[m,r] PK[n,r]^T."""
    *gradients, slope = attention_backward(**given, bias=PQ @ PK.T)
    return (*gradients, slope @ PK, slope.T @ PQ)


SEQUENCE = {"Q": ("N", "E"), "K": ("N", "E"), "V": ("N", "F")}

BACKWARD = {**ATTENTION, "O": ("M", "F"), "DO": ("M", "F"), "L": ("M",)}

DEFINITIONS: Mapping[str, tuple[Callable[..., Array | tuple[Array, ...]], Mapping[str, tuple[str, ...]]]] = {
    "softmax_attention": (softmax_attention, ATTENTION),
    "sigmoid_attention": (sigmoid_attention, {**ATTENTION, "BIAS": ()}),
    "linear_attention": (linear_attention, ATTENTION),
    "decayed_linear_attention": (decayed_linear_attention, {**SEQUENCE, "LD": ()}),
    "gated_linear_attention": (gated_linear_attention, {**SEQUENCE, "LA": ("N", "E")}),
    "softmax_attention_backward": (softmax_attention_backward, BACKWARD),
    "softmax_attention_dense_bias_backward": (dense_bias_backward, {**BACKWARD, "BIAS": ("M", "N")}),
    "softmax_attention_low_rank_backward": (low_rank_backward, {**BACKWARD, "PQ": ("M", "R"), "PK": ("N", "R")}),
}
"""By word: the function from input arrays by name to the output, or to the outputs in the cascade's order, and the ranks of
those inputs."""

LOG_FACTORS = frozenset({"LD", "LA"})
"""Inputs that are logs of factors at most 1: never above 0."""


def largest_error(cascade: Cascade, sizes: Mapping[str, int], seed: int = 0) -> float | None:
    """max |output - definition| in fp64 over standard normal inputs, `LOG_FACTORS` minus their absolute value; inf where an
    output has no finite value.

    None where the word has no definition, the cascade reads other tensors (a composed one has heads), or a size exceeds
    `LARGEST_SIZE` or the products of one contraction `MOST_PRODUCTS`.
    """
    definition, ranks = DEFINITIONS.get(cascade.computes, (None, {}))
    if definition is None or {t.name: t.ranks for t in cascade.inputs} != ranks:
        return None
    products = sizes.get("M", sizes["N"]) * sizes["N"] * max(sizes["E"], sizes["F"])
    if max(sizes.values()) > LARGEST_SIZE or products > MOST_PRODUCTS:
        return None
    rng = np.random.default_rng(seed)
    inputs: dict[str, Any] = {name: rng.standard_normal([sizes[r] for r in of]) for name, of in ranks.items()}
    inputs |= {name: -np.abs(array) for name, array in inputs.items() if name in LOG_FACTORS}
    made, wanted = evaluate(cascade, sizes, inputs), definition(**inputs)
    pairs = zip((made[t.name] for t in cascade.outputs), wanted if isinstance(wanted, tuple) else (wanted,), strict=True)
    return max(float(np.nan_to_num(np.abs(found - true), nan=np.inf).max()) for found, true in pairs)
