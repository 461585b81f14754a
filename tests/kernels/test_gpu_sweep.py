"""The sweep and the ceilings without a GPU: they say so, show their plan, and the procedure itself runs interpreted."""

from __future__ import annotations

import importlib
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from einsight.tuner.record import Environment, Status, read

ROOT = Path(__file__).parents[2]
HERE = Environment("Test GPU", 90, 132, 80 << 30, 50 << 20, "1", "13.0", "2.11", "3.6", "3.12", "Linux 6")


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT / ".src")}
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def have_cuda() -> bool:
    return importlib.util.find_spec("torch") is not None and importlib.import_module("torch").cuda.is_available()


@pytest.mark.parametrize("script", ["ceilings.py", "gpu_sweep.py"])
@pytest.mark.skipif(have_cuda(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_nothing_written(script: str, tmp_path: Path) -> None:
    done = run_script(script, "--out", str(tmp_path / "r.jsonl"))
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert "nothing" in done.stderr.lower() and "--dry-run" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("script", "shown"), [("ceilings.py", "exp2_rate("), ("gpu_sweep.py", "TFLOP a call")])
def test_the_dry_run_shows_the_plan(script: str, shown: str) -> None:
    done = run_script(script, "--dry-run")
    assert done.returncode == 0 and shown in done.stdout


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str) -> ModuleType:
    """The sweep with two small problems, three builds, the interpreter as device and a clock that counts calls."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    cases, module = importlib.import_module("sweep_cases"), importlib.import_module("gpu_sweep")
    small = cases.Case("small", (1, 2, 1, 70, 70, 32, 32), dtype="float16", causal=True)
    builds = tuple(module.Config(64, 32, 4, stages) for stages in (1, 2, 3))
    ticks = iter(range(1, 10_000))

    def timed(call: Any, policy: Any) -> tuple[float, ...]:
        call()
        return (next(ticks) * 1e-6,)

    monkeypatch.setattr(cases, "DEVICE", device)
    monkeypatch.setattr(module, "SWEPT", (small,))
    monkeypatch.setattr(module, "CHECKED", (replace(small, name="checked", causal=False, sink=True, softcap=5.0),))
    monkeypatch.setattr(module, "space", lambda case, capability: builds)
    monkeypatch.setattr(module, "environment", lambda: HERE)
    monkeypatch.setattr(module, "time_call", timed)
    monkeypatch.setattr(module, "time_calls", lambda calls, policy: {n: timed(c, policy) for n, c in calls.items()})
    monkeypatch.setattr(module.faulthandler, "dump_traceback_later", lambda *a, **k: None)
    monkeypatch.setattr(sys, "argv", ["gpu_sweep", "--out", str(tmp_path / "r.jsonl"), "--workers", "2"])
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "unused"))
    return module


def test_a_sweep_checks_measures_and_resumes(sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "r.jsonl"
    assert sweep.main() == 0
    first = read(file)
    ours = [m for m in first if m.kernel == "attention"]
    assert all(m.status is Status.OK for m in ours), ours
    assert sorted(m.sweep for m in ours) == [0] * 4 + [1] * 3 + [2] * 3 + [sweep.RACE_SWEEP]
    assert all(m.error is not None and m.error <= m.error_allowed for m in ours if m.sweep != sweep.RACE_SWEEP)
    assert all(m.resources["registers"] > 0 and m.resources["source"] == "compiled" for m in ours if m.sweep == 0)
    assert len({m.identity for m in first}) == len(first) and not (tmp_path / "r.in-flight").exists()
    medians = {
        stages: statistics.median(
            m.time_s for m in ours[:-1] if m.configuration["num_stages"] == stages and "bias" not in m.workload
        )
        for stages in (1, 2, 3)
    }
    assert ours[-1].configuration["num_stages"] == min(medians, key=lambda stages: medians[stages])

    assert sweep.main() == 0  # nothing left to do
    assert read(file) == first
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]))  # as if killed after five
    assert sweep.main() == 0
    assert {m.identity for m in read(file)} == {m.identity for m in first}
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--budget-s", "-1"])
    file.unlink()
    assert sweep.main() == 1


def test_what_goes_wrong_is_a_record(sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sweep.Sweep(tmp_path / "r.jsonl", HERE, 0.0)
    case, config = sweep.SWEPT[0], sweep.Config(64, 32, 4, 1)
    estimate = sweep.Estimate("gave_up", "a stack of 9000 bytes", "compiled")
    assert sweep.attempt(run, case, config, 0, estimate).status is Status.OUT_OF_RESOURCES

    _, (exact, lse, allowed) = run.prepare(case)
    run.judged[case.name] = (exact + 4 * allowed, lse, allowed)
    wrong = sweep.attempt(run, case, config, 0, None)
    assert wrong.status is Status.INCORRECT and "output off by" in wrong.reason and wrong.error > wrong.error_allowed
    run.judged[case.name] = (exact, lse + 1e-3 * (1 + lse.abs()), allowed)
    assert sweep.attempt(run, case, config, 0, None).status is Status.INCORRECT
    run.judged[case.name] = (exact, lse, allowed)

    for error, status, lost in (
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), Status.ILLEGAL_ACCESS, True),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), Status.ILLEGAL_ACCESS, True),
        (RuntimeError("CUDA error: device-side assert triggered"), Status.FAILED, True),
        (type("OutOfResources", (Exception,), {})("shared memory"), Status.OUT_OF_RESOURCES, False),
        (ValueError("odd"), Status.FAILED, False),
    ):

        def fail(*rest: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(sweep, "time_call", fail)
        got = sweep.attempt(run, case, config, 0, None)
        assert got.status is status and str(error).split("\n")[0] in got.reason and run.lost is lost

    name = sweep.identity(run, case, config, 0)
    for before in (0, 1):  # twice the process ends while this is measured: the third time it is not begun again
        assert run.begun(name) == before
    assert sweep.attempt(run, case, config, 0, None).status is Status.TIMEOUT
    assert not run.in_flight.exists() and run.begun("another") == 0
