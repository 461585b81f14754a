"""A device in a process of its own: every phase has a time limit, and whatever happens in there becomes a status.

    python -m einsight.tuner.worker MODULE:FACTORY        (started by `Worker`; speaks JSON lines)

The child calls FACTORY(**arguments) once and then, for every configuration, the phases `compile`, `check` and `time` of
what it returned. An illegal memory access loses the GPU context and a hang loses the process: both end the child, and
the next configuration gets a new one. A child process of a command line needs no `if __name__ == "__main__"` in the
caller's script, which `multiprocessing` would.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from einsight.tuner.record import Status

PHASES = ("compile", "check", "time")
START_S = 120.0  # importing torch and making the inputs
LIMITS_S: Mapping[str, float] = {"start": START_S, "compile": 90.0, "check": 30.0, "time": 30.0}
CRASHES = 2  # a configuration whose process dies without a word is tried this often before it counts as failed

FATAL = ("illegal memory access", "misaligned address", "unspecified launch failure", "illegal instruction")
"""What a lost GPU context says; nothing more can run in that process."""
SHORT_OF = ("OutOfResources", "OutOfMemoryError")
NOT_COMPILED = ("CompilationError", "CompileTimeAssertionFailure", "PTXASError", "UnsupportedLanguageConstruct")


class WrongResult(ArithmeticError):  # noqa: N818  (an outcome, not a mistake)
    """A configuration computes something else than the reference: by how much, and what was allowed."""

    def __init__(self, error: float, allowed: float) -> None:
        super().__init__(f"largest error {error:.3g}, allowed {allowed:.3g}")
        self.error, self.allowed = error, allowed


class Bench(Protocol):
    """What a factory returns. Each phase may raise; `check` raises WrongResult, `time` returns samples in seconds."""

    def compile(self, configuration: Mapping[str, Any]) -> Mapping[str, Any]: ...

    def check(self, configuration: Mapping[str, Any]) -> tuple[float, float]: ...

    def time(self, configuration: Mapping[str, Any]) -> tuple[float, ...]: ...


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
    limits_s    seconds per phase: start, compile, check, time
    visible     CUDA_VISIBLE_DEVICES of the child; None leaves it as it is
    """

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    limits_s: Mapping[str, float] = field(default_factory=lambda: dict(LIMITS_S))
    visible: str | None = None
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _unread: bytes = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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
        phase = PHASES[0]
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
            [sys.executable, "-m", "einsight.tuner.worker", self.factory, json.dumps(dict(self.arguments))],
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


def main(factory: str, arguments: str) -> None:
    """The child: answers on what was stdout; prints of kernels and libraries go to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, _, function = factory.partition(":")
    try:
        bench: Bench = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    except Exception as error:
        return _say(answers, {"refused": f"{type(error).__name__}: {error}"})
    _say(answers, {"ready": True})
    for line in sys.stdin:
        told = attempt(bench, json.loads(line), lambda phase: _say(answers, {"phase": phase}))
        _say(answers, told)
        if told.get("lost"):
            return None
    return None


def attempt(bench: Bench, configuration: Mapping[str, Any], phase: Any = lambda name: None) -> dict[str, Any]:
    """Every phase of one configuration in this process; the outcome as JSON values. `lost`: nothing more can run here."""
    known: dict[str, Any] = {}
    current = PHASES[0]
    try:
        phase(current)
        known["resources"] = dict(bench.compile(configuration))
        phase(current := "check")
        known["error"], known["error_allowed"] = bench.check(configuration)
        phase(current := "time")
        return known | {"status": Status.OK.value, "samples_s": list(bench.time(configuration))}
    except WrongResult as wrong:
        known["error"] = wrong.error if abs(wrong.error) < float("inf") else None
        return known | {"status": Status.INCORRECT.value, "reason": str(wrong), "error_allowed": wrong.allowed}
    except Exception as error:
        return known | _classified(error, current)


def _classified(error: Exception, phase: str) -> dict[str, Any]:
    """The status of an exception, by the names that CUDA, torch and Triton use; never swallowed, always with its text."""
    reason = f"{phase}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    names = {c.__name__ for c in type(error).__mro__}
    if any(text in str(error) for text in FATAL):
        return {"status": Status.ILLEGAL_ACCESS.value, "reason": reason, "lost": True}
    if names & set(SHORT_OF):
        return {"status": Status.OUT_OF_RESOURCES.value, "reason": reason}
    if names & set(NOT_COMPILED) or phase == "compile":
        return {"status": Status.COMPILE_FAILED.value, "reason": reason}
    return {"status": Status.FAILED.value, "reason": reason}


def _say(answers: IO[str], message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
