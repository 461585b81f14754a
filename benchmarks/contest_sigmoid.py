"""Sigmoid attention against the plain PyTorch form, compiled, and beside our own softmax attention of the same sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from contest_attention import inputs
from contests import Bar, Call, Contest, Round, names_of_config
from sweep_cases import Case

from einsight.kernels.catalog import KERNELS
from einsight.kernels.resources import Request
from einsight.kernels.spaces import LIMITS, Config, configurations

KERNEL = KERNELS["sigmoid"]
CONFIGS = (
    Config(128, 64, 4, 2), Config(128, 64, 4, 3), Config(128, 64, 8, 2), Config(128, 64, 8, 3), Config(128, 128, 8, 2),
    Config(64, 64, 4, 3),
)  # fmt: skip
CASES = (
    (Case("sigmoid-8k-d64", (1, 16, 16, 8192, 8192, 64, 64)), (Bar("softmax", 1.1),)),
    (Case("sigmoid-causal-8k-d128", (1, 16, 16, 8192, 8192, 128, 128), causal=True), (Bar("softmax", 1.1),)),
)
SOFTMAX = (Config(128, 64, 4, 2), Config(128, 64, 8, 2), Config(128, 128, 8, 2))
"""Builds of our softmax kernel: the fastest of them is the bar."""


def contests() -> Iterator[Contest]:
    for case, bars in CASES:
        yield contest(case, bars)


def contest(case: Case, bars: tuple[Bar, ...] = ()) -> Contest:
    def candidates(capability: int) -> tuple[Config, ...]:
        valid = configurations(case.heads, LIMITS[capability], rows=case.sizes[3])
        return tuple(c for c in CONFIGS if c in valid)

    def requests(config: Config, capability: int) -> tuple[Request, ...]:
        mask = {"left": case.band.left, "right": case.band.right, "align": case.align}
        known = {"sizes": list(case.sizes), "dtype": case.dtype, "mask": mask, "config": names_of_config(config)}
        return (Request(KERNEL.module, KERNEL.compiler, known, capability),)

    workload = case.workload() | {"cascade": KERNEL.cascade}
    return Contest(case.name, KERNEL.name, workload, {"flops": case.flops}, candidates, requests, lambda: _round(case), bars)


def _round(case: Case) -> Round:
    import torch

    from einsight.kernels import references
    from einsight.kernels.attention import attention
    from einsight.kernels.sigmoid import sigmoid_attention

    q, k, v = inputs(case)
    H, N, E = q.shape[1], k.shape[2], q.shape[3]
    exact, plain = (
        torch.cat([_head(references, case, q, k, v, h, dtype) for h in range(H)], 1) for dtype in (torch.float64, q.dtype)
    )
    allowed = references.allowed_error(plain, exact, q.dtype)
    seen = references.visible(case.band, q.shape[2], N, q.device)

    def formula(q: Any, k: Any, v: Any) -> Any:
        score = (q @ k.mT) * E**-0.5 - math.log(N)
        return torch.sigmoid(score).masked_fill(~seen, 0.0) @ v

    compiled = torch.compile(formula, dynamic=False) if q.is_cuda else formula
    group = H // k.shape[1]
    wide_k, wide_v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)

    def ours(config: Config) -> Call:
        return lambda: (sigmoid_attention(q, k, v, causal=case.causal, window=case.window, config=config),)

    def softmax(config: Config) -> Call:
        return lambda: attention(q, k, v, causal=case.causal, window=case.window, config=config)[:1]

    beside = {f"softmax-{config}": softmax(config) for config in SOFTMAX}
    return Round((exact,), (allowed,), ours, {"compiled": lambda: (compiled(q, wide_k, wide_v),)}, context=beside)


def _head(references: Any, case: Case, q: Any, k: Any, v: Any, h: int, dtype: Any) -> Any:
    """A head at a time: all scores of all heads in float64 would not fit."""
    g = h // (q.shape[1] // k.shape[1])
    one = (q[:, h : h + 1], k[:, g : g + 1], v[:, g : g + 1])
    return references.sigmoid_attention(*one, band=case.band, dtype=dtype)
