"""What every kernel's bench says without a GPU, and its judge under Triton's interpreter: right results pass, wrong do not."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from einsight.kernels.builds import config_of
from einsight.kernels.catalog import KERNELS
from einsight.tuner.benches import BENCHES
from einsight.tuner.measure_kernel import UnsupportedWorkload
from einsight.tuner.record import Status
from einsight.tuner.worker import Worker

SIZES = {"b": 1, "h": 4, "g": 2, "m": 48, "n": 64, "e": 32, "f": 32}
TOLD = {"cascade": "one_pass", "sizes": SIZES, "dtype": "fp16", "phase": "prefill", "cache": "warm"}
GRID = {"layout": [6, 10], "window": [3, 5], "stride": [1, 2]}
SMALL: Mapping[str, Mapping[str, Any]] = {
    "attention": TOLD | {"mask": ["causal", {"window": 40}], "bias": [{"kind": "sink"}, {"kind": "softcap", "cap": 20.0}]},
    "flashbias": TOLD | {"mask": ["causal"], "bias": [{"kind": "low_rank", "r": 5}]},
    "attention_with_bias": TOLD | {"bias": [{"kind": "dense_bias"}]},
    "sigmoid": TOLD | {"cascade": "sigmoid", "mask": ["causal"]},
    "decode": TOLD | {"sizes": SIZES | {"m": 1, "n": 200}, "phase": "decode", "bias": [{"kind": "softcap", "cap": 20.0}]},
    "gna": TOLD | {"sizes": SIZES | {"g": 4, "m": 60, "n": 60}, "mask": [{"gna": GRID}]},
    "lightning": TOLD | {"sizes": SIZES | {"m": 100, "n": 100}, "cascade": "lightning"},
    "gla": TOLD | {"sizes": SIZES | {"m": 100, "n": 100}, "cascade": "gla"},
}
TILES = {"block_m": 32, "block_n": 32, "num_warps": 2, "num_stages": 1}
BUILDS = {"gna": {"q0": 4, "q1": 8, "k0": 4, "k1": 4, "num_warps": 2, "num_stages": 1}, "decode": TILES | {"block_m": 16}}


def build(kernel: str) -> Mapping[str, int]:
    return BUILDS.get(kernel, TILES)


def test_every_kernel_of_the_catalogue_has_a_bench() -> None:
    assert set(BENCHES) == set(KERNELS) == set(SMALL)


def test_a_workload_becomes_the_kernels_arguments() -> None:
    launch_of = BENCHES["attention"].launch_of
    told = launch_of({"mask": ["causal", {"window": 64}], "bias": [{"kind": "softcap", "cap": 30.0}, {"kind": "sink"}]})
    assert told == {"causal": True, "window": 64, "softcap": 30.0, "sink": True}
    assert launch_of({}) == {"causal": False, "window": None, "softcap": None, "sink": False}
    assert BENCHES["sigmoid"].launch_of({"mask": "causal"}) == {"causal": True, "window": None}
    assert BENCHES["gna"].launch_of(SMALL["gna"])["stride"] == (1, 2)


@pytest.mark.parametrize(
    ("kernel", "workload", "message"),
    [
        ("attention", {"mask": [{"prefix": 3}]}, "kernel attention runs causal and window"),
        ("attention", {"bias": [{"kind": "alibi"}]}, "kernel attention runs softcap and sink"),
        ("flashbias", {"bias": [{"kind": "sink"}]}, "kernel flashbias runs low_rank"),
        ("sigmoid", {"bias": [{"kind": "softcap", "cap": 3.0}]}, "kernel sigmoid runs no bias"),
        ("gla", {"mask": [{"window": 3}]}, "runs no other mask"),
        ("gna", {"mask": ["causal"]}, "runs one neighborhood"),
        ("gna", SMALL["gna"] | {"bias": [{"kind": "sink"}]}, "kernel gna runs no bias"),
    ],
)
def test_what_a_kernel_cannot_run_is_refused(kernel: str, workload: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedWorkload, match=message):
        BENCHES[kernel].launch_of(workload)


@pytest.mark.parametrize("kernel", sorted(SMALL))
def test_the_offline_build_is_the_one_that_is_launched(kernel: str) -> None:
    asked = BENCHES[kernel].requests(SMALL[kernel], config_of(build(kernel)), 90)
    first = asked[0]
    config = config_of(build(kernel))
    assert first.arguments["sizes"] == list(SMALL[kernel]["sizes"].values()) and first.arguments["dtype"] == "float16"
    assert first.arguments["config"] == [config.block_m, config.block_n, config.num_warps, config.num_stages]
    assert first.module == KERNELS[kernel].module and all(r.capability == 90 for r in asked)


def test_what_the_compiler_is_told_beside() -> None:
    def arguments(kernel: str) -> list[Mapping[str, Any]]:
        return [r.arguments for r in BENCHES[kernel].requests(SMALL[kernel], config_of(build(kernel)), 90)]

    assert arguments("attention")[0]["mask"] == {"left": 39, "right": 0, "align": "last"}
    assert arguments("attention")[0]["sink"] is True and arguments("attention")[0]["softcap"] == 20.0
    assert arguments("flashbias")[0]["rank"] == 5
    assert [a.get("scores", False) for a in arguments("gla")] == [False, True] and arguments("lightning")[0]["kind"] == "decay"
    assert [a.get("merge", False) for a in arguments("decode")] == [False, True]  # the pieces, and what joins them
    assert arguments("gna")[0]["tiles"] == [[4, 8], [4, 4]] and arguments("gna")[0]["neighborhood"]["window"] == [3, 5]


@pytest.fixture
def worker_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Workers with the interpreter as device; stopped at the end."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("triton") is None:
        pytest.skip("torch and triton are not installed")
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here: the interpreter is for machines without")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    made: list[Worker] = []

    def start(kernel: str, **rest: Any) -> Worker:
        made.append(Worker("faked_gpu:interpreted", {"kernel": kernel, "workload": SMALL[kernel], **rest}))
        return made[-1]

    yield start
    for worker in made:
        worker.stop()


@pytest.mark.parametrize("kernel", sorted(SMALL))
def test_the_kernel_passes_its_judge_and_a_wrong_one_does_not(kernel: str, worker_of: Any) -> None:
    told = worker_of(kernel).run(build(kernel))
    assert told.status is Status.OK, told.reason
    assert told.error is not None and 0 < told.error <= told.error_allowed and told.samples_s
    wrong = worker_of(kernel, spoil=True).run(build(kernel))
    assert wrong.status is Status.INCORRECT and wrong.error == pytest.approx(1.0, abs=0.01)


def test_a_head_that_was_never_written_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads beyond the judged ones are not compared, but what was not written there is found."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from einsight.kernels import references
    from einsight.tuner.worker import WrongResult

    made = object.__new__(BENCHES["attention"])
    made.torch, made.references, made.rows = torch, references, slice(None)
    made._judged = {(0, 0): (torch.zeros(3, 2), torch.zeros(3), 0.1)}
    made.out, made.lse = torch.zeros(1, 2, 3, 2), torch.zeros(1, 2, 3)
    assert made.check(TILES) == (0.0, 0.1)
    made.out[0, 1, 2] = float("nan")
    with pytest.raises(WrongResult):
        made.check(TILES)
