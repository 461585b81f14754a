"""Generalized neighborhood attention in Triton, 1-D to 3-D (GNA: arXiv:2504.16922): the cascade `one_pass` on a grid.

Tiles are boxes of the token grid. Keys and values are first copied so that the tokens of a tile lie together, padded to
whole tiles, dilation groups apart; so a KV tile is one contiguous block however many dimensions there are. Queries are
gathered and outputs scattered where they are: each is touched once, so copying them too would only add traffic.

A program computes one Q tile of one head. A table built on the host says per dimension which KV tiles it sees and which
of them every one of its queries sees whole: those run without mask arithmetic, then the rest of the box, where keys are
compared with the window of each row. Tiles outside the box are never visited.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a Triton kernel's arguments have no Python types)

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from einsight.kernels.attention import LOG2_E, check_inputs, check_outputs, own_scale
from einsight.kernels.attention_launch import Pass, meta, options, strides
from einsight.kernels.gna_space import BoxConfig, box_config, default_box_config, in_best_boxes
from einsight.kernels.neighborhood import Neighborhood, Shape, neighborhood, row_windows, tile_ranges, visited_tiles
from einsight.kernels.spaces import Config
from einsight.kernels.tuned import tuned

COPY_WARPS = 4


@triton.jit
def _split(number, N1, N2):
    """The three coordinates of a row-major number."""
    rest = number // N2
    return rest // N1, rest % N1, number % N2


@triton.jit
def _token(p0, p1, p2, r0, r1, r2, L0, L1, L2, D0, D1, D2):
    """Row-major token of the position (p0, p1, p2) of dilation group (r0, r1, r2), and whether the grid has it."""
    x0, x1, x2 = p0 * D0 + r0, p1 * D1 + r1, p2 * D2 + r2
    return (x0 * L1 + x1) * L2 + x2, (x0 < L0) & (x1 < L1) & (x2 < L2)


@triton.jit
def _copy_tiles(x_ptr, out_ptr, stride_b, stride_h, stride_m, H, L0, L1, L2, D0, D1, D2, T0, T1, T2,
                WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr,
                K2: tl.constexpr):  # fmt: skip
    """One tile of one dilation group of one head into contiguous rows, zero where the grid has no token."""
    BLOCK: tl.constexpr = K0 * K1 * K2
    tile, rest = tl.program_id(0) % (T0 * T1 * T2), tl.program_id(0) // (T0 * T1 * T2)
    group, bh = rest % (D0 * D1 * D2), rest // (D0 * D1 * D2)
    t0, t1, t2 = _split(tile, T1, T2)
    r0, r1, r2 = _split(group, D1, D2)
    row = tl.arange(0, BLOCK)
    i0, i1, i2 = _split(row, K1, K2)
    token, there = _token(t0 * K0 + i0, t1 * K1 + i1, t2 * K2 + i2, r0, r1, r2, L0, L1, L2, D0, D1, D2)
    column = tl.arange(0, BLOCK_W)
    wide = (column < WIDTH)[None, :]
    head = x_ptr + (bh // H).to(tl.int64) * stride_b + (bh % H).to(tl.int64) * stride_h
    x = tl.load(head + token.to(tl.int64)[:, None] * stride_m + column[None, :], mask=there[:, None] & wide, other=0.0)
    rows = tl.program_id(0).to(tl.int64) * BLOCK + row
    tl.store(out_ptr + rows[:, None] * WIDTH + column[None, :], x, mask=wide)


@triton.jit
def _step(acc, top, total, q, k_tile, v_tile, seen, scale_log2, E: tl.constexpr, F: tl.constexpr,
          BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BORDER: tl.constexpr):  # fmt: skip
    """Take one KV tile into the running state: `top` in units of log 2; `seen` is used where BORDER."""
    offs_n, offs_e, offs_f = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_F)
    k_at = k_tile + offs_n[None, :] * E + offs_e[:, None]
    k = tl.load(k_at, mask=(offs_e < E)[:, None], other=0.0) if E < BLOCK_E else tl.load(k_at)
    score = tl.dot(q, k)
    if BORDER:
        score = tl.where(seen, score, -float("inf"))
    new_top = tl.maximum(top, tl.max(score, 1) * scale_log2)  # the scale is positive: it commutes with the maximum
    base = new_top
    if BORDER:  # a row that has seen no key yet: -inf - -inf would be NaN
        base = tl.where(new_top == -float("inf"), 0.0, new_top)
    weight = tl.exp2(score * scale_log2 - base[:, None])
    decay = tl.exp2(top - base)
    v_at = v_tile + offs_n[:, None] * F + offs_f[None, :]
    v = tl.load(v_at, mask=(offs_f < F)[None, :], other=0.0) if F < BLOCK_F else tl.load(v_at)
    acc = tl.dot(weight.to(v.dtype), v, acc * decay[:, None])
    return acc, new_top, total * decay + tl.sum(weight, 1)


@triton.jit
def _border_tile(u, b0, b1, b2, i0, i1, i2, n0, n1, n2, m0, m1, m2):
    """Coordinates of the u-th tile of a box of n tiles from b on, without the box of m tiles from i on inside it.

    Three slabs in turn: outside the inner box along dimension 0; inside along 0 and outside along 1; inside along both
    and outside along 2.
    """
    slab0, slab1 = (n0 - m0) * n1 * n2, m0 * (n1 - m1) * n2
    in0 = u < slab0
    in2 = u >= slab0 + slab1
    u = tl.where(in0, u, tl.where(in2, u - slab0 - slab1, u - slab0))
    e1 = tl.where(in0, n1, tl.where(in2, m1, n1 - m1))
    e2 = tl.where(in2, n2 - m2, n2)
    x0, x1, x2 = _split(u, e1, e2)
    c0 = tl.where(in0, b0 + x0 + tl.where(b0 + x0 >= i0, m0, 0), i0 + x0)
    hop1 = tl.where(b1 + x1 >= i1, m1, 0)
    c1 = tl.where(in0, b1 + x1, tl.where(in2, i1 + x1, b1 + x1 + hop1))
    c2 = b2 + x2 + tl.where(in2 & (b2 + x2 >= i2), m2, 0)
    return c0, c1, c2


@triton.jit
def _within(first, offset, low, high):
    """[rows, keys]: whether the keys at positions first + offset lie in each row's window."""
    key = first + offset
    return (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])


@triton.jit
def _range(table, residue, tiles, tile):
    """(begin, inner_begin, tiles visited, tiles of the inner part) of a Q tile along one dimension."""
    at = table + (residue * tiles + tile) * 4
    begin, inner = tl.load(at), tl.load(at + 1)
    return begin, inner, tl.load(at + 3) - begin, tl.load(at + 2) - inner


@triton.jit
def _window(table, residue, padded, position):
    at = table + (residue * padded + position) * 2
    return tl.load(at), tl.load(at + 1)


@triton.jit
def _forward(q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, ranges_ptr, windows_ptr, stride_qb, stride_qh, stride_qm,
             stride_ob, stride_oh, stride_om, H, J, L0, L1, L2, D0, D1, D2, TQ0, TQ1, TQ2, TK0, TK1, TK2, scale_log2,
             E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
             Q0: tl.constexpr, Q1: tl.constexpr, Q2: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr,
             K2: tl.constexpr, RANK: tl.constexpr, HAS_BORDER: tl.constexpr):  # fmt: skip
    """One Q tile of one dilation group of one head. Grids of fewer dimensions have leading ones of length 1."""
    BLOCK_M: tl.constexpr = Q0 * Q1 * Q2
    BLOCK_N: tl.constexpr = K0 * K1 * K2
    q_tiles, groups = TQ0 * TQ1 * TQ2, D0 * D1 * D2
    rest = tl.program_id(0) // q_tiles
    group, bh = rest % groups, rest // groups
    b, h = bh // H, bh % H
    t0, t1, t2 = _split(tl.program_id(0) % q_tiles, TQ1, TQ2)
    r0, r1, r2 = _split(group, D1, D2)

    row = tl.arange(0, BLOCK_M)
    j0, j1, j2 = _split(row, Q1, Q2)
    p0, p1, p2 = t0 * Q0 + j0, t1 * Q1 + j1, t2 * Q2 + j2
    token, there = _token(p0, p1, p2, r0, r1, r2, L0, L1, L2, D0, D1, D2)
    b64, h64, token64 = b.to(tl.int64), h.to(tl.int64), token.to(tl.int64)
    offs_e = tl.arange(0, BLOCK_E)
    q_at = q_ptr + b64 * stride_qb + h64 * stride_qh + token64[:, None] * stride_qm + offs_e[None, :]
    q = tl.load(q_at, mask=there[:, None] & (offs_e < E)[None, :], other=0.0)

    b0, i0, n0, m0 = _range(ranges_ptr, r0, TQ0, t0)
    ranges_ptr += D0 * TQ0 * 4
    b1, i1, n1, m1 = _range(ranges_ptr, r1, TQ1, t1)
    ranges_ptr += D1 * TQ1 * 4
    b2, i2, n2, m2 = _range(ranges_ptr, r2, TQ2, t2)
    kv_tiles = TK0 * TK1 * TK2
    first_tile = ((b64 * (H // J) + h64 // J) * groups + group) * kv_tiles
    k_tiles, v_tiles = k_ptr + first_tile * (BLOCK_N * E), v_ptr + first_tile * (BLOCK_N * F)

    acc = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    c0, c1, c2 = i0, i1, i2
    for _ in tl.range(0, m0 * m1 * m2):  # the inner box, row-major; counters instead of divisions
        tile = ((c0 * TK1 + c1) * TK2 + c2).to(tl.int64)
        acc, top, total = _step(acc, top, total, q, k_tiles + tile * (BLOCK_N * E), v_tiles + tile * (BLOCK_N * F),
                                None, scale_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_N, False)  # fmt: skip
        c2 += 1
        c1 = tl.where(c2 == i2 + m2, c1 + 1, c1)
        c2 = tl.where(c2 == i2 + m2, i2, c2)
        c0 = tl.where(c1 == i1 + m1, c0 + 1, c0)
        c1 = tl.where(c1 == i1 + m1, i1, c1)
    if HAS_BORDER:
        low0, high0 = _window(windows_ptr, r0, TQ0 * Q0, p0)
        windows_ptr += D0 * TQ0 * Q0 * 2
        low1, high1 = _window(windows_ptr, r1, TQ1 * Q1, p1)
        windows_ptr += D1 * TQ1 * Q1 * 2
        low2, high2 = _window(windows_ptr, r2, TQ2 * Q2, p2)
        o0, o1, o2 = _split(tl.arange(0, BLOCK_N), K1, K2)
        for u in tl.range(0, n0 * n1 * n2 - m0 * m1 * m2):
            c0, c1, c2 = _border_tile(u, b0, b1, b2, i0, i1, i2, n0, n1, n2, m0, m1, m2)
            seen = _within(c2 * K2, o2, low2, high2)
            if RANK > 1:
                seen = seen & _within(c1 * K1, o1, low1, high1)
            if RANK > 2:
                seen = seen & _within(c0 * K0, o0, low0, high0)
            tile = ((c0 * TK1 + c1) * TK2 + c2).to(tl.int64)
            acc, top, total = _step(acc, top, total, q, k_tiles + tile * (BLOCK_N * E), v_tiles + tile * (BLOCK_N * F),
                                    seen, scale_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_N, True)  # fmt: skip

    some = total > 0.0  # false only for Q tiles that are padding as a whole
    out = acc / tl.where(some, total, 1.0)[:, None]
    lse = (top + tl.log2(tl.where(some, total, 1.0))) * 0.6931471805599453  # ln(2)
    offs_f = tl.arange(0, BLOCK_F)
    out_at = out_ptr + b64 * stride_ob + h64 * stride_oh + token64[:, None] * stride_om + offs_f[None, :]
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=there[:, None] & (offs_f < F)[None, :])
    tl.store(lse_ptr + bh.to(tl.int64) * (L0 * L1 * L2) + token64, lse, mask=there)


@dataclass(frozen=True, slots=True)
class _Grid:
    """A neighborhood in three dimensions (leading ones of length 1) with its tiles: what the kernels count in."""

    mask: Neighborhood
    q_tile: Shape
    kv_tile: Shape

    @property
    def q_tiles(self) -> Shape:
        return self.mask.tiles(self.q_tile)

    @property
    def kv_tiles(self) -> Shape:
        return self.mask.tiles(self.kv_tile)


def gna(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: int | Shape,
    window: int | Shape,
    stride: int | Shape = 1,
    dilation: int | Shape = 1,
    causal: bool | tuple[bool, ...] = False,
    *,
    scale: float | None = None,
    config: BoxConfig | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Neighborhood attention of q [B, H, M, E] over k [B, G, M, E] and v [B, G, M, F], M tokens in a grid.

    layout      lengths of the grid, one to three; tokens are row-major, their number is M
    window, stride, dilation, causal   one value, or one per dimension; see `Neighborhood`
    scale       multiplies the scores; default E^-1/2; must be positive
    config      shapes of the Q and KV tiles, warps and stages; default: the tuned one, else `default_box_config`
    out, lse    buffers to write into: [B, H, M, F] in q's dtype, [B, H, M] float32 contiguous

    Head h reads KV head h // (H / G). Returns (output, log-sum-exp in natural units) in the order of the tokens given.
    float16 or bfloat16 with float32 accumulation, E and F from 32 to 256, last dimension contiguous.
    Raises ValueError or TypeError that say which argument is wrong and what would be right.
    """
    mask = neighborhood(layout, window, stride, dilation, causal)
    check_inputs(q, k, v, scale, None, None, None, None)
    for name, x in (("q", q), ("k", k)):
        if x.shape[2] != mask.tokens:
            raise ValueError(f"{name}: got {x.shape[2]} tokens, expected {mask.tokens}, the grid {mask.layout}")
    shape = (*q.shape[:3], v.shape[3])
    (B, H, M, E), G = q.shape, k.shape[1]
    if config is None:
        found = tuned("gna", q, (B, H, G, M, M, E, v.shape[3]), mask)
        config = found if isinstance(found, BoxConfig) else default_box_config(mask, E, v.shape[3])
    if len(config.q_tile) != mask.rank:
        raise ValueError(f"config: got tiles of {len(config.q_tile)} dimensions, expected {mask.rank} as {mask.layout}")
    out = torch.empty(shape, dtype=q.dtype, device=q.device) if out is None else out
    lse = torch.empty(shape[:3], dtype=torch.float32, device=q.device) if lse is None else lse
    check_outputs(out, lse, shape, q)
    if q.shape[0] * q.shape[1]:
        k_tiles, v_tiles = (tiles_of(x, mask, config.kv_tile) for x in (k, v))
        _pass(q, k_tiles, v_tiles, mask, own_scale(q, scale), config, out, lse).run()
    return out, lse


def tiles_of(x: Tensor, mask: Neighborhood, tile: Shape) -> Tensor:
    """x [B, H, M, E] copied tile by tile: [B, H, groups, tiles, tokens of a tile, E], zero where there is no token."""
    grid = _in_three_dimensions(mask, tile, tile)
    (B, H, _, E), counts, block = x.shape, grid.kv_tiles, math.prod(tile)
    out = torch.empty(B, H, mask.groups, math.prod(counts), block, E, dtype=x.dtype, device=x.device)
    arguments = (x, out, *strides(x), H, *grid.mask.layout, *grid.mask.dilation, *grid.kv_tiles)
    widths = {"WIDTH": E, "BLOCK_W": triton.next_power_of_2(E)} | dict(zip(("K0", "K1", "K2"), grid.kv_tile, strict=True))
    programs = math.prod(out.shape[:4]) if out.numel() else 0
    Pass(_copy_tiles, programs, arguments, widths, {"num_warps": COPY_WARPS}).run()
    return out


def _pass(q: Tensor, k_tiles: Tensor, v_tiles: Tensor, mask: Neighborhood, scale: float, config: BoxConfig, out: Tensor,
          lse: Tensor) -> Pass:  # fmt: skip
    """The launch that fills `out` and `lse`."""
    (B, H, _, E), G, F = q.shape, k_tiles.shape[1], out.shape[3]
    grid = _in_three_dimensions(mask, config.q_tile, config.kv_tile)
    visited, inner = visited_tiles(mask, config.q_tile, config.kv_tile)
    ranges, windows = _tables(grid, q.device)
    arguments = (
        q, k_tiles, v_tiles, out, lse, ranges, windows, *strides(q, out), H, H // G, *grid.mask.layout,
        *grid.mask.dilation, *grid.q_tiles, *grid.kv_tiles, scale * LOG2_E,
    )  # fmt: skip
    flags = dict(zip(("Q0", "Q1", "Q2", "K0", "K1", "K2"), grid.q_tile + grid.kv_tile, strict=True)) | {
        "E": E, "F": F, "BLOCK_E": triton.next_power_of_2(E), "BLOCK_F": triton.next_power_of_2(F),
        "RANK": mask.rank, "HAS_BORDER": inner < visited,
    }  # fmt: skip
    return Pass(_forward, B * H * mask.groups * math.prod(grid.q_tiles), arguments, flags, options(config))


def _in_three_dimensions(mask: Neighborhood, q_tile: Shape, kv_tile: Shape) -> _Grid:
    ones = (1,) * (3 - mask.rank)
    wide = Neighborhood(ones + mask.layout, ones + mask.window, ones + mask.stride, ones + mask.dilation,
                        (False,) * len(ones) + mask.causal)  # fmt: skip
    return _Grid(wide, ones + tuple(q_tile), ones + tuple(kv_tile))


@lru_cache(maxsize=64)
def _tables(grid: _Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ranges of KV tiles per Q tile, and windows per row, of the three dimensions one after the other (int32)."""
    ranges = [tile_ranges(grid.mask, d, grid.q_tile[d], grid.kv_tile[d]).ravel() for d in range(3)]
    windows = [row_windows(grid.mask, d, grid.q_tile[d]).ravel() for d in range(3)]
    return torch.from_numpy(np.concatenate(ranges)).to(device), torch.from_numpy(np.concatenate(windows)).to(device)


def compile_named(sizes: list[int], dtype: str, mask: Mapping[str, Any], config: list[int], *,
                  neighborhood: Mapping[str, Any], tiles: list[list[int]] | None = None) -> Any:  # fmt: skip
    """Compile the kernel as `gna` would launch it on contiguous tensors, from plain values, without data.

    sizes = (B, H, G, M, N, E, F). The target is that of Triton's active driver.

    neighborhood   layout, window, ... as `gna` takes them; the grid gives M and N, so `sizes` need not agree
    tiles          shapes of the Q and KV tiles; default: those that compute least with the block sizes of `config`
    mask           the band of other kernels: nothing here depends on it
    """
    grid = _named(neighborhood)
    chosen = in_best_boxes(grid, Config(*config))
    if tiles is not None:
        chosen = box_config(tuple(tiles[0]), tuple(tiles[1]), *config[2:])
    (B, H, G, _, _, E, F), M, kind = sizes, grid.tokens, getattr(torch, dtype)
    boxes = (grid.groups, math.prod(grid.tiles(chosen.kv_tile)), chosen.block_n)
    shapes = ((B, H, M, E), (B, G, *boxes, E), (B, G, *boxes, F), (B, H, M, F))
    q, k, v, out = (meta(*shape, kind=kind) for shape in shapes)
    return _pass(q, k, v, grid, own_scale(q, None), chosen, out, meta(B, H, M, kind=torch.float32)).compile()


def _named(given: Mapping[str, Any]) -> Neighborhood:
    return neighborhood(**{name: tuple(x) if isinstance(x, list) else x for name, x in given.items()})
