"""A device in a process of its own: every phase has a time limit, and whatever happens in there becomes a status.

The child (serve.py) calls a factory once and then, for every configuration, the phases `compile`, `check` and `time` of
what it returned. An illegal memory access loses the GPU context and a hang loses the process: both end the child, and
the next configuration gets a new one. A command line of its own asks nothing of the caller's script, which
`multiprocessing` would (a guarded `__main__`).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from einsight.tuner.record import Status

PHASES = ("compile", "check", "time")
START_S = 120.0  # importing torch and making the inputs
LIMITS_S: Mapping[str, float] = {"start": START_S, "compile": 90.0, "check": 30.0, "time": 30.0, "race": 120.0}
CRASHES = 2  # a configuration whose process dies without a word is tried this often before it counts as failed


class WrongResult(ArithmeticError):  # noqa: N818  (an outcome, not a mistake)
    """A configuration computes something else than the reference: by how much, and what was allowed."""

    def __init__(self, error: float, allowed: float) -> None:
        super().__init__(f"largest error {error:.3g}, allowed {allowed:.3g}")
        self.error, self.allowed = error, allowed


class Bench(Protocol):
    """What a factory returns. Each phase may raise; `check` raises WrongResult, `time` returns samples in seconds.

    race    several configurations in turns, samples of each in the order given
    about   JSON values that describe the device
    """

    def compile(self, configuration: Mapping[str, Any]) -> Mapping[str, Any]: ...

    def check(self, configuration: Mapping[str, Any]) -> tuple[float, float]: ...

    def time(self, configuration: Mapping[str, Any]) -> tuple[float, ...]: ...

    def race(self, configurations: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]: ...

    def about(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Attempt:
    """How one configuration ended, with what was learned on the way."""

    status: Status
    reason: str = ""
    samples_s: tuple[float, ...] = ()
    error: float | None = None
    error_allowed: float | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Worker:
    """One child process, started on first use and again after it was lost. Use as a context manager.

    factory     "module:function" that makes a Bench from `arguments` (JSON values) in the child
    limits_s    seconds per phase: start, compile, check, time, race
    about       what the child says of its device, once it has started
    visible     CUDA_VISIBLE_DEVICES of the child; None leaves it as it is
    """

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    limits_s: Mapping[str, float] = field(default_factory=lambda: dict(LIMITS_S))
    visible: str | None = None
    starts: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None
    _unread: bytes = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Mapping[str, Any]:
        """Start the child and return what it says of its device. Raises WorkerError when it cannot serve."""
        problem = self._ready()
        if problem is not None:
            raise WorkerError(problem.reason or "the process ended before it was ready")
        return self.about

    def race(self, configurations: Sequence[Mapping[str, Any]]) -> list[Attempt]:
        """Several configurations in turns; each an Attempt, all with the same status when something goes wrong."""
        attempt = self._once({"race": [dict(c) for c in configurations]}) or Attempt(Status.FAILED, "race: the process ended")
        if attempt.status is not Status.OK:
            return [attempt] * len(configurations)
        return [Attempt(Status.OK, samples_s=tuple(samples)) for samples in attempt.resources["samples_s"]]

    def run(self, configuration: Mapping[str, Any]) -> Attempt:
        """All phases of one configuration. Never raises for what the configuration does."""
        for attempt in range(CRASHES):
            told = self._once(configuration)
            if told is not None:
                return told
            code = self.stop()
            reason = f"the process ended with {_signal(code)} {attempt + 1} times"
        return Attempt(Status.FAILED, reason)

    def _once(self, configuration: Mapping[str, Any]) -> Attempt | None:
        """One try; None when the child died without a word."""
        if (problem := self._ready()) is not None:
            return problem if problem.reason else None
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(dict(configuration)).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, OSError):
            return None
        phase = "race" if "race" in configuration else PHASES[0]
        while True:
            told = self._line(self.limits_s[phase])
            if told is None:
                self.stop()
                return Attempt(Status.TIMEOUT, f"{phase}: nothing after {self.limits_s[phase]:g} s, process killed")
            if not told:
                return None
            if "phase" in told:
                phase = told["phase"]
                continue
            if told.pop("lost", False):
                self.stop()
            told["samples_s"] = tuple(told.get("samples_s", ()))
            return Attempt(**told | {"status": Status(told["status"])})

    def _ready(self) -> Attempt | None:
        """Start a child where there is none. A problem: with a reason (it hung or refused), or without (it died)."""
        if self._process is not None and self._process.poll() is None:
            return None
        self.stop()
        self._start()
        told = self._line(self.limits_s["start"])
        if told is None:
            self.stop()
            return Attempt(Status.TIMEOUT, f"start: nothing after {self.limits_s['start']:g} s, process killed")
        if "refused" in told:
            self.stop()
            raise WorkerError(told["refused"])
        self.about = told.get("about", {})
        return None if told else Attempt(Status.FAILED)

    def _start(self) -> None:
        environment = dict(os.environ)
        root = str(Path(__file__).parents[2])  # the folder that holds the package `einsight`
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
        if self.visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.visible
        self._unread = b""
        self.starts += 1
        self._process = subprocess.Popen(
            [sys.executable, "-m", "einsight.tuner.serve", self.factory, json.dumps(dict(self.arguments))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True,
        )  # fmt: skip  # a session of its own: a kill reaches the compilers that it started, Ctrl-C does not reach it

    def _line(self, limit_s: float) -> dict[str, Any] | None:
        """The child's next message; {} when it ended, None when it said nothing in time."""
        assert self._process is not None and self._process.stdout is not None
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not waiting.select(max(0.0, deadline - time.monotonic())):
                    return None
                block = os.read(self._process.stdout.fileno(), 65536)
                if not block:
                    return {}
                self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def stop(self) -> int:
        """End the child and everything that it started; returns its exit code."""
        if self._process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL) if self._process.poll() is None else None
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None
        return code


class WorkerError(RuntimeError):
    """The child cannot serve at all (no GPU, no torch): says why."""


def _signal(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
