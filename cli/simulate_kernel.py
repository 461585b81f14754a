"""`einsight simulate ... --kernel NAME --config BLOCK_M=128,...`: the prediction for one build of one of our kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from einsight.cli import workload as options
from einsight.cli.parsing import CommandError
from einsight.kernels.catalog import Kernel
from einsight.kernels.resources import EXCLUDED, OK, Estimate
from einsight.kernels.spaces import LIMITS
from einsight.sim.hardware import Gpu, load_hardware
from einsight.sim.predict import predict, speedups
from einsight.sim.prediction import Later, Prediction
from einsight.sim.workload import Workload
from einsight.tuner import resources
from einsight.tuner.problem import FAMILY, PROBLEMS, BoxProblem, ChunkProblem, Problem, problem_of
from einsight.tuner.resources import SOURCES, Build, ResourceError


def predictions(
    name: str, config: str | None, source: str | None, files: Sequence[Path], model: Path | None, shape: options.Shape,
    targets: Sequence[str],
) -> list[list[Prediction]]:  # fmt: skip
    """Per workload, the build's prediction on each target. Raises CommandError, ResourceError, SpaceError."""
    kernel = resources.kernel_named(name)
    if config is None:
        raise CommandError("--config", None, f"a build of {name}, such as {kernel.default(128, 128)}")
    if source is not None and source not in SOURCES:
        raise CommandError("--source", source, f"one of: {', '.join(SOURCES)}")
    if not files and shape.cascade is None:
        shape = replace(shape, cascade=kernel.cascade)
    workloads = [w for case in options.cases(files, model, shape) for w in case.workloads]
    return [[prediction(kernel, config, source, w, t) for t in options.targets(targets, w)] for w in workloads]


def prediction(kernel: Kernel, text: str, source: str | None, workload: Workload, target: str) -> Prediction:
    """One workload on one target. Raises ResourceError or SpaceError where the kernel or the build cannot run it."""
    gpu = _gpu(target)
    if issubclass(PROBLEMS.get(kernel.name, Problem), BoxProblem):
        raise CommandError("--kernel", kernel.name, "a kernel without boxes of tokens; `einsight gna` predicts those")
    config = resources.config_from(text)
    problem = problem_of(kernel, workload, resources.capability_of(gpu))
    build = Build(kernel, problem.heads, config, gpu)
    estimate = build.estimate(source, resources.cache_folder())
    if estimate.status not in (OK, EXCLUDED) or estimate.blocks_per_sm == 0:
        raise ResourceError(f"{kernel.name} {config} cannot run on {gpu.name}: {estimate.status}: {estimate.reason}")
    mapping = problem.mapping(config, gpu, estimate)
    made = predict(problem.as_run(config), f"{target}:{FAMILY}", mapping=mapping)
    notes = (*_notes(build, estimate, mapping.blocks_per_sm), *_columns(problem, config.block_n))
    speedup = Later(partial(speedups, workload, gpu, target.partition(":")[0], made.time_s))
    told = {"workload": workload.name, "key": workload.key, "speedup": speedup}
    return replace(made, **told, assumptions=(*notes, *made.assumptions))  # type: ignore[arg-type]


def _notes(build: Build, estimate: Estimate, resident: int) -> Iterator[str]:
    """What the prediction takes from the build: its resources, and what they mean for the time."""
    limits = LIMITS[build.capability]
    registers = f"{estimate.registers} registers a thread" if estimate.registers else "registers a thread not known"
    shared = "shared memory not known" if estimate.shared_bytes is None else f"{estimate.shared_bytes} bytes of shared memory"
    tmem = f", {estimate.tmem_columns} columns of tensor memory" if estimate.tmem_columns else ""
    yield (
        f"build: {registers}, {shared}{tmem} ({estimate.source}): {resident} of the "
        f"{limits.warps // (estimate.warps or 1)} blocks per SM that its warps alone allow"
    )
    if estimate.registers is None and estimate.shared_bytes is not None:
        yield f"registers of the build are taken as its accumulators and {build.beside} more; spills are not known"
    if estimate.spill_bytes:
        yield f"the build spills {estimate.spill_bytes} bytes a thread to memory, which the time leaves out: it will be slower"
    if estimate.status == EXCLUDED:
        yield f"the build is left out of the kernel's space, and runs slower than predicted: {estimate.reason}"
    elif estimate.reason:
        yield estimate.reason


def _columns(problem: Problem, columns: int) -> Iterator[str]:
    values = problem.workload.sizes["f"]
    if isinstance(problem, ChunkProblem) and columns < values:
        parts = -(-values // columns)
        yield f"{parts} programs a head, {columns} value columns each, that all read and multiply queries and keys"


def _gpu(target: str) -> Gpu:
    name, _, family = target.partition(":")
    hardware = load_hardware(name)
    if not isinstance(hardware, Gpu):
        raise CommandError("--target", target, "a GPU beside --kernel; this is an array")
    if family and family != FAMILY:
        raise CommandError("--target", target, f"{name} beside --kernel, whose family is {FAMILY}")
    return hardware
