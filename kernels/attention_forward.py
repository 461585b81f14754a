"""The Triton code of fused forward attention: the cascade `one_pass` (FlashAttention-2, arXiv:2307.08691, algorithm 1).

One program computes `BLOCK_M` query rows of one head and walks over the keys in tiles of `BLOCK_N`, keeping a running
maximum, a running sum and an unnormalised output. Tiles outside the mask are not visited; tiles wholly inside it run
without mask arithmetic; only border tiles compare positions.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a Triton kernel's arguments have no Python types)

from __future__ import annotations

import triton
import triton.language as tl

from einsight.kernels.attention_tiles import bias_of_rows, head_start, load_rows, score_tile, sequence
from einsight.kernels.tiles import seen_in_band, tile_range


@triton.jit
def walk(acc, top, total, q, pq, keys, values, factors, b, g, stride_kn, stride_vn, stride_cn, lo, hi, used_n, diagonal,
         left, right, scale_log2, cap_log2, inverse_scale, V: tl.constexpr, BORDER: tl.constexpr):  # fmt: skip
    """Take the key tiles lo, lo + BLOCK_N, ... < hi into the running state.

    `top` is the running maximum in units of log 2, `total` the running sum, `acc` the unnormalised output, both times
    2^WEIGHT_BITS. `keys` and `values` point at key 0 of the head, or are descriptors of all heads; `factors` at key 0.
    """
    offs_n = tl.arange(0, V.BLOCK_N)
    first = lo.to(tl.int64)
    if not V.DESCRIPTORS:
        keys += first * stride_kn
        values += first * stride_vn
    if V.BIAS > 0:
        factors += first * stride_cn
    for start in tl.range(lo, hi, V.BLOCK_N, warp_specialize=V.WARP_SPECIALIZE):
        key = start + offs_n
        used = key < used_n
        if V.DESCRIPTORS:  # beyond N the hardware fills in zeros
            k = keys.load([b, g, start, 0]).reshape(V.BLOCK_N, V.BLOCK_E)
        else:
            k = load_rows(keys, offs_n, stride_kn, used, V.E, V.BLOCK_E, BORDER)
        score, _ = score_tile(q, k, pq, factors, offs_n, stride_cn, used, inverse_scale, V, BORDER)
        if V.HAS_CAP:  # cap * tanh(score / cap), with scale_log2 = 2 scale / cap log2(e): one exponential, one division
            score = cap_log2 - 2.0 * cap_log2 / (1.0 + tl.exp2(score * scale_log2))
        if BORDER:
            seen = seen_in_band(key[None, :], diagonal[:, None], used_n, left, right, V.HAS_LEFT, V.HAS_RIGHT)
            score = tl.where(seen, score, -float("inf"))
        # The scale is positive, so it commutes with the maximum: one multiplication per row instead of one per score,
        # and the subtraction below becomes one fused multiply-add.
        peak = tl.max(score, 1)
        if not V.HAS_CAP:
            peak = peak * scale_log2
        new_top = tl.maximum(top, peak)
        base = new_top
        if BORDER or V.BIAS == 2:  # a row that has seen no key yet, or only biases of minus infinity
            base = tl.where(new_top == -float("inf"), 0.0, new_top)
        decay = tl.exp2(top - base)
        if V.WEIGHT_BITS > 0:
            base = base - V.WEIGHT_BITS
        weight = tl.exp2(score - base[:, None]) if V.HAS_CAP else tl.exp2(score * scale_log2 - base[:, None])
        total = total * decay + tl.sum(weight, 1)
        if V.DESCRIPTORS:
            v = values.load([b, g, start, 0]).reshape(V.BLOCK_N, V.BLOCK_F)
        else:
            v = load_rows(values, offs_n, stride_vn, used, V.F, V.BLOCK_F, BORDER)
        acc = acc * decay[:, None]
        if V.WEIGHT_BITS > 0:
            # sm_90 adds up fp8 products in fewer bits than float32 has: the sum of each tile goes into float32.
            acc = tl.dot(weight.to(v.dtype), v, acc, max_num_imprecise_acc=V.BLOCK_N)
        else:
            acc = tl.dot(weight.to(v.dtype), v, acc)
        top = new_top
        if not V.DESCRIPTORS:
            keys += V.BLOCK_N * stride_kn
            values += V.BLOCK_N * stride_vn
        if V.BIAS > 0:
            factors += V.BLOCK_N * stride_cn
    return acc, top, total


@triton.jit
def forward(q_ptr, k_ptr, v_ptr, pq_ptr, pk_ptr, sink_ptr, descale_q_ptr, descale_k_ptr, descale_v_ptr, lengths_q_ptr,
            lengths_k_ptr, out_ptr, lse_ptr, stride_qb, stride_qh, stride_qm, stride_kb, stride_kg, stride_kn,
            stride_vb, stride_vg, stride_vn, stride_pb, stride_ph, stride_pm, stride_cb, stride_ch, stride_cn,
            stride_ob, stride_oh, stride_om, H, J, M, N, packed_rows, left, right, scale_log2, cap_log2, inverse_scale,
            V: tl.constexpr):  # fmt: skip
    """One block of queries of one head. A pointer is None where there is nothing to point at; `pq_ptr` is a bias's
    factor or its matrix [B, H, M, N]. With packed sequences M and N are the longest and `packed_rows` all rows."""
    row_blocks = tl.cdiv(M, V.BLOCK_M)
    row_block = tl.program_id(0) % row_blocks
    if V.HAS_RIGHT:  # later rows see more keys: start them first, so that the last wave holds the short ones
        row_block = row_blocks - 1 - row_block
    bh = tl.program_id(0) // row_blocks
    b, h = bh // H, bh % H
    g = h // J
    first_q, first_k, used_m, used_n = sequence(b, lengths_q_ptr, lengths_k_ptr, M, N, V)
    b64, h64, g64 = b.to(tl.int64), h.to(tl.int64), g.to(tl.int64)  # an offset in a tensor may pass 2^31 elements
    first_row = row_block * V.BLOCK_M
    row = first_row + tl.arange(0, V.BLOCK_M)
    last_row = tl.minimum(first_row + V.BLOCK_M, used_m) - 1
    shift = used_n - used_m if V.ALIGN_LAST else 0
    seen_n = tl.where(first_row < used_m, used_n, 0)
    begin, inner_begin, inner_end, end = tile_range(
        first_row + shift, last_row + shift, seen_n, left, right, V.BLOCK_N, V.HAS_LEFT, V.HAS_RIGHT)  # fmt: skip

    inside = row < (used_m if V.PACKED else M)
    rows = (first_q + row).to(tl.int64)
    q = load_rows(q_ptr + b64 * stride_qb + h64 * stride_qh, rows, stride_qm, inside, V.E, V.BLOCK_E, True)
    if V.DESCRIPTORS:
        keys, values = k_ptr, v_ptr
    else:
        keys = k_ptr + b64 * stride_kb + g64 * stride_kg + first_k.to(tl.int64) * stride_kn
        values = v_ptr + b64 * stride_vb + g64 * stride_vg + first_k.to(tl.int64) * stride_vn
    pq, factors = bias_of_rows(
        q, q, pq_ptr, pk_ptr, b64, h64, rows, inside, M, stride_pb, stride_ph, stride_pm, stride_cb, stride_ch, V)  # fmt: skip

    acc = tl.zeros([V.BLOCK_M, V.BLOCK_F], dtype=tl.float32)
    top = tl.full([V.BLOCK_M], -float("inf"), dtype=tl.float32)
    total = tl.zeros([V.BLOCK_M], dtype=tl.float32)
    if sink_ptr is not None:  # a key without a value whose score is given: it opens the running maximum and sum
        top = total + tl.load(sink_ptr + h).to(tl.float32) * 1.4426950408889634  # log2(e)
        total = tl.exp2(total + V.WEIGHT_BITS)
    if descale_q_ptr is not None:
        scale_log2 *= tl.load(descale_q_ptr)
    if descale_k_ptr is not None:
        scale_log2 *= tl.load(descale_k_ptr)

    diagonal = row + shift
    if V.HAS_LEFT:
        acc, top, total = walk(
            acc, top, total, q, pq, keys, values, factors, b, g, stride_kn, stride_vn, stride_cn, begin, inner_begin,
            used_n, diagonal, left, right, scale_log2, cap_log2, inverse_scale, V, True)  # fmt: skip
    acc, top, total = walk(
        acc, top, total, q, pq, keys, values, factors, b, g, stride_kn, stride_vn, stride_cn, inner_begin, inner_end,
        used_n, diagonal, left, right, scale_log2, cap_log2, inverse_scale, V, False)  # fmt: skip
    if V.HAS_LEFT or V.HAS_RIGHT or not V.WHOLE_TILES:
        acc, top, total = walk(
            acc, top, total, q, pq, keys, values, factors, b, g, stride_kn, stride_vn, stride_cn, inner_end, end,
            used_n, diagonal, left, right, scale_log2, cap_log2, inverse_scale, V, True)  # fmt: skip

    some = (total > 0.0) & (row < used_m)
    out = tl.where(some[:, None], acc / tl.where(some, total, 1.0)[:, None], 0.0)
    if descale_v_ptr is not None:
        out *= tl.load(descale_v_ptr)
    natural = (top + tl.log2(tl.where(some, total, 1.0)) - V.WEIGHT_BITS) * 0.6931471805599453  # ln(2)
    offs_f = tl.arange(0, V.BLOCK_F)
    out_rows = out_ptr + b64 * stride_ob + h64 * stride_oh + rows[:, None] * stride_om
    tl.store(out_rows + offs_f[None, :], out.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (offs_f < V.F)[None, :])
    lse_head = lse_ptr + head_start(b64, h64, H, M, first_q, packed_rows, V)
    tl.store(lse_head + row, tl.where(some, natural, -float("inf")), mask=inside)
