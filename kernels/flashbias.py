"""Fused attention with an additive bias in Triton: as low-rank factors (FlashBias, arXiv:2505.12044) or as a matrix.

Score (m, n) is scale q[m] . k[n] + bias[m, n]. With factors, bias = pq pk^T is a second product of the tile that shares the
first one's accumulator: the matrix is neither stored nor read. A mask stays a mask: folded into the factors a causal
mask would have full rank. Cascade `one_pass` with the fragment `low_rank` or `dense_bias`.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a Triton kernel's arguments have no Python types)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from einsight.kernels.attention import DTYPES, check_inputs, check_outputs, forward_pass, own_scale
from einsight.kernels.attention_backward import gradients, row_delta
from einsight.kernels.attention_forward import forward as forward  # what `forward_pass` launches: the source hash finds it here
from einsight.kernels.attention_gradients import row_sums, slopes
from einsight.kernels.attention_launch import Bias, Pass, Setting, meta, options, strides, variant
from einsight.kernels.attention_tiles import load_rows, sequence
from einsight.kernels.band import Band, band
from einsight.kernels.spaces import RANKS, Config, padded_rank
from einsight.kernels.tiles import seen_in_band, tile_range


@triton.jit
def _grad_matrix(q_ptr, k_ptr, v_ptr, bias_ptr, dout_ptr, lse_ptr, delta_ptr, lengths_q_ptr, lengths_k_ptr, dbias_ptr,
                 stride_qb, stride_qh, stride_qm, stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn,
                 stride_pb, stride_ph, stride_pm, stride_gb, stride_gh, stride_gm, OWN_B, OWN_H, B, H, J, M, N, left,
                 right, scale_log2, inverse_scale, V: tl.constexpr):  # fmt: skip
    """One tile of the matrix's gradient [OWN_B, OWN_H, M, N]: dS summed over the batch elements and heads that share it."""
    key_blocks, row_blocks = tl.cdiv(N, V.BLOCK_N), tl.cdiv(M, V.BLOCK_M)
    tile = tl.program_id(0) % (key_blocks * row_blocks)
    own = tl.program_id(0) // (key_blocks * row_blocks)
    first_row, first_key = tile // key_blocks * V.BLOCK_M, tile % key_blocks * V.BLOCK_N
    row, key = first_row + tl.arange(0, V.BLOCK_M), first_key + tl.arange(0, V.BLOCK_N)
    rows, keys = row.to(tl.int64), key.to(tl.int64)
    share_b, share_h = B // OWN_B, H // OWN_H  # each 1 or all of them
    total = tl.zeros([V.BLOCK_M, V.BLOCK_N], dtype=tl.float32)
    for shared in tl.range(0, share_b * share_h, num_stages=1):
        b, h = own // OWN_H * share_b + shared // share_h, own % OWN_H * share_h + shared % share_h
        _, _, used_m, used_n = sequence(b, lengths_q_ptr, lengths_k_ptr, M, N, V)
        shift = used_n - used_m if V.ALIGN_LAST else 0
        _, _, _, end = tile_range(first_row + shift, first_row + V.BLOCK_M - 1 + shift, used_n, left, right, 1, False,
                                  V.HAS_RIGHT)  # fmt: skip
        visible = (first_row < used_m) & (first_key < end)
        if V.HAS_LEFT:
            visible = visible & (first_key + V.BLOCK_N - 1 + left >= first_row + shift)
        if visible:
            b64, h64 = b.to(tl.int64), h.to(tl.int64)
            used = key < used_n
            q = load_rows(q_ptr + b64 * stride_qb + h64 * stride_qh, rows, stride_qm, row < M, V.E, V.BLOCK_E, True)
            dout = load_rows(dout_ptr + b64 * stride_gb + h64 * stride_gh, rows, stride_gm, row < M, V.F, V.BLOCK_F, True)
            k = load_rows(k_ptr + b64 * stride_kb + (h64 // J) * stride_kg, keys, stride_kn, used, V.E, V.BLOCK_E, True)
            v = load_rows(v_ptr + b64 * stride_vb + (h64 // J) * stride_vg, keys, stride_vn, used, V.F, V.BLOCK_F, True)
            lse, delta = row_sums(lse_ptr, delta_ptr, (b64 * H + h64) * M + row, row < M, True)
            inside = (row < M)[:, None] & used[None, :]
            bias = tl.load(bias_ptr + b64 * stride_pb + h64 * stride_ph + rows[:, None] * stride_pm + keys[None, :],
                           mask=inside, other=0.0)  # fmt: skip
            score = tl.dot(q, tl.trans(k), bias.to(tl.float32) * inverse_scale)
            seen = seen_in_band(key[None, :], (row + shift)[:, None], used_n, left, right, V.HAS_LEFT, V.HAS_RIGHT)
            score = tl.where(seen, score, -float("inf"))
            dp = tl.dot(dout, tl.trans(v))
            _, slope = slopes(score, dp, lse[:, None], delta[:, None], scale_log2, 0.0, False)
            total += slope
    at = dbias_ptr + own.to(tl.int64) * M * N + rows[:, None] * N + keys[None, :]
    tl.store(at, total.to(dbias_ptr.dtype.element_ty), mask=(row < M)[:, None] & (key < N)[None, :])


def flashbias(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pq: Tensor,
    pk: Tensor,
    *,
    causal: bool = False,
    window: int | tuple[int | None, int | None] | None = None,
    align: str = "last",
    scale: float | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
    config: Config | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention whose scores are scale q . k + pq . pk; everything else as `attention`.

    pq [B or 1, H or 1, M, R], pk [B or 1, H or 1, N, R]: factors of the bias, one per query head or shared. R is at
    most 128 and costs what 16, 32, 64 or 128 cost: pad once with `pad_rank`, or let every call do it. float16 and
    bfloat16 in any pairing with q: positions beyond 256 need float16 (or two columns each) to stay exact.

    Returns (output [B, H, M, F], log-sum-exp [B, H, M]). Raises ValueError or TypeError that name the argument.
    """
    bias = widen(q, k, check_factors(q, k, pq, pk))
    return _run(q, k, v, bias, band(causal, window, align), scale, lengths_q, lengths_k, config, out, lse)


def attention_with_bias(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    causal: bool = False,
    window: int | tuple[int | None, int | None] | None = None,
    align: str = "last",
    scale: float | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
    config: Config | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention with scores scale q . k + bias; bias [B or 1, H or 1, M, N] is read once per tile and head.

    bias   float16, bfloat16 or float32, last dimension contiguous; minus infinity hides a key. Else as `flashbias`.
    """
    wide = widen(q, k, check_matrix(q, k, bias))
    return _run(q, k, v, wide, band(causal, window, align), scale, lengths_q, lengths_k, config, out, lse)


def pad_rank(factor: Tensor) -> Tensor:
    """A factor [..., R] with zero columns up to the next of 16, 32, 64, 128: what the kernel's tiles hold."""
    rank = factor.shape[-1]
    wide = padded_rank(rank)
    padded = factor if wide == rank else torch.nn.functional.pad(factor, (0, wide - rank))
    return padded if padded.stride(-1) == 1 else padded.contiguous()


def check_factors(q: Tensor, k: Tensor, pq: Tensor, pk: Tensor) -> Bias:
    """The factors, padded; raises ValueError or TypeError that name what is wrong with them."""
    for name, x, length in (("pq", pq, q.shape[-2]), ("pk", pk, k.shape[-2])):
        _check_outer(name, x, q, length)
        if x.dtype not in DTYPES:
            raise TypeError(f"{name}: got {x.dtype}, expected torch.float16 or torch.bfloat16; convert with .to(...)")
        if not 1 <= x.shape[3] <= RANKS[-1]:
            raise ValueError(f"{name}: got rank {x.shape[3]}, expected 1 to {RANKS[-1]}; beyond it use `attention_with_bias`")
    if pq.shape[3] != pk.shape[3] or pq.dtype != pk.dtype:
        raise ValueError(
            f"pk: got rank {pk.shape[3]} in {pk.dtype}, expected rank {pq.shape[3]} in {pq.dtype} to match pq"
        )
    return Bias(pad_rank(pq), pad_rank(pk))


def check_matrix(q: Tensor, k: Tensor, bias: Tensor) -> Bias:
    _check_outer("bias", bias, q, q.shape[-2])
    if bias.shape[3] != k.shape[-2]:
        raise ValueError(f"bias: got shape {list(bias.shape)}, expected [B or 1, H or 1, {q.shape[-2]}, {k.shape[-2]}]")
    if bias.dtype not in (*DTYPES, torch.float32):
        raise TypeError(f"bias: got {bias.dtype}, expected torch.float16, torch.bfloat16 or torch.float32")
    if bias.shape[3] > 1 and bias.stride(3) != 1:
        raise ValueError(f"bias: got strides {bias.stride()}, expected 1 in the last dimension; use .contiguous()")
    return Bias(bias)


def _check_outer(name: str, x: Tensor, q: Tensor, length: int) -> None:
    form = f"[{q.shape[0]} or 1, {q.shape[1]} or 1, {length}, ...]"
    fits = x.dim() == 4 and x.shape[0] in (1, q.shape[0]) and x.shape[1] in (1, q.shape[1]) and x.shape[2] == length
    if not fits:
        raise ValueError(f"{name}: got shape {list(x.shape)}, expected {form}")
    if x.device != q.device:
        raise ValueError(f"{name}: got a tensor on {x.device}, expected {q.device} as q")


def widen(q: Tensor, k: Tensor, bias: Bias) -> Bias:
    """Factors or matrix seen for every batch element and head, without a copy."""
    def view(x: Tensor) -> Tensor:
        return x.expand(q.shape[0], q.shape[1], -1, -1)

    return Bias(view(bias.first), None if bias.second is None else view(bias.second))


def _run(q: Tensor, k: Tensor, v: Tensor, bias: Bias, mask: Band, scale: float | None, lengths_q: Tensor | None,
         lengths_k: Tensor | None, config: Config | None, out: Tensor | None,
         lse: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_inputs(q, k, v, scale, None, None, lengths_q, lengths_k)
    shape = (*q.shape[:3], v.shape[3])
    out = torch.empty(shape, dtype=q.dtype, device=q.device) if out is None else out
    lse = torch.empty(shape[:3], dtype=torch.float32, device=q.device) if lse is None else lse
    check_outputs(out, lse, shape, q)
    setting = Setting(mask, own_scale(q, scale), None, lengths_q, lengths_k)
    forward_pass(q, k, v, setting, config, out, lse, bias=bias).run()
    return out, lse


def flashbias_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, pq: Tensor, pk: Tensor, out: Tensor, lse: Tensor,
                       setting: Setting, *, dlse: Tensor | None = None, config: Config | None = None,
                       wants_bias: bool = True) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients (dq, dk, dv, dpq, dpk) of `flashbias`, the factors' in the shapes in which they were given, None unless
    wanted.

    A factor shared by batch elements or heads gets the sum over them (in float32, in a fixed order).
    """
    bias = widen(q, k, check_factors(q, k, pq, pk))
    delta = row_delta(out, dout, dlse)
    dq, dk, dv, dpq, dpk = gradients(dout, q, k, v, lse, delta, setting, bias, config)
    if dpq is None or dpk is None or not wants_bias:
        return dq, dk, dv, None, None
    return dq, dk, dv, _shared_sum(dpq, pq), _shared_sum(dpk, pk)


def bias_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor,
                  setting: Setting, *, dlse: Tensor | None = None, config: Config | None = None,
                  wants_bias: bool = True) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients (dq, dk, dv, dbias) of `attention_with_bias`; dbias in the bias's shape and dtype, None unless wanted."""
    wide = widen(q, k, check_matrix(q, k, bias))
    delta = row_delta(out, dout, dlse)
    dq, dk, dv, _, _ = gradients(dout, q, k, v, lse, delta, setting, wide, config)
    if not wants_bias:
        return dq, dk, dv, None
    dbias = torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    matrix_pass(dout, q, k, v, wide.first, lse, delta, setting, dbias).run()
    return dq, dk, dv, dbias


def matrix_pass(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, wide: Tensor, lse: Tensor, delta: Tensor,
                setting: Setting, dbias: Tensor) -> Pass:  # fmt: skip
    """The launch that fills `dbias`, the gradient of the matrix that `wide` shows to every batch element and head."""
    (B, H, M, E), (G, N), F = q.shape, k.shape[1:3], v.shape[3]
    config = Config(64, 32 if max(E, F) > 128 else 64, 4, 1)
    arguments = (
        q, k, v, wide, dout, lse, delta, setting.lengths_q, setting.lengths_k, dbias, *strides(q, k, v, wide, dout),
        *dbias.shape[:2], B, H, H // G, M, N, *setting.sides(M, N), setting.log2_scales[0], 1.0 / setting.scale,
    )  # fmt: skip
    programs = dbias.shape[0] * dbias.shape[1] * triton.cdiv(M, config.block_m) * triton.cdiv(N, config.block_n)
    return Pass(_grad_matrix, programs, arguments, {"V": variant(setting, config, E, F)}, options(config))


def _shared_sum(wide: Tensor, factor: Tensor) -> Tensor:
    """A factor's gradient [B, H, length, BLOCK_R] in the factor's own shape: summed where shared, columns cut off."""
    shared = [i for i in (0, 1) if factor.shape[i] != wide.shape[i]]
    summed = wide.sum(shared, keepdim=True) if shared else wide
    result: Tensor = summed[..., : factor.shape[3]].to(factor.dtype)
    return result.contiguous()


def compile_named(sizes: list[int], dtype: str, mask: dict[str, Any], config: list[int], *, rank: int = 0,
                  bias_dtype: str | None = None) -> Any:  # fmt: skip
    """Compile the forward kernel as it would be launched on aligned tensors, from plain values; rank 0: a matrix.

    sizes = (B, H, G, M, N, E, F). The target is that of Triton's active driver.
    """
    B, H, G, M, N, E, F = sizes
    kind: torch.dtype = getattr(torch, dtype)
    of_bias: torch.dtype = getattr(torch, bias_dtype or dtype)
    q, k, v, out = (meta(*shape, kind=kind) for shape in ((B, H, M, E), (B, G, N, E), (B, G, N, F), (B, H, M, F)))
    if rank:
        wide = padded_rank(rank)
        bias = Bias(meta(B, H, M, wide, kind=of_bias), meta(B, H, N, wide, kind=of_bias))
    else:
        bias = Bias(meta(B, H, M, N, kind=of_bias))
    lse = meta(B, H, M, kind=torch.float32)
    setting = Setting(Band(**mask), own_scale(q, None))
    return forward_pass(q, k, v, setting, Config(*config), out, lse, bias=bias).compile()
