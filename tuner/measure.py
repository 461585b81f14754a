"""The only code that times anything: CUDA events, L2 policy, adaptive repeats, raw samples, environment.

torch and triton are imported where a GPU is really used, so that reading records needs neither.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from einsight.tuner.record import CACHES, Environment

# The device waits this many cycles (about 200 microseconds) per call before the start event, so that the host has
# launched everything by the time the timed work begins: a launch from Python costs up to 100 microseconds.
HEAD_START_CYCLES = 400_000
SHORTEST_SAMPLE_S = 100e-6  # event resolution is about half a microsecond: shorter work is repeated within one sample


class NoGpuError(RuntimeError):
    """There is no CUDA GPU, or no torch that could use it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How long and how often to measure.

    cache        "cold": a buffer of twice L2 is overwritten before every sample; "warm": back to back
    warmup_s     time of untimed calls before the first sample (clock and caches settle)
    min_samples, max_samples, budget_s   stop at max_samples, or after budget_s of timed work once min_samples are there
    precision    or as soon as the median is known to this relative half-width (95 %, order statistics)
    """

    cache: str = "warm"
    warmup_s: float = 0.02
    min_samples: int = 9
    max_samples: int = 200
    budget_s: float = 0.1
    precision: float = 0.005

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise ValueError(f"cache: got {self.cache!r}, expected one of {', '.join(CACHES)}")
        if not 1 <= self.min_samples <= self.max_samples:
            raise ValueError(f"min_samples: got {self.min_samples}, expected 1 to max_samples ({self.max_samples})")


def median_half_width(samples: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the median, relative to it, by order statistics.

    The interval reaches from rank (n - 1.96 sqrt n) / 2 to rank 1 + (n + 1.96 sqrt n) / 2 and assumes no distribution;
    below six samples no such interval exists: infinity.
    """
    n = len(samples)
    if n < 6:
        return math.inf
    ordered = sorted(samples)
    reach = 1.96 * math.sqrt(n)
    low, high = max(0, math.floor((n - reach) / 2) - 1), min(n - 1, math.ceil((n + reach) / 2))
    return (ordered[high] - ordered[low]) / 2 / statistics.median(ordered)


def enough(samples: Sequence[float], timed_s: float, policy: Policy) -> bool:
    """Whether `samples`, which took `timed_s` of timed work, satisfy the policy."""
    if len(samples) < policy.min_samples:
        return False
    if len(samples) >= policy.max_samples or timed_s >= policy.budget_s:
        return True
    return median_half_width(samples) <= policy.precision


def time_calls(calls: Mapping[str, Callable[[], object]], policy: Policy) -> dict[str, tuple[float, ...]]:
    """Seconds per call of each callable on the current CUDA stream, taken in turns so that clock drift hits all alike.

    Every callable must enqueue the same work each time. Raises NoGpuError; errors of a callable pass through.
    """
    torch = _cuda()
    flush = None
    if policy.cache == "cold":
        l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        flush = torch.empty(max(2 * l2, 1 << 26), dtype=torch.int8, device="cuda")
    repeats = {name: _warm_up(torch, call, policy) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    unfinished = set(calls)
    while unfinished:
        for name in [name for name in calls if name in unfinished]:
            samples[name].append(_one_sample(torch, calls[name], repeats[name], flush))
            if enough(samples[name], sum(samples[name]) * repeats[name], policy):
                unfinished.discard(name)
    return {name: tuple(taken) for name, taken in samples.items()}


def time_call(call: Callable[[], object], policy: Policy) -> tuple[float, ...]:
    """`time_calls` of one callable."""
    return time_calls({"call": call}, policy)["call"]


def _warm_up(torch: Any, call: Callable[[], object], policy: Policy) -> int:
    """Run untimed for `warmup_s`; returns how many calls a sample needs to be long enough (always 1 when cold)."""
    call()  # compiles, loads, allocates
    torch.cuda.synchronize()
    begin, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - begin < policy.warmup_s:
        call()
        torch.cuda.synchronize()
        calls += 1
    if policy.cache == "cold":
        return 1
    once = _one_sample(torch, call, 1, None)
    return max(1, math.ceil(SHORTEST_SAMPLE_S / once))


def _one_sample(torch: Any, call: Callable[[], object], repeats: int, flush: Any) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if flush is not None:
        flush.zero_()
    torch.cuda._sleep(HEAD_START_CYCLES * repeats)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3 / repeats


def environment() -> Environment:
    """The current device and software. Raises NoGpuError."""
    torch = _cuda()
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    base = Environment(
        device=device.name,
        capability=10 * device.major + device.minor,
        sms=device.multi_processor_count,
        memory_bytes=device.total_memory,
        l2_bytes=device.L2_cache_size,
        driver="",
        cuda=str(torch.version.cuda),
        torch=torch.__version__,
        triton=_version("triton"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
    )
    return with_clocks(base)


def with_clocks(base: Environment) -> Environment:
    """`base` with driver, clocks, power limit and temperature as nvidia-smi reports them now; unchanged without it."""
    names = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    torch = _cuda()
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid  # nvidia-smi's order is not CUDA's
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader,nounits", f"--id=GPU-{gpu}"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return base
    return parse_clocks(base, done.stdout)


def under_load(base: Environment, call: Callable[[], object], once_s: float) -> Environment:
    """`base` with the clocks while `call` keeps the device busy (an idle device soon shows an idle clock)."""
    torch = _cuda()
    for _ in range(min(1000, math.ceil(0.5 / once_s))):  # 1000: what a stream takes without blocking the host
        call()
    told = with_clocks(base)
    torch.cuda.synchronize()
    return told


def parse_clocks(base: Environment, line: str) -> Environment:
    """One line of nvidia-smi's CSV (MHz, W, degrees Celsius); a field it cannot tell stays None."""
    parts = [part.strip() for part in line.strip().split(",")]
    if len(parts) != 6:
        return base

    def number(text: str, scale: float = 1.0) -> float | None:
        try:
            return float(text) * scale
        except ValueError:
            return None

    return replace(
        base,
        driver=parts[0],
        sm_clock_hz=number(parts[1], 1e6),
        sm_clock_max_hz=number(parts[2], 1e6),
        memory_clock_hz=number(parts[3], 1e6),
        power_limit_w=number(parts[4]),
        temperature_c=number(parts[5]),
    )


def context_lost() -> bool:
    """Whether nothing more can run on the device in this process (an illegal access is told by every later call)."""
    try:
        _cuda().cuda.synchronize()
    except RuntimeError:
        return True
    return False


def now() -> str:
    """Time of day in UTC, ISO 8601, for `Measurement.at`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cuda() -> Any:
    try:
        import torch
    except ImportError as error:
        raise NoGpuError("torch is not installed: install the extra `gpu`") from error
    if not torch.cuda.is_available():
        raise NoGpuError(f"torch {torch.__version__} sees no CUDA GPU")
    return torch
