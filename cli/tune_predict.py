"""`einsight tune KERNEL` without a GPU: which workload is meant, why a build is valid, the simulator's ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from einsight.cli.output import print_json, print_lines, print_table
from einsight.cli.parsing import CommandError
from einsight.cli.workload import NOT_BESIDE_FILES, Shape
from einsight.kernels.builds import told
from einsight.kernels.catalog import KERNELS, Kernel
from einsight.kernels.lookup import Entry, default_path
from einsight.kernels.resources import source_hash
from einsight.kernels.spaces import Config
from einsight.sim.hardware import Gpu, find_device, load_hardware
from einsight.sim.units import format_time
from einsight.sim.workload import Workload
from einsight.sim.workload_file import load_workloads
from einsight.tuner import prior as priors
from einsight.tuner.export import KINDS, TRITON_TOP, write, write_lookup
from einsight.tuner.measure import NoGpuError, environment
from einsight.tuner.pool import TIED, Pool
from einsight.tuner.problem import Problem, computes, kinds, problem_of, written
from einsight.tuner.recorded import triton_configs

SHOWN = 12


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line names: the problem by explicit options or by a file of one workload."""

    kernel: str
    shape: Shape
    file: Path | None

    @property
    def workload(self) -> Workload:
        if self.file is None:
            cache = self.shape.cache or "warm"  # what repeated measurements see
            return replace(self.shape, cascade=catalogued(self.kernel).cascade, cache=cache).workload()
        if given := self.shape.given(*NOT_BESIDE_FILES):
            raise CommandError(given[0], f"{given[0]} beside {self.file}", "either a file or the explicit options")
        found = load_workloads(self.file)
        fitting = [w for w in found if computes(catalogued(self.kernel), w)] if len(found) > 1 else found
        if len(fitting) != 1:
            told = f"{len(fitting)} workloads of kernel {self.kernel} in {self.file}"
            raise CommandError("--workload", told, "one; --shapes takes several")
        return fitting[0]


def asked(kernel: str | None, shape: Shape, file: Path | None) -> Asked | None:
    return None if kernel is None else Asked(kernel, shape, file)


def dispatch(asked: Asked, target: str | None, explained: str | None, out: Output | None, as_json: bool) -> None:
    if explained is not None:
        return explain(asked, target, explained, as_json)
    return predicted(asked, target, out, as_json)


@dataclass(frozen=True, slots=True)
class Output:
    """Where what was found goes, and in which form."""

    file: Path
    kind: str


def output(kernel: str | None, file: Path | None, kind: str | None) -> Output | None:
    """`--export FILE --as KIND`; `--as lookup` alone names the file that the kernel reads."""
    if file is None and kind is None:
        return None
    kind = kind or "lookup"
    if kind not in KINDS:
        raise CommandError("--as", kind, f"one of {', '.join(KINDS)}")
    if file is None and (kind != "lookup" or kernel is None):
        raise CommandError("--as", f"{kind} without a file", "--export FILE beside it")
    return Output(file or default_path(kernel or ""), kind)


def catalogued(kernel: str) -> Kernel:
    if kernel not in KERNELS:
        raise CommandError("tune", kernel, f"a kernel: {', '.join(sorted(KERNELS))}")
    return KERNELS[kernel]


def on(kernel: str, workload: Workload, gpu: Gpu) -> Problem:
    major, _, minor = gpu.architecture.compute_capability.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise CommandError("--target", gpu.name, "a CUDA GPU; its resource limits are what makes a configuration valid")
    return problem_of(catalogued(kernel), workload, 10 * int(major) + int(minor))


def gpu_of(target: str | None) -> Gpu:
    """The profile named, else that of the GPU at hand."""
    if target is None:
        try:
            seen = environment().device
        except NoGpuError as error:
            raise CommandError("--target", f"nothing, and {error}", "a profile such as --target h100-sxm") from None
        target = find_device(seen)
        if target is None:
            raise CommandError("--target", f"nothing, and no profile lists {seen}", "a profile such as --target h100-sxm")
    hardware = load_hardware(target)
    if not isinstance(hardware, Gpu):
        raise CommandError("--target", target, "a GPU; kernels do not run on an array")
    return hardware


USUAL_HEADS, USUAL_SEQ = "32", "8k"
"""What a configuration is judged for where no shape is given: the answer names it. What counts is the head dimension."""


def explain(asked: Asked, target: str | None, text: str, as_json: bool) -> None:
    """Whether one configuration is in the space, and why not; with what it occupies."""
    shaped = asked.file or asked.shape.given(*NOT_BESIDE_FILES)
    workload = (asked if shaped else replace(asked, shape=replace(asked.shape, heads=USUAL_HEADS, seq=USUAL_SEQ))).workload
    gpu = gpu_of(target)
    problem = on(asked.kernel, workload, gpu)
    why, needs = problem.why_excluded(text), problem.needs(problem.parse(text), gpu)
    candidates, valid = len(problem.answers), len(problem.configurations())
    if as_json:
        return print_json({"configuration": text, "valid": not why, "reason": why, "resources": asdict(needs),
                           "candidates": candidates, "configurations": valid})  # fmt: skip
    told = f"{needs.shared_bytes} bytes of shared memory, {needs.registers_per_thread} registers a thread ({needs.source})"
    print_lines([f"{text}: {'out: ' + why if why else 'in'}", f"  {told}"])
    print_lines([f"{workload.name} on {gpu.name}: {valid} of {candidates} candidates are valid"])
    print_lines(f"  {count:4} {reason or 'valid'}" for reason, count in kinds(problem.answers.values()).items())
    return None


def predicted(asked: Asked, target: str | None, out: Output | None, as_json: bool) -> None:
    """The space ranked by the simulator, with the order in which the tuner would measure."""
    kernel, workload = asked.kernel, asked.workload
    gpu = gpu_of(target)
    problem = on(kernel, workload, gpu)
    configs, space, logs = problem.configurations(), problem.space(), priors.simulated(problem, gpu)
    times, order = np.exp(logs), np.argsort(logs, kind="stable")
    first = Pool(space.coordinates, logs, 0, space.features).first
    turn = {row: k for k, row in enumerate(first, 1)}
    if out is not None:
        export_predicted(problem, gpu, [configs[r] for r in order], float(times[order[0]]), out)
    if as_json:
        ranking = [
            {"configuration": space.configuration(int(r)), "time_s": float(times[r]), "turn": turn.get(int(r))} for r in order
        ]
        return print_json({
            "kernel": kernel, "workload": workload.name, "key": workload.key, "target": gpu.name, "ranking": ranking,
        })  # fmt: skip
    tied = int(np.count_nonzero(logs <= logs[order[0]] + TIED))
    shown = [*order[:SHOWN], *(r for r in first if r not in order[:SHOWN])]
    rows = [
        (str(configs[r]), format_time(float(times[r])), _behind(float(logs[r] - logs[order[0]])), str(turn.get(int(r), "")))
        for r in shown
    ]
    title = f"{workload.name} on {gpu.name}: {len(space)} configurations of {kernel}, by the simulator"
    columns = ("configuration", "predicted", "behind", "turn")
    print_table(title, columns, rows, right=columns[1:])
    if out is not None:
        print_lines([f"written: {out.file} ({out.kind}), predicted"])
    return print_lines([
        f"{tied} of {len(space)} are tied: predictions within {100 * TIED:.0f} % say nothing about which is faster.",
        f"The tuner measures {len(first)} first, in the order of the last column (what is predicted of neighbours counts, and "
        "ties are taken far apart), and then learns.",
    ])  # fmt: skip


def export_predicted(problem: Problem, gpu: Gpu, ranked: Sequence[Config], time_s: float, out: Output) -> None:
    """The simulator's choice in the forms that do not claim a measurement."""
    name = problem.kernel.name
    if out.kind == "triton":
        return write(out.file, triton_configs([told(c) for c in ranked[:TRITON_TOP]], upper=True))
    if out.kind != "lookup":
        raise CommandError("--as", f"{out.kind} with --predict-only", "lookup or triton; the others hold measurements")
    return write_lookup(out.file, name, predicted_entries(problem, gpu, ranked[0], time_s))


def predicted_entries(problem: Problem, gpu: Gpu, config: Config, time_s: float) -> list[Entry]:
    """One for every name by which the profile's devices report themselves."""
    workload, source = written(problem.workload), source_hash(problem.kernel.module)
    return [Entry(device, workload, told(config), time_s, source, predicted=True) for device in gpu.devices]


def _behind(log: float) -> str:
    return "tied" if log <= TIED else f"{100 * np.expm1(log):.1f} %"
