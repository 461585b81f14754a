"""Benches for a worker process without a GPU: kernels under Triton's interpreter, or no kernel at all.

A worker imports this module by name: the test puts this folder on PYTHONPATH.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from einsight.tuner.record import Environment
from einsight.tuner.worker import WrongResult

HERE = Environment("NVIDIA H200", 90, 132, 141 << 30, 50 << 20, "-", "-", "-", "-", "-", "-")


def interpreted(kernel: str, workload: Mapping[str, Any], spoil: bool = False) -> Any:
    """The kernel's own bench under the interpreter; every call takes as many microseconds as its tile has rows.

    spoil   add to one output after every launch, as a wrong kernel would
    """
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which nothing has done yet
    from einsight.tuner import benches, measure_kernel

    measure_kernel.DEVICE = "cpu"
    made = benches.BENCHES[kernel](workload)
    made.about = lambda: {}  # type: ignore[method-assign]
    made.time = lambda configuration: (seconds(configuration),)  # type: ignore[method-assign]
    made.race = lambda listed: [(seconds(c),) for c in listed]  # type: ignore[method-assign]
    if spoil:
        launch: Callable[[Any], Mapping[str, Any]] = made.compile

        def compile_wrong(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
            told = launch(configuration)
            made.out[0, 0, 0] += 1.0
            return told

        made.compile = compile_wrong  # type: ignore[method-assign]
    return made


def seconds(configuration: Mapping[str, Any]) -> float:
    return 1e-6 * (configuration.get("block_m") or configuration["q0"])


class Imagined:
    """A GPU whose times are a formula of the build and one of whose builds computes nonsense. No torch."""

    def __init__(self, kernel: str, workload: Mapping[str, Any]) -> None:
        self.kernel, self.workload = kernel, workload

    def about(self) -> Mapping[str, Any]:
        return {"device": HERE.device}

    def compile(self, configuration: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}

    def check(self, configuration: Mapping[str, Any]) -> tuple[float, float]:
        if configuration["num_stages"] == 4 and configuration["num_warps"] == 4:
            raise WrongResult(1.0, 0.1)
        return 0.01, 0.1

    def time(self, configuration: Mapping[str, Any]) -> tuple[float, ...]:
        return tuple(imagined_time(configuration) * (1 + k * 1e-4) for k in range(9))

    def race(self, configurations: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]:
        return [self.time(c) for c in configurations]


class Turned(Imagined):
    """One whose race, run in turns, shows what single measurements got wrong: fewer stages are faster."""

    def race(self, configurations: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]:
        return [tuple(1.5 * t * c["num_stages"] for t in self.time(c)) for c in configurations]


class Raceless(Imagined):
    """One that cannot run a race."""

    def race(self, configurations: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]:
        raise RuntimeError("Triton Error [CUDA]: the launch timed out")


def imagined_time(configuration: Mapping[str, Any]) -> float:
    """Least at 128 x 64, 8 warps, 3 stages; seconds. Two or three stages, which a model may not tell apart, are 2.7 % apart."""
    best = {"block_m": 128, "block_n": 64, "num_warps": 8, "num_stages": 3}
    return 1e-3 * (1.0 + 0.08 * sum(abs(configuration.get(name, value) / value - 1) for name, value in best.items()))
