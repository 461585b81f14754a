"""Micro-kernels that load one unit of a GPU and nothing else, for measuring what that unit reaches.

Each launcher returns the callable to time and the work of one call. What the compiler made of the loops is checked
offline by tests, so that a probe does not measure something else.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a Triton kernel's arguments have no Python types)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # 32-bit words a block handles at once: 8 loads of 16 bytes in flight per thread of 4 warps
CHAINS = 1024  # independent chains a block runs: 8 per thread of 4 warps, more than any arithmetic latency needs
UNROLL = 32  # dependent steps between two loop branches
BLOCKS_PER_SM = 8
FUSED = {"num_warps": 4, "enable_fp_fusion": True}


@dataclass(frozen=True, slots=True)
class Probe:
    """A callable that enqueues the work, and how much of what it is, by unit."""

    call: Callable[[], object]
    work: dict[str, float]


@triton.jit
def _read(x_ptr, out_ptr, chunks, visits, BLOCK: tl.constexpr):
    """Every program reads `visits` chunks of BLOCK words, a grid's width apart, around a ring of `chunks`."""
    offs = tl.arange(0, BLOCK)
    folded = tl.zeros([BLOCK], dtype=tl.int32)
    chunk = tl.program_id(0) % chunks
    for _ in tl.range(0, visits):
        # .cg: cached in L2 only, so that a chunk is never found in L1
        folded ^= tl.load(x_ptr + chunk.to(tl.int64) * BLOCK + offs, cache_modifier=".cg")
        chunk = (chunk + tl.num_programs(0)) % chunks
    tl.store(out_ptr + tl.program_id(0), tl.sum(folded, 0))


@triton.jit
def _exp2_chain(out_ptr, start, rounds, CHAINS: tl.constexpr, UNROLL: tl.constexpr):
    """x <- 2^-x, again and again: tends to 0.64. One special-function operation a step; some compilers put the sign into
    an fp32 addition beside it, which keeps that pipe at an eighth of its rate."""
    x = tl.arange(0, CHAINS).to(tl.float32) * start
    for _ in tl.range(0, rounds):
        for _ in tl.static_range(UNROLL):
            x = tl.exp2(-x)
    tl.store(out_ptr + tl.program_id(0), tl.sum(x, 0))


@triton.jit
def _fma_chain(out_ptr, start, factor, rounds, CHAINS: tl.constexpr, UNROLL: tl.constexpr):
    """x <- x * factor + start: one fused multiply-add a step."""
    x = tl.arange(0, CHAINS).to(tl.float32) * start
    for _ in tl.range(0, rounds):
        for _ in tl.static_range(UNROLL):
            x = x * factor + start
    tl.store(out_ptr + tl.program_id(0), tl.sum(x, 0))


@triton.jit
def _nothing(out_ptr):
    pass


def read_ring(footprint_bytes: int, total_bytes: int, sms: int) -> Probe:
    """Read `total_bytes` from a buffer of `footprint_bytes`: L2 when that fits there, HBM when it is far larger."""
    chunks = max(1, footprint_bytes // (4 * BLOCK))
    x = torch.zeros(chunks * BLOCK, dtype=torch.int32, device="cuda")
    programs = sms * BLOCKS_PER_SM
    visits = max(1, round(total_bytes / (programs * 4 * BLOCK)))
    out = torch.empty(programs, dtype=torch.int32, device="cuda")

    def call() -> None:
        _read[(programs,)](x, out, chunks, visits, BLOCK=BLOCK, num_warps=4, num_stages=1)

    return Probe(call, {"bytes": float(programs * visits * BLOCK * 4)})


def copy(size_bytes: int) -> Probe:
    """Copy a buffer to another: half of the bytes are read, half written."""
    source = torch.zeros(size_bytes // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return Probe(lambda: target.copy_(source), {"bytes": 2.0 * source.numel() * 4})


def exp2_rate(rounds: int, sms: int) -> Probe:
    """Exponentials to base 2, in registers."""
    out = torch.empty(sms * BLOCKS_PER_SM, dtype=torch.float32, device="cuda")

    def call() -> None:
        _exp2_chain[(out.numel(),)](out, 1e-3, rounds, CHAINS=CHAINS, UNROLL=UNROLL, num_warps=4)

    return Probe(call, {"special_ops": float(out.numel() * CHAINS * UNROLL * rounds)})


def fma_rate(rounds: int, sms: int) -> Probe:
    """fp32 fused multiply-adds, in registers; an instruction counts once, its FLOPs twice."""
    out = torch.empty(sms * BLOCKS_PER_SM, dtype=torch.float32, device="cuda")

    def call() -> None:
        _fma_chain[(out.numel(),)](out, 1e-3, 0.999, rounds, CHAINS=CHAINS, UNROLL=UNROLL, **FUSED)

    steps = float(out.numel() * CHAINS * UNROLL * rounds)
    return Probe(call, {"vector_ops": steps, "flops": 2.0 * steps})


def matmul(n: int, dtype: str) -> Probe:
    """n x n x n product by the vendor library, operands `dtype` (float8_e4m3fn needs compute capability 8.9), normal
    random values: zeros would draw less power and hold a higher clock than real data do."""
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    work = {"flops": 2.0 * n**3}
    if dtype != "float8_e4m3fn":
        element: torch.dtype = getattr(torch, dtype)
        a, b = a.to(element), b.to(element)
        out = torch.empty(n, n, device="cuda", dtype=element)
        return Probe(lambda: torch.mm(a, b, out=out), work)
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    one: Tensor = torch.ones((), device="cuda")

    def call() -> object:
        return torch._scaled_mm(a8, b8, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    return Probe(call, work)


def nothing() -> Probe:
    """A kernel that does nothing: what a launch costs on the device when many follow each other."""
    out = torch.empty(1, device="cuda")
    return Probe(lambda: _nothing[(1,)](out, num_warps=1), {"launches": 1.0})


def compile_named(probe: str) -> Any:
    """Compile the probe `read`, `exp2` or `fma` without data, for the offline compiler."""
    if probe == "read":
        return _read.warmup(torch.int32, torch.int32, 4096, 64, BLOCK=BLOCK, grid=(1,), num_warps=4, num_stages=1)
    if probe == "exp2":
        return _exp2_chain.warmup(torch.float32, 1e-3, 64, CHAINS=CHAINS, UNROLL=UNROLL, grid=(1,), num_warps=4)
    if probe == "fma":
        return _fma_chain.warmup(torch.float32, 1e-3, 0.999, 64, CHAINS=CHAINS, UNROLL=UNROLL, grid=(1,), **FUSED)
    raise ValueError(f"probe: got {probe!r}, expected read, exp2 or fma")
