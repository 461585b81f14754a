"""Fused forward attention in Triton: the cascade `one_pass` (FlashAttention-2, arXiv:2307.08691, algorithm 1).

One program computes `block_m` query rows of one head and walks over the keys in tiles of `block_n`, keeping a running
maximum, a running sum and an unnormalised output. Tiles outside the mask are not visited; tiles wholly inside it run
without mask arithmetic; only border tiles compare positions. Plain pointers: no descriptors, no warp specialisation.
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

from einsight.kernels.band import Band, band
from einsight.kernels.spaces import Config, default_config

DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (32, 256)  # smallest and largest E and F; between powers of two the tile is padded
LOG2_E = math.log2(math.e)
PACKED_ROWS = 24  # place of `packed_rows` among the kernel's arguments


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
            seen = (key < used_n)[None, :]
            if HAS_LEFT:
                seen = seen & (key[None, :] + left >= diagonal[:, None])
            if HAS_RIGHT:
                seen = seen & (key[None, :] - right <= diagonal[:, None])
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
def _forward(q_ptr, k_ptr, v_ptr, sink_ptr, lengths_q_ptr, lengths_k_ptr, out_ptr, lse_ptr,
             stride_qb, stride_qh, stride_qm, stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn,
             stride_ob, stride_oh, stride_om, H, J, M, N, packed_rows, left, right, scale_log2, cap_log2,
             E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
             BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ALIGN_LAST: tl.constexpr, HAS_LEFT: tl.constexpr,
             HAS_RIGHT: tl.constexpr, HAS_CAP: tl.constexpr, HAS_SINK: tl.constexpr, HAS_LENGTHS_Q: tl.constexpr,
             HAS_LENGTHS_K: tl.constexpr, WHOLE_TILES: tl.constexpr, PACKED: tl.constexpr):  # fmt: skip
    """One block of queries of one head. WHOLE_TILES: every key tile is full (BLOCK_N divides N, no lengths).

    PACKED: sequences lie one behind the other; `lengths` are their B + 1 bounds, M and N the longest, `packed_rows` all.
    """
    row_blocks = tl.cdiv(M, BLOCK_M)
    row_block = tl.program_id(0) % row_blocks
    if HAS_RIGHT:  # later rows see more keys: start them first, so that the last wave holds the short ones
        row_block = row_blocks - 1 - row_block
    bh = tl.program_id(0) // row_blocks
    b, h = bh // H, bh % H
    used_m = tl.load(lengths_q_ptr + b) if HAS_LENGTHS_Q else M
    used_n = tl.load(lengths_k_ptr + b) if HAS_LENGTHS_K else N
    stored_m, first_q, first_k = M, 0, 0
    if PACKED:
        first_q, first_k = used_m, used_n
        used_m = tl.load(lengths_q_ptr + b + 1) - first_q
        used_n = tl.load(lengths_k_ptr + b + 1) - first_k
        stored_m = used_m
    b64, h64 = b.to(tl.int64), h.to(tl.int64)  # an offset within a tensor may pass 2^31 elements
    first_row = row_block * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    last_row = tl.minimum(first_row + BLOCK_M, used_m) - 1
    shift = used_n - used_m if ALIGN_LAST else 0

    # Keys [begin, end) are seen by some row; those of [inner_begin, inner_end) by every row.
    begin = first_row * 0
    inner_begin = begin
    end = tl.where(first_row < used_m, used_n, 0)
    if HAS_LEFT:
        begin = tl.maximum(first_row + shift - left, 0) // BLOCK_N * BLOCK_N
        inner_begin = (tl.maximum(last_row + shift - left, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    inner_end = end
    if HAS_RIGHT:
        end = tl.minimum(end, last_row + shift + right + 1)
        inner_end = tl.minimum(inner_end, first_row + shift + right + 1)
    end = tl.maximum(end, begin)
    inner_begin = tl.minimum(inner_begin, (end + BLOCK_N - 1) // BLOCK_N * BLOCK_N)
    inner_end = tl.maximum(tl.maximum(inner_end, 0) // BLOCK_N * BLOCK_N, inner_begin)

    offs_e = tl.arange(0, BLOCK_E)
    q_rows = q_ptr + b64 * stride_qb + h64 * stride_qh + (first_q + row)[:, None].to(tl.int64) * stride_qm
    q = tl.load(q_rows + offs_e[None, :], mask=(row < stored_m)[:, None] & (offs_e < E)[None, :], other=0.0)
    k_tile = k_ptr + b64 * stride_kb + (h64 // J) * stride_kg + (first_k + begin).to(tl.int64) * stride_kn
    v_tile = v_ptr + b64 * stride_vb + (h64 // J) * stride_vg + (first_k + begin).to(tl.int64) * stride_vn

    acc = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    if HAS_SINK:  # a key without a value whose score is given: it opens the running maximum and sum
        sink = tl.load(sink_ptr + h).to(tl.float32) * 1.4426950408889634  # log2(e)
        top = tl.zeros([BLOCK_M], dtype=tl.float32) + sink
        total += 1.0

    diagonal = row + shift
    if HAS_LEFT:
        acc, top, total, k_tile, v_tile = _walk(
            acc, top, total, q, k_tile, v_tile, stride_kn, stride_vn, begin, inner_begin, used_n, diagonal, left, right,
            scale_log2, cap_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_N, True, HAS_LEFT, HAS_RIGHT, HAS_CAP)  # fmt: skip
    acc, top, total, k_tile, v_tile = _walk(
        acc, top, total, q, k_tile, v_tile, stride_kn, stride_vn, inner_begin, inner_end, used_n, diagonal, left, right,
        scale_log2, cap_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_N, False, HAS_LEFT, HAS_RIGHT, HAS_CAP)  # fmt: skip
    if HAS_LEFT or HAS_RIGHT or not WHOLE_TILES:
        acc, top, total, k_tile, v_tile = _walk(
            acc, top, total, q, k_tile, v_tile, stride_kn, stride_vn, inner_end, end, used_n, diagonal, left, right,
            scale_log2, cap_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_N, True, HAS_LEFT, HAS_RIGHT, HAS_CAP)  # fmt: skip

    some = (total > 0.0) & (row < used_m)
    out = tl.where(some[:, None], acc / tl.where(some, total, 1.0)[:, None], 0.0)
    natural = (top + tl.log2(tl.where(some, total, 1.0))) * 0.6931471805599453  # ln(2)
    lse = tl.where(some, natural, -float("inf"))
    offs_f = tl.arange(0, BLOCK_F)
    out_rows = out_ptr + b64 * stride_ob + h64 * stride_oh + (first_q + row)[:, None].to(tl.int64) * stride_om
    inside = (row < stored_m)[:, None] & (offs_f < F)[None, :]
    tl.store(out_rows + offs_f[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)
    lse_head = lse_ptr + (h64 * packed_rows + first_q if PACKED else bh.to(tl.int64) * M)
    tl.store(lse_head + row, lse, mask=row < stored_m)


@dataclass(frozen=True, slots=True)
class _Launch:
    """A checked call: what Triton is given."""

    programs: int
    arguments: tuple[Any, ...]
    flags: dict[str, Any]
    options: dict[str, Any]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: int | tuple[int | None, int | None] | None = None,
    align: str = "last",
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
    config: Config | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of q [B, H, M, E] over k [B, G, N, E] and v [B, G, N, F]; head h reads KV head h // (H / G).

    causal, window, align   the band of visible keys (see `band`)
    scale       multiplies the scores before anything else; default E^-1/2; must be positive
    softcap     scores become softcap * tanh(score / softcap)
    sink        [H] one score per head that joins the denominator but has no value
    lengths_q, lengths_k   int32 [B]: rows and keys of each batch element that count; the rest is padding
    config      tile sizes, warps and stages; default: `default_config`
    out, lse    buffers to write into: [B, H, M, F] in q's dtype, [B, H, M] float32 contiguous

    Returns (output, log-sum-exp in natural units, with the sink in it). A row that sees no key gives 0 and -inf.
    float16 or bfloat16 with float32 accumulation, E and F from 32 to 256, last dimension contiguous.
    Raises ValueError or TypeError that say which argument is wrong and what would be right.
    """
    mask = band(causal, window, align)
    check_inputs(q, k, v, scale, softcap, sink, lengths_q, lengths_k)
    shape = (*q.shape[:3], v.shape[3])
    out = torch.empty(shape, dtype=q.dtype, device=q.device) if out is None else out
    lse = torch.empty(shape[:3], dtype=torch.float32, device=q.device) if lse is None else lse
    check_outputs(out, lse, shape, q)
    launch = _launch(q, k, v, mask, scale, softcap, sink, lengths_q, lengths_k, config, out, lse)
    if launch.programs:
        _forward[(launch.programs,)](*launch.arguments, **launch.flags, **launch.options)
    return out, lse


def attention_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds_q: Tensor,
    bounds_k: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    causal: bool = False,
    window: int | tuple[int | None, int | None] | None = None,
    align: str = "last",
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention` of sequences that lie one behind the other: q [T, H, E], k [S, G, E], v [S, G, F].

    bounds_q, bounds_k     int32 [B + 1]: where each sequence's queries and keys begin, and the end; not decreasing
    longest_q, longest_k   of one sequence, so that no length has to be read back from the device

    Returns (output [T, H, F], log-sum-exp [H, T]). Raises ValueError or TypeError that name the argument.
    """
    for name, x, form in (("q", q, "[T, H, E]"), ("k", k, "[S, G, E]"), ("v", v, "[S, G, F]")):
        if x.dim() != 3:
            raise ValueError(f"{name}: got shape {list(x.shape)}, expected three dimensions {form}")
    for name, bounds in (("bounds_q", bounds_q), ("bounds_k", bounds_k)):
        if bounds.dim() != 1 or bounds.shape != bounds_q.shape or bounds.dtype != torch.int32 or bounds.device != q.device:
            raise ValueError(f"{name}: got {bounds.dtype} {list(bounds.shape)} on {bounds.device}, "
                             f"expected torch.int32 [B + 1] on {q.device}")  # fmt: skip
    mask = band(causal, window, align)
    one_q, one_k, one_v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, T, E]: seen as one sequence
    check_inputs(one_q, one_k, one_v, scale, softcap, sink, None, None)
    (T, H, _), F, B = q.shape, v.shape[2], bounds_q.shape[0] - 1
    longest_q, longest_k = min(longest_q, T), min(longest_k, k.shape[0])
    out = torch.empty(T, H, F, dtype=q.dtype, device=q.device)
    lse = torch.empty(H, T, dtype=torch.float32, device=q.device)
    # The launch of B sequences of the longest length, whose batch stride is 0: the bounds say where each one lies.
    wide_q, wide_k, wide_v, wide_out = (
        x.as_strided((B, x.shape[1], length, x.shape[3]), (0, x.stride(1), x.stride(2), x.stride(3)))
        for x, length in ((one_q, longest_q), (one_k, longest_k), (one_v, longest_k), (out.transpose(0, 1)[None], longest_q))
    )
    launch = _launch(wide_q, wide_k, wide_v, mask, scale, softcap, sink, bounds_q, bounds_k, config, wide_out, lse)
    arguments = list(launch.arguments)
    arguments[PACKED_ROWS] = T
    if launch.programs and T:
        _forward[(launch.programs,)](*arguments, **launch.flags | {"PACKED": True}, **launch.options)
    return out, lse


def compile_only(
    sizes: tuple[int, int, int, int, int, int, int],
    dtype: str,
    mask: Band,
    config: Config,
    *,
    softcap: float | None = None,
    sink: bool = False,
    lengths: bool = False,
    layout: str = "bhme",
) -> Any:
    """Compile the kernel as `attention` would launch it on aligned tensors, without data, and return Triton's object.

    sizes = (B, H, G, M, N, E, F); layout "bhme" contiguous, "bmhe" heads inside the sequence (as projections leave
    them). The target is that of Triton's active driver.
    """
    B, H, G, M, N, E, F = sizes
    element: torch.dtype = getattr(torch, dtype)

    def tensor(heads: int, length: int, width: int) -> Tensor:
        if layout == "bmhe":
            return torch.empty(B, length, heads, width, dtype=element, device="meta").transpose(1, 2)
        return torch.empty(B, heads, length, width, dtype=element, device="meta")

    q, k, v, out = tensor(H, M, E), tensor(G, N, E), tensor(G, N, F), tensor(H, M, F)
    lse = torch.empty(B, H, M, dtype=torch.float32, device="meta")
    sinks = torch.empty(H, dtype=torch.float32, device="meta") if sink else None
    used = torch.empty(B, dtype=torch.int32, device="meta") if lengths else None
    launch = _launch(q, k, v, mask, None, softcap, sinks, used, used, config, out, lse)
    arguments = [a.dtype if isinstance(a, Tensor) else a for a in launch.arguments]
    return _forward.warmup(*arguments, grid=(launch.programs,), **launch.flags, **launch.options)


def _launch(q: Tensor, k: Tensor, v: Tensor, mask: Band, scale: float | None, softcap: float | None,
            sink: Tensor | None, lengths_q: Tensor | None, lengths_k: Tensor | None, config: Config | None,
            out: Tensor, lse: Tensor) -> _Launch:  # fmt: skip
    B, H, M, E = q.shape
    G, N, F = k.shape[1], k.shape[2], v.shape[3]
    config = config or default_config(E, F)
    scale = 1.0 / math.sqrt(E) if scale is None else scale
    scale_log2, cap_log2 = scale * LOG2_E, 0.0
    if softcap is not None:
        scale_log2, cap_log2 = 2.0 * scale / softcap * LOG2_E, softcap * LOG2_E
    # Beyond M + N keys every window is the same; the cap keeps positions plus window within 32 bits.
    left, right = (min(side or 0, M + N) for side in (mask.left, mask.right))
    arguments = (
        q, k, v, sink, lengths_q, lengths_k, out, lse, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        *out.stride()[:3], H, H // G, M, N, M, left, right, scale_log2, cap_log2,
    )  # fmt: skip
    flags = {
        "E": E, "F": F, "BLOCK_E": triton.next_power_of_2(E), "BLOCK_F": triton.next_power_of_2(F),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "ALIGN_LAST": mask.align == "last",
        "HAS_LEFT": mask.left is not None, "HAS_RIGHT": mask.right is not None, "HAS_CAP": softcap is not None,
        "HAS_SINK": sink is not None, "HAS_LENGTHS_Q": lengths_q is not None,
        "HAS_LENGTHS_K": lengths_k is not None, "WHOLE_TILES": N % config.block_n == 0 and lengths_k is None,
        "PACKED": False,
    }  # fmt: skip
    programs = B * H * triton.cdiv(M, config.block_m)
    # Fusion said explicitly: one fused multiply-add per score is meant, and Triton's default is to change in 3.10.
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    return _Launch(programs, arguments, flags, options)


def check_inputs(q: Tensor, k: Tensor, v: Tensor, scale: float | None, softcap: float | None, sink: Tensor | None,
           lengths_q: Tensor | None, lengths_k: Tensor | None) -> None:  # fmt: skip
    for name, x, form in (("q", q, "[B, H, M, E]"), ("k", k, "[B, G, N, E]"), ("v", v, "[B, G, N, F]")):
        if x.dim() != 4:
            raise ValueError(f"{name}: got shape {list(x.shape)}, expected four dimensions {form}")
        if x.dtype not in DTYPES:
            raise TypeError(f"{name}: got {x.dtype}, expected torch.float16 or torch.bfloat16; convert with .to(...)")
        if x.dtype != q.dtype or x.device != q.device:
            raise TypeError(f"{name}: got {x.dtype} on {x.device}, expected {q.dtype} on {q.device} as q")
        if x.shape[3] > 1 and x.stride(3) != 1:
            raise ValueError(f"{name}: got strides {x.stride()}, expected 1 in the last dimension; use .contiguous()")
        if not HEAD_DIMS[0] <= x.shape[3] <= HEAD_DIMS[1]:
            raise ValueError(f"{name}: got head dimension {x.shape[3]}, expected {HEAD_DIMS[0]} to {HEAD_DIMS[1]}")
    (B, H, _, E), (G, N) = q.shape, k.shape[1:3]
    if k.shape != (B, G, N, E):
        raise ValueError(f"k: got shape {list(k.shape)}, expected [{B}, G, N, {E}] to match q {list(q.shape)}")
    if v.shape[:3] != (B, G, N):
        raise ValueError(f"v: got shape {list(v.shape)}, expected [{B}, {G}, {N}, F] to match k {list(k.shape)}")
    if G == 0 or H % G:
        raise ValueError(f"k: got {G} KV heads for {H} query heads, expected a divisor of {H}")
    if scale is not None and not 0.0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}, expected a positive number (negate q for a negative scale)")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(f"softcap: got {softcap}, expected a positive number, or None for no cap")
    if sink is not None and (sink.shape != (H,) or sink.device != q.device or not sink.is_contiguous()):
        raise ValueError(f"sink: got {list(sink.shape)} on {sink.device}, expected contiguous [{H}] on {q.device}")
    for name, lengths in (("lengths_q", lengths_q), ("lengths_k", lengths_k)):
        if lengths is None:
            continue
        if lengths.shape != (B,) or lengths.dtype != torch.int32 or lengths.device != q.device:
            raise ValueError(
                f"{name}: got {lengths.dtype} {list(lengths.shape)} on {lengths.device}, "
                f"expected torch.int32 [{B}] on {q.device}"
            )


def check_outputs(out: Tensor, lse: Tensor, shape: tuple[int, ...], q: Tensor) -> None:
    if out.shape != shape or out.dtype != q.dtype or out.device != q.device or out.stride(3) != 1:
        raise ValueError(
            f"out: got {out.dtype} {list(out.shape)} on {out.device} with strides {out.stride()}, "
            f"expected {q.dtype} {list(shape)} on {q.device}, last dimension contiguous"
        )
    if lse.shape != shape[:3] or lse.dtype != torch.float32 or lse.device != q.device or not lse.is_contiguous():
        raise ValueError(
            f"lse: got {lse.dtype} {list(lse.shape)} on {lse.device}, expected contiguous torch.float32 "
            f"{list(shape[:3])} on {q.device}"
        )


def compile_named(sizes: list[int], dtype: str, mask: dict[str, Any], config: list[int], **rest: Any) -> Any:
    """`compile_only` from plain JSON values, for the offline compiler."""
    return compile_only(tuple(sizes), dtype, Band(**mask), Config(*config), **rest)  # type: ignore[arg-type]
