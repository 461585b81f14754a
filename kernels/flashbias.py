"""Fused attention with an additive bias in Triton: as low-rank factors (FlashBias, arXiv:2505.12044) or as a matrix.

Score (m, n) is scale q[m] . k[n] + bias[m, n]. With factors, bias = pq pk^T is a second product of the tile that shares the
first one's accumulator: the matrix is neither stored nor read. A mask stays a mask: folded into the factors a causal
mask would have full rank. Cascade `one_pass` with the fragment `low_rank` or `dense_bias`.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a Triton kernel's arguments have no Python types)

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from einsight.kernels.attention import DTYPES, LOG2_E, check_inputs, check_outputs
from einsight.kernels.attention_backward import (
    FACTORS,
    Bias,
    Pass,
    Setting,
    gradients,
    load_rows,
    row_delta,
    row_sums,
    slopes,
)
from einsight.kernels.band import Band, band
from einsight.kernels.spaces import RANKS, Config, default_bias_config, padded_rank
from einsight.kernels.tiles import seen_in_band, tile_range


@triton.jit
def _walk(acc, top, total, q, pq, k_tile, v_tile, pk_tile, stride_kn, stride_vn, stride_cn, lo, hi, used_n, diagonal,
          left, right, scale_log2, inverse_scale, E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr,
          BLOCK_F: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BORDER: tl.constexpr,
          HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """Take the key tiles lo .. hi into the running maximum (log 2), sum and unnormalised output."""
    offs_n = tl.arange(0, BLOCK_N)
    for start in tl.range(lo, hi, BLOCK_N):
        key = start + offs_n
        used = key < used_n
        k = load_rows(k_tile, offs_n, stride_kn, used, E, BLOCK_E, BORDER)
        # The bias is divided by the scale and opens the accumulator: one multiplication a score, no second tile.
        if BIAS == 1:
            pk = load_rows(pk_tile, offs_n, stride_cn, used, BLOCK_R, BLOCK_R, BORDER)
            score = tl.dot(pq, tl.trans(pk)) * inverse_scale
        else:
            at_bias = pk_tile + offs_n[None, :]
            bias = tl.load(at_bias, mask=used[None, :], other=0.0) if BORDER else tl.load(at_bias)
            score = bias.to(tl.float32) * inverse_scale
        score = tl.dot(q, tl.trans(k), score)
        if BORDER:
            seen = seen_in_band(key[None, :], diagonal[:, None], used_n, left, right, HAS_LEFT, HAS_RIGHT)
            score = tl.where(seen, score, -float("inf"))
        new_top = tl.maximum(top, tl.max(score, 1) * scale_log2)
        base = new_top
        if BORDER or BIAS == 2:  # a row that has seen no key yet, or only biases of minus infinity
            base = tl.where(new_top == -float("inf"), 0.0, new_top)
        weight = tl.exp2(score * scale_log2 - base[:, None])
        decay = tl.exp2(top - base)
        total = total * decay + tl.sum(weight, 1)
        v = load_rows(v_tile, offs_n, stride_vn, used, F, BLOCK_F, BORDER)
        acc = tl.dot(weight.to(v.dtype), v, acc * decay[:, None])
        top = new_top
        k_tile += BLOCK_N * stride_kn
        v_tile += BLOCK_N * stride_vn
        pk_tile += BLOCK_N * stride_cn
    return acc, top, total, k_tile, v_tile, pk_tile


@triton.jit
def _forward(q_ptr, k_ptr, v_ptr, pq_ptr, pk_ptr, lengths_q_ptr, lengths_k_ptr, out_ptr, lse_ptr, stride_qb, stride_qh,
             stride_qm, stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn, stride_pb, stride_ph,
             stride_pm, stride_cb, stride_ch, stride_cn, stride_ob, stride_oh, stride_om, H, J, M, N, left, right,
             scale_log2, inverse_scale, E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr,
             BLOCK_F: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
             ALIGN_LAST: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_LENGTHS_Q: tl.constexpr,
             HAS_LENGTHS_K: tl.constexpr, WHOLE_TILES: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """One block of queries of one head. BIAS 1: factors pq, pk; 2: pq_ptr is the matrix [B, H, M, N]."""
    row_blocks = tl.cdiv(M, BLOCK_M)
    row_block = tl.program_id(0) % row_blocks
    if HAS_RIGHT:  # later rows see more keys: start them first
        row_block = row_blocks - 1 - row_block
    bh = tl.program_id(0) // row_blocks
    b, h = bh // H, bh % H
    used_m = tl.load(lengths_q_ptr + b) if HAS_LENGTHS_Q else M
    used_n = tl.load(lengths_k_ptr + b) if HAS_LENGTHS_K else N
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    first_row = row_block * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    last_row = tl.minimum(first_row + BLOCK_M, used_m) - 1
    shift = used_n - used_m if ALIGN_LAST else 0
    seen_n = tl.where(first_row < used_m, used_n, 0)
    begin, inner_begin, inner_end, end = tile_range(
        first_row + shift, last_row + shift, seen_n, left, right, BLOCK_N, HAS_LEFT, HAS_RIGHT)  # fmt: skip

    inside, rows, begin64 = row < M, row.to(tl.int64), begin.to(tl.int64)
    q = load_rows(q_ptr + b64 * stride_qb + h64 * stride_qh, rows, stride_qm, inside, E, BLOCK_E, True)
    k_tile = k_ptr + b64 * stride_kb + (h64 // J) * stride_kg + begin64 * stride_kn
    v_tile = v_ptr + b64 * stride_vb + (h64 // J) * stride_vg + begin64 * stride_vn
    bias_head = pq_ptr + b64 * stride_pb + h64 * stride_ph
    if BIAS == 1:
        pq = load_rows(bias_head, rows, stride_pm, inside, BLOCK_R, BLOCK_R, True)
        pk_tile = pk_ptr + b64 * stride_cb + h64 * stride_ch + begin64 * stride_cn
    else:  # rows beyond M read row M - 1: what they see is not stored
        pq = q
        pk_tile = bias_head + tl.minimum(rows, M - 1)[:, None] * stride_pm + begin64

    acc = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    diagonal = row + shift
    if HAS_LEFT:
        acc, top, total, k_tile, v_tile, pk_tile = _walk(
            acc, top, total, q, pq, k_tile, v_tile, pk_tile, stride_kn, stride_vn, stride_cn, begin, inner_begin, used_n,
            diagonal, left, right, scale_log2, inverse_scale, E, F, BLOCK_E, BLOCK_F, BLOCK_R, BLOCK_N, True, HAS_LEFT,
            HAS_RIGHT, BIAS)  # fmt: skip
    acc, top, total, k_tile, v_tile, pk_tile = _walk(
        acc, top, total, q, pq, k_tile, v_tile, pk_tile, stride_kn, stride_vn, stride_cn, inner_begin, inner_end, used_n,
        diagonal, left, right, scale_log2, inverse_scale, E, F, BLOCK_E, BLOCK_F, BLOCK_R, BLOCK_N, False, HAS_LEFT,
        HAS_RIGHT, BIAS)  # fmt: skip
    if HAS_LEFT or HAS_RIGHT or not WHOLE_TILES:
        acc, top, total, k_tile, v_tile, pk_tile = _walk(
            acc, top, total, q, pq, k_tile, v_tile, pk_tile, stride_kn, stride_vn, stride_cn, inner_end, end, used_n,
            diagonal, left, right, scale_log2, inverse_scale, E, F, BLOCK_E, BLOCK_F, BLOCK_R, BLOCK_N, True, HAS_LEFT,
            HAS_RIGHT, BIAS)  # fmt: skip

    some = (total > 0.0) & (row < used_m)
    out = tl.where(some[:, None], acc / tl.where(some, total, 1.0)[:, None], 0.0)
    natural = (top + tl.log2(tl.where(some, total, 1.0))) * 0.6931471805599453  # ln(2)
    offs_f = tl.arange(0, BLOCK_F)
    out_rows = out_ptr + b64 * stride_ob + h64 * stride_oh + rows[:, None] * stride_om
    tl.store(out_rows + offs_f[None, :], out.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (offs_f < F)[None, :])
    tl.store(lse_ptr + bh.to(tl.int64) * M + row, tl.where(some, natural, -float("inf")), mask=inside)


@triton.jit
def _grad_matrix(q_ptr, k_ptr, v_ptr, bias_ptr, dout_ptr, lse_ptr, delta_ptr, lengths_q_ptr, lengths_k_ptr, dbias_ptr,
                 stride_qb, stride_qh, stride_qm, stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn,
                 stride_gb, stride_gh, stride_gm, stride_pb, stride_ph, stride_pm, OWN_B, OWN_H, B, H, J, M, N, left,
                 right, scale_log2, inverse_scale, E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr,
                 BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ALIGN_LAST: tl.constexpr,
                 HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_LENGTHS_Q: tl.constexpr,
                 HAS_LENGTHS_K: tl.constexpr):  # fmt: skip
    """One tile of the matrix's gradient [OWN_B, OWN_H, M, N]: dS summed over the batch elements and heads that share it."""
    key_blocks, row_blocks = tl.cdiv(N, BLOCK_N), tl.cdiv(M, BLOCK_M)
    tile = tl.program_id(0) % (key_blocks * row_blocks)
    own = tl.program_id(0) // (key_blocks * row_blocks)
    first_row, first_key = tile // key_blocks * BLOCK_M, tile % key_blocks * BLOCK_N
    row, key = first_row + tl.arange(0, BLOCK_M), first_key + tl.arange(0, BLOCK_N)
    rows, keys = row.to(tl.int64), key.to(tl.int64)
    share_b, share_h = B // OWN_B, H // OWN_H  # each 1 or all of them
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for shared in tl.range(0, share_b * share_h, num_stages=1):
        b, h = own // OWN_H * share_b + shared // share_h, own % OWN_H * share_h + shared % share_h
        used_m = tl.load(lengths_q_ptr + b) if HAS_LENGTHS_Q else M
        used_n = tl.load(lengths_k_ptr + b) if HAS_LENGTHS_K else N
        shift = used_n - used_m if ALIGN_LAST else 0
        _, _, _, end = tile_range(first_row + shift, first_row + BLOCK_M - 1 + shift, used_n, left, right, 1, False,
                                  HAS_RIGHT)  # fmt: skip
        visible = (first_row < used_m) & (first_key < end)
        if HAS_LEFT:
            visible = visible & (first_key + BLOCK_N - 1 + left >= first_row + shift)
        if visible:
            b64, h64 = b.to(tl.int64), h.to(tl.int64)
            used = key < used_n
            q = load_rows(q_ptr + b64 * stride_qb + h64 * stride_qh, rows, stride_qm, row < M, E, BLOCK_E, True)
            dout = load_rows(dout_ptr + b64 * stride_gb + h64 * stride_gh, rows, stride_gm, row < M, F, BLOCK_F, True)
            k = load_rows(k_ptr + b64 * stride_kb + (h64 // J) * stride_kg, keys, stride_kn, used, E, BLOCK_E, True)
            v = load_rows(v_ptr + b64 * stride_vb + (h64 // J) * stride_vg, keys, stride_vn, used, F, BLOCK_F, True)
            lse, delta = row_sums(lse_ptr, delta_ptr, (b64 * H + h64) * M + row, row < M, True)
            inside = (row < M)[:, None] & used[None, :]
            bias = tl.load(bias_ptr + b64 * stride_pb + h64 * stride_ph + rows[:, None] * stride_pm + keys[None, :],
                           mask=inside, other=0.0)  # fmt: skip
            score = tl.dot(q, tl.trans(k), bias.to(tl.float32) * inverse_scale)
            seen = seen_in_band(key[None, :], (row + shift)[:, None], used_n, left, right, HAS_LEFT, HAS_RIGHT)
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
    scale = 1.0 / math.sqrt(q.shape[3]) if scale is None else scale
    setting = Setting(mask, scale, None, lengths_q, lengths_k)
    forward_pass(q, k, v, bias, setting, config, out, lse).run()
    return out, lse


def forward_pass(q: Tensor, k: Tensor, v: Tensor, bias: Bias, setting: Setting, config: Config | None, out: Tensor,
                 lse: Tensor) -> Pass:  # fmt: skip
    """The launch that fills `out` and `lse`."""
    (B, H, M, E), (G, N), F = q.shape, k.shape[1:3], v.shape[3]
    rank = bias.first.shape[3] if bias.kind == FACTORS else 16
    config = config or default_bias_config(E, F)
    mask = setting.mask
    left, right = (min(side or 0, M + N) for side in (mask.left, mask.right))
    second_strides = bias.second.stride()[:3] if bias.second is not None else (0, 0, 1)  # a matrix: a column per key
    arguments = (
        q, k, v, bias.first, bias.second, setting.lengths_q, setting.lengths_k, out, lse, *q.stride()[:3],
        *k.stride()[:3], *v.stride()[:3], *bias.first.stride()[:3], *second_strides, *out.stride()[:3], H, H // G, M, N,
        left, right, setting.scale * LOG2_E, 1.0 / setting.scale,
    )  # fmt: skip
    flags = {
        "E": E, "F": F, "BLOCK_E": triton.next_power_of_2(E), "BLOCK_F": triton.next_power_of_2(F), "BLOCK_R": rank,
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "ALIGN_LAST": mask.align == "last",
        "HAS_LEFT": mask.left is not None, "HAS_RIGHT": mask.right is not None,
        "HAS_LENGTHS_Q": setting.lengths_q is not None, "HAS_LENGTHS_K": setting.lengths_k is not None,
        "WHOLE_TILES": N % config.block_n == 0 and setting.lengths_k is None, "BIAS": bias.kind,
    }  # fmt: skip
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    return Pass(_forward, B * H * triton.cdiv(M, config.block_m), arguments, flags, options)


def flashbias_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, pq: Tensor, pk: Tensor, out: Tensor, lse: Tensor,
                       setting: Setting, *, dlse: Tensor | None = None,
                       config: Config | None = None) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients (dq, dk, dv, dpq, dpk) of `flashbias`, the factors' in the shapes in which they were given.

    A factor shared by batch elements or heads gets the sum over them (in float32, in a fixed order).
    """
    bias = widen(q, k, check_factors(q, k, pq, pk))
    delta = row_delta(out, dout, dlse)
    dq, dk, dv, dpq, dpk = gradients(dout, q, k, v, lse, delta, setting, bias, config)
    assert dpq is not None and dpk is not None
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
    block_m, block_n = 64, 32 if max(E, F) > 128 else 64
    mask = setting.mask
    left, right = (min(side or 0, M + N) for side in (mask.left, mask.right))
    arguments = (
        q, k, v, wide, dout, lse, delta, setting.lengths_q, setting.lengths_k, dbias, *q.stride()[:3], *k.stride()[:3],
        *v.stride()[:3], *dout.stride()[:3], *wide.stride()[:3], *dbias.shape[:2], B, H, H // G, M, N, left, right,
        setting.scale * LOG2_E, 1.0 / setting.scale,
    )  # fmt: skip
    flags = {
        "E": E, "F": F, "BLOCK_E": triton.next_power_of_2(E), "BLOCK_F": triton.next_power_of_2(F), "BLOCK_M": block_m,
        "BLOCK_N": block_n, "ALIGN_LAST": mask.align == "last", "HAS_LEFT": mask.left is not None,
        "HAS_RIGHT": mask.right is not None, "HAS_LENGTHS_Q": setting.lengths_q is not None,
        "HAS_LENGTHS_K": setting.lengths_k is not None,
    }  # fmt: skip
    programs = dbias.shape[0] * dbias.shape[1] * triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
    options = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
    return Pass(_grad_matrix, programs, arguments, flags, options)


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
    element: torch.dtype = getattr(torch, dtype)

    def meta(*shape: int, kind: torch.dtype = element) -> Tensor:
        return torch.empty(*shape, dtype=kind, device="meta")

    q, k, v, out = meta(B, H, M, E), meta(B, G, N, E), meta(B, G, N, F), meta(B, H, M, F)
    lse = meta(B, H, M, kind=torch.float32)
    of_bias: torch.dtype = getattr(torch, bias_dtype or dtype)
    if rank:
        wide = padded_rank(rank)
        bias = Bias(meta(B, H, M, wide, kind=of_bias), meta(B, H, N, wide, kind=of_bias))
    else:
        bias = Bias(meta(B, H, M, N, kind=of_bias))
    setting = Setting(Band(**mask), 1.0 / math.sqrt(E))
    launch = forward_pass(q, k, v, bias, setting, Config(*config), out, lse)
    return launch.compile()
