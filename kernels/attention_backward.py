"""Backward of fused attention in Triton, by recomputing the weights (FlashAttention-2, arXiv:2307.08691, algorithm 2).

Two kernels walk the same tiles from either side: one holds a block of queries and sums dQ over the keys, one holds a
block of keys and sums dK and dV over the queries of every head that reads them. Nothing is added to memory by more than
one program, so that the gradients are the same in every run. A bias, as factors or as a matrix, is part of the score in
both; its gradient is dS itself (`BIAS`: 0 none, 1 factors, 2 matrix; see `flashbias`).
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a Triton kernel's arguments have no Python types)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from einsight.kernels.band import Band
from einsight.kernels.spaces import Config, default_backward_config
from einsight.kernels.tiles import seen_in_band, tile_range

LOG2_E = math.log2(math.e)
NONE, FACTORS, MATRIX = 0, 1, 2


@triton.jit
def _delta(out_ptr, dout_ptr, dlse_ptr, delta_ptr, stride_ob, stride_oh, stride_om, stride_gb, stride_gh, stride_gm,
           H, M, F: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr, HAS_DLSE: tl.constexpr):  # fmt: skip
    """delta[m] = sum over f of out * dout, less the gradient of the log-sum-exp: what dS subtracts from dP in a row."""
    blocks = tl.cdiv(M, BLOCK_M)
    bh = tl.program_id(0) // blocks
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    row = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_f = tl.arange(0, BLOCK_F)
    inside = (row < M)[:, None] & (offs_f < F)[None, :]
    rows = row[:, None].to(tl.int64)
    o = tl.load(out_ptr + b * stride_ob + h * stride_oh + rows * stride_om + offs_f[None, :], mask=inside, other=0.0)
    g = tl.load(dout_ptr + b * stride_gb + h * stride_gh + rows * stride_gm + offs_f[None, :], mask=inside, other=0.0)
    delta = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    at = bh.to(tl.int64) * M + row
    if HAS_DLSE:
        delta -= tl.load(dlse_ptr + at, mask=row < M, other=0.0)
    tl.store(delta_ptr + at, delta, mask=row < M)


@triton.jit
def load_rows(tile, rows, stride, used, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BORDER: tl.constexpr):
    """Rows of a matrix, BLOCK wide; zeros beyond WIDTH and, with BORDER, where `used` is False."""
    column = tl.arange(0, BLOCK)
    at = tile + rows[:, None] * stride + column[None, :]
    if BORDER:
        return tl.load(at, mask=used[:, None] & (column < WIDTH)[None, :], other=0.0)
    elif WIDTH < BLOCK:
        return tl.load(at, mask=(column < WIDTH)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def row_sums(lse_ptr, delta_ptr, at, used, BORDER: tl.constexpr):
    """(log-sum-exp in units of log 2, delta) of rows; plus infinity where a row saw no key: its weights become 0."""
    if BORDER:
        lse = tl.load(lse_ptr + at, mask=used, other=-float("inf"))
        delta = tl.load(delta_ptr + at, mask=used, other=0.0)
    else:
        lse, delta = tl.load(lse_ptr + at), tl.load(delta_ptr + at)
    return tl.where(lse == -float("inf"), float("inf"), lse * 1.4426950408889634), delta  # log2(e)


@triton.jit
def slopes(score, dp, lse, delta, scale_log2, cap_log2, HAS_CAP: tl.constexpr):
    """(weights, gradient of the scores before the cap) of a tile from its raw scores; lse and delta broadcast."""
    if HAS_CAP:
        bent = 1.0 - 2.0 / (1.0 + tl.exp2(score * scale_log2))  # tanh(score / cap)
        weight = tl.where(score == -float("inf"), 0.0, tl.exp2(cap_log2 * bent - lse))  # a cap would lift the mask
        slope = weight * (dp - delta) * (1.0 - bent * bent)
    else:
        weight = tl.exp2(score * scale_log2 - lse)
        slope = weight * (dp - delta)
    return weight, slope


@triton.jit
def _walk_keys(dq, dpq, q, dout, pq, lse, delta, k_tile, v_tile, pk_tile, stride_kn, stride_vn, stride_cn, lo, hi,
               used_n, diagonal, left, right, scale_log2, cap_log2, inverse_scale, E: tl.constexpr, F: tl.constexpr,
               BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
               BORDER: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_CAP: tl.constexpr,
               BIAS: tl.constexpr):  # fmt: skip
    """Add what the key tiles lo .. hi give to dQ (and dPQ); the pointers stand at key lo and are returned at hi."""
    offs_n = tl.arange(0, BLOCK_N)
    for start in tl.range(lo, hi, BLOCK_N):
        key = start + offs_n
        used = key < used_n
        k = load_rows(k_tile, offs_n, stride_kn, used, E, BLOCK_E, BORDER)
        v = load_rows(v_tile, offs_n, stride_vn, used, F, BLOCK_F, BORDER)
        if BIAS == 1:
            pk = load_rows(pk_tile, offs_n, stride_cn, used, BLOCK_R, BLOCK_R, BORDER)
            score = tl.dot(q, tl.trans(k), tl.dot(pq, tl.trans(pk)) * inverse_scale)
        elif BIAS == 2:
            at_bias = pk_tile + offs_n[None, :]
            bias = tl.load(at_bias, mask=used[None, :], other=0.0) if BORDER else tl.load(at_bias)
            score = tl.dot(q, tl.trans(k), bias.to(tl.float32) * inverse_scale)
        else:
            score = tl.dot(q, tl.trans(k))
        if BORDER:
            seen = seen_in_band(key[None, :], diagonal[:, None], used_n, left, right, HAS_LEFT, HAS_RIGHT)
            score = tl.where(seen, score, -float("inf"))
        dp = tl.dot(dout, tl.trans(v))
        _, slope = slopes(score, dp, lse[:, None], delta[:, None], scale_log2, cap_log2, HAS_CAP)
        dq = tl.dot(slope.to(k.dtype), k, dq)
        if BIAS == 1:
            dpq = tl.dot(slope.to(pk.dtype), pk, dpq)
        k_tile += BLOCK_N * stride_kn
        v_tile += BLOCK_N * stride_vn
        pk_tile += BLOCK_N * stride_cn
    return dq, dpq, k_tile, v_tile, pk_tile


@triton.jit
def _grad_queries(q_ptr, k_ptr, v_ptr, pq_ptr, pk_ptr, dout_ptr, lse_ptr, delta_ptr, lengths_q_ptr, lengths_k_ptr,
                  dq_ptr, dpq_ptr, stride_qb, stride_qh, stride_qm, stride_kb, stride_kg, stride_kn, stride_vb,
                  stride_vg, stride_vn, stride_gb, stride_gh, stride_gm, stride_pb, stride_ph, stride_pm, stride_cb,
                  stride_ch, stride_cn, H, J, M, N, left, right, scale, scale_log2, cap_log2, inverse_scale,
                  E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
                  BLOCK_R: tl.constexpr, HELD: tl.constexpr, WALKED: tl.constexpr, ALIGN_LAST: tl.constexpr,
                  HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_CAP: tl.constexpr,
                  HAS_LENGTHS_Q: tl.constexpr, HAS_LENGTHS_K: tl.constexpr, WHOLE_TILES: tl.constexpr,
                  BIAS: tl.constexpr):  # fmt: skip
    """dQ, and dPQ where the bias has factors, of one block of HELD queries of one head."""
    row_blocks = tl.cdiv(M, HELD)
    row_block = tl.program_id(0) % row_blocks
    if HAS_RIGHT:  # later rows see more keys: start them first
        row_block = row_blocks - 1 - row_block
    bh = tl.program_id(0) // row_blocks
    b, h = bh // H, bh % H
    used_m = tl.load(lengths_q_ptr + b) if HAS_LENGTHS_Q else M
    used_n = tl.load(lengths_k_ptr + b) if HAS_LENGTHS_K else N
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    first_row = row_block * HELD
    row = first_row + tl.arange(0, HELD)
    last_row = tl.minimum(first_row + HELD, used_m) - 1
    shift = used_n - used_m if ALIGN_LAST else 0
    seen_n = tl.where(first_row < used_m, used_n, 0)
    begin, inner_begin, inner_end, end = tile_range(
        first_row + shift, last_row + shift, seen_n, left, right, WALKED, HAS_LEFT, HAS_RIGHT)  # fmt: skip

    offs_e, offs_r = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_R)
    inside, rows = row < M, row.to(tl.int64)
    q = load_rows(q_ptr + b64 * stride_qb + h64 * stride_qh, rows, stride_qm, inside, E, BLOCK_E, True)
    dout = load_rows(dout_ptr + b64 * stride_gb + h64 * stride_gh, rows, stride_gm, inside, F, BLOCK_F, True)
    at = bh.to(tl.int64) * M + row
    lse, delta = row_sums(lse_ptr, delta_ptr, at, inside, True)
    begin64 = begin.to(tl.int64)
    k_tile = k_ptr + b64 * stride_kb + (h64 // J) * stride_kg + begin64 * stride_kn
    v_tile = v_ptr + b64 * stride_vb + (h64 // J) * stride_vg + begin64 * stride_vn
    if BIAS == 1:
        pq = load_rows(pq_ptr + b64 * stride_pb + h64 * stride_ph, rows, stride_pm, inside, BLOCK_R, BLOCK_R, True)
        pk_tile = pk_ptr + b64 * stride_cb + h64 * stride_ch + begin64 * stride_cn
    elif BIAS == 2:  # rows beyond M read row M - 1: what they see is not stored
        pq = q
        pk_tile = pq_ptr + b64 * stride_pb + h64 * stride_ph + tl.minimum(rows, M - 1)[:, None] * stride_pm + begin64
    else:
        pq, pk_tile = q, k_tile
    dq = tl.zeros([HELD, BLOCK_E], dtype=tl.float32)
    dpq = tl.zeros([HELD, BLOCK_R], dtype=tl.float32)
    diagonal = row + shift
    if HAS_LEFT:
        dq, dpq, k_tile, v_tile, pk_tile = _walk_keys(
            dq, dpq, q, dout, pq, lse, delta, k_tile, v_tile, pk_tile, stride_kn, stride_vn, stride_cn, begin,
            inner_begin, used_n, diagonal, left, right, scale_log2, cap_log2, inverse_scale, E, F, BLOCK_E, BLOCK_F,
            BLOCK_R, WALKED, True, HAS_LEFT, HAS_RIGHT, HAS_CAP, BIAS)  # fmt: skip
    dq, dpq, k_tile, v_tile, pk_tile = _walk_keys(
        dq, dpq, q, dout, pq, lse, delta, k_tile, v_tile, pk_tile, stride_kn, stride_vn, stride_cn, inner_begin,
        inner_end, used_n, diagonal, left, right, scale_log2, cap_log2, inverse_scale, E, F, BLOCK_E, BLOCK_F,
        BLOCK_R, WALKED, False, HAS_LEFT, HAS_RIGHT, HAS_CAP, BIAS)  # fmt: skip
    if HAS_LEFT or HAS_RIGHT or not WHOLE_TILES:
        dq, dpq, k_tile, v_tile, pk_tile = _walk_keys(
            dq, dpq, q, dout, pq, lse, delta, k_tile, v_tile, pk_tile, stride_kn, stride_vn, stride_cn, inner_end,
            end, used_n, diagonal, left, right, scale_log2, cap_log2, inverse_scale, E, F, BLOCK_E, BLOCK_F,
            BLOCK_R, WALKED, True, HAS_LEFT, HAS_RIGHT, HAS_CAP, BIAS)  # fmt: skip
    tl.store(dq_ptr + at[:, None] * E + offs_e[None, :], (dq * scale).to(dq_ptr.dtype.element_ty),
             mask=inside[:, None] & (offs_e < E)[None, :])  # fmt: skip
    if BIAS == 1:
        tl.store(dpq_ptr + at[:, None] * BLOCK_R + offs_r[None, :], dpq.to(dpq_ptr.dtype.element_ty),
                 mask=inside[:, None])  # fmt: skip


@triton.jit
def _walk_queries(dk, dv, dpk, k, v, pk, q_rows, dout_rows, pq_rows, lse_ptr, delta_ptr, at, stride_qm, stride_gm,
                  stride_pm, lo, hi, used_m, used_n, key, shift, left, right, scale_log2, cap_log2, inverse_scale,
                  E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
                  BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BORDER: tl.constexpr, HAS_LEFT: tl.constexpr,
                  HAS_RIGHT: tl.constexpr, HAS_CAP: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """Add what the query tiles lo .. hi of one head give to dK, dV (and dPK). Tiles stand keys by queries."""
    for start in tl.range(lo, hi, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        rows, used = row.to(tl.int64), row < used_m
        q = load_rows(q_rows, rows, stride_qm, used, E, BLOCK_E, BORDER)
        dout = load_rows(dout_rows, rows, stride_gm, used, F, BLOCK_F, BORDER)
        lse, delta = row_sums(lse_ptr, delta_ptr, at + row, used, BORDER)
        if BIAS == 1:
            pq = load_rows(pq_rows, rows, stride_pm, used, BLOCK_R, BLOCK_R, BORDER)
            score = tl.dot(k, tl.trans(q), tl.dot(pk, tl.trans(pq)) * inverse_scale)
        elif BIAS == 2:  # keys beyond N read key N - 1: what they give is not stored
            at_bias = pq_rows + rows[:, None] * stride_pm + tl.minimum(key, used_n - 1)[None, :]
            bias = tl.load(at_bias, mask=used[:, None], other=0.0) if BORDER else tl.load(at_bias)
            score = tl.dot(k, tl.trans(q), tl.trans(bias).to(tl.float32) * inverse_scale)
        else:
            score = tl.dot(k, tl.trans(q))
        if BORDER:
            seen = seen_in_band(key[:, None], (row + shift)[None, :], used_n, left, right, HAS_LEFT, HAS_RIGHT)
            score = tl.where(seen, score, -float("inf"))
        dp = tl.dot(v, tl.trans(dout))
        weight, slope = slopes(score, dp, lse[None, :], delta[None, :], scale_log2, cap_log2, HAS_CAP)
        dv = tl.dot(weight.to(dout.dtype), dout, dv)
        dk = tl.dot(slope.to(q.dtype), q, dk)
        if BIAS == 1:
            dpk = tl.dot(slope.to(pq.dtype), pq, dpk)
    return dk, dv, dpk


@triton.jit
def _grad_keys(q_ptr, k_ptr, v_ptr, pq_ptr, pk_ptr, dout_ptr, lse_ptr, delta_ptr, lengths_q_ptr, lengths_k_ptr, dk_ptr,
               dv_ptr, dpk_ptr, stride_qb, stride_qh, stride_qm, stride_kb, stride_kg, stride_kn, stride_vb, stride_vg,
               stride_vn, stride_gb, stride_gh, stride_gm, stride_pb, stride_ph, stride_pm, stride_cb, stride_ch,
               stride_cn, H, J, M, N, left, right, scale, scale_log2, cap_log2, inverse_scale, E: tl.constexpr,
               F: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_R: tl.constexpr,
               HELD: tl.constexpr, WALKED: tl.constexpr, ALIGN_LAST: tl.constexpr, HAS_LEFT: tl.constexpr,
               HAS_RIGHT: tl.constexpr, HAS_CAP: tl.constexpr, HAS_LENGTHS_Q: tl.constexpr,
               HAS_LENGTHS_K: tl.constexpr, WHOLE_TILES: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """dK and dV of one block of HELD keys of one KV head, over the J query heads that read it; dPK per query head."""
    key_blocks = tl.cdiv(N, HELD)
    key_block = tl.program_id(0) % key_blocks
    bg = tl.program_id(0) // key_blocks
    G = H // J
    b, g = bg // G, bg % G
    used_m = tl.load(lengths_q_ptr + b) if HAS_LENGTHS_Q else M
    used_n = tl.load(lengths_k_ptr + b) if HAS_LENGTHS_K else N
    b64, g64 = b.to(tl.int64), g.to(tl.int64)
    first_key = key_block * HELD
    key = first_key + tl.arange(0, HELD)
    last_key = tl.minimum(first_key + HELD, used_n) - 1
    shift = used_n - used_m if ALIGN_LAST else 0
    # Query m sees key n when n - right <= m + shift <= n + left: the band with its sides exchanged.
    seen_m = tl.where(first_key < used_n, used_m, 0)
    begin, inner_begin, inner_end, end = tile_range(
        first_key - shift, last_key - shift, seen_m, right, left, WALKED, HAS_RIGHT, HAS_LEFT)  # fmt: skip

    offs_e, offs_f, offs_r = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_R)
    inside, keys, used = key < N, key.to(tl.int64), key < used_n
    k = load_rows(k_ptr + b64 * stride_kb + g64 * stride_kg, keys, stride_kn, used, E, BLOCK_E, True)
    v = load_rows(v_ptr + b64 * stride_vb + g64 * stride_vg, keys, stride_vn, used, F, BLOCK_F, True)
    dk = tl.zeros([HELD, BLOCK_E], dtype=tl.float32)
    dv = tl.zeros([HELD, BLOCK_F], dtype=tl.float32)
    for j in tl.range(0, J, num_stages=1):
        h64 = g64 * J + j
        at = (b64 * H + h64) * M
        q_rows = q_ptr + b64 * stride_qb + h64 * stride_qh
        dout_rows = dout_ptr + b64 * stride_gb + h64 * stride_gh
        pk, pq_rows = k, q_rows
        if BIAS > 0:
            pq_rows = pq_ptr + b64 * stride_pb + h64 * stride_ph
        if BIAS == 1:
            pk = load_rows(pk_ptr + b64 * stride_cb + h64 * stride_ch, keys, stride_cn, used, BLOCK_R, BLOCK_R, True)
        dpk = tl.zeros([HELD, BLOCK_R], dtype=tl.float32)
        if HAS_RIGHT:
            dk, dv, dpk = _walk_queries(
                dk, dv, dpk, k, v, pk, q_rows, dout_rows, pq_rows, lse_ptr, delta_ptr, at, stride_qm, stride_gm,
                stride_pm, begin, inner_begin, used_m, used_n, key, shift, left, right, scale_log2, cap_log2,
                inverse_scale, E, F, BLOCK_E, BLOCK_F, BLOCK_R, WALKED, True, HAS_LEFT, HAS_RIGHT, HAS_CAP,
                BIAS)  # fmt: skip
        dk, dv, dpk = _walk_queries(
            dk, dv, dpk, k, v, pk, q_rows, dout_rows, pq_rows, lse_ptr, delta_ptr, at, stride_qm, stride_gm,
            stride_pm, inner_begin, inner_end, used_m, used_n, key, shift, left, right, scale_log2, cap_log2,
            inverse_scale, E, F, BLOCK_E, BLOCK_F, BLOCK_R, WALKED, False, HAS_LEFT, HAS_RIGHT, HAS_CAP, BIAS)  # fmt: skip
        if HAS_LEFT or HAS_RIGHT or not WHOLE_TILES:
            dk, dv, dpk = _walk_queries(
                dk, dv, dpk, k, v, pk, q_rows, dout_rows, pq_rows, lse_ptr, delta_ptr, at, stride_qm, stride_gm,
                stride_pm, inner_end, end, used_m, used_n, key, shift, left, right, scale_log2, cap_log2,
                inverse_scale, E, F, BLOCK_E, BLOCK_F, BLOCK_R, WALKED, True, HAS_LEFT, HAS_RIGHT, HAS_CAP,
                BIAS)  # fmt: skip
        if BIAS == 1:
            dpk_at = ((b64 * H + h64) * N + key)[:, None] * BLOCK_R + offs_r[None, :]
            dpk = tl.where(used[:, None], dpk, 0.0)
            tl.store(dpk_ptr + dpk_at, dpk.to(dpk_ptr.dtype.element_ty), mask=inside[:, None])
    at_key = (bg.to(tl.int64) * N + key)[:, None]
    dk, dv = tl.where(used[:, None], dk * scale, 0.0), tl.where(used[:, None], dv, 0.0)  # a key that is padding has no gradient
    tl.store(dk_ptr + at_key * E + offs_e[None, :], dk.to(dk_ptr.dtype.element_ty),
             mask=inside[:, None] & (offs_e < E)[None, :])  # fmt: skip
    tl.store(dv_ptr + at_key * F + offs_f[None, :], dv.to(dv_ptr.dtype.element_ty),
             mask=inside[:, None] & (offs_f < F)[None, :])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bias:
    """What is added to the scores, as tensors that broadcasting has already widened to every batch element and head.

    first, second   the factors of queries [B, H, M, BLOCK_R] and keys [B, H, N, BLOCK_R]; or a matrix [B, H, M, N] and
                    None. The last dimension is contiguous, others may have stride 0.
    """

    first: Tensor
    second: Tensor | None = None

    @property
    def kind(self) -> int:
        return MATRIX if self.second is None else FACTORS


@dataclass(frozen=True, slots=True)
class Setting:
    """What forward and backward must agree on, besides the tensors. `scale` is given, not defaulted."""

    mask: Band
    scale: float
    softcap: float | None = None
    lengths_q: Tensor | None = None
    lengths_k: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """One launch: kernel, programs, and what Triton is given."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    flags: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        if self.programs:
            self.kernel[(self.programs,)](*self.arguments, **self.flags, **self.options)

    def compile(self) -> Any:
        """Compile for Triton's active driver as this launch would, with no data; returns Triton's object."""
        arguments = [a.dtype if isinstance(a, Tensor) else a for a in self.arguments]
        return self.kernel.warmup(*arguments, grid=(self.programs,), **self.flags, **self.options)


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
                 it walks over; default: `default_backward_config`

    The same in every run: no two programs add to one number. dsink is float32 [H], None without a sink.
    """
    delta = row_delta(out, dout, dlse)
    dq, dk, dv, _, _ = gradients(dout, q, k, v, lse, delta, setting, None, config)
    if sink is None:
        return dq, dk, dv, None
    # The sink is a key with weight exp(sink - lse) and value 0: its dP is 0.
    weight = torch.exp(sink.float()[None, :, None] - lse).masked_fill(lse == -math.inf, 0.0)
    return dq, dk, dv, -(weight * delta).sum((0, 2))


def row_delta(out: Tensor, dout: Tensor, dlse: Tensor | None) -> Tensor:
    """float32 [B, H, M]: sum over f of out * dout, less dlse."""
    B, H, M, F = out.shape
    delta = torch.empty(B, H, M, dtype=torch.float32, device=out.device)
    block = 64
    dlse = None if dlse is None else dlse.float().contiguous()
    flags = {"F": F, "BLOCK_F": triton.next_power_of_2(F), "BLOCK_M": block, "HAS_DLSE": dlse is not None}
    arguments = (out, dout, dlse, delta, *out.stride()[:3], *dout.stride()[:3], H, M)
    Pass(_delta, B * H * triton.cdiv(M, block), arguments, flags, {"num_warps": 4}).run()
    return delta


def gradients(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, setting: Setting, bias: Bias | None,
    config: Config | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """(dq, dk, dv, gradients of both factors in float32 for every batch element and head, or None, None)."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    factors: tuple[Tensor | None, Tensor | None] = (None, None)
    if bias is not None and bias.second is not None:
        first, second = (torch.empty(x.shape, dtype=torch.float32, device=x.device) for x in (bias.first, bias.second))
        factors = first, second
    for each in passes(dout, q, k, v, lse, delta, setting, bias, config, dq, dk, dv, *factors):
        each.run()
    return dq, dk, dv, *factors


def passes(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, setting: Setting,
           bias: Bias | None, config: Config | None, dq: Tensor, dk: Tensor, dv: Tensor, dpq: Tensor | None,
           dpk: Tensor | None) -> tuple[Pass, Pass]:  # fmt: skip
    """The two launches that fill dq and dpq, then dk, dv and dpk."""
    (B, H, M, E), (G, N), F = q.shape, k.shape[1:3], v.shape[3]
    rank = bias.first.shape[3] if bias is not None and bias.kind == FACTORS else 16
    config = config or default_backward_config(E, F)
    scale_log2, cap_log2 = setting.scale * LOG2_E, 0.0
    if setting.softcap is not None:
        scale_log2, cap_log2 = 2.0 * setting.scale / setting.softcap * LOG2_E, setting.softcap * LOG2_E
    mask = setting.mask
    left, right = (min(side or 0, M + N) for side in (mask.left, mask.right))
    first, second = (None, None) if bias is None else (bias.first, bias.second)
    first_strides = (0, 0, 0) if first is None else first.stride()[:3]
    second_strides = second.stride()[:3] if second is not None else (0, 0, 1)  # a matrix has one column per key
    given = (q, k, v, first, second, dout, lse, delta, setting.lengths_q, setting.lengths_k)
    sizes = (
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dout.stride()[:3], *first_strides, *second_strides, H, H // G,
        M, N, left, right, setting.scale, scale_log2, cap_log2, 1.0 / setting.scale,
    )  # fmt: skip
    flags = {
        "E": E, "F": F, "BLOCK_E": triton.next_power_of_2(E), "BLOCK_F": triton.next_power_of_2(F), "BLOCK_R": rank,
        "HELD": config.block_m, "WALKED": config.block_n, "ALIGN_LAST": mask.align == "last",
        "HAS_LEFT": mask.left is not None, "HAS_RIGHT": mask.right is not None, "HAS_CAP": setting.softcap is not None,
        "HAS_LENGTHS_Q": setting.lengths_q is not None, "HAS_LENGTHS_K": setting.lengths_k is not None,
        "BIAS": NONE if bias is None else bias.kind,
    }  # fmt: skip
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    whole_keys = {"WHOLE_TILES": N % config.block_n == 0 and setting.lengths_k is None}
    whole_rows = {"WHOLE_TILES": M % config.block_n == 0 and setting.lengths_q is None}
    queries, keys = B * H * triton.cdiv(M, config.block_m), B * G * triton.cdiv(N, config.block_m)
    return (
        Pass(_grad_queries, queries, (*given, dq, dpq, *sizes), flags | whole_keys, options),
        Pass(_grad_keys, keys, (*given, dk, dv, dpk, *sizes), flags | whole_rows, options),
    )


def compile_named(which: str, sizes: list[int], dtype: str, mask: dict[str, Any], config: list[int], *,
                  rank: int = 0, matrix: bool = False) -> Any:  # fmt: skip
    """Compile the kernel of the "queries" or of the "keys" as it would be launched on aligned tensors, for Triton's
    active driver. sizes = (B, H, G, M, N, E, F); rank: of the bias's factors, padded; matrix: a bias as a matrix."""
    B, H, G, M, N, E, F = sizes
    element: torch.dtype = getattr(torch, dtype)

    def meta(*shape: int, kind: torch.dtype = element) -> Tensor:
        return torch.empty(*shape, dtype=kind, device="meta")

    q, k, v, dout = meta(B, H, M, E), meta(B, G, N, E), meta(B, G, N, F), meta(B, H, M, F)
    row = meta(B, H, M, kind=torch.float32)
    bias, dpq, dpk = None, None, None
    if rank:
        bias = Bias(meta(B, H, M, rank), meta(B, H, N, rank))
        dpq, dpk = meta(B, H, M, rank, kind=torch.float32), meta(B, H, N, rank, kind=torch.float32)
    elif matrix:
        bias = Bias(meta(B, H, M, N))
    setting = Setting(Band(**mask), 1.0 / math.sqrt(E))
    both = passes(dout, q, k, v, row, row, setting, bias, Config(*config), q, k, v, dpq, dpk)
    return both[("queries", "keys").index(which)].compile()
