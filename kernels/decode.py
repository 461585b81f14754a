"""Attention of a few queries over a long cache in Triton: the keys of a KV head are split over programs, then merged.

Two schedules of the cascade `split_kv`. "split" cuts every head's keys into the same number of pieces (Flash-Decoding,
Dao et al. 2023). "stream" lays the tiles of all heads and batch elements end to end and gives every program the same
number of them, whatever the lengths (LeanAttention, arXiv:2405.10480; stream-K, arXiv:2301.03598): a program may end one
head and begin the next. The query heads that share a KV head are rows of one tile, so keys and values are read once.
Each piece leaves a maximum, a sum and an unnormalised output; a second kernel merges the pieces of a row.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a Triton kernel's arguments have no Python types)

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from einsight.kernels.attention import check_inputs, check_outputs, own_scale
from einsight.kernels.attention_launch import Pass, Setting, meta, options, strides
from einsight.kernels.band import Band, band
from einsight.kernels.decode_space import decode_blocks_per_sm, default_decode_config
from einsight.kernels.spaces import LIMITS, Config, Heads
from einsight.kernels.tiles import seen_in_band, tile_range
from einsight.kernels.tuned import tuned

SCHEDULES = ("stream", "split")
INTERPRETED_PROGRAMS = 6  # where there is no device to fill
MERGED_AT_ONCE = tl.constexpr(16)  # pieces that the merge loads in one step


@triton.jit
def _walk(acc, top, total, q, k_tile, v_tile, stride_kn, stride_vn, lo, hi, used_n, diagonal, left, right,
          scale_log2, cap_log2, E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
          BLOCK_N: tl.constexpr, BORDER: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
          HAS_CAP: tl.constexpr):  # fmt: skip
    """Take the key tiles lo, lo + BLOCK_N, ... < hi into the running state; `k_tile`, `v_tile` point at key lo.

    `top` is the running maximum in units of log 2, `total` the running sum, `acc` the unnormalised output.
    """
    offs_n = tl.arange(0, BLOCK_N)
    offs_e = tl.arange(0, BLOCK_E)
    offs_f = tl.arange(0, BLOCK_F)
    k_offsets = offs_n[None, :] * stride_kn + offs_e[:, None]
    v_offsets = offs_n[:, None] * stride_vn + offs_f[None, :]
    for start in tl.range(lo, hi, BLOCK_N):
        key = start + offs_n
        if BORDER:
            k = tl.load(k_tile + k_offsets, mask=(key < used_n)[None, :] & (offs_e < E)[:, None], other=0.0)
        elif E < BLOCK_E:
            k = tl.load(k_tile + k_offsets, mask=(offs_e < E)[:, None], other=0.0)
        else:
            k = tl.load(k_tile + k_offsets)
        score = tl.dot(q, k)
        if HAS_CAP:  # cap * tanh(score / cap), with scale_log2 = 2 scale / cap log2(e): one exponential, one division
            score = cap_log2 - 2.0 * cap_log2 / (1.0 + tl.exp2(score * scale_log2))
        if BORDER:
            seen = seen_in_band(key[None, :], diagonal[:, None], used_n, left, right, HAS_LEFT, HAS_RIGHT)
            score = tl.where(seen, score, -float("inf"))
        # The scale is positive, so it commutes with the maximum: one multiplication per row instead of one per score,
        # and the subtraction below becomes one fused multiply-add.
        peak = tl.max(score, 1)
        if not HAS_CAP:
            peak = peak * scale_log2
        new_top = tl.maximum(top, peak)
        base = new_top
        if BORDER:  # a row that has seen no key yet: -inf - -inf would be NaN
            base = tl.where(new_top == -float("inf"), 0.0, new_top)
        weight = tl.exp2(score - base[:, None]) if HAS_CAP else tl.exp2(score * scale_log2 - base[:, None])
        decay = tl.exp2(top - base)
        total = total * decay + tl.sum(weight, 1)
        if BORDER:
            v = tl.load(v_tile + v_offsets, mask=(key < used_n)[:, None] & (offs_f < F)[None, :], other=0.0)
        elif F < BLOCK_F:
            v = tl.load(v_tile + v_offsets, mask=(offs_f < F)[None, :], other=0.0)
        else:
            v = tl.load(v_tile + v_offsets)
        acc = acc * decay[:, None]
        acc = tl.dot(weight.to(v.dtype), v, acc)
        top = new_top
        k_tile += BLOCK_N * stride_kn
        v_tile += BLOCK_N * stride_vn
    return acc, top, total, k_tile, v_tile


@triton.jit
def _unit_keys(b, lengths_ptr, M, N, left, right, BLOCK_N: tl.constexpr, HAS_LEFT: tl.constexpr,
               HAS_RIGHT: tl.constexpr, HAS_LENGTHS: tl.constexpr):  # fmt: skip
    """(used_n, begin, inner_begin, inner_end, end) of the keys that the M last positions of batch element b see."""
    used_n = tl.load(lengths_ptr + b) if HAS_LENGTHS else N
    begin, inner_begin, inner_end, end = tile_range(
        used_n - M, used_n - 1, used_n, left, right, BLOCK_N, HAS_LEFT, HAS_RIGHT)  # fmt: skip
    return used_n, begin, inner_begin, inner_end, end


@triton.jit
def _piece(q_ptr, k_ptr, v_ptr, b, g, row_block, slot, first_tile, tiles, used_n, begin, inner_begin, inner_end, end,
           acc_ptr, top_ptr, total_ptr, stride_qb, stride_qh, stride_qm, stride_kb, stride_kg, stride_kn, stride_vb,
           stride_vg, stride_vn, J, M, left, right, scale_log2, cap_log2, E: tl.constexpr, F: tl.constexpr,
           BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
           HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_CAP: tl.constexpr):  # fmt: skip
    """Tiles first_tile .. first_tile + tiles of what rows of KV head g see, into the partial results at `slot`."""
    packed = row_block * BLOCK_M + tl.arange(0, BLOCK_M)  # row (j, m) of the KV head's J heads of M queries
    real = packed < J * M
    head, query = g * J + packed // M, packed % M
    offs_e = tl.arange(0, BLOCK_E)
    b64, g64 = b.to(tl.int64), g.to(tl.int64)  # an offset within a tensor may pass 2^31 elements
    q_rows = q_ptr + b64 * stride_qb + head[:, None].to(tl.int64) * stride_qh + query[:, None] * stride_qm
    q = tl.load(q_rows + offs_e[None, :], mask=real[:, None] & (offs_e < E)[None, :], other=0.0)
    lo = begin + first_tile * BLOCK_N
    hi = tl.minimum(lo + tiles * BLOCK_N, end)
    k_tile = k_ptr + b64 * stride_kb + g64 * stride_kg + lo.to(tl.int64) * stride_kn
    v_tile = v_ptr + b64 * stride_vb + g64 * stride_vg + lo.to(tl.int64) * stride_vn
    acc = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    diagonal = query + used_n - M
    inner_lo = tl.minimum(tl.maximum(inner_begin, lo), tl.maximum(hi, lo))
    # All but the last piece end where a tile ends, so only that one can have an incomplete tile beyond `inner_hi`.
    inner_hi = tl.maximum(tl.minimum(inner_end, hi), inner_lo)
    if HAS_LEFT:
        acc, top, total, k_tile, v_tile = _walk(
            acc, top, total, q, k_tile, v_tile, stride_kn, stride_vn, lo, inner_lo, used_n, diagonal, left, right,
            scale_log2, cap_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_N, True, HAS_LEFT, HAS_RIGHT, HAS_CAP)  # fmt: skip
    acc, top, total, k_tile, v_tile = _walk(
        acc, top, total, q, k_tile, v_tile, stride_kn, stride_vn, inner_lo, inner_hi, used_n, diagonal, left, right,
        scale_log2, cap_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_N, False, HAS_LEFT, HAS_RIGHT, HAS_CAP)  # fmt: skip
    acc, top, total, k_tile, v_tile = _walk(
        acc, top, total, q, k_tile, v_tile, stride_kn, stride_vn, inner_hi, hi, used_n, diagonal, left, right,
        scale_log2, cap_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_N, True, HAS_LEFT, HAS_RIGHT, HAS_CAP)  # fmt: skip
    at = slot.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(top_ptr + at, top)
    tl.store(total_ptr + at, total)
    offs_f = tl.arange(0, BLOCK_F)
    tl.store(acc_ptr + at[:, None] * F + offs_f[None, :], acc, mask=(offs_f < F)[None, :])


@triton.jit
def _split(q_ptr, k_ptr, v_ptr, lengths_ptr, acc_ptr, top_ptr, total_ptr, stride_qb, stride_qh, stride_qm, stride_kb,
           stride_kg, stride_kn, stride_vb, stride_vg, stride_vn, B, G, J, M, N, pieces, left, right, scale_log2,
           cap_log2, E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
           BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, HAS_LEFT: tl.constexpr,
           HAS_RIGHT: tl.constexpr, HAS_CAP: tl.constexpr, HAS_LENGTHS: tl.constexpr):  # fmt: skip
    """One of the `pieces` of one unit; a unit is a block of packed rows of one KV head. The slot is the program."""
    row_blocks = tl.cdiv(J * M, BLOCK_M)
    slot = tl.program_id(0)
    unit = slot // pieces
    b = unit // (G * row_blocks)
    used_n, begin, inner_begin, inner_end, end = _unit_keys(
        b, lengths_ptr, M, N, left, right, BLOCK_N, HAS_LEFT, HAS_RIGHT, HAS_LENGTHS)  # fmt: skip
    each = tl.cdiv(tl.cdiv(end - begin, BLOCK_N), pieces)
    _piece(q_ptr, k_ptr, v_ptr, b, unit // row_blocks % G, unit % row_blocks, slot, slot % pieces * each, each, used_n,
           begin, inner_begin, inner_end, end, acc_ptr, top_ptr, total_ptr, stride_qb, stride_qh, stride_qm, stride_kb,
           stride_kg, stride_kn, stride_vb, stride_vg, stride_vn, J, M, left, right, scale_log2, cap_log2, E, F,
           BLOCK_E, BLOCK_F, BLOCK_M, BLOCK_N, HAS_LEFT, HAS_RIGHT, HAS_CAP)  # fmt: skip


@triton.jit
def _tile_ends(B, per_element, lengths_ptr, M, N, left, right, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
               HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_LENGTHS: tl.constexpr):  # fmt: skip
    """Tiles of one unit of each batch element, and the running sum of those of all its `per_element` units: [BLOCK_B]."""
    offs_b = tl.arange(0, BLOCK_B)
    used_n = tl.load(lengths_ptr + offs_b, mask=offs_b < B, other=0) if HAS_LENGTHS else tl.where(offs_b < B, N, 0)
    begin, _, _, end = tile_range(used_n - M, used_n - 1, used_n, left, right, BLOCK_N, HAS_LEFT, HAS_RIGHT)
    tiles = tl.where(offs_b < B, (end - begin + BLOCK_N - 1) // BLOCK_N, 0)
    return tiles, tl.cumsum(tiles * per_element, 0)


@triton.jit
def _stream(q_ptr, k_ptr, v_ptr, lengths_ptr, acc_ptr, top_ptr, total_ptr, stride_qb, stride_qh, stride_qm, stride_kb,
            stride_kg, stride_kn, stride_vb, stride_vg, stride_vn, B, G, J, M, N, programs, left, right, scale_log2,
            cap_log2, E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
            BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, HAS_LEFT: tl.constexpr,
            HAS_RIGHT: tl.constexpr, HAS_CAP: tl.constexpr, HAS_LENGTHS: tl.constexpr):  # fmt: skip
    """An equal share of all tiles. Going on to the next program or the next unit, program + unit grows: that is the slot."""
    row_blocks = tl.cdiv(J * M, BLOCK_M)
    per_element = G * row_blocks
    tiles, ends = _tile_ends(
        B, per_element, lengths_ptr, M, N, left, right, BLOCK_N, BLOCK_B, HAS_LEFT, HAS_RIGHT, HAS_LENGTHS)  # fmt: skip
    every = tl.max(ends, 0)
    program = tl.program_id(0)
    share, rest = every // programs, every % programs
    tile = program * share + tl.minimum(program, rest)
    last = tile + share + tl.where(program < rest, 1, 0)
    while tile < last:
        b = tl.sum((ends <= tile).to(tl.int32), 0)
        here = tl.arange(0, BLOCK_B) == b
        of_unit = tl.sum(tl.where(here, tiles, 0), 0)
        inside = tile - (tl.sum(tl.where(here, ends, 0), 0) - of_unit * per_element)
        unit, first_tile = inside // of_unit, inside % of_unit
        some = tl.minimum(of_unit - first_tile, last - tile)
        used_n, begin, inner_begin, inner_end, end = _unit_keys(
            b, lengths_ptr, M, N, left, right, BLOCK_N, HAS_LEFT, HAS_RIGHT, HAS_LENGTHS)  # fmt: skip
        _piece(q_ptr, k_ptr, v_ptr, b, unit // row_blocks, unit % row_blocks, program + b * per_element + unit,
               first_tile, some, used_n, begin, inner_begin, inner_end, end, acc_ptr, top_ptr, total_ptr, stride_qb,
               stride_qh, stride_qm, stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn, J, M, left,
               right, scale_log2, cap_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_M, BLOCK_N, HAS_LEFT, HAS_RIGHT, HAS_CAP)
        tile += some


@triton.jit
def _owner(tile, share, rest):
    """The program whose share holds `tile`: the first `rest` programs have one tile more than `share`."""
    longer = tl.minimum(tile // (share + 1), rest)
    return tl.where(tile < rest * (share + 1), longer, rest + (tile - rest * (share + 1)) // tl.maximum(share, 1))


@triton.jit
def _merge(acc_ptr, top_ptr, total_ptr, lengths_ptr, out_ptr, lse_ptr, stride_ob, stride_oh, stride_om, B, G, J, M, N,
           pieces, left, right, F: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
           BLOCK_B: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_LENGTHS: tl.constexpr,
           STREAM: tl.constexpr):  # fmt: skip
    """One row of one head from the partial results of its unit. `pieces`: of a unit, or with STREAM all programs."""
    row_blocks = tl.cdiv(J * M, BLOCK_M)
    packed = tl.program_id(0) % (J * M)
    bg = tl.program_id(0) // (J * M)
    b, g = bg // G, bg % G
    unit = bg * row_blocks + packed // BLOCK_M
    slot, count = unit * pieces, pieces
    if STREAM:
        tiles, ends = _tile_ends(B, G * row_blocks, lengths_ptr, M, N, left, right, BLOCK_N, BLOCK_B, HAS_LEFT,
                                 HAS_RIGHT, HAS_LENGTHS)  # fmt: skip
        every = tl.max(ends, 0)
        here = tl.arange(0, BLOCK_B) == b
        of_unit = tl.sum(tl.where(here, tiles, 0), 0)
        first = tl.sum(tl.where(here, ends, 0), 0) - of_unit * (G * row_blocks - unit % (G * row_blocks))
        share, rest = every // pieces, every % pieces
        owner = _owner(first, share, rest)
        slot = owner + unit
        count = tl.where(of_unit > 0, _owner(first + of_unit - 1, share, rest) - owner + 1, 0)
    offs_f = tl.arange(0, BLOCK_F)
    row = packed % BLOCK_M
    offs_p = tl.arange(0, MERGED_AT_ONCE)
    top = tl.max(tl.full([MERGED_AT_ONCE], -float("inf"), dtype=tl.float32), 0)
    total = tl.sum(tl.zeros([MERGED_AT_ONCE], dtype=tl.float32), 0)
    acc = tl.zeros([BLOCK_F], dtype=tl.float32)
    for start in tl.range(0, count, MERGED_AT_ONCE):
        there = start + offs_p < count
        at = (slot + start + offs_p).to(tl.int64) * BLOCK_M + row
        tops = tl.load(top_ptr + at, mask=there, other=-float("inf"))
        new_top = tl.maximum(top, tl.max(tops, 0))
        base = tl.where(new_top == -float("inf"), 0.0, new_top)
        weight = tl.exp2(tops - base)
        decay = tl.exp2(top - base)
        total = total * decay + tl.sum(tl.load(total_ptr + at, mask=there, other=0.0) * weight, 0)
        part = tl.load(acc_ptr + at[:, None] * F + offs_f[None, :], mask=there[:, None] & (offs_f < F)[None, :], other=0.0)
        acc = acc * decay + tl.sum(part * weight[:, None], 0)
        top = new_top
    some = total > 0.0
    divisor = tl.where(some, total, 1.0)
    h = g * J + packed // M
    query = packed % M
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    out_row = out_ptr + b64 * stride_ob + h64 * stride_oh + query.to(tl.int64) * stride_om
    tl.store(out_row + offs_f, tl.where(some, acc / divisor, 0.0).to(out_ptr.dtype.element_ty), mask=offs_f < F)
    natural = (top + tl.log2(divisor)) * 0.6931471805599453  # ln(2)
    tl.store(lse_ptr + (b64 * G * J + h) * M + query, tl.where(some, natural, -float("inf")))


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    schedule: str = "stream",
    programs: int | None = None,
    splits: int | None = None,
    causal: bool = False,
    window: int | tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    lengths_k: Tensor | None = None,
    config: Config | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of a few queries, q [B, H, M, E], over a cache k [B, G, N, E], v [B, G, N, F].

    The queries are the last M of the N (or lengths_k) positions: `causal` matters for M > 1 only.

    schedule    "stream": equal shares of all tiles for `programs` programs (default: as many as the device holds at once);
                "split": `splits` pieces of every KV head (default: as many as fill the device)
    window, scale, softcap, lengths_k, out, lse   as in `attention`
    config      block_m packed rows (query heads of a KV head times M), block_n keys; default: the tuned one, else
                `default_decode_config`

    Returns (output, log-sum-exp in natural units), 0 and -inf for a row that sees no key.
    Raises ValueError or TypeError that say which argument is wrong and what would be right.
    """
    mask = band(causal, window, "last")
    check_inputs(q, k, v, scale, softcap, None, None, lengths_k)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: got {schedule!r}, expected one of {', '.join(map(repr, SCHEDULES))}")
    for name, value, wanted in (("programs", programs, "stream"), ("splits", splits, "split")):
        if value is not None and (value < 1 or schedule != wanted):
            raise ValueError(f"{name}: got {value} with schedule {schedule!r}, expected 1 or more with {wanted!r}")
    shape = (*q.shape[:3], v.shape[3])
    out = torch.empty(shape, dtype=q.dtype, device=q.device) if out is None else out
    lse = torch.empty(shape[:3], dtype=torch.float32, device=q.device) if lse is None else lse
    check_outputs(out, lse, shape, q)
    pieces = programs if schedule == "stream" else splits
    setting = Setting(mask, own_scale(q, scale), softcap, None, lengths_k)
    for each in _passes(q, k, v, setting, schedule, pieces, config, out, lse):
        each.run()
    return out, lse


def compile_named(sizes: list[int], dtype: str, mask: dict[str, Any], config: list[int], queries: int | None = None, *,
                  schedule: str = "stream", lengths: bool = False, merge: bool = False) -> Any:  # fmt: skip
    """Compile the kernel of the pieces (or the merge) as `decode` would launch it, from plain values, without data.

    sizes = (B, H, G, M, N, E, F); `queries` takes the place of M. The target is that of Triton's active driver.
    """
    B, H, G, M, N, E, F = sizes
    M, kind = queries or M, getattr(torch, dtype)
    q, k, v, out = (meta(*shape, kind=kind) for shape in ((B, H, M, E), (B, G, N, E), (B, G, N, F), (B, H, M, F)))
    used = meta(B, kind=torch.int32) if lengths else None
    setting = Setting(Band(**mask), own_scale(q, None), None, None, used)
    both = _passes(q, k, v, setting, schedule, None, Config(*config), out, meta(B, H, M, kind=torch.float32))
    return both[merge].compile()


def _passes(q: Tensor, k: Tensor, v: Tensor, setting: Setting, schedule: str, pieces: int | None, config: Config | None,
            out: Tensor, lse: Tensor) -> tuple[Pass, Pass]:  # fmt: skip
    """The launches of the pieces and of the merge, which fills `out` and `lse`."""
    (B, H, M, E), (G, N), F = q.shape, k.shape[1:3], v.shape[3]
    rows, mask, lengths_k = H // G * M, setting.mask, setting.lengths_k
    config = config or _tuned(q, (B, H, G, M, N, E, F), setting) or default_decode_config(E, F, rows)
    units = B * G * triton.cdiv(rows, config.block_m)
    pieces = _pieces(schedule, pieces, units, triton.cdiv(N, config.block_n), q, Heads(E, F), config)
    slots = max(0, pieces + units - 1 if schedule == "stream" else units * pieces)
    acc = torch.empty(slots, config.block_m, F, dtype=torch.float32, device=q.device)
    top = torch.empty(slots, config.block_m, dtype=torch.float32, device=q.device)
    total = torch.empty_like(top)
    sizes = (B, G, H // G, M, N, pieces, *setting.sides(M, N))
    arguments = (q, k, v, lengths_k, acc, top, total, *strides(q, k, v), *sizes, *setting.log2_scales)
    shared = {
        "F": F, "BLOCK_F": triton.next_power_of_2(F), "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
        "BLOCK_B": max(2, triton.next_power_of_2(B)), "HAS_LEFT": mask.left is not None,
        "HAS_RIGHT": mask.right is not None, "HAS_LENGTHS": lengths_k is not None,
    }  # fmt: skip
    flags = shared | {"E": E, "BLOCK_E": triton.next_power_of_2(E), "HAS_CAP": setting.softcap is not None}
    kernel, programs = (_stream, pieces) if schedule == "stream" else (_split, units * pieces)
    merge = (acc, top, total, lengths_k, out, lse, *strides(out), *sizes)
    return (
        Pass(kernel, programs if B * H * M else 0, arguments, flags, options(config)),
        Pass(_merge, B * H * M, merge, shared | {"STREAM": schedule == "stream"}, {"num_warps": 4}),
    )


def _tuned(q: Tensor, sizes: tuple[int, ...], setting: Setting) -> Config | None:
    """A single query stands at the last key: causal or not, its problem is the same."""
    mask = Band(setting.mask.left) if sizes[3] <= 1 and setting.mask.left is None else setting.mask
    return tuned("decode", q, sizes, mask, () if setting.softcap is None else (("softcap", "cap", setting.softcap),))


def _pieces(schedule: str, given: int | None, units: int, tiles: int, q: Tensor, heads: Heads, config: Config) -> int:
    """Programs of the stream, or pieces of a unit: what was asked for or fills the device, no more than there are tiles."""
    programs = _programs_at_once(q.device, heads, config)
    if schedule == "stream":
        return max(1, min(given or programs, units * tiles))
    return max(1, min(given or programs // max(1, units), tiles))


@lru_cache(maxsize=64)
def _programs_at_once(device: torch.device, heads: Heads, config: Config) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    about = torch.cuda.get_device_properties(device)
    limits = LIMITS.get(10 * about.major + about.minor, LIMITS[80])
    return int(about.multi_processor_count) * decode_blocks_per_sm(heads, config, limits)
