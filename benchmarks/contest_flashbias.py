"""Attention with a bias of low rank: our factors against the same bias as a matrix, in PyTorch's backends, in compiled
flex_attention and in our own kernel, and against factors concatenated to queries and keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from contest_attention import flex, inputs, judge
from contests import Bar, Call, Contest, Round, names_of_config, normal, sdpa
from sweep_cases import Case

from einsight.kernels.catalog import KERNELS
from einsight.kernels.resources import Request
from einsight.kernels.spaces import LIMITS, Config, configurations

KERNEL = KERNELS["flashbias"]
CONFIGS = (
    Config(128, 64, 4, 2), Config(128, 64, 8, 2), Config(128, 64, 8, 3), Config(128, 128, 8, 2), Config(64, 64, 4, 2),
    Config(64, 64, 4, 3),
)  # fmt: skip
CASES = (
    (Case("flashbias-8k-d64-rank8", (1, 8, 8, 8192, 8192, 64, 64)), 8, (Bar("sdpa-matrix", 1.8),)),
    (Case("flashbias-8k-d128-rank16", (1, 8, 8, 8192, 8192, 128, 128)), 16, ()),
)


def contests() -> Iterator[Contest]:
    for case, rank, bars in CASES:
        yield contest(case, rank, bars)


def contest(case: Case, rank: int, bars: tuple[Bar, ...] = ()) -> Contest:
    def candidates(capability: int) -> tuple[Config, ...]:
        valid = configurations(replace_rank(case, rank), LIMITS[capability], rows=case.sizes[3])
        return tuple(c for c in CONFIGS if c in valid)

    def requests(config: Config, capability: int) -> tuple[Request, ...]:
        mask = {"left": case.band.left, "right": case.band.right, "align": case.align}
        known = {"sizes": list(case.sizes), "dtype": case.dtype, "mask": mask, "config": names_of_config(config)}
        return tuple(Request(KERNEL.module, KERNEL.compiler, known | {"rank": r}, capability) for r in (rank, 0))

    B, H, _, M, N, _, _ = case.sizes
    workload = case.workload() | {"bias": [{"kind": "low_rank", "r": rank}]}
    work = {"flops": case.flops, "bias_flops": 2.0 * B * H * case.seen_pairs * rank, "matrix_bytes": 2.0 * B * H * M * N}
    return Contest(case.name, KERNEL.name, workload, work, candidates, requests, lambda: _round(case, rank), bars)


def replace_rank(case: Case, rank: int) -> Any:
    return replace(case.heads, rank=rank)


def _round(case: Case, rank: int) -> Round:
    import torch

    from einsight.kernels.attention import attention
    from einsight.kernels.flashbias import attention_with_bias, flashbias, pad_rank
    from einsight.kernels.spaces import default_config

    B, H, G, M, N, E, F = case.sizes
    q, k, v = inputs(case)
    pq, pk = normal(rank, (B, H, M, rank), (B, H, N, rank), dtype=case.dtype)
    matrix = (pq.float() @ pk.float().mT).to(q.dtype)  # rounded: what a stored bias would be

    def bias(b: int, h: int, dtype: Any) -> Any:
        return pq[b, h].to(dtype) @ pk[b, h].to(dtype).mT

    exact, allowed = judge(case, q, k, v, bias=bias)
    # A stored bias is rounded once: an error of eps/2 of the bias moves a weight, and thus the output, by as much of it.
    rounding = float(torch.finfo(q.dtype).eps) / 2 * float(matrix.abs().max()) * float(v.abs().max())
    wide_q, wide_k, scale = pad_rank(pq), pad_rank(pk), E**-0.5
    default = default_config(E, F)
    rivals: dict[str, Call] = {f"sdpa-matrix-{b}": _sdpa(b, q, k, v, attn_mask=matrix) for b in ("efficient", "cudnn")}
    own_k, own_v = (x.repeat_interleave(H // G, 1) for x in (k, v))  # factors are per query head
    long = torch.cat([q * scale, wide_q], -1), torch.cat([own_k, wide_k], -1)
    padded_v = torch.nn.functional.pad(own_v, (0, long[0].shape[3] - F))
    for backend in ("flash", "cudnn"):
        wide = _sdpa(backend, *long, padded_v, scale=1.0, is_causal=case.causal)
        rivals[f"sdpa-concatenated-{backend}"] = lambda wide=wide: (wide()[0][..., :F],)
    rivals["flex-matrix"] = flex(case, q, k, v, lambda score, b, h, m, n: score + matrix[b, h, m, n])
    rivals["ours-matrix"] = lambda: attention_with_bias(q, k, v, matrix, causal=case.causal, config=default)[:1]
    context: dict[str, Call] = {"without-bias": lambda: attention(q, k, v, causal=case.causal, config=default)[:1]}

    def ours(config: Config) -> Call:
        return lambda: flashbias(q, k, v, wide_q, wide_k, causal=case.causal, config=config)[:1]

    return Round(exact, allowed, ours, rivals, rounding, context)


def _sdpa(backend: str, q: Any, k: Any, v: Any, **rest: Any) -> Call:
    return lambda: sdpa(backend, q, k, v, **rest)()
