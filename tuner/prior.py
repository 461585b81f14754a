"""What is believed of every configuration before anything is measured: log of a predicted time per row of a space."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from einsight.kernels.builds import config_of
from einsight.kernels.catalog import KERNELS
from einsight.kernels.spaces import Config
from einsight.sim.additions import additions_from
from einsight.sim.hardware import Gpu, find_device, load_hardware
from einsight.sim.mask import mask_from
from einsight.sim.workload import Workload
from einsight.tuner.problem import Problem, problem_of
from einsight.tuner.recorded import Recorded
from einsight.tuner.space import Space

Floats = NDArray[np.float64]

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
    if not len(known):
        raise PriorError("--prior noisy: every configuration of the record failed, expected times to make it from")
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


def simulated(problem: Problem, gpu: Gpu, configs: Sequence[Config] | None = None) -> Floats:
    """Log of the simulator's time for every configuration given, or of the problem's space, in its order.

    Configurations that the model cannot tell apart (`Problem.seen`) tie.
    """
    times: dict[Hashable, float] = {}
    logs = []
    for config in problem.configurations() if configs is None else configs:
        seen = problem.seen(config, gpu)
        if seen not in times:
            times[seen] = problem.seconds(seen, gpu)
        logs.append(np.log(times[seen]))
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
    problem = problem_of(KERNELS[recorded.kernel], workload, 10 * int(major) + int(minor))
    return simulated(problem, gpu, [config_of(recorded.space.configuration(r)) for r in range(len(recorded.space))])
