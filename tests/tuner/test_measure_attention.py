"""The judge of the attention kernel, under Triton's interpreter: right results pass, wrong and unwritten ones do not."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

from einsight.kernels.spaces import Config
from einsight.tuner.measure_attention import UnsupportedWorkload, launch_of, request

SMALL = {
    "cascade": "one_pass", "sizes": {"b": 1, "h": 4, "g": 2, "m": 48, "n": 64, "e": 32, "f": 32}, "dtype": "fp16",
    "phase": "prefill", "cache": "warm", "mask": ["causal", {"window": 40}],
}  # fmt: skip
CONFIG = {"block_m": 32, "block_n": 32, "num_warps": 2, "num_stages": 1}


def test_a_workload_becomes_the_kernels_arguments() -> None:
    told = launch_of({"mask": ["causal", {"window": 64}], "bias": [{"kind": "softcap", "cap": 30.0}, {"kind": "sink"}]})
    assert told == {"causal": True, "window": 64, "softcap": 30.0, "sink": True}
    assert launch_of({}) == {"causal": False, "window": None, "softcap": None, "sink": False}
    for bad in ({"mask": [{"prefix": 3}]}, {"bias": [{"kind": "alibi"}]}):
        with pytest.raises(UnsupportedWorkload, match="kernel attention runs"):
            launch_of(bad)


def test_the_offline_build_is_the_one_that_is_launched() -> None:
    asked = request(SMALL, CONFIG, 90)
    assert asked.arguments["sizes"] == [1, 4, 2, 48, 64, 32, 32] and asked.arguments["dtype"] == "float16"
    assert asked.arguments["mask"] == {"left": 39, "right": 0, "align": "last"} and asked.capability == 90
    assert Config(*asked.arguments["config"]) == Config(**CONFIG)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("triton") is None:
        pytest.skip("torch and triton are not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs TRITON_INTERPRET=1 in the environment (Triton reads it at import)")
    from einsight.tuner import measure_attention

    monkeypatch.setattr(measure_attention, "DEVICE", "cpu")
    return measure_attention.AttentionBench(SMALL)


def test_the_kernel_passes_its_judge_and_a_wrong_one_does_not(bench: Any) -> None:
    from einsight.tuner.worker import WrongResult

    bench.compile(CONFIG)
    error, allowed = bench.check(CONFIG)
    assert 0 < error <= allowed
    bench._out[0, 0, 5] += 1.0
    with pytest.raises(WrongResult):
        bench.check(CONFIG)
    bench.compile(CONFIG)
    bench._out[0, 2] = float("nan")  # a head that was never written
    with pytest.raises(WrongResult):
        bench.check(CONFIG)
