"""Causal linear attention in chunks in Triton: a state of E x F per head is carried from chunk to chunk.

out_t = scale q_t S_t with S_t = diag(a_t) S_(t-1) + k_t v_t^T. The decay a_t is one number per head (Lightning Attention,
arXiv:2401.04658), a vector per position (Gated Linear Attention, arXiv:2312.06635, equation 3), or 1. Inside a chunk the
sum over earlier positions is a masked product of queries and keys; what lies before the chunk comes from the state.

Every exponential here is of a sum of log decays between two positions, hence at most 1: dividing by a cumulative decay,
as the short form of the equations does, overflows once the gates close. For gates the scores of a chunk are therefore made by
a kernel of its own in blocks of 16 positions: a product with both sides brought to the block's first position where keys
lie before the block, column by column in float32 within it.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a Triton kernel's arguments have no Python types)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from einsight.kernels.attention import check_inputs, check_output
from einsight.kernels.attention_launch import Pass, meta, options, strides
from einsight.kernels.attention_tiles import load_rows
from einsight.kernels.band import Band
from einsight.kernels.linear_space import default_linear_config
from einsight.kernels.spaces import Config
from einsight.kernels.tuned import tuned

NONE, DECAY, GATES = 0, 1, 2  # kinds of decay
SUB_BLOCK = 16  # rows that a tensor core takes at least


@triton.jit
def _gated_scores(q_ptr, k_ptr, gate_ptr, score_ptr, stride_qb, stride_qh, stride_qn, stride_kb, stride_kg, stride_kn,
                  stride_ab, stride_ag, stride_an, H, J, N, scale, E: tl.constexpr, BLOCK_E: tl.constexpr,
                  CHUNK: tl.constexpr, SUB: tl.constexpr):  # fmt: skip
    """Scores of SUB queries with the keys of their chunk, decayed; zeros for later keys."""
    log2_e: tl.constexpr = 1.4426950408889634
    chunks = tl.cdiv(N, CHUNK)
    sub = tl.program_id(0) % (CHUNK // SUB)
    chunk = tl.program_id(0) // (CHUNK // SUB) % chunks
    bh = tl.program_id(0) // (CHUNK // SUB) // chunks
    b64, h64 = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    g64 = h64 // J
    offs_s, offs_c, offs_e = tl.arange(0, SUB), tl.arange(0, CHUNK), tl.arange(0, BLOCK_E)
    begin = (chunk * CHUNK).to(tl.int64)
    k_chunk = k_ptr + b64 * stride_kb + g64 * stride_kg + begin * stride_kn
    gate_chunk = gate_ptr + b64 * stride_ab + g64 * stride_ag + begin * stride_an
    row = sub * SUB + offs_s
    here = begin + row < N
    q = load_rows(q_ptr + b64 * stride_qb + h64 * stride_qh + begin * stride_qn, row, stride_qn, here, E, BLOCK_E, True)
    gate = load_rows(gate_chunk, row, stride_an, here, E, BLOCK_E, True).to(tl.float32) * log2_e

    before = sub * SUB  # keys of the chunk before this block, decayed to its first position
    end = tl.minimum(before, N - begin)
    k = load_rows(k_chunk, offs_c, stride_kn, offs_c < end, E, BLOCK_E, True)
    after = load_rows(gate_chunk, offs_c + 1, stride_an, offs_c + 1 < end, E, BLOCK_E, True).to(tl.float32) * log2_e
    k_decayed = (k.to(tl.float32) * tl.exp2(tl.cumsum(after, 0, reverse=True))).to(k.dtype)
    q_decayed = (q.to(tl.float32) * tl.exp2(tl.cumsum(gate, 0))).to(q.dtype)
    score = tl.dot(q_decayed, tl.trans(k_decayed))

    # Within the block, from its last key back: `decay` is the sum of the gates between key and query, without cancellation.
    q32 = q.to(tl.float32)
    decay = tl.zeros([SUB, BLOCK_E], dtype=tl.float32)
    for back in tl.range(0, SUB):
        column = SUB - 1 - back
        inside = (offs_e < E) & (begin + before + column < N)
        key = tl.load(k_chunk + (before + column) * stride_kn + offs_e, mask=inside, other=0.0).to(tl.float32)
        own = tl.load(gate_chunk + (before + column) * stride_an + offs_e, mask=inside, other=0.0).to(tl.float32) * log2_e
        value = tl.sum(q32 * key[None, :] * tl.exp2(decay), 1)
        score = tl.where((offs_c == before + column)[None, :], value[:, None], score)
        decay += tl.where((offs_s >= column)[:, None], own[None, :], 0.0)
    score = tl.where(offs_c[None, :] <= row[:, None], score * scale, 0.0)
    at = score_ptr + ((bh.to(tl.int64) * chunks + chunk) * CHUNK + row[:, None]) * CHUNK + offs_c[None, :]
    tl.store(at, score.to(score_ptr.dtype.element_ty))


@triton.jit
def _chunks(q_ptr, k_ptr, v_ptr, decay_ptr, score_ptr, first_ptr, out_ptr, last_ptr, stride_qb, stride_qh, stride_qn,
            stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn, stride_ab, stride_ag, stride_an, stride_ob,
            stride_oh, stride_on, H, J, N, scale, E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr,
            CHUNK: tl.constexpr, BLOCK_F: tl.constexpr, KIND: tl.constexpr, HAS_FIRST: tl.constexpr):  # fmt: skip
    """BLOCK_F value columns of one head, chunk after chunk. `decay_ptr`: log decays [H] (KIND 1) or log gates (KIND 2)."""
    log2_e: tl.constexpr = 1.4426950408889634
    f_blocks = tl.cdiv(F, BLOCK_F)
    bh = tl.program_id(0) // f_blocks
    b64, h64 = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    g64 = h64 // J
    offs_c, offs_e = tl.arange(0, CHUNK), tl.arange(0, BLOCK_E)
    offs_f = tl.program_id(0) % f_blocks * BLOCK_F + tl.arange(0, BLOCK_F)
    q_rows = q_ptr + b64 * stride_qb + h64 * stride_qh
    k_rows = k_ptr + b64 * stride_kb + g64 * stride_kg
    v_rows = v_ptr + b64 * stride_vb + g64 * stride_vg
    out_rows = out_ptr + b64 * stride_ob + h64 * stride_oh
    gate_rows = decay_ptr + b64 * stride_ab + g64 * stride_ag if KIND == 2 else decay_ptr
    score_rows = score_ptr + bh.to(tl.int64) * tl.cdiv(N, CHUNK) * CHUNK * CHUNK if KIND == 2 else score_ptr
    decay = tl.load(decay_ptr + h64).to(tl.float32) * log2_e if KIND == 1 else scale * 0.0
    at_state = (bh.to(tl.int64) * E + offs_e[:, None]) * F + offs_f[None, :]
    of_state = (offs_e < E)[:, None] & (offs_f < F)[None, :]
    if HAS_FIRST:
        state = tl.load(first_ptr + at_state, mask=of_state, other=0.0)
    else:
        state = tl.zeros([BLOCK_E, BLOCK_F], dtype=tl.float32)
    apart = offs_c[:, None] - offs_c[None, :]
    for start in tl.range(0, N, CHUNK):
        used = start + offs_c < N
        q = load_rows(q_rows, offs_c, stride_qn, used, E, BLOCK_E, True)
        k = load_rows(k_rows, offs_c, stride_kn, used, E, BLOCK_E, True)
        inside = used[:, None] & (offs_f < F)[None, :]
        v = tl.load(v_rows + offs_c[:, None] * stride_vn + offs_f[None, :], mask=inside, other=0.0)
        if KIND == 2:
            gate = load_rows(gate_rows, offs_c, stride_an, used, E, BLOCK_E, True).to(tl.float32) * log2_e
            later = used & (start + offs_c + 1 < N) & (offs_c + 1 < CHUNK)
            after = load_rows(gate_rows, offs_c + 1, stride_an, later, E, BLOCK_E, True).to(tl.float32) * log2_e
            q_decayed = (q.to(tl.float32) * tl.exp2(tl.cumsum(gate, 0)) * scale).to(q.dtype)
            k = (k.to(tl.float32) * tl.exp2(tl.cumsum(after, 0, reverse=True))).to(k.dtype)
            kept = tl.exp2(tl.sum(gate, 0))[:, None]
            acc = tl.dot(q_decayed, state.to(q.dtype))
            score = tl.load(score_rows + offs_c[:, None] * CHUNK + offs_c[None, :])
            gate_rows += CHUNK * stride_an
            score_rows += CHUNK * CHUNK
        else:
            full = tl.minimum(N - start, CHUNK)
            weight = tl.exp2(tl.maximum(apart, 0) * decay) * scale
            score = tl.where(apart >= 0, tl.dot(q, tl.trans(k)) * weight, 0.0)
            acc = tl.dot(q, state.to(q.dtype)) * (tl.exp2((offs_c + 1) * decay) * scale)[:, None]
            to_end = tl.exp2(tl.maximum(full - 1 - offs_c, 0) * decay)
            k = (k.to(tl.float32) * to_end[:, None]).to(k.dtype)
            kept = tl.exp2(full * decay)
        acc = tl.dot(score.to(v.dtype), v, acc)
        state = tl.dot(tl.trans(k), v, state * kept)
        tl.store(out_rows + offs_c[:, None] * stride_on + offs_f[None, :], acc.to(out_ptr.dtype.element_ty), mask=inside)
        q_rows += CHUNK * stride_qn
        k_rows += CHUNK * stride_kn
        v_rows += CHUNK * stride_vn
        out_rows += CHUNK * stride_on
    tl.store(last_ptr + at_state, state, mask=of_state)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    log_gates: Tensor | None = None,
    scale: float = 1.0,
    state: Tensor | None = None,
    config: Config | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal linear attention of q [B, H, N, E] over k [B, G, N, E] and v [B, G, N, F]; no normalisation, no feature map.

    log_decay   float32 [H], at most 0: log of the factor that the state keeps per position (Lightning: minus the slope)
    log_gates   [B, G, N, E] in q's type or float32, finite, at most 0: log of the gates of every position (GLA);
                neither of the two: nothing decays
    scale       multiplies the output
    state       float32 [B, H, E, F], contiguous: the state before the first position, as an earlier call returned it
    config      block_m positions of a chunk, block_n value columns of a program; default: the tuned one, else
                `default_linear_config`

    Returns (output [B, H, N, F], state after the last position). Signs and bounds of decays are not checked: that would
    wait for the device. The carried state is float32, but is rounded to q's type where it meets the queries: in float16
    it must stay below 65504.
    Raises ValueError or TypeError that say which argument is wrong and what would be right.
    """
    check_inputs(q, k, v, scale, None, None, None, None)
    _check(q, k, v, log_decay, log_gates, state)
    (B, H, N, E), F = q.shape, v.shape[3]
    out = torch.empty(B, H, N, F, dtype=q.dtype, device=q.device) if out is None else out
    check_output(out, (B, H, N, F), q)
    last = torch.empty(B, H, E, F, dtype=torch.float32, device=q.device)
    for each in _passes(q, k, v, log_decay, log_gates, scale, state, config, out, last):
        each.run()
    return out, last


def compile_named(sizes: list[int], dtype: str, mask: dict[str, Any], config: list[int], kind: str = "decay",
                  scores: bool = False) -> Any:  # fmt: skip
    """Compile without data: kind "none", "decay" or "gates"; `scores`: the kernel of the scores of gates.

    sizes = (B, H, G, M, N, E, F) with M = N; the mask is causal whatever it says.
    """
    B, H, G, _, N, E, F = sizes
    element: torch.dtype = getattr(torch, dtype)

    q, k, v, out = (meta(*shape, kind=element) for shape in ((B, H, N, E), (B, G, N, E), (B, G, N, F), (B, H, N, F)))
    decay = meta(H, kind=torch.float32) if kind == "decay" else None
    gates = meta(B, G, N, E, kind=torch.float32) if kind == "gates" else None
    last = meta(B, H, E, F, kind=torch.float32)
    both = _passes(q, k, v, decay, gates, 1.0, None, Config(*config), out, last)
    return both[0 if scores else -1].compile()


def _passes(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, log_gates: Tensor | None, scale: float,
            state: Tensor | None, config: Config | None, out: Tensor, last: Tensor) -> tuple[Pass, ...]:  # fmt: skip
    """The launches that fill `out` and `last`: with gates the scores of every chunk, then the chunks."""
    (B, H, N, E), G, F = q.shape, k.shape[1], v.shape[3]
    kind = GATES if log_gates is not None else DECAY if log_decay is not None else NONE
    found = tuned("gla" if kind == GATES else "lightning", q, (B, H, G, N, N, E, F), Band())
    config = config or found or default_linear_config(E, F)
    chunks = triton.cdiv(N, config.block_m)
    shared = {"E": E, "BLOCK_E": triton.next_power_of_2(E), "CHUNK": config.block_m}
    score: Tensor | None = None
    before: tuple[Pass, ...] = ()
    if log_gates is not None:
        score = torch.empty(B, H, chunks, config.block_m, config.block_m, dtype=q.dtype, device=q.device)
        given = (q, k, log_gates, score, *strides(q, k, log_gates), H, H // G, N, scale)
        blocks, four_warps = B * H * chunks * (config.block_m // SUB_BLOCK), {"num_warps": 4, "enable_fp_fusion": True}
        before = (Pass(_gated_scores, blocks, given, shared | {"SUB": SUB_BLOCK}, four_warps),)
    arguments = (q, k, v, log_gates if kind == GATES else log_decay, score, state, out, last,
                 *strides(q, k, v, log_gates, out), H, H // G, N, scale)  # fmt: skip
    flags = shared | {"F": F, "BLOCK_F": config.block_n, "KIND": kind, "HAS_FIRST": state is not None}
    return *before, Pass(_chunks, B * H * triton.cdiv(F, config.block_n), arguments, flags, options(config))


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, log_gates: Tensor | None,
           state: Tensor | None) -> None:  # fmt: skip
    (B, H, N, E), F = q.shape, v.shape[3]
    if k.shape[2] != N:
        raise ValueError(f"k: got {k.shape[2]} positions, expected {N} as q (the chunks are those of one sequence)")
    if log_decay is not None and log_gates is not None:
        raise ValueError("log_gates: got both gates and log_decay, expected one of them (add the decay to the gates)")
    for name, x, shape, types in (
        ("log_decay", log_decay, (H,), (torch.float32,)),
        ("log_gates", log_gates, tuple(k.shape), (q.dtype, torch.float32)),
        ("state", state, (B, H, E, F), (torch.float32,)),
    ):
        if x is None:
            continue
        if x.shape != shape or x.dtype not in types or x.device != q.device:
            raise ValueError(
                f"{name}: got {x.dtype} {list(x.shape)} on {x.device}, "
                f"expected {' or '.join(map(str, types))} {list(shape)} on {q.device}"
            )
        if (name == "log_gates" and x.stride(3) != 1) or (name != "log_gates" and not x.is_contiguous()):
            raise ValueError(f"{name}: got strides {x.stride()}, expected a contiguous last dimension; use .contiguous()")
