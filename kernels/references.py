"""Plain PyTorch judges of the kernels: the obvious formula, in any precision, no tiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from einsight.kernels.band import Band


def visible(band: Band, M: int, N: int, device: torch.device | str = "cpu") -> Tensor:
    """The mask of `band` as booleans [M, N], True where query m sees key n."""
    diagonal = torch.arange(M, device=device)[:, None] + (N - M if band.align == "last" else 0)
    key = torch.arange(N, device=device)[None, :]
    seen = torch.ones(M, N, dtype=torch.bool, device=device)
    if band.left is not None:
        seen &= key >= diagonal - band.left
    if band.right is not None:
        seen &= key <= diagonal + band.right
    return seen


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    band: Band = Band(),  # noqa: B008 (frozen)
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Attention with every step in `dtype`: q [B, H, M, E], k [B, G, N, E], v [B, G, N, F], sink [H].

    bias   [B, H, M, N], or what broadcasts to it, added to the scaled scores before the mask

    Returns the output [B, H, M, F] and the log-sum-exp [B, H, M] (with the sink in it); 0 and -inf for a row that sees
    no key. With dtype float16 or bfloat16 this is the "plain" implementation whose error is the yardstick of a kernel.
    """
    B, H, M, E = q.shape
    G, N = k.shape[1], k.shape[2]
    scale = 1.0 / math.sqrt(E) if scale is None else scale
    heads = [h // (H // G) for h in range(H)]
    q, k, v = q.to(dtype), k[:, heads].to(dtype), v[:, heads].to(dtype)
    score = (q @ k.transpose(-1, -2)) * scale
    if softcap is not None:
        score = softcap * torch.tanh(score / softcap)
    if bias is not None:
        score = score + bias.to(dtype)
    seen = _visible_batch(band, B, M, N, lengths_q, lengths_k, q.device)
    score = score.masked_fill(~seen, -math.inf)
    top = score.amax(-1, keepdim=True) if N else torch.full_like(q[..., :1], -math.inf)
    logit = None if sink is None else sink.to(q.device, dtype)[None, :, None, None]
    top = top if logit is None else torch.maximum(top, logit)
    top = top.masked_fill(top == -math.inf, 0.0)
    numerator = torch.exp(score - top)
    denominator = numerator.sum(-1, keepdim=True)
    if logit is not None:
        denominator = denominator + torch.exp(logit - top)
    output = (numerator / denominator.masked_fill(denominator == 0, 1.0)) @ v
    lse = (top + torch.log(denominator))[..., 0]
    if lengths_q is None:
        return output, lse
    used = torch.arange(M, device=q.device)[None, None, :] < lengths_q[:, None, None]
    return output * used[..., None], lse.masked_fill(~used, -math.inf)


def sigmoid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: float | None = None,
    band: Band = Band(),  # noqa: B008 (frozen)
    scale: float | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """sigmoid(scale q.k + bias) v with every step in `dtype`; shapes as in `attention`, 0 for a row that sees no key.

    bias   default: -log of the number of keys, of each batch element where lengths_k is given
    """
    B, H, M, E = q.shape
    G, N = k.shape[1], k.shape[2]
    heads = [h // (H // G) for h in range(H)]
    q, k, v = q.to(dtype), k[:, heads].to(dtype), v[:, heads].to(dtype)
    keys = torch.full((B,), N, device=q.device) if lengths_k is None else lengths_k
    shift = -torch.log(keys.clamp(min=1).double()) if bias is None else torch.full((B,), bias, device=q.device)
    score = (q @ k.transpose(-1, -2)) * (1.0 / math.sqrt(E) if scale is None else scale)
    weight = torch.sigmoid(score + shift.to(dtype)[:, None, None, None])
    seen = _visible_batch(band, B, M, N, lengths_q, lengths_k, q.device)
    return weight.masked_fill(~seen, 0.0) @ v


def _visible_batch(
    band: Band, B: int, M: int, N: int, lengths_q: Tensor | None, lengths_k: Tensor | None, device: torch.device
) -> Tensor:
    """[B or 1, 1, M, N]: the band of each batch element at its own lengths."""
    if lengths_q is None and lengths_k is None:
        return visible(band, M, N, device)[None, None]
    seen = torch.zeros(B, 1, M, N, dtype=torch.bool, device=device)
    for b in range(B):
        used_m = M if lengths_q is None else int(lengths_q[b])
        used_n = N if lengths_k is None else int(lengths_k[b])
        seen[b, 0, :used_m, :used_n] = visible(band, used_m, used_n, device)
    return seen


def largest_error(got: Tensor, expected: Tensor) -> float:
    """max |got - expected| in float64; inf where either has a NaN or their infinities differ."""
    got, expected = got.double(), expected.double()
    same = got == expected  # equal infinities are no error
    difference = torch.where(same, torch.zeros_like(expected), (got - expected).abs())
    return float(torch.nan_to_num(difference, nan=math.inf).max().item()) if difference.numel() else 0.0


def allowed_error(plain: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """What a kernel's largest error may be: twice that of the plain implementation in the same precision, plus one
    rounding of the largest value (the output itself is stored in `dtype`)."""
    largest = float(expected.double().abs().max()) if expected.numel() else 0.0
    return 2.0 * largest_error(plain, expected) + float(torch.finfo(dtype).eps) * largest
