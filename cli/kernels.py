"""`einsight kernels [NAME]`: the kernels that are there, their configurations, and what one build occupies."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from einsight.cli.output import Json, print_json, print_lines, print_table
from einsight.cli.parsing import CommandError
from einsight.kernels.catalog import KERNELS, Kernel
from einsight.kernels.resources import Estimate
from einsight.kernels.spaces import LIMITS, Config, Heads
from einsight.sim.hardware import Gpu, load_hardware, names
from einsight.tuner import resources
from einsight.tuner.resources import SOURCES, Build

FIELDS = ("registers", "spill_bytes", "shared_bytes", "tmem_columns", "blocks_per_sm", "status", "reason", "source")


def run(
    name: Annotated[str | None, typer.Argument(help="A kernel's name.")] = None,
    config: Annotated[
        str | None, typer.Option(help="One build: BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2.")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Target, a name of `einsight hardware`; repeatable.")] = None,
    head_dim: Annotated[int, typer.Option(help="Query and key dimension.")] = 128,
    value_dim: Annotated[int | None, typer.Option(help="Value dimension; default: the head dimension.")] = None,
    dtype: Annotated[str, typer.Option(help="bf16, fp16; attention also fp8_e4m3, fp8_e5m2.")] = "bf16",
    rank: Annotated[int | None, typer.Option(help="Rank of a bias's factors (flashbias).")] = None,
    source: Annotated[str | None, typer.Option(help=f"Where numbers come from: {', '.join(SOURCES)}.")] = None,
    as_json: Json = False,
) -> None:
    """The Triton kernels that are there; one name: its configurations; one build: what it occupies on a target.

    Registers, spills and instructions are compiled where triton is installed (no GPU needed), else read from a table
    that is shipped; shared and tensor memory also follow from a closed form.

    Example: einsight kernels attention --config BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2 --target h100-sxm --json
    """
    if source is not None and source not in SOURCES:
        raise CommandError("--source", source, f"one of: {', '.join(SOURCES)}")
    if name is None:
        if config is not None or target:
            raise CommandError("--config" if config else "--target", config or str(target), "a kernel's NAME before it")
        return _all(as_json)
    kernel = resources.kernel_named(name)
    heads = resources.heads_from(kernel, head_dim, value_dim, dtype, rank)
    gpus = [_gpu(t) for t in target] if target else _one_of_each_kind()
    if config is None:
        return _space(kernel, heads, gpus, as_json)
    builds = [Build(kernel, heads, resources.config_from(config), gpu) for gpu in gpus]
    answers = [(b, b.estimate(source, resources.cache_folder())) for b in builds]
    if as_json:
        found = [_answer(b, e, dtype) for b, e in answers]
        return print_json(found[0] if len(found) == 1 else found)
    _print_builds(kernel, answers)


def _gpu(name: str) -> Gpu:
    hardware = load_hardware(name)
    if not isinstance(hardware, Gpu):
        raise CommandError("--target", name, "a GPU; this is an array")
    return hardware


def _one_of_each_kind() -> list[Gpu]:
    """The first target for each kind of tensor-core instruction that the kernels are built for."""
    found: dict[str, Gpu] = {}
    for hardware in map(load_hardware, names()):
        if isinstance(hardware, Gpu) and hardware.architecture.compute_capability.replace(".", "").isdigit():
            found.setdefault(hardware.architecture.instructions, hardware)
    return list(found.values())


def _all(as_json: bool) -> None:
    if as_json:
        return print_json([_about(kernel) for kernel in KERNELS.values()])
    rows = [(k.name, " + ".join((k.cascade, *k.fragments)), str(len(list(k.space.candidates()))), k.summary)
            for k in KERNELS.values()]  # fmt: skip
    print_table("Kernels", ("name", "cascade", "builds", "what it does"), rows, right=("builds",))


def _about(kernel: Kernel) -> dict[str, Any]:
    return {
        "name": kernel.name, "cascade": kernel.cascade, "fragments": list(kernel.fragments), "summary": kernel.summary,
        "function": f"{kernel.module}.{kernel.function}", "parameters": asdict(kernel.space), "dtypes": list(kernel.dtypes),
        "flags": list(kernel.flags),
    }  # fmt: skip


def _space(kernel: Kernel, heads: Heads, gpus: list[Gpu], as_json: bool) -> None:
    found = {gpu.name: resources.space_summary(kernel, heads, resources.capability_of(gpu)) for gpu in gpus}
    default = kernel.default(heads.e, heads.f)

    def flags(gpu: Gpu) -> list[tuple[str, str]]:
        limits = LIMITS[resources.capability_of(gpu)]
        return [(name, kernel.flag_excluded(name, heads, limits)) for name in kernel.flags]

    if as_json:
        targets = {
            gpu.name: {"configurations": [str(c) for c in valid], "excluded": dict(reasons), "flags": dict(flags(gpu))}
            for gpu, (valid, reasons) in zip(gpus, found.values(), strict=True)
        }
        return print_json(_about(kernel) | {"default": str(default), "targets": targets})
    print_lines([f"{kernel.name}: {kernel.summary}", f"{kernel.module}.{kernel.function}; cascade "
                 + " + ".join((kernel.cascade, *kernel.fragments)), f"Default build: {default}", ""])  # fmt: skip
    rows = [(name, "; ".join(map(str, values))) for name, values in asdict(kernel.space).items()]
    rows += [(name, "0; 1 (a launch takes it; a search does not try it)") for name in kernel.flags]
    print_table("What a build can be", ("parameter", "values"), rows)
    counted: list[tuple[str, str, str]] = []
    for gpu, (valid, reasons) in found.items():
        counted.append((gpu, str(len(valid)), "valid"))
        counted += [("", str(count), f"left out: {why}") for why, count in reasons.most_common()]
        counted += [("", "", f"no {name}: {why}") for name, why in flags(next(g for g in gpus if g.name == gpu)) if why]
    print_table(f"\nBuilds at E = {heads.e}, F = {heads.f}", ("target", "builds", "why"), counted, right=("builds",))


def _answer(build: Build, estimate: Estimate, dtype: str) -> dict[str, Any]:
    told = {
        "kernel": build.kernel.name, "target": build.gpu.name, "configuration": asdict(build.config),
        "head_dim": build.heads.e, "value_dim": build.heads.f, "dtype": dtype,
    } | ({"rank": build.heads.rank} if build.heads.rank else {})  # fmt: skip
    told |= {name: getattr(estimate, name) for name in FIELDS}
    told |= {"stack_bytes": estimate.stack_bytes, "warps": estimate.warps, "triton": estimate.triton or None,
             "loop": dict(estimate.loop)}  # fmt: skip
    both = build.instruction_check(estimate)
    if both is None:
        return told | {"instructions": None}
    expected, found = both
    check = {"expected": asdict(expected), "found": asdict(found), "agree": resources.agrees(expected, found)}
    return told | {"instructions": check}


def _print_builds(kernel: Kernel, answers: list[tuple[Build, Estimate]]) -> None:
    config: Config = answers[0][0].config
    columns = ("target", "registers", "spills", "shared", "tmem", "blocks/SM", "status", "source")
    rows = [(b.gpu.name, _text(e.registers), _text(e.spill_bytes), _text(e.shared_bytes), _text(e.tmem_columns),
             _text(e.blocks_per_sm), e.status, e.source) for b, e in answers]  # fmt: skip
    print_table(f"{kernel.name} {config}", columns, rows, right=columns[1:6])
    print_lines(f"{b.gpu.name}: {e.reason}" for b, e in answers if e.reason)
    for build, estimate in answers:
        if both := build.instruction_check(estimate):
            expected, found = both
            print(
                f"{build.gpu.name}: inner loop of one thread has {found.tensor:g} tensor-core, {found.special:g} special "
                f"and {found.fp32:g} fp32 operations; the cascade asks for {expected.tensor:g}, {expected.special:g}, "
                f"{expected.fp32:g}"
            )
        elif estimate.loop:
            print(f"{build.gpu.name}: inner loop not checked: {build.why_unchecked}")


def _text(number: int | None) -> str:
    return "not known" if number is None else str(number)
