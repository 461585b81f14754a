"""A contest: one of our kernels against the strongest implementations at hand, on the same inputs. Plain data and helpers.

A kernel joins the benchmark with a module of contests, named in `gpu_kernels.CONTESTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from einsight.kernels.resources import Request
from einsight.kernels.spaces import Config

DEVICE = "cuda"  # a test sets "cpu" to run the whole procedure under Triton's interpreter
SHORT = {"float16": "fp16", "bfloat16": "bf16"}

Call = Callable[[], tuple[Any, ...]]
"""One run; returns the tensors that are judged, in the order of `Round.exact`."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Ours must be at least `factor` times as fast as the fastest of the rivals whose name begins with `rivals`."""

    rivals: str
    factor: float


@dataclass(slots=True)
class Round:
    """Inputs on the device, ready to run.

    exact, allowed   per result: float64 reference and the error that a kernel may have
    ours             a run of our kernel in a configuration
    rivals           name -> run; one that these inputs cannot have raises when called
    slack            error that rivals may have beyond `allowed`, where what they are given was rounded beforehand
    context          runs of something else that explains the result (without the bias, a copy): timed, not judged
    """

    exact: tuple[Any, ...]
    allowed: tuple[float, ...]
    ours: Callable[[Config], Call]
    rivals: Mapping[str, Call]
    slack: float = 0.0
    context: Mapping[str, Call] = field(default_factory=dict)


@dataclass(frozen=True)
class Contest:
    """One problem.

    workload     in the form of a workload file; work: what one call does, by unit
    candidates   builds of ours for a compute capability; the fastest races
    requests     offline compilations of a build, so that they are done in parallel beforehand
    """

    name: str
    kernel: str
    workload: Mapping[str, Any]
    work: Mapping[str, float]
    candidates: Callable[[int], tuple[Config, ...]]
    requests: Callable[[Config, int], tuple[Request, ...]]
    setup: Callable[[], Round]
    bars: tuple[Bar, ...] = ()

    @property
    def key(self) -> str:
        """The key that predictions of this problem carry; "" where the model has no such problem or is not installed."""
        told, sizes = self.workload, self.workload["sizes"]
        if "align" in told or told["phase"] not in ("prefill", "decode"):
            return ""
        try:
            from einsight.sim.workload import Workload

            return Workload.attention(
                batch=sizes["b"], heads=sizes["h"], kv_heads=sizes["g"], seq_q=sizes["m"], seq_kv=sizes["n"],
                head_dim=sizes["e"], value_dim=sizes["f"], dtype=told["dtype"], mask=told.get("mask"),
                bias=told.get("bias", ()), phase=told["phase"], cache=told["cache"], cascade=told["cascade"],
            ).key  # fmt: skip
        except (ImportError, ValueError):
            return ""


def normal(seed: int, *shapes: tuple[int, ...], dtype: str) -> list[Any]:
    """Normal random tensors on the device, the same in every run."""
    import torch

    make = torch.Generator(device=DEVICE).manual_seed(seed)
    element = getattr(torch, dtype)
    return [torch.randn(*shape, generator=make, device=DEVICE).to(element) for shape in shapes]


def sdpa(backend: str, q: Any, k: Any, v: Any, **rest: Any) -> Call:
    """PyTorch's attention with one backend; K and V are repeated beforehand where it refuses grouped heads."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
              "efficient": SDPBackend.EFFICIENT_ATTENTION}[backend]  # fmt: skip
    group = q.shape[1] // k.shape[1]

    def run(k: Any, v: Any, gqa: bool) -> tuple[Any, ...]:
        with sdpa_kernel(chosen):
            return (torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=gqa, **rest),)

    if group == 1:
        return lambda: run(k, v, False)
    try:
        run(k, v, True)
        return lambda: run(k, v, True)
    except RuntimeError:
        wide_k, wide_v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        return lambda: run(wide_k, wide_v, False)


def compiled_flex(**options: Any) -> Callable[..., Any]:
    """`flex_attention` compiled for these options; the first call compiles."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()  # otherwise a tenth problem would count as a recompilation of the first and run uncompiled

    def call(q: Any, k: Any, v: Any) -> Any:
        return flex_attention(q, k, v, **options)

    return call if DEVICE == "cpu" else torch.compile(call, dynamic=False)


def names_of_config(config: Config) -> list[int]:
    return [config.block_m, config.block_n, config.num_warps, config.num_stages]
