"""The parts of measuring that need no GPU: when to stop, what the median is worth, what nvidia-smi says."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from einsight.tuner import measure
from einsight.tuner.measure import (
    NoGpuError,
    Policy,
    enough,
    environment,
    median_half_width,
    parse_clocks,
    time_call,
    time_calls,
    under_load,
)
from einsight.tuner.record import Environment

BARE = Environment("Test GPU", 90, 132, 80 << 30, 50 << 20, "", "13.0", "2.11", "3.6", "3.12", "Linux 6")


def test_half_width_covers_the_true_median_in_95_percent() -> None:
    draw = random.Random(0)
    for n in (10, 40):
        covered = 0
        for _ in range(1000):
            samples = [draw.lognormvariate(0.0, 0.1) for _ in range(n)]  # true median 1
            ordered, reach = sorted(samples), 1.96 * math.sqrt(n)
            low, high = max(0, math.floor((n - reach) / 2) - 1), min(n - 1, math.ceil((n + reach) / 2))
            covered += ordered[low] <= 1.0 <= ordered[high]
            assert median_half_width(samples) == (ordered[high] - ordered[low]) / 2 / statistics.median(samples)
        assert covered >= 940


def test_half_width_of_few_or_equal_samples() -> None:
    assert median_half_width([1.0] * 5) == math.inf
    assert median_half_width([2.0] * 6) == 0.0


def test_when_to_stop() -> None:
    policy = Policy(min_samples=6, max_samples=20, budget_s=1.0, precision=0.01)
    steady, noisy = [1e-3] * 6, [1e-3, 2e-3] * 5
    assert not enough(steady[:5], 5.0, policy)  # never below the minimum, whatever it took
    assert enough(steady, 6e-3, policy)  # known well enough
    assert not enough(noisy, 15e-3, policy)
    assert enough(noisy, 1.0, policy)  # out of time
    assert enough(noisy * 2, 30e-3, policy)  # out of samples


def test_a_policy_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of cold, warm"):
        Policy(cache="hot")
    with pytest.raises(ValueError, match="min_samples: got 9, expected 1 to"):
        Policy(max_samples=3)


def test_what_nvidia_smi_says() -> None:
    told = parse_clocks(BARE, "580.10, 1980, 1980, 3201, 700.00, 31\n")
    assert (told.driver, told.sm_clock_hz, told.memory_clock_hz) == ("580.10", 1.98e9, 3.201e9)
    assert (told.power_limit_w, told.temperature_c) == (700.0, 31.0)
    assert parse_clocks(BARE, "580.10, 1980, [N/A], 3201, [Not Supported], 31").power_limit_w is None
    assert parse_clocks(BARE, "No devices were found") == BARE


class Device:
    """As much of torch as measuring touches, with a clock that only work moves."""

    def __init__(self) -> None:
        self.clock_s, self.flushes, self.sleeps, self.asked = 0.0, 0, 0, 0
        self.cuda, self.int8, self.version = self, "int8", SimpleNamespace(cuda="13.0")
        self.__version__ = "2.11"

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.clock_s += seconds

        return call

    def Event(self, enable_timing: bool) -> Any:
        event = SimpleNamespace(at=0.0, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.clock_s)
        event.elapsed_time = lambda end: (end.at - event.at) * 1e3
        return event

    def empty(self, size: int, dtype: str, device: str) -> Any:
        assert size >= 2 * (50 << 20)  # what overwrites L2 must be larger than it

        def zero() -> None:
            self.flushes += 1
            self.clock_s += 1e-4

        return SimpleNamespace(zero_=zero)

    def _sleep(self, cycles: int) -> None:
        self.sleeps += 1
        self.clock_s += cycles * 1e-9

    def synchronize(self) -> None:
        pass

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, device: int) -> Any:
        return SimpleNamespace(
            name="Test GPU", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, L2_cache_size=50 << 20,
            uuid="1234",
        )  # fmt: skip


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    fake = Device()

    def smi(command: list[str], **rest: Any) -> Any:
        assert command[0] == "nvidia-smi" and command[-1] == "--id=GPU-1234"
        fake.asked += 1
        return SimpleNamespace(stdout="580.10, 1700, 1980, 3201, 700.00, 60\n")

    monkeypatch.setattr(measure, "_cuda", lambda: fake)
    monkeypatch.setattr(measure.subprocess, "run", smi)
    return fake


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.parametrize("seconds", [2e-6, 3e-3])
def test_a_sample_is_the_time_of_one_call(device: Device, cache: str, seconds: float) -> None:
    policy = Policy(cache=cache, warmup_s=0.0, min_samples=7)
    samples = time_call(device.work(seconds), policy)
    assert len(samples) == 7 and samples == pytest.approx([seconds] * 7)
    assert device.flushes == (7 if cache == "cold" else 0) and device.sleeps >= 7


def test_callables_take_turns_and_each_stops_by_itself(device: Device) -> None:
    order: list[str] = []

    def named(name: str, times: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            device.clock_s += next(times)

        return call

    noisy = itertools.cycle([1e-3, 2e-3])
    policy = Policy(cache="cold", warmup_s=0.0, min_samples=6, max_samples=12, budget_s=1.0)
    got = time_calls({"steady": named("steady", itertools.repeat(1e-3)), "noisy": named("noisy", noisy)}, policy)
    assert {name: len(samples) for name, samples in got.items()} == {"steady": 6, "noisy": 12}
    assert "".join(name[0] for name in order).endswith("snsnsnsnsnsnnnnnnn")


def test_the_environment_is_read_idle_and_under_load(device: Device) -> None:
    here = environment()
    assert (here.device, here.capability, here.driver, here.sm_clock_hz) == ("Test GPU", 90, "580.10", 1.7e9)
    before = device.clock_s
    assert under_load(here, device.work(1e-2), 1e-2).temperature_c == 60
    assert device.asked == 2 and device.clock_s - before == pytest.approx(0.5)


def test_without_a_gpu_measuring_says_so() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for attempt in (environment, lambda: time_call(lambda: None, Policy())):
        with pytest.raises(NoGpuError, match=r"no CUDA GPU|not installed"):
            attempt()


def test_records_and_measuring_import_no_torch() -> None:
    code = "import sys, einsight.tuner.measure, einsight.tuner.record; sys.exit('torch' in sys.modules)"
    path = [p for p in sys.path if p.endswith(".src")] or sys.path
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(path)}).returncode == 0
