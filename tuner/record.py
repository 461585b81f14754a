"""What was measured, as frozen values, and the append-only file of JSON lines that keeps them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import statistics
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

FORMAT = 1
CACHES = ("cold", "warm")


class RecordError(ValueError):
    """A record that cannot be read: says file, line, what was found and what was expected."""


class Status(StrEnum):
    """How one attempt to measure ended. Only OK has samples; every other status has a reason."""

    OK = "ok"
    INCORRECT = "incorrect"
    COMPILE_FAILED = "compile_failed"
    OUT_OF_RESOURCES = "out_of_resources"
    ILLEGAL_ACCESS = "illegal_access"
    TIMEOUT = "timeout"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a measurement was taken. Clocks in hertz, power in watts; None where it could not be read."""

    device: str
    capability: int
    sms: int
    memory_bytes: int
    l2_bytes: int
    driver: str
    cuda: str
    torch: str
    triton: str
    python: str
    system: str
    sm_clock_hz: float | None = None
    sm_clock_max_hz: float | None = None
    memory_clock_hz: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing measured once: raw samples in seconds, never only their median.

    kernel          name of a kernel, a baseline ("sdpa-flash") or a ceiling ("copy")
    workload        what it computed, in the form of a workload file; `key` joins it with predictions ("" if not known)
    configuration   the kernel's build; {} where there is none to choose
    work            what one call does, by unit: bytes, flops, special_ops, ...: work / time is a rate
    cache           "cold": L2 was overwritten before every sample; "warm": repeated without
    error, error_allowed   largest deviation from the float64 reference and what was allowed; None where not checked
    source_hash     of the kernel's module; "" for code that is not ours
    sweep           number of the independent pass over a space that it belongs to
    """

    kernel: str
    workload: Mapping[str, Any]
    configuration: Mapping[str, int]
    status: Status
    cache: str
    environment: Environment
    at: str  # ISO 8601, UTC
    samples_s: tuple[float, ...] = ()
    reason: str = ""
    key: str = ""
    work: Mapping[str, float] = field(default_factory=dict)
    error: float | None = None
    error_allowed: float | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    source_hash: str = ""
    sweep: int = 0

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise RecordError(f"cache: got {self.cache!r}, expected one of {', '.join(CACHES)}")
        if not all(math.isfinite(s) and s > 0 for s in self.samples_s):
            raise RecordError(f"samples_s: got {self.samples_s}, expected finite positive seconds")
        if (self.status is Status.OK) != bool(self.samples_s):
            raise RecordError(f"status {self.status.value}: got {len(self.samples_s)} samples, expected samples iff ok")
        if (self.status is Status.OK) == bool(self.reason):
            raise RecordError(f"status {self.status.value}: got reason {self.reason!r}, expected a reason iff not ok")

    @property
    def time_s(self) -> float:
        """Median of the samples. Raises RecordError when there are none."""
        if not self.samples_s:
            raise RecordError(f"{self.kernel}: no time, status {self.status.value}: {self.reason}")
        return statistics.median(self.samples_s)

    @property
    def spread(self) -> float:
        """Interquartile range over the median; 0 for fewer than four samples."""
        if len(self.samples_s) < 4:
            return 0.0
        low, _, high = statistics.quantiles(self.samples_s, n=4)
        return (high - low) / self.time_s

    def rate(self, unit: str) -> float:
        """`work[unit]` per second at the median time."""
        return self.work[unit] / self.time_s

    @property
    def identity(self) -> str:
        """What makes two attempts the same one: kernel text, build, workload, cache state, device and pass."""
        what = [self.kernel, self.source_hash, self.configuration, self.workload, self.cache, self.environment.device,
                self.sweep]  # fmt: skip
        return hashlib.sha256(json.dumps(what, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT} | asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Measurement:
        """Raises RecordError that names a missing, unknown or malformed field."""
        if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, Mapping) else type(raw).__name__
            raise RecordError(f"format: got {found!r}, expected {FORMAT}")
        values = {name: value for name, value in raw.items() if name != "format"}
        _only_known(cls, values)
        if not isinstance(values.get("environment"), Mapping):
            raise RecordError("environment: missing, expected an object")
        _only_known(Environment, values["environment"])
        try:
            values["environment"] = Environment(**values["environment"])
            values["status"] = Status(values["status"])
            values["samples_s"] = tuple(float(s) for s in values.get("samples_s", ()))
            return cls(**values)
        except (TypeError, KeyError, ValueError) as error:
            raise RecordError(str(error)) from error


def append(path: Path, measurement: Measurement) -> None:
    """Add one line and wait until it is on disk. Several processes may write the same file at once.

    A last line that a killed process left incomplete is cut off first, with a warning.
    """
    line = json.dumps(measurement.as_json(), separators=(",", ":"), allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
        repair(path)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> tuple[Measurement, ...]:
    """Every measurement of a file, in order. An incomplete last line is left out, with a warning.

    Raises RecordError, with file and line, for any other line that is not a measurement, and where there is no file.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}, expected a record file (JSON lines)") from error
    whole, _, rest = text.rpartition(b"\n")
    if rest:
        warnings.warn(f"{path}: last line incomplete ({len(rest)} bytes), left out", stacklevel=2)
    return tuple(_parse_lines(path, whole))


def read_from(path: Path, offset: int) -> tuple[tuple[Measurement, ...], int]:
    """The measurements of the complete lines from byte `offset` (a line's beginning) on, and the offset after them.

    Raises RecordError as `read` does; a line number counts from `offset`.
    """
    with path.open("rb") as file:
        file.seek(offset)
        whole, end, _ = file.read().rpartition(b"\n")
    return tuple(_parse_lines(path, whole)), offset + len(whole) + len(end)


def _parse_lines(path: Path, text: bytes) -> Iterator[Measurement]:
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield Measurement.from_json(json.loads(line))
        except ValueError as error:
            raise RecordError(f"{path}:{number}: {error}") from error


def repair(path: Path) -> None:
    """Cut off what stands after the last line end. The caller holds the lock."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        keep = size
        while keep:
            start = max(0, keep - 65536)
            file.seek(start)
            block = file.read(keep - start)
            end = block.rfind(b"\n")
            if end >= 0:
                keep = start + end + 1
                break
            keep = start
        if keep < size:
            warnings.warn(f"{path}: last line incomplete ({size - keep} bytes), cut off", stacklevel=3)
            file.truncate(keep)


def _only_known(cls: type, values: Mapping[str, Any]) -> None:
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise RecordError(f"{', '.join(unknown)}: unknown, expected {', '.join(sorted(known))}")
