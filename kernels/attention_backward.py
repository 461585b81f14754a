"""Gradients of fused attention, of padded or packed batches, with or without a bias. The kernels are in
`attention_gradients`; nothing is added to memory by more than one program, so that they are the same in every run."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from einsight.kernels.attention import DTYPES, capability_of, check_packed, own_scale, packed_views
from einsight.kernels.attention_gradients import grad_keys, grad_queries
from einsight.kernels.attention_gradients import row_delta as row_delta_kernel
from einsight.kernels.attention_launch import Bias, Pass, meta, options, strides, variant
from einsight.kernels.attention_launch import Setting as Setting
from einsight.kernels.attention_space import backward_configs
from einsight.kernels.band import Band
from einsight.kernels.spaces import Config
from einsight.kernels.tuned import tuned

Outputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]  # dq, dk, dv and both factors'


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    setting: Setting,
    *,
    dlse: Tensor | None = None,
    sink: Tensor | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients (dq, dk, dv, dsink) of `attention`, from its inputs, its results `out` and `lse`, and theirs.

    dout, dlse   gradients of output [B, H, M, F] and log-sum-exp [B, H, M] (None: zero)
    config       block_m: positions that a block holds (queries for dQ, keys for dK and dV), block_n: those of the tiles
                 it walks over; default: the tuned one, else `backward_configs`, which has one build for each

    The same in every run: no two programs add to one number. dsink is float32 [H], None without a sink. Raises
    TypeError for fp8.
    """
    delta = row_delta(out, dout, dlse)
    dq, dk, dv, _, _ = gradients(dout, q, k, v, lse, delta, setting, None, config)
    return dq, dk, dv, None if sink is None else _sink_gradient(sink, lse, delta)


def attention_packed_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    longest_q: int,
    longest_k: int,
    setting: Setting,
    *,
    dlse: Tensor | None = None,
    sink: Tensor | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`attention_backward` of `attention_packed`: dout and out [T, H, F], lse and dlse [H, T], dq [T, H, E],
    dk [S, G, E], dv [S, G, F]; 0 for positions outside every sequence. The setting holds the bounds."""
    bounds_q, bounds_k = setting.lengths_q, setting.lengths_k
    if bounds_q is None or bounds_k is None or setting.packed_rows != q.shape[0]:
        raise ValueError(f"setting: {setting.packed_rows} packed rows, expected {q.shape[0]} and bounds of queries and keys")
    check_packed(q, k, v, bounds_q, bounds_k)
    one_out, one_dout = (x.transpose(0, 1)[None] for x in (out, dout))
    delta = row_delta(one_out, one_dout, None if dlse is None else dlse[None])
    (wide_dout, wide_q), (wide_k, wide_v) = packed_views(setting, longest_q, longest_k, (dout, q), (k, v))
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    for each in passes(wide_dout, wide_q, wide_k, wide_v, lse, delta, setting, None, config, (dq, dk, dv, None, None)):
        each.run()
    return dq, dk, dv, None if sink is None else _sink_gradient(sink, lse[None], delta)


def _sink_gradient(sink: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """The sink is a key with weight exp(sink - lse) and value 0: its dP is 0. lse and delta are [B, H, M]."""
    weight = torch.exp(sink.float()[None, :, None] - lse).masked_fill(lse == -math.inf, 0.0)
    return -(weight * delta).sum((0, 2))


def row_delta(out: Tensor, dout: Tensor, dlse: Tensor | None) -> Tensor:
    """float32 [B, H, M]: sum over f of out * dout, less dlse."""
    B, H, M, F = out.shape
    delta = torch.empty(B, H, M, dtype=torch.float32, device=out.device)
    block = 64
    dlse = None if dlse is None else dlse.float().contiguous()
    widths = {"F": F, "BLOCK_F": triton.next_power_of_2(F), "BLOCK_M": block}
    arguments = (out, dout, dlse, delta, *strides(out, dout), H, M)
    Pass(row_delta_kernel, B * H * triton.cdiv(M, block), arguments, widths, {"num_warps": 4}).run()
    return delta


def gradients(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, setting: Setting,
              bias: Bias | None, config: Config | None) -> Outputs:  # fmt: skip
    """The gradients; those of the factors in float32 for every batch element and head, or None, None."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    factors: tuple[Tensor | None, Tensor | None] = (None, None)
    if bias is not None and bias.second is not None:
        first, second = (torch.empty(x.shape, dtype=torch.float32, device=x.device) for x in (bias.first, bias.second))
        factors = first, second
    for each in passes(dout, q, k, v, lse, delta, setting, bias, config, (dq, dk, dv, *factors)):
        each.run()
    return dq, dk, dv, *factors


def passes(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, setting: Setting,
           bias: Bias | None, config: Config | None, outputs: Outputs) -> tuple[Pass, Pass]:  # fmt: skip
    """The two launches that fill dq and dpq, then dk, dv and dpk, all of them contiguous."""
    (B, H, M, E), (G, N), F = q.shape, k.shape[1:3], v.shape[3]
    if q.dtype not in DTYPES:
        raise TypeError(f"q: got {q.dtype}, which has no gradients here; convert q, k and v with .to(torch.bfloat16)")
    config = config or _tuned(q, (B, H, G, M, N, E, F), setting, bias)
    for_queries, for_keys = (config, config) if config else backward_configs(E, F, capability_of(q))
    dq, dk, dv, dpq, dpk = outputs
    first, second = (None, None) if bias is None else (bias.first, bias.second)
    of_second = strides(second) if bias is None or second is not None else (0, 0, 1)  # a matrix: a column per key
    given = (q, k, v, first, second, dout, lse, delta, setting.lengths_q, setting.lengths_k)
    sizes = (
        *strides(q, k, v, dout, first), *of_second, H, H // G, M, N, setting.packed_rows or M, *setting.sides(M, N),
        setting.scale, *setting.log2_scales, 1.0 / setting.scale,
    )  # fmt: skip
    by_keys, by_rows = (
        {"V": variant(setting, build, E, F, bias=bias, walked=length if lengths is None else None)}
        for build, length, lengths in ((for_queries, N, setting.lengths_k), (for_keys, M, setting.lengths_q))
    )
    queries, keys = B * H * triton.cdiv(M, for_queries.block_m), B * G * triton.cdiv(N, for_keys.block_m)
    return (
        Pass(grad_queries, queries, (*given, dq, dpq, *sizes), by_keys, options(for_queries)),
        Pass(grad_keys, keys, (*given, dk, dv, dpk, *sizes), by_rows, options(for_keys)),
    )


def _tuned(q: Tensor, sizes: tuple[int, ...], setting: Setting, bias: Bias | None) -> Config | None:
    name, added = ("attention", ()) if bias is None else bias.named
    cap = () if setting.softcap is None else (("softcap", "cap", setting.softcap),)
    return tuned(f"{name}_backward", q, sizes, setting.mask, (*added, *cap))


def compile_named(which: str, sizes: list[int], dtype: str, mask: dict[str, Any], config: list[int], *,
                  rank: int = 0, matrix: bool = False, packed: bool = False) -> Any:  # fmt: skip
    """Compile the kernel of the "queries" or of the "keys" as it would be launched on aligned tensors, for Triton's
    active driver. sizes = (B, H, G, M, N, E, F); rank: of the bias's factors, padded; matrix: a bias as a matrix;
    packed: B sequences one behind the other, M and N the longest."""
    B, H, G, M, N, E, F = sizes
    kind: torch.dtype = getattr(torch, dtype)
    q, k, v, dout = (meta(*s, kind=kind) for s in ((B, H, M, E), (B, G, N, E), (B, G, N, F), (B, H, M, F)))
    row = meta(B, H, M, kind=torch.float32)
    bias, dpq, dpk = None, None, None
    if rank:
        bias = Bias(meta(B, H, M, rank, kind=kind), meta(B, H, N, rank, kind=kind))
        dpq, dpk = meta(B, H, M, rank, kind=torch.float32), meta(B, H, N, rank, kind=torch.float32)
    elif matrix:
        bias = Bias(meta(B, H, M, N, kind=kind))
    bounds = meta(B + 1, kind=torch.int32) if packed else None
    setting = Setting(Band(**mask), own_scale(q, None), None, bounds, bounds, B * M if packed else None)
    both = passes(dout, q, k, v, row, row, setting, bias, Config(*config), (q, k, v, dpq, dpk))
    return both[("queries", "keys").index(which)].compile()
