"""The learned factoriser on synthetic pair representations: it learns, generalises over inputs, and refuses bad examples."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch (extra gpu)")

from einsight.kernels.factoriser import Example, Factoriser, centred, learn, pair_features, relative_error  # noqa: E402
from einsight.sim.bias_examples import pair_bias  # noqa: E402

TOKENS, HEADS = 32, 2


def example(seed: int) -> Example:
    """A bias that token features do determine, with a constant per query on top that softmax drops."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, TOKENS, 6))
    mix = np.random.default_rng(99).normal(size=(HEADS, 6, 6)) / 6
    bias = np.einsum("mc,hcd,nd->hmn", np.tanh(x), mix, np.tanh(y)) + rng.normal(size=(HEADS, TOKENS, 1))
    return Example(*(torch.tensor(a, dtype=torch.float32) for a in (x, y, bias)))


def test_it_learns_and_generalises_to_inputs_it_has_not_seen() -> None:
    model = learn([example(s) for s in range(24)], rank=8, hidden=64, steps=1500)
    new = example(1000)
    assert relative_error(model, new) < 0.3
    assert relative_error(model, new) < 0.5 * relative_error(learn([example(0)], 8, hidden=64, steps=1), new)


def test_a_higher_rank_fits_one_pair_representation_better() -> None:
    pair, bias = (torch.tensor(a, dtype=torch.float32) for a in pair_bias(TOKENS, HEADS, channels=32))
    one = Example(*pair_features(pair), bias)
    low, high = (relative_error(learn([one], rank, hidden=64, steps=600), one) for rank in (1, 16))
    assert high < low < 1.0 and high < 0.2


def test_factors_multiply_to_the_bias() -> None:
    model = Factoriser(6, 6, HEADS, 4, hidden=8)
    e = example(1)
    q, k = model.factors(e.queries, e.keys)
    assert q.shape == (HEADS, TOKENS, 4)
    torch.testing.assert_close(torch.einsum("hmr,hnr->hmn", q, k), model(e.queries, e.keys))
    assert model.flops(10, 20) == 2 * 30 * (6 * 8 + 8 * 8 + 8 * HEADS * 4)


def test_the_same_seed_gives_the_same_network() -> None:
    a, b = (learn([example(0)], 2, hidden=8, steps=5) for _ in range(2))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


def test_row_constants_do_not_enter_the_loss() -> None:
    e = example(3)
    moved = Example(e.queries, e.keys, e.bias + 7.0)
    torch.testing.assert_close(centred(moved.bias), centred(e.bias), atol=1e-5, rtol=0)


def test_bad_examples() -> None:
    e = example(0)
    with pytest.raises(ValueError, match="no examples"):
        learn([], 2)
    with pytest.raises(ValueError, match="example 1 has shapes"):
        learn([e, Example(e.queries[:, :3], e.keys, e.bias)], 2)
    with pytest.raises(ValueError, match="not finite"):
        learn([Example(e.queries, e.keys, e.bias * float("nan"))], 2)
