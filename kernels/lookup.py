"""Tuned configurations that a kernel loads by default: a JSON file, one entry per device and workload."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from einsight.kernels.builds import config_of
from einsight.kernels.spaces import Config, padded_rank

FORMAT = 1
FOLDER_VARIABLE = "EINSIGHT_TUNED"  # folder of KERNEL.json files; default: ~/.cache/einsight/tuned
FAR = 1.0  # sum of |log2| of the sizes' ratios beyond which an entry says nothing about a shape


class LookupFileError(ValueError):
    """A lookup file that cannot be read; says which and what was expected."""


@dataclass(frozen=True)
class Entry:
    """The best configuration found for a workload (in the form of a workload file) on a device.

    predicted   `time_s` is the simulator's, nothing was measured: a measured entry takes its place, never the other way
    """

    device: str
    workload: Mapping[str, Any]
    configuration: Mapping[str, int]
    time_s: float
    source_hash: str = ""
    predicted: bool = False


@dataclass(frozen=True)
class Lookup:
    """The entries of one kernel."""

    kernel: str
    entries: tuple[Entry, ...]

    @classmethod
    def read(cls, path: Path) -> Lookup:
        """Raises LookupFileError."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format"] != FORMAT:
                raise LookupFileError(f"{path}: format {raw['format']!r}, expected {FORMAT}")
            return cls(raw["kernel"], tuple(Entry(**entry) for entry in raw["entries"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, LookupFileError):
                raise
            raise LookupFileError(f"{path}: {type(error).__name__}: {error}; expected a lookup file") from error

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "kernel": self.kernel, "entries": [asdict(entry) for entry in self.entries]}

    def with_entry(self, new: Entry) -> Lookup:
        """An entry of the same device and workload is replaced, unless it was measured and the new one was not."""
        same = [e for e in self.entries if (e.device, e.workload) == (new.device, new.workload)]
        if new.predicted and any(not e.predicted for e in same):
            return self
        return replace(self, entries=(*(e for e in self.entries if e not in same), new))

    def find(self, device: str, workload: Mapping[str, Any]) -> Entry | None:
        """The entry of the nearest workload on the device; None where none is near.

        Head dimensions, element type, mask and bias must agree; batch times heads, queries and keys may differ a little.
        """
        near = [(distance(e.workload, workload), e) for e in self.entries if e.device == device]
        best = min(near, key=lambda found: found[0], default=None)
        return best[1] if best is not None and best[0] <= FAR else None


def distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Sum of |log2| of the ratios of batch x heads, queries and keys; infinite where the rest differs."""
    x, y = a["sizes"], b["sizes"]
    for name in ("e", "f"):
        if x[name] != y[name]:
            return math.inf
    if a.get("dtype") != b.get("dtype") or any(_listed(a.get(name)) != _listed(b.get(name)) for name in ("mask", "bias")):
        return math.inf
    pairs = [(x["b"] * x["h"], y["b"] * y["h"]), (x["m"], y["m"]), (x["n"], y["n"])]
    if not all(p and q for p, q in pairs):  # an empty batch, no queries, no keys
        return math.inf
    return sum(abs(math.log2(p / q)) for p, q in pairs)


def _listed(value: Any) -> list[Any]:
    """One restriction or bias, or several, or none, as a workload file may write it; a rank as the tile that holds it."""
    parts = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    return [p | {"r": padded_rank(int(p["r"]))} if isinstance(p, dict) and p.get("kind") == "low_rank" else p for p in parts]


def default_path(kernel: str) -> Path:
    folder = os.environ.get(FOLDER_VARIABLE)
    return (Path(folder) if folder else Path.home() / ".cache" / "einsight" / "tuned") / f"{kernel}.json"


def tuned_config(kernel: str, device: str, workload: Mapping[str, Any]) -> Config | None:
    """The tuned configuration for a launch, None where nothing near was tuned. The file is read again when it changed."""
    path = default_path(kernel)
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return None
    found = _read(path, stamp).find(device, workload)
    return config_of(found.configuration) if found is not None else None


@lru_cache(maxsize=8)
def _read(path: Path, stamp: int) -> Lookup:
    return Lookup.read(path)
