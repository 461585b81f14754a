"""What tiled kernels share: which tiles of the other side a block of positions sees under a band."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a Triton kernel's arguments have no Python types)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_range(first, last, total, before, after, BLOCK: tl.constexpr, HAS_BEFORE: tl.constexpr,
               HAS_AFTER: tl.constexpr):  # fmt: skip
    """Positions `first` .. `last` of one side, each at most `before` ahead of and `after` behind what it sees.

    Returns (begin, inner_begin, inner_end, end), all but `end` multiples of BLOCK: of the other side's `total`
    positions some are seen in [begin, end), every one by every position in [inner_begin, inner_end).
    """
    begin = first * 0
    inner_begin = begin
    end = total
    if HAS_BEFORE:
        begin = tl.maximum(first - before, 0) // BLOCK * BLOCK
        inner_begin = (tl.maximum(last - before, 0) + BLOCK - 1) // BLOCK * BLOCK
    inner_end = end
    if HAS_AFTER:
        end = tl.minimum(end, last + after + 1)
        inner_end = tl.minimum(inner_end, first + after + 1)
    end = tl.maximum(end, begin)
    inner_begin = tl.minimum(inner_begin, (end + BLOCK - 1) // BLOCK * BLOCK)
    inner_end = tl.maximum(tl.maximum(inner_end, 0) // BLOCK * BLOCK, inner_begin)
    return begin, inner_begin, inner_end, end


@triton.jit
def seen_in_band(key, diagonal, used_n, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """Whether a query on `diagonal` sees `key`; both already broadcast against each other."""
    seen = key < used_n
    if HAS_LEFT:
        seen = seen & (key + left >= diagonal)
    if HAS_RIGHT:
        seen = seen & (key - right <= diagonal)
    return seen
