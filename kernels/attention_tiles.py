"""What the attention kernels share inside Triton: what a build fixes, where a sequence lies, how a tile is read."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a Triton kernel's arguments have no Python types)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl


@dataclass(frozen=True)
class Variant:
    """What one build of an attention kernel fixes, each field a `tl.constexpr`: kernels take it as one argument, V.

    E, F, BLOCK_E, BLOCK_F   head dimensions and the powers of two that hold them in a tile
    BLOCK_R                  columns of a bias's factors in a tile
    BLOCK_M, BLOCK_N         query rows and keys of a forward tile; backward: positions held and walked over
    BIAS                     0 none, 1 factors, 2 matrix
    WHOLE_TILES              every tile walked over is full: its size divides the length, and no lengths are given
    PACKED                   sequences lie one behind the other and `lengths` are their B + 1 bounds
    WEIGHT_BITS              weights are scaled by 2^WEIGHT_BITS before they are rounded for the second product
    DESCRIPTORS              q, k and v are tensor descriptors, not pointers
    WARP_SPECIALIZE          one warp group loads while the others compute
    """

    E: Any
    F: Any
    BLOCK_E: Any
    BLOCK_F: Any
    BLOCK_R: Any
    BLOCK_M: Any
    BLOCK_N: Any
    ALIGN_LAST: Any
    HAS_LEFT: Any
    HAS_RIGHT: Any
    HAS_CAP: Any
    BIAS: Any
    WHOLE_TILES: Any
    PACKED: Any
    WEIGHT_BITS: Any
    DESCRIPTORS: Any
    WARP_SPECIALIZE: Any


@triton.jit
def sequence(b, lengths_q_ptr, lengths_k_ptr, M, N, V: tl.constexpr):
    """(first query row, first key, rows, keys) of batch element b: its bounds, its lengths, or 0, 0, M, N."""
    used_m = M if lengths_q_ptr is None else tl.load(lengths_q_ptr + b)
    used_n = N if lengths_k_ptr is None else tl.load(lengths_k_ptr + b)
    first_q, first_k = b * 0, b * 0
    if V.PACKED:
        first_q, first_k = used_m, used_n
        used_m = tl.load(lengths_q_ptr + b + 1) - first_q
        used_n = tl.load(lengths_k_ptr + b + 1) - first_k
    return first_q, first_k, used_m, used_n


@triton.jit
def head_start(b, h, H, M, first_q, packed_rows, V: tl.constexpr):
    """Where the rows of head h of batch element b begin among [B, H, M], or among [H, packed_rows]."""
    if V.PACKED:
        return h * packed_rows + first_q
    else:
        return (b * H + h) * M


@triton.jit
def load_rows(tile, rows, stride, used, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BORDER: tl.constexpr):
    """Rows of a matrix, BLOCK wide; zeros beyond WIDTH and, with BORDER, where `used` is False."""
    column = tl.arange(0, BLOCK)
    at = tile + (rows[:, None] * stride + column[None, :])  # in this order a loop keeps one pointer, and 32-bit offsets
    if BORDER:
        return tl.load(at, mask=used[:, None] & (column < WIDTH)[None, :], other=0.0)
    elif WIDTH < BLOCK:
        return tl.load(at, mask=(column < WIDTH)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def bias_of_rows(q, other, pq_ptr, pk_ptr, b, h, rows, inside, M, stride_pb, stride_ph, stride_pm, stride_cb, stride_ch,
                 V: tl.constexpr):  # fmt: skip
    """(query factors or q, where the bias of these rows of head h begins or `other`): what `score_tile` takes.

    The bias begins at the key factors of the head, or in its matrix at the rows themselves.
    """
    pq, begin = q, other
    if V.BIAS > 0:
        of_head = pq_ptr + b * stride_pb + h * stride_ph
    if V.BIAS == 1:
        pq = load_rows(of_head, rows, stride_pm, inside, V.BLOCK_R, V.BLOCK_R, True)
        begin = pk_ptr + b * stride_cb + h * stride_ch
    elif V.BIAS == 2:  # rows beyond M read row M - 1: what they see is not stored
        begin = of_head + tl.minimum(rows, M - 1)[:, None] * stride_pm
    return pq, begin


@triton.jit
def score_tile(q, k, pq, pk_tile, offs_n, stride_cn, used, inverse_scale, V: tl.constexpr, BORDER: tl.constexpr):
    """(q k^T plus the bias, the key factors or k) of the keys at `pk_tile` + offs_n.

    The bias is divided by the scale and opens the accumulator: one multiplication a score, no second tile.
    """
    pk = k
    if V.BIAS == 1:
        pk = load_rows(pk_tile, offs_n, stride_cn, used, V.BLOCK_R, V.BLOCK_R, BORDER)
        score = tl.dot(q, tl.trans(k), tl.dot(pq, tl.trans(pk)) * inverse_scale)
    elif V.BIAS == 2:
        at_bias = pk_tile + offs_n[None, :]
        bias = tl.load(at_bias, mask=used[None, :], other=0.0) if BORDER else tl.load(at_bias)
        score = tl.dot(q, tl.trans(k), bias.to(tl.float32) * inverse_scale)
    else:
        score = tl.dot(q, tl.trans(k))
    return score, pk
