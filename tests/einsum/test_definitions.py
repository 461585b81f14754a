"""Every cascade of the library against the definition of what it computes, and the definitions against loops."""

from __future__ import annotations

import numpy as np
import pytest

from einsight.einsum.definitions import DEFINITIONS, LARGEST_SIZE, largest_error
from einsight.einsum.ir import Cascade
from einsight.einsum.library import listing, load
from einsight.einsum.parse import parse
from einsight.einsum.resolve import bind, required_sizes

SIZES = {"M": 5, "N": 12, "E": 3, "F": 4, "R": 2, "N0": 5}


@pytest.mark.parametrize("cascade", listing(), ids=lambda c: c.name)
def test_every_cascade_computes_what_it_says(cascade: Cascade) -> None:
    sizes = bind(cascade, {name: SIZES[name] for name in required_sizes(cascade)})
    error = largest_error(cascade, sizes)
    assert error is not None and error < 1e-14


def test_definitions_row_by_row() -> None:
    rng = np.random.default_rng(1)
    Q, K, V = (rng.standard_normal(shape) for shape in ((2, 3), (4, 3), (4, 5)))
    weights = {
        "softmax_attention": lambda q: [np.exp(q @ k) for k in K],
        "linear_attention": lambda q: [np.where(q > 0, q + 1, np.exp(q)) @ np.where(k > 0, k + 1, np.exp(k)) for k in K],
    }
    for word, weigh in weights.items():
        expected = [sum(w * v for w, v in zip(weigh(q), V, strict=True)) / sum(weigh(q)) for q in Q]
        assert np.allclose(DEFINITIONS[word][0](Q, K, V), expected, rtol=1e-13)
    expected = [sum(v / (1 + np.exp(-(q @ k) + 2)) for k, v in zip(K, V, strict=True)) for q in Q]
    assert np.allclose(DEFINITIONS["sigmoid_attention"][0](Q, K, V, BIAS=np.array(-2.0)), expected, rtol=1e-13)


def test_recurrences_pair_by_pair() -> None:
    """Every query sums over the keys up to its own position, each pair decayed by what lies between the two."""
    rng = np.random.default_rng(2)
    Q, K, V = (rng.standard_normal(shape) for shape in ((5, 3), (5, 3), (5, 2)))
    logs = -np.abs(rng.standard_normal((5, 3)))
    for word, gates in (("decayed_linear_attention", np.full((5, 3), -0.3)), ("gated_linear_attention", logs)):
        expected = [
            sum((Q[t] * np.exp(gates[s + 1 : t + 1].sum(0))) @ K[s] * V[s] for s in range(t + 1)) for t in range(5)
        ]
        how = {"LD": np.array(-0.3)} if word.startswith("decayed") else {"LA": gates}
        assert np.allclose(DEFINITIONS[word][0](Q, K, V, **how), expected, rtol=1e-13)


@pytest.mark.parametrize("name", ["lightning", "gla"])
@pytest.mark.parametrize("chunk", [1, 4, 5, 12])
def test_the_chunk_changes_nothing(name: str, chunk: int) -> None:
    """Whole chunks, a ragged last one, one chunk, chunks of one position."""
    cascade = load(name)
    error = largest_error(cascade, bind(cascade, {"N": 12, "E": 3, "F": 4, "N0": chunk}))
    assert error is not None and error < 1e-14


def test_no_error_where_there_is_nothing_to_compare_with() -> None:
    other = parse("cascade other\ncomputes other_attention\nrank M, N\nin Q[m,n]\nout AV[m]\nAV[m] = Q[m,n]\n")
    assert largest_error(other, {"M": 2, "N": 2}) is None
    same_word = parse("cascade other\ncomputes softmax_attention\nrank M, N\nin Q[m,n]\nout AV[m]\nAV[m] = Q[m,n]\n")
    assert largest_error(same_word, {"M": 2, "N": 2}) is None
    assert largest_error(load("naive"), {"M": LARGEST_SIZE + 1, "N": 2, "E": 2, "F": 2}) is None


def test_an_answer_that_is_no_number_is_an_infinite_error() -> None:
    text = (
        "cascade broken\ncomputes softmax_attention\nrank M, N, E, F\nin Q[m,e] K[n,e] V[n,f]\nout AV[m,f]\n"
        "QK[m,n] = Q[m,e] * K[n,e]\nAV[m,f] = log(0 * QK[m,n] - 1) * V[n,f]\n"
    )
    assert largest_error(parse(text), {"M": 2, "N": 3, "E": 2, "F": 2}) == np.inf
