"""The parts of measuring that need no GPU: when to stop, what the median is worth, what nvidia-smi says."""

from __future__ import annotations

import math
import random
import statistics
import subprocess
import sys

import pytest

from einsight.tuner.measure import NoGpuError, Policy, enough, environment, median_half_width, parse_clocks, time_call
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
