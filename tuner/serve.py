"""The child of a `Worker`: makes a bench and answers configurations on stdin with JSON lines.

    python -m einsight.tuner.serve MODULE:FACTORY ARGUMENTS
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from einsight.tuner.record import Status
from einsight.tuner.worker import PHASES, Bench, WrongResult

FATAL = ("illegal memory access", "misaligned address", "unspecified launch failure", "illegal instruction")
"""What a kernel that went astray says: the GPU context is lost, nothing more can run in that process."""
DRIVER = ("CUDA error", "Triton Error [CUDA]")
"""Any other error of the driver may have lost the context as well (a failed assertion, a launch that timed out): a new process
costs seconds, a lost one fails every configuration after it."""
SHORT_OF = ("OutOfResources", "OutOfMemoryError")
NOT_COMPILED = ("CompilationError", "CompileTimeAssertionFailure", "PTXASError", "UnsupportedLanguageConstruct")


def main(factory: str, arguments: str) -> None:
    """Answers go to what was stdout; prints of kernels and libraries go to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, _, function = factory.partition(":")
    try:
        bench: Bench = getattr(importlib.import_module(module), function)(**json.loads(arguments))
        about = dict(bench.about())
    except Exception as error:
        return _say(answers, {"refused": f"{type(error).__name__}: {error}"})
    _say(answers, {"ready": True, "about": about})
    for line in sys.stdin:
        asked = json.loads(line)
        if "race" in asked:
            told = _race(bench, asked["race"])
        else:
            told = attempt(bench, asked, lambda phase: _say(answers, {"phase": phase}))
        _say(answers, told)
        if told.get("lost"):
            return None
    return None


def attempt(bench: Bench, configuration: Mapping[str, Any], phase: Callable[[str], None]) -> dict[str, Any]:
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
        known["error"] = wrong.error if abs(wrong.error) < float("inf") else None  # JSON has no infinity
        return known | {"status": Status.INCORRECT.value, "reason": str(wrong), "error_allowed": wrong.allowed}
    except Exception as error:
        return known | classified(error, current)


def _race(bench: Bench, configurations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    try:
        return {"status": Status.OK.value, "resources": {"samples_s": [list(s) for s in bench.race(configurations)]}}
    except Exception as error:
        return classified(error, "race")


def classified(error: Exception, phase: str) -> dict[str, Any]:
    """The status of an exception, by the names that CUDA, torch and Triton use; never swallowed, always with its text.
    `lost`: the GPU context is, nothing more can run in this process."""
    reason = f"{phase}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    names = {c.__name__ for c in type(error).__mro__}
    if any(text in str(error) for text in FATAL):
        return {"status": Status.ILLEGAL_ACCESS.value, "reason": reason, "lost": True}
    if names & set(SHORT_OF):
        return {"status": Status.OUT_OF_RESOURCES.value, "reason": reason}
    if any(text in str(error) for text in DRIVER):
        short = "out of memory" in str(error)
        return {"status": (Status.OUT_OF_RESOURCES if short else Status.FAILED).value, "reason": reason, "lost": True}
    if names & set(NOT_COMPILED) or phase == "compile":
        return {"status": Status.COMPILE_FAILED.value, "reason": reason}
    return {"status": Status.FAILED.value, "reason": reason}


def _say(answers: IO[str], message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
