"""Recorded spaces as values: our own records, Kernel Tuner's cache, T4 results, the slim exhaustive spaces; and back.

Kernel Tuner cache and T4: the formats of Kernel Tuner 1.x (schema "T4" 1.0.0, doi 10.1145/3629527.3651429). Times are
seconds here and milliseconds there.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einsight.tuner.record import Environment, Measurement, RecordError, Status, read
from einsight.tuner.space import Configuration, Space, enumerated

MS = 1e-3
OUTCOMES: Mapping[str, Status] = {
    "CompilationFailedConfig": Status.COMPILE_FAILED,
    "RuntimeFailedConfig": Status.FAILED,
    "InvalidConfig": Status.UNSUPPORTED,
    "compile": Status.COMPILE_FAILED,
    "runtime": Status.FAILED,
    "correctness": Status.INCORRECT,
    "constraints": Status.UNSUPPORTED,
    "timeout": Status.TIMEOUT,
}
"""What Kernel Tuner (class names) and T4 ("invalidity") call a failure, and our status."""
INVALIDITY = {
    Status.COMPILE_FAILED: "compile", Status.INCORRECT: "correctness", Status.UNSUPPORTED: "constraints",
    Status.TIMEOUT: "timeout", Status.OUT_OF_RESOURCES: "runtime", Status.ILLEGAL_ACCESS: "runtime",
    Status.FAILED: "runtime",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What was seen of one configuration: samples in seconds, or a status with its reason."""

    status: Status
    samples_s: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Recorded:
    """A measured space that can be asked again, as if it were a device.

    outcomes   by row of the space, which is the row of the file (for records: the order in which configurations appear)
    """

    name: str
    kernel: str
    device: str
    space: Space = field(repr=False)
    outcomes: tuple[Outcome, ...] = field(repr=False)
    workload: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def times_s(self) -> NDArray[np.float64]:
        """[N] medians, NaN where the configuration failed."""
        return np.array([float(np.median(o.samples_s)) if o.samples_s else math.nan for o in self.outcomes])

    def prepare(self, row: int) -> None:
        """Nothing to compile."""

    def race(self, rows: Sequence[int]) -> list[Measurement]:
        """A record repeats itself: nothing to race."""
        return []

    def measure(self, row: int, prepared: None = None) -> Measurement:
        """The recorded outcome as a measurement."""
        outcome = self.outcomes[row]
        return Measurement(
            kernel=self.kernel, workload=dict(self.workload), configuration=self.space.configuration(row),
            status=outcome.status, cache="warm", environment=_unknown(self.device), at="", samples_s=outcome.samples_s,
            reason=outcome.reason,
        )  # fmt: skip


def _unknown(device: str) -> Environment:
    return Environment(device, 0, 0, 0, 0, "", "", "", "", "", "")


def load(path: Path, key: str = "") -> Recorded:
    """Any of the formats, recognised by content; `.gz` or plain. Raises RecordError.

    key   beginning of a workload's key: which one of a record file that holds several
    """
    if path.suffix == ".jsonl":
        return from_measurements(path.stem, read(path), key)
    if key:
        raise RecordError(f"{path}: found a key, {key}, for a file of one space; expected none: only .jsonl records have keys")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
        document = json.loads(text)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}, expected a recorded space") from error
    except (ValueError, EOFError) as error:
        raise RecordError(f"{path}: {error}; expected JSON (Kernel Tuner cache, T4, slim space) or .jsonl records") from None
    for sign, reader in (("param_values", _slim), ("cache", _kernel_tuner), ("results", _t4)):
        if isinstance(document, Mapping) and sign in document:
            try:
                return reader(path.name.split(".")[0], document)
            except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
                raise RecordError(f"{path}: {type(error).__name__}: {error}; the file has {sign!r} but not its form") from None
    raise RecordError(f"{path}: expected one of the keys param_values (slim space), cache (Kernel Tuner), results (T4)")


def from_measurements(name: str, measurements: Sequence[Measurement], key: str = "") -> Recorded:
    """One space from our records. Repeated passes over a configuration join their samples; a failure yields to a success.

    Raises RecordError where the records (with that beginning of their key) are of several kernels, workloads or devices.
    """
    kept = [m for m in measurements if m.configuration and m.key.startswith(key)]
    if not kept:
        raise RecordError(f"{name}: no measurement with a configuration" + (f" and key {key}..." if key else ""))
    subjects = {(m.kernel, json.dumps(m.workload, sort_keys=True), m.environment.device): m.key for m in kept}
    if len(subjects) > 1:
        told = "; ".join(sorted(f"key {k or '-'}: {kernel} on {d}, {w}" for (kernel, w, d), k in subjects.items())[:6])
        raise RecordError(f"{name}: {len(subjects)} kernels, workloads or devices, expected one (--key names it): {told}")
    found: dict[tuple[Any, ...], list[Measurement]] = {}
    for m in kept:
        found.setdefault(tuple(sorted(m.configuration.items())), []).append(m)
    outcomes = [_joined(group) for group in found.values()]
    space = enumerated(kept[0].kernel, [group[0].configuration for group in found.values()])
    first = kept[0]
    return Recorded(name, first.kernel, first.environment.device, space, tuple(outcomes), first.workload)


def _joined(group: Sequence[Measurement]) -> Outcome:
    samples = tuple(s for m in group for s in m.samples_s)
    return Outcome(Status.OK, samples) if samples else Outcome(group[-1].status, (), group[-1].reason)


def _slim(name: str, raw: Mapping[str, Any]) -> Recorded:
    parameters = {p: tuple(values) for p, values in raw["param_values"].items()}
    width, scale = len(parameters), _seconds(raw["time_unit"])
    outcomes = tuple(_outcome(row[width], row[width + 1], scale) for row in raw["rows"])
    space = Space(raw["kernel"], parameters, np.array([row[:width] for row in raw["rows"]], dtype=np.int64))
    return Recorded(raw.get("name", name), raw["kernel"], raw["device"], space, outcomes)


def _seconds(unit: str) -> float:
    return {"s": 1.0, "ms": 1e-3, "milliseconds": 1e-3, "miliseconds": 1e-3, "us": 1e-6, "ns": 1e-9}[unit]


def _outcome(time: Any, error: Any, scale: float) -> Outcome:
    if isinstance(time, int | float) and math.isfinite(time) and time > 0:
        return Outcome(Status.OK, (time * scale,))
    what = error if isinstance(error, str) else str(time)
    return Outcome(OUTCOMES.get(what, Status.FAILED), (), what)


def _kernel_tuner(name: str, raw: Mapping[str, Any]) -> Recorded:
    keys, entries = raw["tune_params_keys"], list(raw["cache"].values())
    outcomes = []
    for entry in entries:
        samples = tuple(float(t) * MS for t in entry.get("times", ()) if isinstance(t, int | float) and 0 < t < math.inf)
        found = _outcome(entry["time"], entry["time"], MS)
        outcomes.append(Outcome(Status.OK, samples) if samples and found.status is Status.OK else found)
    space = enumerated(raw["kernel_name"], [{k: e[k] for k in keys} for e in entries])
    return Recorded(name, raw["kernel_name"], raw["device_name"], space, tuple(outcomes))


def _t4(name: str, raw: Mapping[str, Any]) -> Recorded:
    results, scale = raw["results"], _seconds(raw["metadata"]["timeunit"])
    device, kernel = raw["metadata"].get("device", ""), raw["metadata"].get("kernel", name)
    outcomes = []
    for result in results:
        samples = tuple(float(t) * scale for t in result["times"].get("runtimes", ()) if 0 < t < math.inf)
        invalid = result["invalidity"]
        ok = invalid == "correct" and samples
        outcomes.append(Outcome(Status.OK, samples) if ok else Outcome(OUTCOMES.get(invalid, Status.FAILED), (), invalid))
    return Recorded(name, kernel, device, enumerated(kernel, [r["configuration"] for r in results]), tuple(outcomes))


def to_kernel_tuner(recorded: Recorded) -> dict[str, Any]:
    """The cache file that Kernel Tuner's simulation mode reads."""
    names = {status: error for error, status in OUTCOMES.items() if error.endswith("Config")}
    cache = {}
    for row, outcome in enumerate(recorded.outcomes):
        configuration = recorded.space.configuration(row)
        ok = outcome.status is Status.OK
        times = [s / MS for s in outcome.samples_s]
        cache[",".join(str(v) for v in configuration.values())] = configuration | {
            "time": float(np.mean(times)) if ok else names.get(outcome.status, "RuntimeFailedConfig"), "times": times,
            "compile_time": 0.0, "verification_time": 0.0, "benchmark_time": sum(times), "strategy_time": 0.0,
            "framework_time": 0.0, "timestamp": "",
        }  # fmt: skip
    parameters = {name: list(values) for name, values in recorded.space.parameters.items()}
    return {
        "device_name": recorded.device, "kernel_name": recorded.kernel, "problem_size": "", "objective": "time",
        "tune_params_keys": list(parameters), "tune_params": parameters, "cache": cache,
    }  # fmt: skip


def to_t4(recorded: Recorded) -> dict[str, Any]:
    """T4 results, with device and kernel in the metadata."""
    results = []
    for row, outcome in enumerate(recorded.outcomes):
        ok = outcome.status is Status.OK
        runtimes = [s / MS for s in outcome.samples_s]
        results.append({
            "timestamp": "", "configuration": recorded.space.configuration(row),
            "times": {"compilation": 0.0, "framework": 0.0, "search_algorithm": 0.0, "validation": 0.0,
                      "runtimes": runtimes},
            "invalidity": "correct" if ok else INVALIDITY[outcome.status], "correctness": int(ok),
            "measurements": [{"name": "time", "value": float(np.mean(runtimes)), "unit": "ms"}] if ok else [],
            "objectives": ["time"],
        })  # fmt: skip
    return {"metadata": {"timeunit": "milliseconds", "device": recorded.device, "kernel": recorded.kernel}, "results": results}


def triton_configs(ranked: Sequence[Configuration], upper: bool) -> str:
    """The configurations, the best first, as the text of a `triton.Config` list; `upper`: meta-parameters in capitals."""
    lines = ["import triton", "", "configs = ["]
    for configuration in ranked:
        options = {k: v for k, v in configuration.items() if k in ("num_warps", "num_stages", "num_ctas", "maxnreg")}
        meta = {(k.upper() if upper else k): v for k, v in configuration.items() if k not in options}
        told = "".join(f", {name}={value}" for name, value in options.items())
        lines.append(f"    triton.Config({json.dumps(meta)}{told}),")
    return "\n".join([*lines, "]", ""])
