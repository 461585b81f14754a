"""What is believed of every configuration before anything is measured: log of a predicted time per row of a space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from einsight.kernels.catalog import KERNELS
from einsight.kernels.resources import Estimate, closed_form
from einsight.kernels.spaces import Config, accumulators_per_thread
from einsight.sim.additions import additions_from
from einsight.sim.family import load_family
from einsight.sim.hardware import Gpu, find_device, load_hardware
from einsight.sim.mapping import Mapping as TileMapping
from einsight.sim.mapping import Resources
from einsight.sim.mask import mask_from
from einsight.sim.predict import estimate_of
from einsight.sim.workload import Workload
from einsight.tuner.recorded import Recorded
from einsight.tuner.space import Problem, Space

Floats = NDArray[np.float64]

FAMILY = "triton"  # how the model believes our Triton kernels run
BOOKKEEPING_REGISTERS = 40  # addresses, row statistics and loop state of a thread, beside the accumulators
NOISE_SEED = 1_000_003  # the noise of a synthetic prior is drawn apart from the sampler's own


class PriorError(ValueError):
    """A prior that cannot be made; says what was asked and what is possible."""


def noisy(times_s: Floats, correlation: float, seed: int) -> Floats:
    """A synthetic prior for replay: log time plus independent Gaussian noise, so that their correlation is as given.

    A configuration that failed is believed to run as long as some other that is drawn at random: a model of times does
    not foresee failures. Optimistic as a stand-in for a model, whose errors come in families.
    """
    if not 0 < correlation <= 1:
        raise PriorError(f"--prior noisy:{correlation:g}: expected a correlation above 0, at most 1")
    random = np.random.default_rng([NOISE_SEED, seed])
    logs = np.log(times_s)
    known = logs[np.isfinite(logs)]
    logs = np.where(np.isfinite(logs), logs, random.choice(known, len(logs)))
    made: Floats = logs + random.normal(size=len(logs)) * known.std() * np.sqrt(1 / correlation**2 - 1)
    return made


def other_device(recorded: Recorded, space: Space) -> Floats:
    """Another record of the same kernel as prior: its times, the middle one where it has none."""
    times = {tuple(sorted(recorded.space.configuration(r).items())): t for r, t in enumerate(recorded.times_s)}
    found = np.array([times.get(tuple(sorted(space.configuration(r).items())), np.nan) for r in range(len(space))])
    if not np.isfinite(found).any():
        raise PriorError(f"--prior {recorded.name}: has none of the configurations of {space.name}")
    logs: Floats = np.log(np.where(np.isfinite(found), found, np.nanmedian(found)))
    return logs


def mapping_of(problem: Problem, config: Config) -> tuple[TileMapping, Resources]:
    """How the simulator sees one build: its tiles, and how many blocks an SM holds."""
    known = closed_form(problem.heads, config, problem.capability)
    registers = min(
        problem.limits.registers_per_thread, accumulators_per_thread(problem.heads, config) + BOOKKEEPING_REGISTERS
    )
    resources = Resources(registers, known.shared_bytes or 0, config.num_warps, tmem_columns=known.tmem_columns or 0)
    return TileMapping(config.block_m, config.block_n, blocks_per_sm=_blocks(problem, known, registers)), resources


def _blocks(problem: Problem, known: Estimate, registers: int) -> int:
    threads = 32 * (known.warps or 1)
    return max(1, min(known.blocks_per_sm or 1, problem.limits.registers // (registers * threads)))


def simulated(problem: Problem, gpu: Gpu, configs: Sequence[Config] | None = None) -> Floats:
    """Log of the simulator's time for every configuration given, or of the problem's space, in its order.

    Configurations that differ only in what the model does not see (stages, where they change no occupancy) tie.
    """
    family = load_family(FAMILY)
    times: dict[TileMapping, float] = {}
    logs = []
    for config in problem.configurations() if configs is None else configs:
        mapping, _ = mapping_of(problem, config)
        if mapping not in times:
            times[mapping] = float(estimate_of(problem.workload, gpu, family, mapping).time_s[0])
        logs.append(np.log(times[mapping]))
    return np.array(logs)


def of_record(recorded: Recorded) -> Floats:
    """The simulator's prior for a record of one of our kernels. Raises PriorError where it cannot be made."""
    if recorded.kernel not in KERNELS or "sizes" not in recorded.workload:
        raise PriorError(f"--prior simulator: {recorded.name} is no record of a kernel of ours with its workload")
    target = find_device(recorded.device)
    gpu = load_hardware(target) if target else None
    if not isinstance(gpu, Gpu):
        raise PriorError(f"--prior simulator: no profile lists the device {recorded.device!r}")
    told = recorded.workload
    try:
        workload = Workload(
            recorded.name, told["cascade"], told["sizes"], told["dtype"], {}, mask_from(told.get("mask")),
            additions_from(told.get("bias", ())), told["phase"], told["cache"],
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise PriorError(f"--prior simulator: {recorded.name}: {error}") from None
    major, _, minor = gpu.architecture.compute_capability.partition(".")
    problem = Problem(KERNELS[recorded.kernel], workload, 10 * int(major) + int(minor))
    return simulated(problem, gpu, [Config(**recorded.space.configuration(r)) for r in range(len(recorded.space))])
