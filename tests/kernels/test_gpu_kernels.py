"""The benchmark without a GPU: it says so, shows its plan, and the procedure itself runs interpreted."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from einsight.kernels.resources import compile_offline
from einsight.kernels.spaces import Config
from einsight.tuner.record import Environment, Status, read

ROOT = Path(__file__).parents[2]
HERE = Environment("Test GPU", 90, 132, 80 << 30, 50 << 20, "1", "13.0", "2.11", "3.6", "3.12", "Linux 6")
SMALL = Config(32, 32, 4, 2)


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT / ".src")}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_kernels.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def have_cuda() -> bool:
    return importlib.util.find_spec("torch") is not None and importlib.import_module("torch").cuda.is_available()


@pytest.mark.skipif(have_cuda(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_nothing_written(tmp_path: Path) -> None:
    done = run_script("--out", str(tmp_path / "r.jsonl"))
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert "nothing measured" in done.stderr and "--dry-run" in done.stderr and "Traceback" not in done.stderr


def test_the_dry_run_shows_contests_builds_and_bars() -> None:
    done = run_script("--dry-run")
    assert done.returncode == 0 and "bar: 0.75 of the fastest sdpa*" in done.stdout
    assert run_script("--only", "nothing like this").returncode == 2


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, device: str) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("contests", "contest_attention", "contest_flashbias", "sweep_cases", "gpu_kernels")
    found = {name: importlib.import_module(name) for name in names}
    monkeypatch.setattr(found["contests"], "DEVICE", device)
    monkeypatch.setattr(found["contest_attention"], "BACKWARD_CONFIGS", (SMALL,))
    return found


def small(modules: dict[str, ModuleType]) -> list[Any]:
    """A contest of every kind, on problems that the interpreter can take, with one build each."""
    case = modules["sweep_cases"].Case("small", (1, 2, 1, 60, 60, 32, 32), dtype="float16", causal=True)
    bar = modules["contests"].Bar
    made = [
        modules["contest_attention"].forward(case, (bar("flex", 1e-9),)),
        modules["contest_attention"].forward(replace(case, name="windowed", window=20)),
        modules["contest_attention"].backward(replace(case, name="gradients")),
        modules["contest_flashbias"].contest(replace(case, name="biased", causal=False), 8, (bar("flex", 1e9),)),
    ]
    return [replace(contest, candidates=lambda capability: (SMALL,)) for contest in made]


@pytest.fixture
def bench(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = modules["gpu_kernels"]
    ticks = iter(range(1, 10_000))

    def timed(call: Any, policy: Any) -> tuple[float, ...]:
        call()
        return (next(ticks) * 1e-6,)

    monkeypatch.setattr(module, "contests", lambda: tuple(small(modules)))
    monkeypatch.setattr(module, "environment", lambda: HERE)
    monkeypatch.setattr(module, "compile_all", lambda *a: None)
    monkeypatch.setattr(module, "time_call", timed)
    monkeypatch.setattr(module, "time_calls", lambda calls, policy: {n: timed(c, policy) for n, c in calls.items()})
    monkeypatch.setattr(module, "under_load", lambda here, call, once_s: here)
    monkeypatch.setattr(module.faulthandler, "dump_traceback_later", lambda *a, **k: None)  # needs a real stderr
    monkeypatch.setattr(sys, "argv", ["gpu_kernels", "--out", str(tmp_path / "r.jsonl")])
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "unused"))
    return module


def test_the_whole_procedure(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main() == 1  # the second bar cannot be met
    told = capsys.readouterr().out
    assert "missed: biased:" in told and "missed: small" not in told and "TFLOP/s" in told
    records = read(tmp_path / "r.jsonl")
    assert all(r.status is not Status.INCORRECT for r in records)
    keys = {r.key for r in records}
    assert len(keys) == 4  # causal, windowed, with a bias, and none for gradients and for what stands beside a contest
    assert not any(r.key for r in records if r.kernel in ("attention_backward", "without-bias"))
    raced = {r.kernel for r in records if r.status is Status.OK and r.sweep == 1}
    assert raced >= {"attention", "attention_backward", "flashbias", "flex", "flex-matrix", "ours-matrix", "without-bias"}
    ours = [r for r in records if r.kernel in ("attention", "attention_backward", "flashbias") and r.sweep == 0]
    assert len(ours) == 4 and all(r.error is not None and r.error <= r.error_allowed and r.source_hash for r in ours)


def test_a_wrong_result_is_recorded_and_not_raced(
    bench: ModuleType, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    contest = small(modules)[0]
    given = contest.setup()
    broken = lambda: (given.exact[0].float() + 1.0,)  # noqa: E731
    wrong = replace(contest, setup=lambda: replace(given, rivals={"sdpa-wrong": broken, "sdpa-none": lambda: 1 / 0}), bars=())
    monkeypatch.setattr(bench, "contests", lambda: (wrong,))
    assert bench.main() == 0
    status = {r.kernel: r.status for r in read(tmp_path / "r.jsonl")}
    assert status["sdpa-wrong"] is Status.INCORRECT and status["sdpa-none"] is Status.UNSUPPORTED
    assert status["attention"] is Status.OK


def test_a_lost_context_ends_the_process_and_the_next_one_goes_on(
    bench: ModuleType, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    made = [replace(contest, bars=()) for contest in small(modules)[:3]]

    def astray() -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    def ended(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(bench, "contests", lambda: (made[0], replace(made[1], setup=astray), made[2]))
    monkeypatch.setenv(bench.restart.FOLDER, str(tmp_path))
    monkeypatch.setattr(bench.os, "_exit", ended)
    monkeypatch.setattr(bench, "context_lost", lambda: True)
    with monkeypatch.context() as first, pytest.raises(SystemExit, match="3"):
        first.setattr(bench.restart, "note", lambda name, note=bench.restart.note: note(name) if not lost(tmp_path) else None)
        bench.main()
    assert [r.status for r in read(tmp_path / "r.jsonl")][-1] is Status.ILLEGAL_ACCESS
    assert bench.main() == 1
    told = capsys.readouterr().out
    assert "missed: windowed: ended its process" in told and "missed: small" not in told and "missed: gradients" not in told
    raced = [r.kernel for r in read(tmp_path / "r.jsonl") if r.sweep == 1]
    assert raced.count("attention") == 1 and raced.count("attention_backward") == 1

    monkeypatch.setattr(bench, "context_lost", lambda: False)  # an error of a launch that leaves the context as it was
    (tmp_path / "notes").unlink()
    assert bench.main() == 1 and "missed: windowed: RuntimeError" in capsys.readouterr().out


def lost(folder: Path) -> bool:
    """Whether a record says that the context is: a process that ended there would note nothing more."""
    file = folder / "r.jsonl"
    return file.exists() and read(file)[-1].status is Status.ILLEGAL_ACCESS


def test_builds_are_compiled_as_they_are_launched(modules: dict[str, ModuleType]) -> None:
    """One build of the backward and of both biases, offline for sm_90: the arguments are those that the compiler takes."""
    config = Config(64, 32, 4, 2)
    requests = [r for contest in small(modules)[2:] for r in contest.requests(config, 90)]
    assert len(requests) == 4
    for request, estimate in compile_offline(requests, workers=2):
        assert estimate.status == "ok", (request, estimate)
        assert estimate.registers and math.isfinite(estimate.registers)
