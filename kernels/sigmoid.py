"""Fused sigmoid attention in Triton: the cascade `sigmoid` (FlashSigmoid, Ramapuram et al. 2024, arXiv:2409.04431).

Weights are sigmoid(score + bias), the bias -log N by default: no maximum, no sum, no rescaling of the output, no
log-sum-exp. The sigmoid is an exponential and a reciprocal; the one-instruction form by tanh is not used, for with the
bias the weights are about 1 / N and 1 + tanh(x) cancels there: tanh.approx is good to 2^-11 of 1, not of the weight.
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

from einsight.kernels.attention import LOG2_E, check_inputs, check_output, own_scale
from einsight.kernels.attention_launch import Pass, Setting, meta, options, strides
from einsight.kernels.attention_tiles import load_rows
from einsight.kernels.band import Band, band
from einsight.kernels.spaces import Config, default_config
from einsight.kernels.tiles import seen_in_band, tile_range
from einsight.kernels.tuned import tuned

# float16 weights of 1 / N fall below the smallest normal number (2^-14) from N = 16384 on and lose digits there. So weights
# are kept 2^15 times as large (they are at most 1, float16 ends at 2^16) and the output is divided by it: no extra
# operation per weight, for the factor joins the constants of the sigmoid. bfloat16 has the range of float32.
HALF_GAIN_LOG2 = 15


@triton.jit
def _reciprocal(x, APPROXIMATE: tl.constexpr):
    """1 / x for x from 2^-15 up to infinity. A division would spend four more instructions on numbers beyond 2^126, whose
    reciprocal is 0 in a 16-bit weight; rcp.approx is good to 2^-23 (PTX ISA). The interpreter knows no assembly."""
    if APPROXIMATE:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return 1.0 / x


@triton.jit
def _walk(acc, q, k_tile, v_tile, stride_kn, stride_vn, lo, hi, used_n, diagonal, left, right, scale_log2, shift_log2,
          E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
          GAIN_LOG2: tl.constexpr, APPROXIMATE: tl.constexpr, BORDER: tl.constexpr, HAS_LEFT: tl.constexpr,
          HAS_RIGHT: tl.constexpr):  # fmt: skip
    """Add the key tiles lo .. hi to the output; `k_tile`, `v_tile` point at key lo.

    A weight is 1 / (2^-g + 2^(score scale_log2 + shift_log2)): both have the sign turned, and -g = -GAIN_LOG2 is in
    `shift_log2` already, so that the argument is one multiply-add.
    """
    smallest: tl.constexpr = 2.0**-GAIN_LOG2
    offs_n = tl.arange(0, BLOCK_N)
    for start in tl.range(lo, hi, BLOCK_N):
        key = start + offs_n
        used = key < used_n
        k = load_rows(k_tile, offs_n, stride_kn, used, E, BLOCK_E, BORDER)
        score = tl.dot(q, tl.trans(k))
        weight = _reciprocal(smallest + tl.exp2(score * scale_log2 + shift_log2), APPROXIMATE)
        if BORDER:
            seen = seen_in_band(key[None, :], diagonal[:, None], used_n, left, right, HAS_LEFT, HAS_RIGHT)
            weight = tl.where(seen, weight, 0.0)
        v = load_rows(v_tile, offs_n, stride_vn, used, F, BLOCK_F, BORDER)
        acc = tl.dot(weight.to(v.dtype), v, acc)
        k_tile += BLOCK_N * stride_kn
        v_tile += BLOCK_N * stride_vn
    return acc, k_tile, v_tile


@triton.jit
def _forward(q_ptr, k_ptr, v_ptr, lengths_q_ptr, lengths_k_ptr, out_ptr, stride_qb, stride_qh, stride_qm, stride_kb,
             stride_kg, stride_kn, stride_vb, stride_vg, stride_vn, stride_ob, stride_oh, stride_om, H, J, M, N, left,
             right, scale_log2, bias_log2, E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr,
             BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GAIN_LOG2: tl.constexpr,
             ALIGN_LAST: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, BIAS_OF_LENGTH: tl.constexpr,
             HAS_LENGTHS_Q: tl.constexpr, HAS_LENGTHS_K: tl.constexpr, WHOLE_TILES: tl.constexpr,
             APPROXIMATE: tl.constexpr):  # fmt: skip
    """One block of queries of one head. WHOLE_TILES: every key tile is full (BLOCK_N divides N, no lengths)."""
    row_blocks = tl.cdiv(M, BLOCK_M)
    row_block = tl.program_id(0) % row_blocks
    if HAS_RIGHT:  # later rows see more keys: start them first, so that the last wave holds the short ones
        row_block = row_blocks - 1 - row_block
    bh = tl.program_id(0) // row_blocks
    b, h = bh // H, bh % H
    used_m = tl.load(lengths_q_ptr + b) if HAS_LENGTHS_Q else M
    used_n = tl.load(lengths_k_ptr + b) if HAS_LENGTHS_K else N
    b64, h64 = b.to(tl.int64), h.to(tl.int64)  # an offset within a tensor may pass 2^31 elements
    first_row = row_block * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    last_row = tl.minimum(first_row + BLOCK_M, used_m) - 1
    shift = used_n - used_m if ALIGN_LAST else 0
    total = tl.where(first_row < used_m, used_n, 0)
    begin, inner_begin, inner_end, end = tile_range(
        first_row + shift, last_row + shift, total, left, right, BLOCK_N, HAS_LEFT, HAS_RIGHT)  # fmt: skip

    shift_log2 = -bias_log2 - GAIN_LOG2
    if BIAS_OF_LENGTH:
        shift_log2 = tl.log2(tl.maximum(used_n, 1).to(tl.float32)) - GAIN_LOG2
    q = load_rows(q_ptr + b64 * stride_qb + h64 * stride_qh, row.to(tl.int64), stride_qm, row < M, E, BLOCK_E, True)
    k_tile = k_ptr + b64 * stride_kb + (h64 // J) * stride_kg + begin.to(tl.int64) * stride_kn
    v_tile = v_ptr + b64 * stride_vb + (h64 // J) * stride_vg + begin.to(tl.int64) * stride_vn
    acc = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
    diagonal = row + shift
    if HAS_LEFT:
        acc, k_tile, v_tile = _walk(
            acc, q, k_tile, v_tile, stride_kn, stride_vn, begin, inner_begin, used_n, diagonal, left, right, -scale_log2,
            shift_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_N, GAIN_LOG2, APPROXIMATE, True, HAS_LEFT, HAS_RIGHT)  # fmt: skip
    acc, k_tile, v_tile = _walk(
        acc, q, k_tile, v_tile, stride_kn, stride_vn, inner_begin, inner_end, used_n, diagonal, left, right, -scale_log2,
        shift_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_N, GAIN_LOG2, APPROXIMATE, False, HAS_LEFT, HAS_RIGHT)  # fmt: skip
    if HAS_LEFT or HAS_RIGHT or not WHOLE_TILES:
        acc, k_tile, v_tile = _walk(
            acc, q, k_tile, v_tile, stride_kn, stride_vn, inner_end, end, used_n, diagonal, left, right, -scale_log2,
            shift_log2, E, F, BLOCK_E, BLOCK_F, BLOCK_N, GAIN_LOG2, APPROXIMATE, True, HAS_LEFT, HAS_RIGHT)  # fmt: skip

    out = tl.where((row < used_m)[:, None], acc * 2.0**-GAIN_LOG2, 0.0)
    offs_f = tl.arange(0, BLOCK_F)
    out_rows = out_ptr + b64 * stride_ob + h64 * stride_oh + row[:, None].to(tl.int64) * stride_om
    tl.store(out_rows + offs_f[None, :], out.to(out_ptr.dtype.element_ty), mask=(row < M)[:, None] & (offs_f < F)[None, :])


def sigmoid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: float | None = None,
    causal: bool = False,
    window: int | tuple[int | None, int | None] | None = None,
    align: str = "last",
    scale: float | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
    config: Config | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """sigmoid(scale q.k + bias) v of q [B, H, M, E], k [B, G, N, E], v [B, G, N, F]; [B, H, M, F] in q's dtype.

    bias   added to every score; default: -log of the number of keys (of each batch element where lengths_k is given)
    causal, window, align, scale, lengths_q, lengths_k, config, out   as in `attention`

    A row that sees no key gives 0. There is no log-sum-exp: results of two sets of keys are simply added.
    Raises ValueError or TypeError that say which argument is wrong and what would be right.
    """
    mask = band(causal, window, align)
    check_inputs(q, k, v, scale, None, None, lengths_q, lengths_k)
    if bias is not None and not math.isfinite(bias):
        raise ValueError(f"bias: got {bias}, expected a finite number, or None for -log N")
    shape = (*q.shape[:3], v.shape[3])
    out = torch.empty(shape, dtype=q.dtype, device=q.device) if out is None else out
    check_output(out, shape, q)
    setting = Setting(mask, own_scale(q, scale), None, lengths_q, lengths_k)
    _pass(q, k, v, setting, bias, config, out).run()
    return out


def compile_named(sizes: list[int], dtype: str, mask: dict[str, Any], config: list[int], *, lengths: bool = False) -> Any:
    """Compile the kernel as `sigmoid_attention` would launch it, from plain values, without data.

    sizes = (B, H, G, M, N, E, F). The target is that of Triton's active driver.
    """
    B, H, G, M, N, E, F = sizes
    kind: torch.dtype = getattr(torch, dtype)
    q, k, v, out = (meta(*shape, kind=kind) for shape in ((B, H, M, E), (B, G, N, E), (B, G, N, F), (B, H, M, F)))
    used = meta(B, kind=torch.int32) if lengths else None
    return _pass(q, k, v, Setting(Band(**mask), own_scale(q, None), None, used, used), None, Config(*config), out).compile()


def _pass(q: Tensor, k: Tensor, v: Tensor, setting: Setting, bias: float | None, config: Config | None,
          out: Tensor) -> Pass:  # fmt: skip
    """The launch that fills `out`."""
    (B, H, M, E), (G, N), F = q.shape, k.shape[1:3], v.shape[3]
    mask, lengths_q, lengths_k = setting.mask, setting.lengths_q, setting.lengths_k
    config = config or tuned("sigmoid", q, (B, H, G, M, N, E, F), mask) or default_config(E, F)
    bias = -math.log(max(1, N)) if bias is None and lengths_k is None else bias
    arguments = (
        q, k, v, lengths_q, lengths_k, out, *strides(q, k, v, out), H, H // G, M, N, *setting.sides(M, N),
        setting.log2_scales[0], (bias or 0.0) * LOG2_E,
    )  # fmt: skip
    flags = {
        "E": E, "F": F, "BLOCK_E": triton.next_power_of_2(E), "BLOCK_F": triton.next_power_of_2(F),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "ALIGN_LAST": mask.align == "last",
        "GAIN_LOG2": HALF_GAIN_LOG2 if q.dtype == torch.float16 else 0, "HAS_LEFT": mask.left is not None,
        "HAS_RIGHT": mask.right is not None, "BIAS_OF_LENGTH": bias is None, "HAS_LENGTHS_Q": lengths_q is not None,
        "HAS_LENGTHS_K": lengths_k is not None, "WHOLE_TILES": N % config.block_n == 0 and lengths_k is None,
        "APPROXIMATE": q.device.type != "cpu",
    }  # fmt: skip
    return Pass(_forward, B * H * triton.cdiv(M, config.block_m), arguments, flags, options(config))
