"""One query per sequence over a long cache: both schedules of ours against PyTorch's backends and compiled flex_attention,
beside a copy that moves as many bytes as the cache has. Whatever reads the cache once cannot be faster than the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from contest_attention import inputs, judge
from contests import Bar, Call, Contest, Round, compiled_flex, names_of_config, sdpa
from sweep_cases import Case

from einsight.kernels.catalog import KERNELS
from einsight.kernels.decode_space import decode_configurations
from einsight.kernels.resources import Request
from einsight.kernels.spaces import LIMITS, Config

KERNEL = KERNELS["decode"]
CONFIGS = (
    Config(16, 64, 4, 2), Config(16, 64, 4, 3), Config(16, 64, 2, 3), Config(16, 128, 4, 2), Config(16, 128, 8, 2),
    Config(16, 32, 4, 4),
)  # fmt: skip
CASES = (
    (Case("decode-128k-d128", (1, 32, 8, 1, 131072, 128, 128)), (Bar("copy", 0.8),)),
    (Case("decode-8k-batch-16-d128", (16, 32, 8, 1, 8192, 128, 128)), ()),
)


def contests() -> Iterator[Contest]:
    for case, bars in CASES:
        yield contest(case, bars)


def contest(case: Case, bars: tuple[Bar, ...] = ()) -> Contest:
    H, G, M = case.sizes[1:4]

    def candidates(capability: int) -> tuple[Config, ...]:
        valid = decode_configurations(case.heads, LIMITS[capability], rows=H // G * M)
        return tuple(c for c in CONFIGS if c in valid)

    def requests(config: Config, capability: int) -> tuple[Request, ...]:
        known = {"sizes": list(case.sizes), "dtype": case.dtype, "mask": {}, "config": names_of_config(config)}
        kinds: tuple[dict[str, Any], ...] = ({"schedule": "stream"}, {"schedule": "split"}, {"merge": True})
        return tuple(Request(KERNEL.module, KERNEL.compiler, known | kind, capability) for kind in kinds)

    workload = case.workload() | {"cascade": KERNEL.cascade, "phase": "decode"}
    work = {"flops": case.flops, "bytes": float(cache_bytes(case))}
    return Contest(case.name, KERNEL.name, workload, work, candidates, requests, lambda: _round(case), bars)


def cache_bytes(case: Case) -> int:
    """Of keys and values, two each."""
    B, _, G, _, N, E, F = case.sizes
    return 2 * B * G * N * (E + F)


def _round(case: Case) -> Round:
    import torch

    from einsight.kernels.decode import decode

    q, k, v = inputs(case)
    exact, allowed = judge(case, q, k, v)
    # Half as many bytes are read and written by a copy, so that as many cross the memory's pins as the cache has.
    source = torch.empty(cache_bytes(case) // 2, dtype=torch.uint8, device=q.device)
    target = torch.empty_like(source)
    flex = compiled_flex(enable_gqa=q.shape[1] != k.shape[1])
    rivals: dict[str, Call] = {f"sdpa-{b}": _sdpa(b, q, k, v) for b in ("flash", "cudnn", "efficient")}
    rivals["flex"] = lambda: (flex(q, k, v),)
    rivals["ours-split"] = lambda: decode(q, k, v, schedule="split")[:1]

    def ours(config: Config) -> Call:
        return lambda: decode(q, k, v, config=config)[:1]

    return Round(exact, allowed, ours, rivals, context={"copy": lambda: (target.copy_(source),)})


def _sdpa(backend: str, q: Any, k: Any, v: Any) -> Call:
    """Made on the first call: a backend that refuses raises there."""
    made: list[Call] = []

    def call() -> tuple[Any, ...]:
        if not made:
            made.append(sdpa(backend, q, k, v))
        return made[0]()

    return call
