"""Fused forward attention: dense, causal, sliding window, grouped heads, lengths, sinks, softcap; fp16, bf16 and fp8.

The kernel is in `attention_forward`. Tiles are read through pointers, or through tensor descriptors where a build asks
for them and the inputs allow it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from einsight.kernels.attention_forward import forward
from einsight.kernels.attention_launch import LOG2_E as LOG2_E
from einsight.kernels.attention_launch import (
    Bias,
    Pass,
    Setting,
    as_sequences,
    meta,
    options,
    strides,
    variant,
)
from einsight.kernels.attention_space import AttentionConfig, attention_config, fp8_refusal, path_refusal
from einsight.kernels.band import Band, band
from einsight.kernels.spaces import Config, default_config
from einsight.kernels.tuned import tuned

DTYPES = (torch.float16, torch.bfloat16)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# Softmax weights are at most 1, and e4m3 has no more than 2^-9 below it: scaled by 2^8 they use its range up to 448.
FP8_WEIGHT_BITS = 8
DESCRIPTOR_ALIGNMENT = 16  # bytes
HEAD_DIMS = (32, 256)  # smallest and largest E and F; between powers of two the tile is padded
Descales = tuple[Tensor | None, Tensor | None, Tensor | None]
NO_DESCALES: Descales = (None, None, None)


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
    descales: Descales = NO_DESCALES,
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
    descales    of q, k and v in fp8: float32 tensors of one positive number each, what a stored 1.0 stands for; None: 1
    config      tile sizes, warps and stages; default: the tuned one (`kernels.lookup`), else `default_config`
    out, lse    buffers to write into: [B, H, M, F] in q's dtype (bfloat16 for fp8), [B, H, M] float32 contiguous

    Returns (output, log-sum-exp in natural units, with the sink in it). A row that sees no key gives 0 and -inf.
    float16 or bfloat16 with float32 accumulation, E and F from 32 to 256, last dimension contiguous; float8_e4m3fn and
    float8_e5m2 from sm_89 on, forward only: softmax weights are rounded to the format of v, after scaling by 2^8.
    Raises ValueError or TypeError that say which argument is wrong and what would be right.
    """
    check_inputs(q, k, v, scale, softcap, sink, lengths_q, lengths_k, (*DTYPES, *FP8))
    check_fp8(q, descales)
    shape = (*q.shape[:3], v.shape[3])
    out = torch.empty(shape, dtype=output_dtype(q), device=q.device) if out is None else out
    lse = torch.empty(shape[:3], dtype=torch.float32, device=q.device) if lse is None else lse
    check_outputs(out, lse, shape, q)
    setting = Setting(band(causal, window, align), own_scale(q, scale), softcap, lengths_q, lengths_k)
    forward_pass(q, k, v, setting, config, out, lse, sink=sink, descales=descales).run()
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
    descales: Descales = NO_DESCALES,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention` of sequences that lie one behind the other: q [T, H, E], k [S, G, E], v [S, G, F].

    bounds_q, bounds_k     int32 [B + 1]: where each sequence's queries and keys begin, and the end; not decreasing
    longest_q, longest_k   of one sequence, so that no length has to be read back from the device

    Returns (output [T, H, F], log-sum-exp [H, T]); 0 and -inf for rows outside every sequence. Raises ValueError or
    TypeError that name the argument.
    """
    check_packed(q, k, v, bounds_q, bounds_k)
    one_q, one_k, one_v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, T, E]: seen as one sequence
    check_inputs(one_q, one_k, one_v, scale, softcap, sink, None, None, (*DTYPES, *FP8))
    check_fp8(q, descales)
    (T, H, _), F = q.shape, v.shape[2]
    setting = Setting(band(causal, window, align), own_scale(q, scale), softcap, bounds_q, bounds_k, T)
    out = torch.zeros(T, H, F, dtype=output_dtype(q), device=q.device)
    lse = torch.full((H, T), -math.inf, dtype=torch.float32, device=q.device)
    (wide_q, wide_out), (wide_k, wide_v) = packed_views(setting, longest_q, longest_k, (q, out), (k, v))
    forward_pass(wide_q, wide_k, wide_v, setting, config, wide_out, lse, sink=sink, descales=descales).run()
    return out, lse


def packed_views(setting: Setting, longest_q: int, longest_k: int, rows: tuple[Tensor, ...],
                 keys: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Tensors [T, heads, width] and [S, heads, width] as the batch of longest sequences that a launch is made for."""
    assert setting.lengths_q is not None
    B = setting.lengths_q.shape[0] - 1
    longest_q, longest_k = min(longest_q, rows[0].shape[0]), min(longest_k, keys[0].shape[0])
    return [as_sequences(x, B, longest_q) for x in rows], [as_sequences(x, B, longest_k) for x in keys]


def forward_pass(q: Tensor, k: Tensor, v: Tensor, setting: Setting, config: Config | None, out: Tensor, lse: Tensor, *,
                 sink: Tensor | None = None, descales: Descales = NO_DESCALES,
                 bias: Bias | None = None) -> Pass:  # fmt: skip
    """The launch that fills `out` and `lse`."""
    (B, H, M, E), (G, N), F = q.shape, k.shape[1:3], v.shape[3]
    config = config or _tuned(q, (B, H, G, M, N, E, F), setting, sink, bias) or default_config(E, F)
    first, second = (None, None) if bias is None else (bias.first, bias.second)
    of_second = strides(second) if bias is None or second is not None else (0, 0, 1)  # a matrix: a column per key
    asked, capability = attention_config(config), capability_of(q)
    allowed = capability is None or not path_refusal(asked, capability)
    descriptors = asked.descriptors and allowed and not descriptor_refusal(k, v, setting)
    fixed = variant(
        setting, config, E, F, bias=bias, walked=None if setting.lengths_k is not None else N,
        weight_bits=FP8_WEIGHT_BITS if q.dtype in FP8 else 0, descriptors=descriptors,
        warp_specialize=asked.warp_specialize and allowed,
    )  # fmt: skip
    keys, values = ((_descriptor(x, config.block_n) for x in (k, v)) if descriptors else (k, v))
    arguments = (
        q, keys, values, first, second, sink, *descales, setting.lengths_q, setting.lengths_k, out, lse,
        *strides(q, k, v, first), *of_second, *strides(out), H, H // G, M, N, setting.packed_rows or M, *setting.sides(M, N),
        *setting.log2_scales, 1.0 / setting.scale,
    )  # fmt: skip
    programs = B * H * triton.cdiv(M, config.block_m)
    return Pass(forward, programs, arguments, {"V": fixed}, options(config))


def _tuned(q: Tensor, sizes: tuple[int, ...], setting: Setting, sink: Tensor | None, bias: Bias | None) -> Config | None:
    name, added = ("attention", ()) if bias is None else bias.named
    cap = () if setting.softcap is None else (("softcap", "cap", setting.softcap),)
    return tuned(name, q, sizes, setting.mask, (*added, *cap, *(() if sink is None else (("sink", "", 0.0),))))


def _descriptor(x: Tensor, rows: int) -> Any:
    return TensorDescriptor.from_tensor(x, [1, 1, rows, triton.next_power_of_2(x.shape[3])])


def descriptor_refusal(k: Tensor, v: Tensor, setting: Setting) -> str:
    """Why tensor descriptors cannot read these keys and values, "" where they can: the launch then uses pointers instead."""
    if setting.packed_rows is not None:
        return "packed sequences: a tile at a sequence's end would reach into the next one"
    if setting.lengths_k is not None:
        return "lengths_k: padding inside the tensor would be read, and a NaN there would spread"
    for name, x in (("k", k), ("v", v)):
        if 0 in x.shape:
            return f"{name} is empty"
        if x.device.type != "meta" and x.data_ptr() % DESCRIPTOR_ALIGNMENT:
            return f"{name} does not begin at a multiple of {DESCRIPTOR_ALIGNMENT} bytes"
        if any(s == 0 or s * x.element_size() % DESCRIPTOR_ALIGNMENT for s in x.stride()[:3]):
            return f"{name} has strides {x.stride()}, not all of them multiples of {DESCRIPTOR_ALIGNMENT} bytes"
    return ""


def capability_of(x: Tensor) -> int | None:
    """10 major + minor of the device; None where nothing runs on one (interpreted, compiled offline)."""
    if not x.is_cuda:
        return None
    major, minor = torch.cuda.get_device_capability(x.device)
    return int(10 * major + minor)


def own_scale(q: Tensor, scale: float | None) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale


def output_dtype(q: Tensor) -> torch.dtype:
    return torch.bfloat16 if q.dtype in FP8 else q.dtype


def check_inputs(q: Tensor, k: Tensor, v: Tensor, scale: float | None, softcap: float | None, sink: Tensor | None,
                 lengths_q: Tensor | None, lengths_k: Tensor | None,
                 dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:  # fmt: skip
    for name, x, form in (("q", q, "[B, H, M, E]"), ("k", k, "[B, G, N, E]"), ("v", v, "[B, G, N, F]")):
        if x.dim() != 4:
            raise ValueError(f"{name}: got shape {list(x.shape)}, expected four dimensions {form}")
        if x.dtype not in dtypes:
            raise TypeError(f"{name}: got {x.dtype}, expected {' or '.join(map(str, dtypes))}; convert with .to(...)")
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
    check_output(out, shape, q)
    if lse.shape != shape[:3] or lse.dtype != torch.float32 or lse.device != q.device or not lse.is_contiguous():
        raise ValueError(
            f"lse: got {lse.dtype} {list(lse.shape)} on {lse.device}, expected contiguous torch.float32 "
            f"{list(shape[:3])} on {q.device}"
        )


def check_output(out: Tensor, shape: tuple[int, ...], q: Tensor) -> None:
    expected = output_dtype(q)
    if out.shape != shape or out.dtype != expected or out.device != q.device or out.stride(3) != 1:
        raise ValueError(
            f"out: got {out.dtype} {list(out.shape)} on {out.device} with strides {out.stride()}, "
            f"expected {expected} {list(shape)} on {q.device}, last dimension contiguous"
        )


def check_fp8(q: Tensor, descales: Descales, capability: int | None = None) -> None:
    """capability   of a device to compile for; None: that of q's"""
    if q.dtype not in FP8:
        if descales != NO_DESCALES:
            raise ValueError(f"descales: given for {q.dtype}, expected only for {' or '.join(map(str, FP8))}")
        return
    capability = capability or capability_of(q)
    if capability is not None and (reason := fp8_refusal(capability)):
        raise TypeError(f"q: got {q.dtype}, but {reason}; convert q, k and v with .to(torch.bfloat16)")
    for name, descale in zip("qkv", descales, strict=True):
        if descale is None:
            continue
        if descale.dtype != torch.float32 or descale.numel() != 1 or descale.device != q.device:
            raise ValueError(f"descales: that of {name} is {descale.dtype} {list(descale.shape)} on {descale.device}, "
                             f"expected one torch.float32 number on {q.device}")  # fmt: skip


def check_packed(q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor, bounds_k: Tensor) -> None:
    for name, x, form in (("q", q, "[T, H, E]"), ("k", k, "[S, G, E]"), ("v", v, "[S, G, F]")):
        if x.dim() != 3:
            raise ValueError(f"{name}: got shape {list(x.shape)}, expected three dimensions {form}")
    for name, bounds in (("bounds_q", bounds_q), ("bounds_k", bounds_k)):
        fits = bounds.dim() == 1 and bounds.shape == bounds_q.shape and bounds.shape[0] > 0
        if not fits or bounds.dtype != torch.int32 or bounds.device != q.device:
            raise ValueError(f"{name}: got {bounds.dtype} {list(bounds.shape)} on {bounds.device}, "
                             f"expected torch.int32 [B + 1] on {q.device}")  # fmt: skip


def compile_named(sizes: list[int], dtype: str, mask: dict[str, Any], config: list[int], *, softcap: float | None = None,
                  sink: bool = False, lengths: bool = False, layout: str = "bhme", descriptors: bool = False,
                  warp_specialize: bool = False) -> Any:  # fmt: skip
    """Compile the kernel as `attention` would launch it on aligned tensors, from plain values, without data; returns
    Triton's object. The target is that of Triton's active driver.

    sizes = (B, H, G, M, N, E, F); layout "bhme" contiguous, "bmhe" heads inside the sequence (as projections leave
    them); fp8 is compiled with descales.
    """
    B, H, G, M, N, E, F = sizes
    element: torch.dtype = getattr(torch, dtype)

    def tensor(heads: int, length: int, width: int, kind: torch.dtype = element) -> Tensor:
        if layout == "bmhe":
            return meta(B, length, heads, width, kind=kind).transpose(1, 2)
        return meta(B, heads, length, width, kind=kind)

    q, k, v = tensor(H, M, E), tensor(G, N, E), tensor(G, N, F)
    used, one = meta(B, kind=torch.int32), meta(1, kind=torch.float32)
    descales = (one, one, one) if element in FP8 else NO_DESCALES
    target = int(triton.runtime.driver.active.get_current_target().arch)
    check_fp8(q, NO_DESCALES, target)
    setting = Setting(Band(**mask), own_scale(q, None), softcap, *((used, used) if lengths else ()))
    block_m, block_n, num_warps, num_stages = config
    build = AttentionConfig(block_m, block_n, num_warps, num_stages, descriptors, warp_specialize)
    if reason := path_refusal(build, target):
        raise ValueError(f"{build}: {reason}")
    out, lse = tensor(H, M, F, output_dtype(q)), meta(B, H, M, kind=torch.float32)
    sinks = meta(H, kind=torch.float32) if sink else None
    return forward_pass(q, k, v, setting, build, out, lse, sink=sinks, descales=descales).compile()
