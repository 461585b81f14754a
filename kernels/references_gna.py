"""Plain PyTorch judge of neighborhood attention: membership pair by pair from the definition, any precision, no tiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from einsight.kernels.neighborhood import Neighborhood


def visible(mask: Neighborhood, device: torch.device | str = "cpu", rows: Tensor | None = None) -> Tensor:
    """[rows or tokens, tokens] booleans, True where the query sees the key."""
    queries = torch.arange(mask.tokens, device=device) if rows is None else rows.to(device)
    keys = torch.arange(mask.tokens, device=device)
    seen = torch.ones(len(queries), mask.tokens, dtype=torch.bool, device=device)
    for d in reversed(range(mask.rank)):
        length = mask.layout[d]
        seen &= _along(mask, d).to(device)[(queries % length)[:, None], (keys % length)[None, :]]
        queries, keys = queries // length, keys // length
    return seen


def _along(mask: Neighborhood, d: int) -> Tensor:
    """[length, length]: the pairs along one dimension, each query's window laid out and pushed inside step by step."""
    length, window, stride, dilation = mask.layout[d], mask.window[d], mask.stride[d], mask.dilation[d]
    seen = torch.zeros(length, length, dtype=torch.bool)
    for x in range(length):
        group = list(range(x % dilation, length, dilation))
        i = group.index(x)
        peers = [j for j in range(len(group)) if j // stride == i // stride]
        if mask.causal[d]:
            places = [j for j in range(peers[-1] - window + 1, i + 1) if j >= 0]
        else:
            first = min(peers[0] + stride // 2, len(group) - 1) - window // 2
            while first < 0:
                first += 1
            while first + window > len(group):
                first -= 1
            places = list(range(first, first + window))
        seen[x, [group[j] for j in places]] = True
    return seen


def gna(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Neighborhood,
    *,
    scale: float | None = None,
    rows: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Neighborhood attention with every step in `dtype`: q [B, H, M, E], k [B, G, M, E], v [B, G, M, F].

    rows   only these queries (int64), where all pairs would not fit in memory

    Returns the output [B, H, M or rows, F] and the log-sum-exp [B, H, M or rows].
    """
    H, G, E = q.shape[1], k.shape[1], q.shape[3]
    scale = 1.0 / math.sqrt(E) if scale is None else scale
    heads = [h // (H // G) for h in range(H)]
    q = q if rows is None else q[:, :, rows]
    q, k, v = q.to(dtype), k[:, heads].to(dtype), v[:, heads].to(dtype)
    score = ((q @ k.transpose(-1, -2)) * scale).masked_fill(~visible(mask, q.device, rows), -math.inf)
    top = score.amax(-1, keepdim=True)
    numerator = torch.exp(score - top)
    denominator = numerator.sum(-1, keepdim=True)
    return (numerator / denominator) @ v, (top + torch.log(denominator))[..., 0]
