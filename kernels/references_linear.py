"""Plain PyTorch judges of linear attention: the recurrence itself, and the product form in a given precision."""

from __future__ import annotations

import torch
from torch import Tensor


def _log_gates(q: Tensor, k: Tensor, log_decay: Tensor | None, log_gates: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[B, H, N, E]: every kind of decay as the log of a gate per position and dimension."""
    B, H, N, E = q.shape
    if log_gates is not None:
        return log_gates[:, [h // (H // k.shape[1]) for h in range(H)]].to(dtype)
    none = torch.zeros(B, H, N, E, dtype=dtype, device=q.device)
    return none if log_decay is None else none + log_decay.to(dtype)[None, :, None, None]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    log_gates: Tensor | None = None,
    scale: float = 1.0,
    state: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Position by position, S_t = diag(a_t) S_(t-1) + k_t v_t^T, out_t = scale q_t S_t (GLA, arXiv:2312.06635,
    equation 3; Lightning Attention, arXiv:2401.04658, has one decay a head). Returns (out [B, H, N, F], S_N)."""
    B, H, N, E = q.shape
    heads = [h // (H // k.shape[1]) for h in range(H)]
    gate = torch.exp(_log_gates(q, k, log_decay, log_gates, dtype))
    q, k, v = q.to(dtype), k[:, heads].to(dtype), v[:, heads].to(dtype)
    kept = torch.zeros(B, H, E, v.shape[3], dtype=dtype, device=q.device) if state is None else state.to(dtype)
    out = torch.empty_like(v)
    for t in range(N):
        kept = gate[:, :, t, :, None] * kept + k[:, :, t, :, None] * v[:, :, t, None, :]
        out[:, :, t] = scale * (q[:, :, t, None, :] @ kept)[:, :, 0]
    return out, kept


def plain_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    log_gates: Tensor | None = None,
    scale: float = 1.0,
    state: Tensor | None = None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The product form with tensors in `dtype`, log decays in float32: the yardstick of a kernel in that precision.

    Products are decayed per pair of positions, [B, H, N, N, E]: for small sizes only.
    """
    H = q.shape[1]
    heads = [h // (H // k.shape[1]) for h in range(H)]
    total = _log_gates(q, k, log_decay, log_gates, torch.float32).cumsum(2)
    q, k, v = q.to(dtype), k[:, heads].to(dtype), v[:, heads].to(dtype)
    apart = (total[:, :, :, None] - total[:, :, None]).clamp(max=0.0).exp().to(dtype)
    score = torch.einsum("bhme,bhne,bhmne->bhmn", q, k, apart).tril()
    to_end = (total[:, :, -1:] - total).exp().to(dtype)
    last = ((k * to_end).mT @ v).float()
    out = score @ v
    if state is not None:
        out = out + (q * total.exp().to(dtype)) @ state.to(dtype)
        last = last + total[:, :, -1, :, None].exp() * state.float()
    return out * scale, last
