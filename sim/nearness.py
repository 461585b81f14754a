"""What was fitted where, and how far that is from what is asked: which constants carry over, and how much less they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import log2
from typing import NamedTuple

from einsight.sim.hardware import DTYPE_BYTES, PROFILES, load_architecture
from einsight.sim.regime import NO_REGIMES, Regimes


@dataclass(frozen=True, slots=True)
class Fit:
    """Constants fitted for one architecture and phase (and, where it is another kernel, one pair of dtypes).

    `fitted_on` names the file, its hash and the rows, and `error` what held-out rows gave; `regimes` say how far measured
    times lie below and above the predicted ones.
    """

    architecture: str
    phase: str
    dtypes: tuple[str, ...]  # operand dtypes it holds for, the keys' and values' last: ("bf16", "bf16")
    constants: Mapping[str, float]
    fitted_on: str
    error: str = ""
    framework: str = ""  # whose table it was fitted on, without the version
    regimes: Regimes = NO_REGIMES


class Ground(NamedTuple):
    """What of a GPU decides which fit is nearest."""

    name: str  # of the architecture
    compute_capability: str
    instructions: str
    device: str
    shared_bytes: float  # of an SM
    flops_per_cycle: float = 0.0  # of the tensor cores of an SM, in the type of the operands; 0 where they have none


def distance(
    fit: Fit, arch: Ground, phase: str, dtypes: tuple[str, str], framework: str, arithmetic: str = "operands"
) -> tuple[int, int, int, float, int, float, int]:
    """How far a fit is from what is asked: other phase; other architecture (1), with other instructions (2); other types of
    the products or of the cache, by width; then, with other instructions, the ratio of the SMs' shared memories, which tells
    large chips from small ones and sets how much a block keeps in flight; other framework; steps of compute capability; other
    types of the same widths. `arithmetic`: the family's, whose products may run in the cache's type."""
    instructions, shared = chip(fit.architecture)
    apart = 0 if fit.architecture == arch.name else 1 if instructions == arch.instructions else 2
    steps = abs(named_capability(fit.architecture) - _capability(arch.compute_capability)) if apart else 0.0
    kin = abs(log2(shared / arch.shared_bytes)) if apart == 2 and shared else 0.0
    foreign = int(bool(framework) and fit.framework != framework)
    exact = int(fit.dtypes != dtypes)
    types = int(_widths(fit.dtypes, arithmetic) != _widths(dtypes, arithmetic))
    return 2 * (fit.phase != phase), apart, types, kin, foreign, steps, exact


def _widths(dtypes: tuple[str, ...], arithmetic: str) -> tuple[float, float]:
    """Bytes per element of the products' operands and of the cache: what the tensor cores' rate and the traffic follow."""
    used, kept = dtypes[0], dtypes[-1]
    return DTYPE_BYTES[kept if arithmetic == "cache" else used], DTYPE_BYTES[kept]


def _capability(text: str) -> float:
    """A compute capability as a number; 0 for an architecture that has none, which is then equally far from all that do."""
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0


def named_capability(architecture: str) -> float:
    """9.0 of "sm_90"; 0 where the name says none."""
    number = architecture.removeprefix("sm_")
    return float(number) / 10.0 if number.isdigit() else 0.0


@cache
def chip(architecture: str) -> tuple[str, float]:
    """Matrix instructions and shared memory per SM of an architecture by name; nothing for one without a file."""
    path = PROFILES / "architectures" / f"{architecture}.yaml"
    if not path.is_file():
        return "", 0.0
    found = load_architecture(path)
    return found.instructions, found.shared_bytes.value


def same_kernels(architecture: str, arch: Ground) -> bool:
    """Whether what was built for an architecture runs on this one with the same tiles: one major compute capability, whose
    binaries its minor ones run, and SMs with as much shared memory. Then it is another device, not another architecture."""
    _, shared = chip(architecture)
    major = int(_capability(arch.compute_capability))
    return shared == arch.shared_bytes and int(named_capability(architecture)) == major > 0


OTHER_ARCHITECTURE = {"prefill": 1.5, "decode": 2.1}
"""What a step to another architecture adds to the factor on the interval: a decode's memory path carries over worse than a
prefill's arithmetic. Set so that nine in ten rows of the measured architectures, each left out in turn, are inside."""


def widening(steps: list[int], foreign: int, unseen: bool, phase: str) -> float:
    """Factor on the interval away from where the constants were fitted: another phase, architecture, pair of dtypes or
    framework, or another device of the same architecture."""
    other_phase, architecture, dtypes = steps
    apart = 0.75 * other_phase + OTHER_ARCHITECTURE[phase] * architecture + 0.75 * dtypes + 0.75 * foreign
    return 1.0 + max(apart, 0.25 * unseen)
