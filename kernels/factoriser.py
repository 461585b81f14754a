"""Factors of a bias that depends on the input, learned: two small networks from token features to phi_q and phi_k.

For pair biases that no table holds, such as that of AlphaFold's triangle attention: bias[h,m,n] of one input is approximated by
phi_q(x_m) . phi_k(x_n), with the networks trained on examples of (features, bias) and everything else left as it is. Three
layers with tanh and a squared error, as FlashBias does it (arXiv 2505.12044, section 3).

Features of a pair representation z[m,n,c]: for the queries its mean over n, for the keys its mean over m (`pair_features`).
Under softmax a constant per query has no effect, and the loss leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Example:
    """One input: features of queries [M, D] and of keys [N, D'], and the bias [heads, M, N] that it gives."""

    queries: Tensor
    keys: Tensor
    bias: Tensor


def pair_features(pair: Tensor) -> tuple[Tensor, Tensor]:
    """(queries [M, C], keys [N, C]) of a pair representation [M, N, C]."""
    return pair.mean(dim=1), pair.mean(dim=0)


class Factoriser(nn.Module):  # type: ignore[misc]  # torch is optional and untyped here
    """Two perceptrons D -> hidden -> hidden -> heads * rank with tanh between; their outputs multiply to the bias."""

    def __init__(self, query_features: int, key_features: int, heads: int, rank: int, hidden: int = 256) -> None:
        super().__init__()
        self.heads, self.rank = heads, rank
        self.query = _perceptron(query_features, hidden, heads * rank)
        self.key = _perceptron(key_features, hidden, heads * rank)

    def factors(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """(phi_q [heads, M, R], phi_k [heads, N, R]) for features [M, D] and [N, D']."""
        q = self.query(queries).view(-1, self.heads, self.rank).transpose(0, 1)
        k = self.key(keys).view(-1, self.heads, self.rank).transpose(0, 1)
        return q, k

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The bias [heads, M, N]."""
        q, k = self.factors(queries, keys)
        return q @ k.transpose(1, 2)

    def flops(self, queries: int, keys: int) -> int:
        """Of making the factors once: 2 per multiply-accumulate. O(M + N), where the pair bias costs O(M N)."""
        sides = ((self.query, queries), (self.key, keys))
        layers = ((layer, rows) for side, rows in sides for layer in side if isinstance(layer, nn.Linear))
        return sum(2 * rows * layer.in_features * layer.out_features for layer, rows in layers)


def _perceptron(features: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, out)
    )


def centred(bias: Tensor) -> Tensor:
    """The bias without the mean of each row: what softmax sees of it."""
    return bias - bias.mean(dim=-1, keepdim=True)


def relative_error(model: Factoriser, example: Example, drop_row_constants: bool = True) -> float:
    """Relative Frobenius error of the learned bias on one example."""
    with torch.no_grad():
        found, true = model(example.queries, example.keys), example.bias
        if drop_row_constants:
            found, true = centred(found), centred(true)
        return float((found - true).norm() / true.norm())


def learn(
    examples: Sequence[Example],
    rank: int,
    *,
    hidden: int = 256,
    steps: int = 2000,
    rate: float = 2e-3,
    drop_row_constants: bool = True,
    seed: int = 0,
) -> Factoriser:
    """A factoriser trained on examples of one model (Adam, one example a step, rate falling to zero by a cosine).

    drop_row_constants   leave row means out of the loss: for softmax. False for sigmoid and other normalisations
    Raises ValueError for examples that do not fit together.
    """
    first = _checked(examples)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Factoriser(first.queries.shape[1], first.keys.shape[1], first.bias.shape[0], rank, hidden)
    model.to(first.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        example = examples[int(torch.randint(len(examples), (1,), generator=generator))]
        difference = model(example.queries, example.keys) - example.bias
        loss = (centred(difference) if drop_row_constants else difference).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def _checked(examples: Sequence[Example]) -> Example:
    if not examples:
        raise ValueError("no examples to learn from; expected at least one")
    first = examples[0]
    for number, e in enumerate(examples):
        shapes = (e.queries.shape, e.keys.shape, e.bias.shape)
        fits = e.queries.dim() == 2 and e.keys.dim() == 2 and e.bias.dim() == 3
        fits = fits and e.bias.shape[1:] == (len(e.queries), len(e.keys)) and e.bias.shape[0] == first.bias.shape[0]
        if not fits or (e.queries.shape[1], e.keys.shape[1]) != (first.queries.shape[1], first.keys.shape[1]):
            raise ValueError(f"example {number} has shapes {shapes}; expected [M, D], [N, D'] and [heads, M, N], alike in all")
        if not all(bool(t.isfinite().all()) for t in (e.queries, e.keys, e.bias)):
            raise ValueError(f"example {number} has elements that are not finite; a mask does not belong into the bias")
    return first
