"""Kernel tests run on a CUDA GPU where there is one, otherwise through Triton's interpreter.

The interpreter is chosen by an environment variable that Triton reads when it is first imported, and a process that
interprets cannot compile. So it is set here, before any test module of this folder is imported, and only if Triton is
not loaded yet; tests that compile do so in child processes without the variable.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

RECORD = Path(__file__).parents[2] / "reports" / "records" / "kernel_tests.jsonl"

HAVE_GPU_EXTRA = all(importlib.util.find_spec(name) for name in ("torch", "triton", "numpy"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


INTERPRETED = HAVE_GPU_EXTRA and "triton" not in sys.modules and not _cuda()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"


def repair_bfloat16_dot() -> None:
    """Triton's interpreter keeps bfloat16 as uint16 and multiplies the bit patterns: widen them to float32 first."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def widen(x: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: object, a: object, b: object, d: object, *rest: object) -> object:
        return original(self, widen(a), widen(b), d, *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


def repair_float8() -> None:
    """Triton's interpreter (3.6 to 3.7.1) loses the carry when it rounds to an 8-bit float: it adds the rounding bit to the
    significand and then joins it to the exponent by `or`, so that 7.76 becomes 4 in e4m3 where 8 is meant (whenever the
    exponent's last bit is set). It also makes NaN and infinity numbers (480, 65536) and drops e5m2's smallest numbers on
    the way to float16. PyTorch's conversions take the place of its own, saturating as the GPU's instruction does."""
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter._convert_float
    eight = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}

    def convert(x: Any, have: tl.dtype, want: tl.dtype, rounding: object) -> Any:
        if want.name in eight:
            kind = eight[want.name]
            limit = torch.finfo(kind).max
            values = torch.from_numpy(np.ascontiguousarray(x)).float().clamp(-limit, limit)
            return values.to(kind).view(torch.uint8).numpy()
        if have.name in eight and want.name in ("fp16", "fp32"):
            values = torch.from_numpy(np.ascontiguousarray(x).view(np.uint8)).view(eight[have.name])
            return values.half().numpy().view(np.uint16) if want.name == "fp16" else values.float().numpy().view(np.uint32)
        return original(x, have, want, rounding)

    interpreter._convert_float = convert


def interpreter_fails() -> bool:
    import numpy
    import triton

    versions = [tuple(map(int, m.__version__.split(".")[:2])) for m in (triton, numpy)]
    return versions[0] < (3, 7) and versions[1] >= (2, 4)


@pytest.fixture(scope="session")
def device() -> Iterator[str]:
    """"cuda", or "cpu" under the interpreter; skips where kernels cannot run at all."""
    if not HAVE_GPU_EXTRA:
        pytest.skip("torch and triton are not installed (extra `gpu`)")
    if _cuda():
        yield "cuda"
        return
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("triton was imported before tests/kernels: run this folder in its own pytest process")
    if interpreter_fails():
        pytest.skip("the interpreter of triton 3.6 fails with numpy 2.4 and newer: use triton 3.7 or an older numpy")
    repair_bfloat16_dot()
    repair_float8()
    yield "cpu"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A test of a kernel that ran on a GPU is a line of a record."""
    report = yield
    if report.when == "call" and "device" in getattr(item, "fixturenames", ()) and HAVE_GPU_EXTRA and _cuda():
        line = {"test": item.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
        keep(line | {"reason": str(call.excinfo.value)[:300] if call.excinfo else "", "environment": here()})
    return report


def keep(line: dict[str, Any]) -> None:
    with RECORD.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")


@cache
def here() -> dict[str, Any]:
    from einsight.tuner.measure import environment, now

    return asdict(environment()) | {"at": now()}
