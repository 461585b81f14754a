"""The Triton code of backward attention, by recomputing the weights (FlashAttention-2, arXiv:2307.08691, algorithm 2).

Two kernels walk the same tiles from either side: one holds a block of queries and sums dQ over the keys, one holds a
block of keys and sums dK and dV over the queries of every head that reads them. Nothing is added to memory by more than
one program, so that the gradients are the same in every run. A bias, as factors or as a matrix, is part of the score in
both; its gradient is dS itself.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a Triton kernel's arguments have no Python types)

from __future__ import annotations

import triton
import triton.language as tl

from einsight.kernels.attention_tiles import bias_of_rows, head_start, load_rows, score_tile, sequence
from einsight.kernels.tiles import seen_in_band, tile_range


@triton.jit
def row_delta(out_ptr, dout_ptr, dlse_ptr, delta_ptr, stride_ob, stride_oh, stride_om, stride_gb, stride_gh, stride_gm,
              H, M, F: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr):  # fmt: skip
    """delta[m] = sum over f of out * dout, less the gradient of the log-sum-exp: what dS subtracts from dP in a row."""
    blocks = tl.cdiv(M, BLOCK_M)
    bh = tl.program_id(0) // blocks
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    row = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, inside = row.to(tl.int64), row < M
    o = load_rows(out_ptr + b * stride_ob + h * stride_oh, rows, stride_om, inside, F, BLOCK_F, True)
    g = load_rows(dout_ptr + b * stride_gb + h * stride_gh, rows, stride_gm, inside, F, BLOCK_F, True)
    delta = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    at = bh.to(tl.int64) * M + row
    if dlse_ptr is not None:
        delta -= tl.load(dlse_ptr + at, mask=inside, other=0.0)
    tl.store(delta_ptr + at, delta, mask=inside)


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
def _walk_keys(dq, dpq, q, dout, pq, lse, delta, keys, values, factors, stride_kn, stride_vn, stride_cn, lo, hi, used_n,
               diagonal, left, right, scale_log2, cap_log2, inverse_scale, V: tl.constexpr,
               BORDER: tl.constexpr):  # fmt: skip
    """Add what the key tiles lo .. hi give to dQ (and dPQ); the pointers stand at key 0 of the head."""
    offs_n = tl.arange(0, V.BLOCK_N)
    first = lo.to(tl.int64)
    keys += first * stride_kn
    values += first * stride_vn
    factors += first * stride_cn
    for start in tl.range(lo, hi, V.BLOCK_N):
        key = start + offs_n
        used = key < used_n
        k = load_rows(keys, offs_n, stride_kn, used, V.E, V.BLOCK_E, BORDER)
        v = load_rows(values, offs_n, stride_vn, used, V.F, V.BLOCK_F, BORDER)
        score, pk = score_tile(q, k, pq, factors, offs_n, stride_cn, used, inverse_scale, V, BORDER)
        if BORDER:
            seen = seen_in_band(key[None, :], diagonal[:, None], used_n, left, right, V.HAS_LEFT, V.HAS_RIGHT)
            score = tl.where(seen, score, -float("inf"))
        dp = tl.dot(dout, tl.trans(v))
        _, slope = slopes(score, dp, lse[:, None], delta[:, None], scale_log2, cap_log2, V.HAS_CAP)
        dq = tl.dot(slope.to(k.dtype), k, dq)
        if V.BIAS == 1:
            dpq = tl.dot(slope.to(pk.dtype), pk, dpq)
        keys += V.BLOCK_N * stride_kn
        values += V.BLOCK_N * stride_vn
        factors += V.BLOCK_N * stride_cn
    return dq, dpq


@triton.jit
def grad_queries(q_ptr, k_ptr, v_ptr, pq_ptr, pk_ptr, dout_ptr, lse_ptr, delta_ptr, lengths_q_ptr, lengths_k_ptr,
                 dq_ptr, dpq_ptr, stride_qb, stride_qh, stride_qm, stride_kb, stride_kg, stride_kn, stride_vb,
                 stride_vg, stride_vn, stride_gb, stride_gh, stride_gm, stride_pb, stride_ph, stride_pm, stride_cb,
                 stride_ch, stride_cn, H, J, M, N, packed_rows, left, right, scale, scale_log2, cap_log2,
                 inverse_scale, V: tl.constexpr):  # fmt: skip
    """dQ, and dPQ where the bias has factors, of one block of BLOCK_M queries of one head."""
    row_blocks = tl.cdiv(M, V.BLOCK_M)
    row_block = tl.program_id(0) % row_blocks
    if V.HAS_RIGHT:  # later rows see more keys: start them first
        row_block = row_blocks - 1 - row_block
    bh = tl.program_id(0) // row_blocks
    b, h = bh // H, bh % H
    first_q, first_k, used_m, used_n = sequence(b, lengths_q_ptr, lengths_k_ptr, M, N, V)
    b64, h64, g64 = b.to(tl.int64), h.to(tl.int64), (h // J).to(tl.int64)
    first_row = row_block * V.BLOCK_M
    row = first_row + tl.arange(0, V.BLOCK_M)
    last_row = tl.minimum(first_row + V.BLOCK_M, used_m) - 1
    shift = used_n - used_m if V.ALIGN_LAST else 0
    seen_n = tl.where(first_row < used_m, used_n, 0)
    begin, inner_begin, inner_end, end = tile_range(
        first_row + shift, last_row + shift, seen_n, left, right, V.BLOCK_N, V.HAS_LEFT, V.HAS_RIGHT)  # fmt: skip

    offs_e, offs_r = tl.arange(0, V.BLOCK_E), tl.arange(0, V.BLOCK_R)
    inside = row < (used_m if V.PACKED else M)
    rows, first_key = (first_q + row).to(tl.int64), first_k.to(tl.int64)
    q = load_rows(q_ptr + b64 * stride_qb + h64 * stride_qh, rows, stride_qm, inside, V.E, V.BLOCK_E, True)
    dout = load_rows(dout_ptr + b64 * stride_gb + h64 * stride_gh, rows, stride_gm, inside, V.F, V.BLOCK_F, True)
    at = head_start(b64, h64, H, M, first_q, packed_rows, V) + row
    lse, delta = row_sums(lse_ptr, delta_ptr, at, inside, True)
    keys = k_ptr + b64 * stride_kb + g64 * stride_kg + first_key * stride_kn
    values = v_ptr + b64 * stride_vb + g64 * stride_vg + first_key * stride_vn
    pq, factors = bias_of_rows(
        q, keys, pq_ptr, pk_ptr, b64, h64, rows, inside, M, stride_pb, stride_ph, stride_pm, stride_cb, stride_ch,
        V)  # fmt: skip
    dq = tl.zeros([V.BLOCK_M, V.BLOCK_E], dtype=tl.float32)
    dpq = tl.zeros([V.BLOCK_M, V.BLOCK_R], dtype=tl.float32)
    diagonal = row + shift
    if V.HAS_LEFT:
        dq, dpq = _walk_keys(
            dq, dpq, q, dout, pq, lse, delta, keys, values, factors, stride_kn, stride_vn, stride_cn, begin, inner_begin,
            used_n, diagonal, left, right, scale_log2, cap_log2, inverse_scale, V, True)  # fmt: skip
    dq, dpq = _walk_keys(
        dq, dpq, q, dout, pq, lse, delta, keys, values, factors, stride_kn, stride_vn, stride_cn, inner_begin, inner_end,
        used_n, diagonal, left, right, scale_log2, cap_log2, inverse_scale, V, False)  # fmt: skip
    if V.HAS_LEFT or V.HAS_RIGHT or not V.WHOLE_TILES:
        dq, dpq = _walk_keys(
            dq, dpq, q, dout, pq, lse, delta, keys, values, factors, stride_kn, stride_vn, stride_cn, inner_end, end,
            used_n, diagonal, left, right, scale_log2, cap_log2, inverse_scale, V, True)  # fmt: skip
    stored = rows * H + h if V.PACKED else at  # [T, H, E] or [B, H, M, E]
    tl.store(dq_ptr + stored[:, None] * V.E + offs_e[None, :], (dq * scale).to(dq_ptr.dtype.element_ty),
             mask=inside[:, None] & (offs_e < V.E)[None, :])  # fmt: skip
    if V.BIAS == 1:
        tl.store(dpq_ptr + at[:, None] * V.BLOCK_R + offs_r[None, :], dpq.to(dpq_ptr.dtype.element_ty),
                 mask=inside[:, None])  # fmt: skip


@triton.jit
def _walk_queries(dk, dv, dpk, k, v, pk, q_rows, dout_rows, pq_rows, lse_ptr, delta_ptr, at, stride_qm, stride_gm,
                  stride_pm, lo, hi, used_m, used_n, key, shift, left, right, scale_log2, cap_log2, inverse_scale,
                  V: tl.constexpr, BORDER: tl.constexpr):  # fmt: skip
    """Add what the query tiles lo .. hi of one head give to dK, dV (and dPK); the pointers stand at query 0 of the head,
    and so does `at` among the rows' sums. Tiles stand keys by queries."""
    offs_m = tl.arange(0, V.BLOCK_N)
    first = lo.to(tl.int64)
    q_rows += first * stride_qm
    dout_rows += first * stride_gm
    pq_rows += first * stride_pm
    at += first
    for start in tl.range(lo, hi, V.BLOCK_N):
        row = start + offs_m
        used = row < used_m
        q = load_rows(q_rows, offs_m, stride_qm, used, V.E, V.BLOCK_E, BORDER)
        dout = load_rows(dout_rows, offs_m, stride_gm, used, V.F, V.BLOCK_F, BORDER)
        lse, delta = row_sums(lse_ptr + at, delta_ptr + at, offs_m, used, BORDER)
        if V.BIAS == 1:
            pq = load_rows(pq_rows, offs_m, stride_pm, used, V.BLOCK_R, V.BLOCK_R, BORDER)
            score = tl.dot(k, tl.trans(q), tl.dot(pk, tl.trans(pq)) * inverse_scale)
        elif V.BIAS == 2:  # keys beyond N read key N - 1: what they give is not stored
            at_bias = pq_rows + (offs_m[:, None] * stride_pm + tl.minimum(key, used_n - 1)[None, :])
            bias = tl.load(at_bias, mask=used[:, None], other=0.0) if BORDER else tl.load(at_bias)
            score = tl.dot(k, tl.trans(q), tl.trans(bias).to(tl.float32) * inverse_scale)
        else:
            score = tl.dot(k, tl.trans(q))
        if BORDER:
            seen = seen_in_band(key[:, None], (row + shift)[None, :], used_n, left, right, V.HAS_LEFT, V.HAS_RIGHT)
            score = tl.where(seen, score, -float("inf"))
        dp = tl.dot(v, tl.trans(dout))
        weight, slope = slopes(score, dp, lse[None, :], delta[None, :], scale_log2, cap_log2, V.HAS_CAP)
        dv = tl.dot(weight.to(dout.dtype), dout, dv)
        dk = tl.dot(slope.to(q.dtype), q, dk)
        if V.BIAS == 1:
            dpk = tl.dot(slope.to(pq.dtype), pq, dpk)
        q_rows += V.BLOCK_N * stride_qm
        dout_rows += V.BLOCK_N * stride_gm
        pq_rows += V.BLOCK_N * stride_pm
        at += V.BLOCK_N
    return dk, dv, dpk


@triton.jit
def grad_keys(q_ptr, k_ptr, v_ptr, pq_ptr, pk_ptr, dout_ptr, lse_ptr, delta_ptr, lengths_q_ptr, lengths_k_ptr, dk_ptr,
              dv_ptr, dpk_ptr, stride_qb, stride_qh, stride_qm, stride_kb, stride_kg, stride_kn, stride_vb, stride_vg,
              stride_vn, stride_gb, stride_gh, stride_gm, stride_pb, stride_ph, stride_pm, stride_cb, stride_ch,
              stride_cn, H, J, M, N, packed_rows, left, right, scale, scale_log2, cap_log2, inverse_scale,
              V: tl.constexpr):  # fmt: skip
    """dK and dV of one block of BLOCK_M keys of one KV head, over the J query heads that read it; dPK per query head."""
    key_blocks = tl.cdiv(N, V.BLOCK_M)
    key_block = tl.program_id(0) % key_blocks
    bg = tl.program_id(0) // key_blocks
    G = H // J
    b, g = bg // G, bg % G
    first_q, first_k, used_m, used_n = sequence(b, lengths_q_ptr, lengths_k_ptr, M, N, V)
    b64, g64 = b.to(tl.int64), g.to(tl.int64)
    first_key = key_block * V.BLOCK_M
    key = first_key + tl.arange(0, V.BLOCK_M)
    last_key = tl.minimum(first_key + V.BLOCK_M, used_n) - 1
    shift = used_n - used_m if V.ALIGN_LAST else 0
    # Query m sees key n when n - right <= m + shift <= n + left: the band with its sides exchanged.
    seen_m = tl.where(first_key < used_n, used_m, 0)
    begin, inner_begin, inner_end, end = tile_range(
        first_key - shift, last_key - shift, seen_m, right, left, V.BLOCK_N, V.HAS_RIGHT, V.HAS_LEFT)  # fmt: skip

    offs_e, offs_f, offs_r = tl.arange(0, V.BLOCK_E), tl.arange(0, V.BLOCK_F), tl.arange(0, V.BLOCK_R)
    inside, used = key < (used_n if V.PACKED else N), key < used_n
    keys, first_row = (first_k + key).to(tl.int64), first_q.to(tl.int64)
    k = load_rows(k_ptr + b64 * stride_kb + g64 * stride_kg, keys, stride_kn, used, V.E, V.BLOCK_E, True)
    v = load_rows(v_ptr + b64 * stride_vb + g64 * stride_vg, keys, stride_vn, used, V.F, V.BLOCK_F, True)
    dk = tl.zeros([V.BLOCK_M, V.BLOCK_E], dtype=tl.float32)
    dv = tl.zeros([V.BLOCK_M, V.BLOCK_F], dtype=tl.float32)
    for j in tl.range(0, J, num_stages=1):
        h64 = g64 * J + j
        at = head_start(b64, h64, H, M, first_q, packed_rows, V)
        q_rows = q_ptr + b64 * stride_qb + h64 * stride_qh + first_row * stride_qm
        dout_rows = dout_ptr + b64 * stride_gb + h64 * stride_gh + first_row * stride_gm
        pk, pq_rows = k, q_rows
        if V.BIAS > 0:
            pq_rows = pq_ptr + b64 * stride_pb + h64 * stride_ph
        if V.BIAS == 1:
            pk = load_rows(pk_ptr + b64 * stride_cb + h64 * stride_ch, keys, stride_cn, used, V.BLOCK_R, V.BLOCK_R, True)
        dpk = tl.zeros([V.BLOCK_M, V.BLOCK_R], dtype=tl.float32)
        if V.HAS_RIGHT:
            dk, dv, dpk = _walk_queries(
                dk, dv, dpk, k, v, pk, q_rows, dout_rows, pq_rows, lse_ptr, delta_ptr, at, stride_qm, stride_gm,
                stride_pm, begin, inner_begin, used_m, used_n, key, shift, left, right, scale_log2, cap_log2,
                inverse_scale, V, True)  # fmt: skip
        dk, dv, dpk = _walk_queries(
            dk, dv, dpk, k, v, pk, q_rows, dout_rows, pq_rows, lse_ptr, delta_ptr, at, stride_qm, stride_gm,
            stride_pm, inner_begin, inner_end, used_m, used_n, key, shift, left, right, scale_log2, cap_log2,
            inverse_scale, V, False)  # fmt: skip
        if V.HAS_LEFT or V.HAS_RIGHT or not V.WHOLE_TILES:
            dk, dv, dpk = _walk_queries(
                dk, dv, dpk, k, v, pk, q_rows, dout_rows, pq_rows, lse_ptr, delta_ptr, at, stride_qm, stride_gm,
                stride_pm, inner_end, end, used_m, used_n, key, shift, left, right, scale_log2, cap_log2,
                inverse_scale, V, True)  # fmt: skip
        if V.BIAS == 1:
            dpk_at = ((b64 * H + h64) * N + key)[:, None] * V.BLOCK_R + offs_r[None, :]
            dpk = tl.where(used[:, None], dpk, 0.0)
            tl.store(dpk_ptr + dpk_at, dpk.to(dpk_ptr.dtype.element_ty), mask=inside[:, None])
    stored = keys * G + g if V.PACKED else bg.to(tl.int64) * N + key  # [S, G, E] or [B, G, N, E]
    dk, dv = tl.where(used[:, None], dk * scale, 0.0), tl.where(used[:, None], dv, 0.0)  # a key that is padding has no gradient
    tl.store(dk_ptr + stored[:, None] * V.E + offs_e[None, :], dk.to(dk_ptr.dtype.element_ty),
             mask=inside[:, None] & (offs_e < V.E)[None, :])  # fmt: skip
    tl.store(dv_ptr + stored[:, None] * V.F + offs_f[None, :], dv.to(dv_ptr.dtype.element_ty),
             mask=inside[:, None] & (offs_f < V.F)[None, :])  # fmt: skip
