"""`benchmarks/gpu_tune.py` on an imagined GPU: it measures, resumes, is judged by the sweep, and needs no Optuna."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from einsight.kernels.resources import Estimate, Request
from einsight.tuner.record import Measurement, Status, append

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """One shape on a worker that imagines its times, and the sweep of the same shape."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    module = importlib.import_module("gpu_tune")
    from faked_gpu import HERE, imagined_time

    from einsight.kernels.builds import told
    from einsight.tuner import gpu

    def compiled(requests: tuple[Request, ...], **_: Any) -> Iterator[tuple[Request, Estimate]]:
        yield from ((request, Estimate("ok", "", "compiled")) for request in requests)

    case = module.SWEPT[0]
    monkeypatch.setattr(module, "SWEPT", (case,))
    monkeypatch.setattr(module, "environment", lambda: HERE)
    monkeypatch.setattr(gpu, "FACTORY", "faked_gpu:Imagined")
    monkeypatch.setattr(gpu, "compile_offline", compiled)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    problem = module.problem_of(module.KERNEL, module.workload_of(case), 90)
    for config in problem.configurations():
        known = {"kernel": "attention", "workload": case.workload(), "configuration": told(config), "cache": "warm",
                 "environment": HERE, "at": "now"}  # fmt: skip
        append(tmp_path / "sweep.jsonl", Measurement(**known, status=Status.OK, samples_s=(imagined_time(told(config)),)))
    arguments = ["--sweep", str(tmp_path / "sweep.jsonl"), "--out", str(tmp_path / "tuned.jsonl"), "--ahead", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu_tune", *arguments])
    yield module


def test_it_comes_within_the_bar_and_goes_on(benchmark: ModuleType, tmp_path: Path, capsys: Any) -> None:
    assert benchmark.main() == 0
    lines = [json.loads(line) for line in (tmp_path / "tuned.jsonl").read_text().splitlines()]
    assert len(lines) == benchmark.TRIALS == len({json.dumps(line["configuration"]) for line in lines})
    assert {line["status"] for line in lines} <= {"ok", "incorrect"}
    told = capsys.readouterr().out
    assert "num_warps=8,num_stages=3, 0.0 % behind the best of 50" in told and "missed" not in told
    assert benchmark.main() == 0  # nothing is measured twice
    assert len((tmp_path / "tuned.jsonl").read_text().splitlines()) == benchmark.TRIALS


def test_a_bar_that_is_missed_is_told(benchmark: ModuleType, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Path(sys.argv[sys.argv.index("--sweep") + 1])
    known = [json.loads(line) for line in sweep.read_text().splitlines()]
    slow = max(known, key=lambda line: line["samples_s"][0])  # as if the slowest were the fastest: no search asks it first
    slow["samples_s"] = [0.9 * min(line["samples_s"][0] for line in known)]
    sweep.write_text("".join(json.dumps(line) + "\n" for line in known))
    monkeypatch.setattr(benchmark, "TRIALS", 1)
    assert benchmark.main() == 1 and "behind the sweep's best, wanted 2" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--sweep", "nowhere.jsonl"])
    assert benchmark.main() == 1 and "not in the sweep's record" in capsys.readouterr().out


def test_out_of_time_is_told(benchmark: ModuleType, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--budget-s", "-1"])
    assert benchmark.main() == 1 and "0 of 16 measurements within the time" in capsys.readouterr().out


def test_a_shape_that_cannot_be_tuned_does_not_stop_the_others(
    benchmark: ModuleType, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = benchmark.SWEPT[0]
    refused = replace(case, name="refused", sizes=(1, 2, 2, 64, 64, 1024, 1024))  # no build of it is valid
    monkeypatch.setattr(benchmark, "SWEPT", (refused, case))
    assert benchmark.main() == 1
    told = capsys.readouterr().out
    assert "missed: refused: SpaceError" in told and "refused: not tuned" in told and f"{case.name}: BLOCK_M" in told
    Path(sys.argv[sys.argv.index("--sweep") + 1]).write_text("{}\n")
    assert benchmark.main() == 2 and "sweep.jsonl:1: format" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["gpu_tune", "gpu_sweep"])
def test_what_measures_on_a_gpu_needs_no_optuna(module: str) -> None:
    """Machines with a GPU may have torch, triton and numpy and little else."""
    program = f"import sys; sys.modules['optuna'] = None; import {module}, einsight.tuner.benches, einsight.tuner.serve"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_dry_run_shows_what_would_be_measured_first() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_tune.py"), "--dry-run"], env=environment, capture_output=True,
        text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("the simulator's first 8") == 3, done.stderr
