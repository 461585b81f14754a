"""The attention kernel as a bench: inputs, the judge of every configuration, timing. Runs in a worker process with a GPU.

torch and triton are imported when a bench is made, never by who only names this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from einsight.kernels.band import band
from einsight.kernels.catalog import kernel
from einsight.kernels.resources import Request
from einsight.kernels.spaces import Config
from einsight.tuner.measure import Policy, environment, time_call, time_calls
from einsight.tuner.worker import WrongResult

FACTORY = "einsight.tuner.measure_attention:bench"
ELEMENT = {"bf16": "bfloat16", "fp16": "float16"}
LSE_ERROR = 2e-5  # relative to 1 + |log-sum-exp|: float32 sums of exact products
POLICY = {"warmup_s": 0.01, "budget_s": 0.06, "min_samples": 9, "max_samples": 60}
RACE = {"warmup_s": 0.05, "budget_s": 0.3, "min_samples": 21, "max_samples": 200}
DEVICE = "cuda"  # a test sets "cpu" to judge under Triton's interpreter
HEADS_JUDGED = 4  # of every batch element: heads run the same code, and float64 on all of them takes longer than tuning


class UnsupportedWorkload(ValueError):  # noqa: N818
    """The kernel cannot run the workload; says what it cannot."""


def launch_of(workload: Mapping[str, Any]) -> dict[str, Any]:
    """The kernel's arguments beside the tensors, from the mask and bias of a workload in its written form."""
    arguments: dict[str, Any] = {"causal": False, "window": None, "softcap": None, "sink": False}
    for restriction in _listed(workload.get("mask")):
        if restriction == "causal":
            arguments["causal"] = True
        elif isinstance(restriction, Mapping) and set(restriction) == {"window"}:
            arguments["window"] = restriction["window"]
        else:
            raise UnsupportedWorkload(f"mask {restriction!r}: kernel attention runs causal and window")
    for bias in _listed(workload.get("bias")):
        if bias["kind"] == "softcap":
            arguments["softcap"] = float(bias["cap"])
        elif bias["kind"] == "sink":
            arguments["sink"] = True
        else:
            raise UnsupportedWorkload(f"bias {bias['kind']}: kernel attention runs softcap and sink")
    return arguments


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def request(workload: Mapping[str, Any], configuration: Mapping[str, int], capability: int) -> Request:
    """The offline compilation of exactly what a launch on this workload needs."""
    told, one = launch_of(workload), kernel("attention")
    mask = band(told["causal"], told["window"])
    arguments = {
        "sizes": _sizes(workload), "dtype": ELEMENT[workload["dtype"]], "mask": asdict(mask),
        "softcap": told["softcap"], "sink": told["sink"],
        "config": list(asdict(Config(**configuration)).values()),
    }  # fmt: skip
    return Request(one.module, one.compiler, arguments, capability, disassemble=False)


def _sizes(workload: Mapping[str, Any]) -> list[int]:
    return [workload["sizes"][name] for name in ("b", "h", "g", "m", "n", "e", "f")]


class AttentionBench:
    """One workload's inputs (random, seeded), its float64 judge on some heads, and the kernel."""

    def __init__(self, workload: Mapping[str, Any]) -> None:
        import torch

        from einsight.kernels import attention, references

        self._torch, self._kernel, self._references = torch, attention.attention, references
        told = launch_of(workload)
        self._cache = str(workload.get("cache", "warm"))
        B, H, G, M, N, E, F = self._sizes = _sizes(workload)
        make = torch.Generator(device=DEVICE).manual_seed(sum(self._sizes))
        element = getattr(torch, ELEMENT[workload["dtype"]])
        shapes = {"q": (B, H, M, E), "k": (B, G, N, E), "v": (B, G, N, F)}
        self._given = {
            name: torch.randn(*shape, generator=make, device=DEVICE).to(element) for name, shape in shapes.items()
        }
        self._band = band(told["causal"], told["window"])
        self._options = {name: told[name] for name in ("causal", "window", "softcap")}
        self._options["sink"] = torch.randn(H, generator=make, device=DEVICE) if told["sink"] else None
        self._judged = self._judge()
        self._out = torch.empty(B, H, M, F, dtype=element, device=DEVICE)
        self._lse = torch.empty(B, H, M, dtype=torch.float32, device=DEVICE)

    def about(self) -> Mapping[str, Any]:
        return asdict(environment())

    def compile(self, configuration: Mapping[str, int]) -> Mapping[str, Any]:
        """The first launch compiles, or finds what was compiled beside; the output is poisoned for the check."""
        self._out.fill_(math.nan)
        self._lse.fill_(math.nan)
        self._call(configuration)()
        if DEVICE == "cuda":
            self._torch.cuda.synchronize()
        return {}

    def check(self, configuration: Mapping[str, int]) -> tuple[float, float]:
        """(largest error, allowed) on the judged heads; every other output must at least be written."""
        worst, allowed = 0.0, 0.0
        for (b, h), (exact, exact_lse, limit) in self._judged.items():
            error = self._references.largest_error(self._out[b, h], exact)
            finite = exact_lse.masked_fill(exact_lse.isinf(), 0.0).abs()
            lse_error = self._references.largest_error(self._lse[b, h], exact_lse) / (1.0 + float(finite.max()))
            if error > limit or lse_error > LSE_ERROR:
                raise WrongResult(error, limit) if error > limit else WrongResult(lse_error, LSE_ERROR)
            worst, allowed = max(worst, error), max(allowed, limit)
        if bool(self._out.isnan().any()) or bool(self._lse.isnan().any()):
            raise WrongResult(math.inf, allowed)
        return worst, allowed

    def time(self, configuration: Mapping[str, int]) -> tuple[float, ...]:
        return time_call(self._call(configuration), Policy(cache=self._cache, **POLICY))  # type: ignore[arg-type]

    def race(self, configurations: Sequence[Mapping[str, int]]) -> list[tuple[float, ...]]:
        calls = {str(i): self._call(c) for i, c in enumerate(configurations)}
        samples = time_calls(calls, Policy(cache=self._cache, **RACE))  # type: ignore[arg-type]
        return [samples[name] for name in calls]

    def _call(self, configuration: Mapping[str, int]) -> Any:
        config = Config(**configuration)
        return lambda: self._kernel(**self._given, **self._options, config=config, out=self._out, lse=self._lse)

    def _judge(self) -> dict[tuple[int, int], tuple[Any, Any, float]]:
        """(exact output, exact log-sum-exp, allowed error) of the first and last heads of each batch element."""
        B, H, G = self._sizes[:3]
        found = {}
        for b in range(B):
            for h in sorted({*range(HEADS_JUDGED // 2), *range(H - HEADS_JUDGED // 2, H)} & set(range(H))):
                q, k, v = (
                    self._given[name][b, head][None, None]
                    for name, head in (("q", h), ("k", h // (H // G)), ("v", h // (H // G)))
                )
                sink = None if self._options["sink"] is None else self._options["sink"][h : h + 1]
                rest = {"band": self._band, "softcap": self._options["softcap"], "sink": sink}
                exact, lse = self._references.attention(q, k, v, **rest)
                plain, _ = self._references.attention(q, k, v, dtype=q.dtype, **rest)
                limit = self._references.allowed_error(plain, exact, q.dtype)
                found[b, h] = (exact[0, 0], lse[0, 0], limit)
        return found


def bench(workload: Mapping[str, Any]) -> AttentionBench:
    """What a worker calls. Raises NoGpuError or UnsupportedWorkload before anything is measured."""
    environment()
    return AttentionBench(workload)
