"""A device that fails on purpose, for tests of the worker: synthetic times, and a fault for each configuration named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from einsight.tuner.record import Status
from einsight.tuner.worker import WrongResult

FAULTS: Mapping[str, Status] = {
    "illegal access": Status.ILLEGAL_ACCESS,
    "out of resources": Status.OUT_OF_RESOURCES,
    "assertion": Status.FAILED,
    "no memory": Status.OUT_OF_RESOURCES,
    "compile error": Status.COMPILE_FAILED,
    "compile hang": Status.TIMEOUT,
    "hang": Status.TIMEOUT,
    "wrong result": Status.INCORRECT,
    "crash": Status.FAILED,
    "exception": Status.FAILED,
    "killed once": Status.OK,  # by the system, not by the configuration: the second try works
}
"""What can be injected, and the status that it must end with."""
LOSING: Mapping[str, str] = {
    "illegal access": "CUDA error: an illegal memory access was encountered",
    "assertion": "CUDA error: device-side assert triggered",
    "no memory": "Triton Error [CUDA]: out of memory",
}
"""What the driver says of a fault that loses the context: to its kernel, and to all that follow in the process."""
ALLOWED = 1e-3


class OutOfResources(RuntimeError):  # noqa: N818  (Triton's name)
    """As Triton raises it when a launch does not fit."""


class FaultyBench:
    """Times are a smooth function of the configuration; `faults` maps `name_of(configuration)` to a fault."""

    def __init__(self, faults: Mapping[str, str], marks: str) -> None:
        """marks   folder where "killed once" leaves a file, so that the next process knows"""
        self.faults, self.marks = faults, Path(marks)
        self._lost = ""  # what the driver says to whatever comes after an error that lost the context

    def compile(self, configuration: Mapping[str, Any]) -> Mapping[str, Any]:
        fault = self.faults.get(name_of(configuration))
        if fault == "compile hang":
            time.sleep(3600)
        if fault == "compile error":
            raise RuntimeError("PassManager::run failed")
        return {"registers": 32}

    def check(self, configuration: Mapping[str, Any]) -> tuple[float, float]:
        name = name_of(configuration)
        fault = self.faults.get(name)
        if fault == "wrong result":
            raise WrongResult(1.0, ALLOWED)
        if self._lost or fault in LOSING:
            self._lost = self._lost or LOSING[fault or ""]
            raise RuntimeError(self._lost)
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "killed once" and not (mark := self.marks / name).exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 1e-4, ALLOWED

    def time(self, configuration: Mapping[str, Any]) -> tuple[float, ...]:
        fault = self.faults.get(name_of(configuration))
        if fault == "hang":
            time.sleep(3600)
        if fault == "out of resources":
            raise OutOfResources("out of resource: shared memory, required 300000, limit 232448")
        if fault == "exception":
            raise ValueError("something else")
        return (true_time_s(configuration),) * 3

    def race(self, configurations: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]:
        return [self.time(c) for c in configurations]

    def about(self) -> Mapping[str, Any]:
        return {"device": "faulty"}


def name_of(configuration: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(configuration.items()))


def true_time_s(configuration: Mapping[str, Any]) -> float:
    """1 ms at a=5, b=3, c=4, slower away from there, with a ripple that no two configurations share."""
    a, b, c = (int(configuration[name]) for name in ("a", "b", "c"))
    return 1e-3 * (1 + 0.1 * (a - 5) ** 2 + 0.2 * (b - 3) ** 2 + 0.05 * (c - 4) ** 2 + 1e-4 * ((7 * a + 13 * b + 31 * c) % 17))


def faulty(faults: Mapping[str, str], marks: str) -> FaultyBench:
    """The factory that a worker calls."""
    return FaultyBench(faults, marks)
