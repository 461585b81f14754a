"""What a build of a kernel occupies on a target: compiled here, from the shipped table, or by closed form; and how the
simulator is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from einsight.kernels.catalog import KERNELS, Kernel, kernel
from einsight.kernels.resources import EXCLUDED, OK, Estimate, closed_form, compile_offline
from einsight.kernels.spaces import (
    LIMITS,
    RANKS,
    Config,
    Heads,
    accumulators_per_thread,
    matrix_instruction,
    parse_config,
)
from einsight.kernels.table import lookup, representative
from einsight.sim.hardware import DTYPE_BYTES, Gpu
from einsight.sim.mapping import Mapping, Resources
from einsight.tuner.instructions import LoopMix, expected_mix, found_mix, why_unchecked

SOURCES = ("compiled", "table", "closed_form")
HEAD_DIMS = (32, 256)  # smallest and largest E and F of a kernel
COMPILER_ONLY = "what a build of this kernel occupies is known from a compiler only: install torch and triton"
AT_MOST = "registers and spills are known from a compiler only: blocks_per_sm is at most this"
BESIDE_ACCUMULATORS = {"mma.sync": 120, "wgmma": 88, "tcgen05": 88}
"""Registers of a thread beside its accumulators where nothing was compiled, by the tensor-core instruction: operands,
addresses, row statistics. Middle values of the builds in the shipped table that neither spill nor reach the limit."""
FP32_TOLERANCE = 0.10  # of the fp32 operations in the loop: address arithmetic and row statistics are not all counted


class ResourceError(ValueError):
    """A kernel, configuration or target that cannot be answered for; says what was found and what was expected."""


@dataclass(frozen=True, slots=True)
class Build:
    """One build of a kernel on one target."""

    kernel: Kernel
    heads: Heads
    config: Config
    gpu: Gpu

    @property
    def capability(self) -> int:
        return capability_of(self.gpu)

    def estimate(self, source: str | None = None, cache: Path | None = None) -> Estimate:
        """Resources from `source`; None: compiled where triton is installed, else the table, else the closed form.

        cache   folder of finished compilations, None: none is kept
        A build that compiles but that the space leaves out (warps that repeat each other's work) has status "excluded".
        """
        found = self._from(source, cache)
        why = self.kernel.excluded(self.heads, self.config, LIMITS[self.capability])
        return replace(found, status=EXCLUDED, reason=why) if found.status == OK and why else found

    def _from(self, source: str | None, cache: Path | None) -> Estimate:
        if source == "compiled" or (source is None and have_compiler()):
            if not have_compiler():
                raise ResourceError("--source compiled: torch and triton are not installed; expected the extra `gpu`")
            request = representative(self.kernel, self.heads, self.config, self.capability)
            return next(iter(compile_offline([request], workers=1, cache=cache)))[1]
        if source in ("table", None):
            found = lookup(self.kernel, self.heads, self.config, self.capability)
            if found is not None:
                return found
            if source == "table":
                raise ResourceError(f"--source table: no entry for {self.kernel.name} {self.config} on sm_{self.capability}")
        if not self.kernel.closed:
            return Estimate(OK, COMPILER_ONLY, "closed_form", warps=self.config.num_warps)
        found = closed_form(self.heads, self.config, self.capability, self.kernel.excluded)
        return found if found.reason else replace(found, reason=AT_MOST)

    def resources(self, estimate: Estimate) -> Resources:
        """As the simulator takes them; registers that are not known are accumulators and bookkeeping."""
        limit = LIMITS[self.capability].registers_per_thread
        guessed = min(limit, accumulators_per_thread(self.heads, self.config) + self.beside)
        return Resources(
            estimate.registers or guessed, estimate.shared_bytes or 0, estimate.warps or self.config.num_warps,
            estimate.spill_bytes or 0, estimate.tmem_columns or 0, estimate.source,
        )  # fmt: skip

    @property
    def beside(self) -> int:
        return BESIDE_ACCUMULATORS[matrix_instruction(self.config, self.capability)]

    def mapping(self, estimate: Estimate) -> Mapping:
        """Tiles and resident blocks of this build. Raises ResourceError for a build that cannot run."""
        if not estimate.blocks_per_sm:
            raise ResourceError(f"{self.kernel.name} {self.config}: {estimate.reason or estimate.status}")
        return Mapping(self.config.block_m, self.config.block_n, blocks_per_sm=estimate.blocks_per_sm)

    @property
    def why_unchecked(self) -> str:
        """Why no rule says what the inner loop is made of; "" where one does."""
        return why_unchecked(self.kernel, self.heads, self.config, self.gpu.architecture)

    def instruction_check(self, estimate: Estimate) -> tuple[LoopMix, LoopMix] | None:
        """(expected from the cascade, found in the inner loop), where there is a loop to look at and a rule for it."""
        expected = expected_mix(self.kernel, self.heads, self.config, self.gpu.architecture)
        return (expected, found_mix(estimate.loop)) if expected is not None and estimate.loop else None


def agrees(expected: LoopMix, found: LoopMix) -> bool:
    """Tensor-core and special-function instructions exactly, fp32 operations within `FP32_TOLERANCE`."""
    exact = expected.tensor == found.tensor and expected.special == found.special
    return exact and abs(expected.fp32 - found.fp32) <= FP32_TOLERANCE * found.fp32


def have_compiler() -> bool:
    return all(find_spec(name) is not None for name in ("torch", "triton"))


def cache_folder() -> Path:
    """Where the command keeps finished compilations."""
    return Path.home() / ".cache" / "einsight" / "builds"


def capability_of(gpu: Gpu) -> int:
    """Compute capability times ten. Raises ResourceError for a target whose limits are not known here."""
    digits = gpu.architecture.compute_capability.replace(".", "")
    if not digits.isdigit() or int(digits) not in LIMITS:
        known = ", ".join(f"{c / 10:.1f}" for c in LIMITS)
        raise ResourceError(
            f"--target {gpu.name}: its compute capability is {gpu.architecture.compute_capability}; "
            f"the kernels' resources are known for {known}"
        )
    return int(digits)


def kernel_named(name: str) -> Kernel:
    if name not in KERNELS:
        raise ResourceError(f"kernel {name!r}: unknown; expected one of: {', '.join(sorted(KERNELS))}")
    return kernel(name)


def config_from(text: str) -> Config:
    """`BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2`. Raises ResourceError, also for sizes no tile can have."""
    try:
        config = parse_config(text)
    except ValueError as error:
        raise ResourceError(f"--config: {error}") from None
    for name, low, high in (("block_m", 16, 1024), ("block_n", 16, 1024), ("num_warps", 1, 32)):
        value = getattr(config, name)
        if not low <= value <= high or value & (value - 1):
            raise ResourceError(f"--config: {name} is {value}; expected a power of two from {low} to {high}")
    if not 1 <= config.num_stages <= 16:
        raise ResourceError(f"--config: num_stages is {config.num_stages}; expected 1 to 16")
    return config


def heads_from(kernel: Kernel, head_dim: int, value_dim: int | None, dtype: str, rank: int | None) -> Heads:
    """The head dimensions of a build. Raises ResourceError that names the option."""
    if dtype not in kernel.dtypes:
        raise ResourceError(f"--dtype: found '{dtype}'; expected one of: {', '.join(kernel.dtypes)}")
    for option, width in (("--head-dim", head_dim), ("--value-dim", value_dim or head_dim)):
        if not HEAD_DIMS[0] <= width <= HEAD_DIMS[1]:
            raise ResourceError(f"{option}: found {width}; expected {HEAD_DIMS[0]} to {HEAD_DIMS[1]}")
    if rank is not None and not kernel.rank:
        raise ResourceError(f"--rank: {kernel.name} has no bias factors; expected the option without it")
    if rank is not None and not 1 <= rank <= RANKS[-1]:
        raise ResourceError(f"--rank: found {rank}; expected 1 to {RANKS[-1]}")
    return Heads(head_dim, value_dim or head_dim, int(DTYPE_BYTES[dtype]), rank or kernel.rank, kernel.matrix)


def space_summary(kernel: Kernel, heads: Heads, capability: int) -> tuple[tuple[Config, ...], Counter[str]]:
    """The valid configurations, and how many are left out for each kind of reason (numbers taken out of it)."""
    limits = LIMITS[capability]
    answers = {c: kernel.excluded(heads, c, limits) for c in kernel.space.candidates()}
    valid = tuple(c for c, reason in answers.items() if not reason)
    reasons = (reason for reason in answers.values() if reason)
    kinds = (" ".join("N" if w.strip("(),").isdigit() else w for w in reason.split()) for reason in reasons)
    return valid, Counter(kinds)
