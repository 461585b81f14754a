"""A kernel on one workload as a bench: inputs, the judge of every configuration, timing. Runs in a worker process.

One class per kernel says what its launch takes (`launch_of`), how a build is compiled ahead (`requests`), what it computes
(`call`) and what is right (`exact`). torch and triton are imported when a bench is made, never by who only names it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from einsight.kernels.band import Band, band
from einsight.kernels.builds import config_of
from einsight.kernels.catalog import Kernel, kernel
from einsight.kernels.resources import Request
from einsight.kernels.spaces import Config
from einsight.tuner.measure import Policy, environment, time_call, time_calls
from einsight.tuner.worker import WrongResult

ELEMENT = {"bf16": "bfloat16", "fp16": "float16"}
SIZES = ("b", "h", "g", "m", "n", "e", "f")
LSE_ERROR = 2e-5  # relative to 1 + |log-sum-exp|: float32 sums of exact products
POLICY = {"warmup_s": 0.01, "budget_s": 0.06, "min_samples": 9, "max_samples": 60}
RACE = {"warmup_s": 0.05, "budget_s": 0.3, "min_samples": 21, "max_samples": 200}
DEVICE = "cuda"  # a test sets "cpu" to judge under Triton's interpreter
HEADS_JUDGED = 4  # of every batch element: heads run the same code, and float64 on all of them takes longer than tuning


class UnsupportedWorkload(ValueError):  # noqa: N818
    """The kernel cannot run the workload; says what it cannot."""


class KernelBench(ABC):
    """One workload's inputs (random, seeded), its float64 judge on some heads, and the kernel.

    name     in the catalogue; carries: the biases that its launch takes, of those that a workload may have
    """

    name: ClassVar[str]
    carries: ClassVar[tuple[str, ...]] = ()
    gives_lse: ClassVar[bool] = True

    # -- without a GPU ---------------------------------------------------------------------------------------------------

    @classmethod
    def of_catalog(cls) -> Kernel:
        return kernel(cls.name)

    @classmethod
    def launch_of(cls, workload: Mapping[str, Any]) -> dict[str, Any]:
        """The kernel's arguments beside the tensors, from the mask and bias of a workload in its written form.

        Raises UnsupportedWorkload.
        """
        arguments: dict[str, Any] = {"causal": False, "window": None}
        for restriction in listed(workload.get("mask")):
            if restriction == "causal":
                arguments["causal"] = True
            elif isinstance(restriction, Mapping) and set(restriction) == {"window"}:
                arguments["window"] = restriction["window"]
            else:
                raise UnsupportedWorkload(f"mask {restriction!r}: kernel {cls.name} runs causal and window")
        runs = (*cls.carries, *cls.of_catalog().fragments)
        biases = {bias["kind"]: bias for bias in listed(workload.get("bias"))}
        for kind in biases:
            if kind not in runs:
                raise UnsupportedWorkload(f"bias {kind}: kernel {cls.name} runs {' and '.join(runs) or 'no bias'}")
        if "softcap" in cls.carries:
            arguments["softcap"] = float(biases["softcap"]["cap"]) if "softcap" in biases else None
        if "sink" in cls.carries:
            arguments["sink"] = "sink" in biases
        return arguments

    @classmethod
    def requests(cls, workload: Mapping[str, Any], config: Config, capability: int) -> tuple[Request, ...]:
        """The offline compilations of what a launch on this workload needs; the first is the kernel proper."""
        told, one = cls.launch_of(workload), cls.of_catalog()
        mask = asdict(band(told["causal"], told["window"]))
        arguments = cls.compiled(workload, config) | {"mask": mask} | cls.build_options(workload)
        return (Request(one.module, one.compiler, arguments, capability, disassemble=False),)

    @staticmethod
    def compiled(workload: Mapping[str, Any], config: Config) -> dict[str, Any]:
        """What every kernel's offline compiler is told."""
        tiles = [config.block_m, config.block_n, config.num_warps, config.num_stages]
        return {"sizes": sizes_of(workload), "dtype": ELEMENT[workload["dtype"]], "config": tiles}

    @classmethod
    def build_options(cls, workload: Mapping[str, Any]) -> dict[str, Any]:
        """Further arguments of the offline compiler."""
        return {}

    # -- with one --------------------------------------------------------------------------------------------------------

    def __init__(self, workload: Mapping[str, Any]) -> None:
        import torch

        from einsight.kernels import references

        self.torch, self.references, self.workload = torch, references, workload
        told = self.launch_of(workload)
        self.sizes = sizes_of(workload)
        self.element = getattr(torch, ELEMENT[workload["dtype"]])
        self._make = torch.Generator(device=DEVICE).manual_seed(sum(self.sizes))
        self._cache = str(workload.get("cache", "warm"))
        B, H, G, M, N, E, F = self.sizes
        self.q, self.k, self.v = self.normal(B, H, M, E), self.normal(B, G, N, E), self.normal(B, G, N, F)
        self.band = self.band_of(told)
        self.options = self.tensors(told)
        self.rows: Any = self.judged_rows()
        self._judged = dict(self._judge())
        self.out = torch.empty(B, H, M, F, dtype=self.element, device=DEVICE)
        self.lse = torch.empty(B, H, M, dtype=torch.float32, device=DEVICE)

    @abstractmethod
    def call(self, config: Config) -> Callable[[], object]:
        """A launch into `out` (and `lse`)."""

    @abstractmethod
    def exact(self, q: Any, k: Any, v: Any, b: int, h: int, dtype: Any) -> tuple[Any, Any]:
        """(output [rows, F], log-sum-exp [rows] or None) of one head with every step in `dtype`; q [1, 1, M, E] and so on."""

    def tensors(self, told: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a launch beside q, k and v: what `launch_of` said, with tensors where the kernel takes them."""
        return told

    def band_of(self, told: Mapping[str, Any]) -> Band:
        return band(told["causal"], told["window"])

    def judged_rows(self) -> Any:
        """The queries that are compared with the reference; all of them by default."""
        return slice(None)

    def normal(self, *shape: int, dtype: Any = None) -> Any:
        made = self.torch.randn(*shape, generator=self._make, device=DEVICE)
        return made.to(self.element if dtype is None else dtype)

    def about(self) -> Mapping[str, Any]:
        return asdict(environment())

    def compile(self, configuration: Mapping[str, Any]) -> Mapping[str, Any]:
        """The first launch compiles, or finds what was compiled beside; the output is poisoned for the check."""
        self.out.fill_(math.nan)
        self.lse.fill_(math.nan)
        self.call(config_of(configuration))()
        if DEVICE == "cuda":
            self.torch.cuda.synchronize()
        return {}

    def check(self, configuration: Mapping[str, Any]) -> tuple[float, float]:
        """(largest error, allowed) on the judged heads; every other output must at least be written."""
        worst, allowed = 0.0, 0.0
        for (b, h), (exact, exact_lse, limit) in self._judged.items():
            error = self.references.largest_error(self.out[b, h][self.rows], exact)
            lse_error = 0.0
            if self.gives_lse:
                finite = exact_lse.masked_fill(exact_lse.isinf(), 0.0).abs()
                lse_error = self.references.largest_error(self.lse[b, h][self.rows], exact_lse) / (1.0 + float(finite.max()))
            if error > limit or lse_error > LSE_ERROR:
                raise WrongResult(error, limit) if error > limit else WrongResult(lse_error, LSE_ERROR)
            worst, allowed = max(worst, error), max(allowed, limit)
        if bool(self.out.isnan().any()) or (self.gives_lse and bool(self.lse.isnan().any())):
            raise WrongResult(math.inf, allowed)
        return worst, allowed

    def time(self, configuration: Mapping[str, Any]) -> tuple[float, ...]:
        call = self.call(config_of(configuration))
        return time_call(call, Policy(cache=self._cache, **POLICY))  # type: ignore[arg-type]

    def race(self, configurations: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]:
        calls = {str(i): self.call(config_of(c)) for i, c in enumerate(configurations)}
        samples = time_calls(calls, Policy(cache=self._cache, **RACE))  # type: ignore[arg-type]
        return [samples[name] for name in calls]

    def _judge(self) -> Iterator[tuple[tuple[int, int], tuple[Any, Any, float]]]:
        """(exact output, exact log-sum-exp, allowed error) of the first and last heads of each batch element."""
        B, H, G = self.sizes[:3]
        heads = sorted({*range(HEADS_JUDGED // 2), *range(H - HEADS_JUDGED // 2, H)} & set(range(H)))
        for b in range(B):
            for h in heads:
                g = h // (H // G)
                q, k, v = self.q[b, h][None, None], self.k[b, g][None, None], self.v[b, g][None, None]
                exact, lse = self.exact(q, k, v, b, h, self.torch.float64)
                plain, _ = self.exact(q, k, v, b, h, self.element)
                yield (b, h), (exact, lse, self.references.allowed_error(plain, exact, self.element))


def listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def sizes_of(workload: Mapping[str, Any]) -> list[int]:
    """B, H, G, M, N, E, F."""
    return [workload["sizes"][name] for name in SIZES]

