"""What a serving framework adds around an attention kernel: launch constant, cache writers, kernels for uneven widths.

Files `frameworks/NAME.yaml`, data only. These constants do not carry over from one framework to another, and the launch
constant not from one architecture to another either, so each entry says where it was fitted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from statistics import median

from einsight.sim import strict_yaml
from einsight.sim.hardware import DTYPES, PHASES
from einsight.sim.nearness import named_capability
from einsight.sim.strict_yaml import Item

ADDED: tuple[str, ...] = ("kv_copy", "q_copy", "token_cycles", "uneven_s", "uneven_copy")
"""Constants (of `family.CONSTANTS`) that are the framework's own."""
LAUNCH = "launch_s"
"""Part framework, part kernel and device: taken from the framework only where it was fitted on the same architecture."""


@dataclass(frozen=True, slots=True)
class Addition:
    """What was fitted beside one family on one architecture, for one phase and pair of dtypes."""

    family: str
    architecture: str
    phase: str
    dtypes: tuple[str, ...]
    constants: Mapping[str, float]
    fitted_on: str


@cache
def folder() -> Path:
    """Where the shipped files are."""
    return Path(str(files("einsight.sim"))) / "frameworks"


def file_of(framework: str) -> Path:
    """The file of a framework ("SGLang", without a version)."""
    return folder() / f"{framework.lower()}.yaml"


@lru_cache(maxsize=32)
def additions(framework: str) -> tuple[Addition, ...]:
    """Everything fitted for a framework; nothing for one that no table named."""
    path = file_of(framework)
    return read_additions(path) if framework and path.is_file() else ()


def read_additions(path: Path) -> tuple[Addition, ...]:
    """The entries of a framework's file. Raises SpecError with file, line and place."""
    root = strict_yaml.load(path).table(["name", "additions"])
    return tuple(_addition(item) for item in root["additions"].items())


def _addition(item: Item) -> Addition:
    t = item.table(["family", "architecture", "phase", "dtypes", "fitted_on", "constants"])
    numbers = t["constants"].table(optional=(LAUNCH, *ADDED))
    return Addition(
        t["family"].text(), t["architecture"].text(), t["phase"].choice(PHASES),
        tuple(d.choice(DTYPES) for d in t["dtypes"].items()),
        {name: entry.number() for name, entry in numbers.items()}, t["fitted_on"].text(),
    )  # fmt: skip


def added(framework: str, family: str, architecture: str, phase: str, dtypes: tuple[str, str]) -> Mapping[str, float]:
    """The constants that a framework brings to a family on an architecture: of the nearest entry, at last by steps of compute
    capability, and of equally near ones that which was fitted on most rows.

    Its own kernels are the same around all. What one fit takes for a cost per token another takes for copies, so that for a
    family without an entry there each constant is the median over the framework's kernels of that phase.
    Empty for a framework without any entry. The launch constant is left out unless the architecture is the entry's.
    """
    entries = additions(framework)
    if not entries:
        return {}

    def far(a: Addition) -> tuple[bool, bool, bool, bool, float, int]:
        steps = abs(named_capability(a.architecture) - named_capability(architecture))
        return a.phase != phase, a.architecture != architecture, a.family != family, a.dtypes != dtypes, steps, -_rows(a)

    nearest = min(entries, key=far)
    found = dict(nearest.constants)
    if nearest.family != family:
        kernels: dict[tuple[str, str], list[Addition]] = {}
        for entry in entries:
            if entry.phase == nearest.phase:
                kernels.setdefault((entry.family, entry.architecture), []).append(entry)
        one_each = [min(alike, key=far) for alike in kernels.values()]
        found |= {name: median(a.constants.get(name, 0.0) for a in one_each) for name in ADDED}
    own = nearest.architecture == architecture and nearest.phase == phase
    return {name: value for name, value in found.items() if name != LAUNCH or own}


def _rows(addition: Addition) -> int:
    """The rows that an entry was fitted on."""
    found = re.search(r"(\d+) rows", addition.fitted_on)
    return int(found[1]) if found else 0
