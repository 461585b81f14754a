"""`einsight hardware [NAME]`: the targets and where their numbers come from."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Annotated, Any

import typer

from einsight.cli.output import Json, print_json, print_table
from einsight.reports.sources import quantities
from einsight.sim.hardware import Gpu, load_hardware, names
from einsight.sim.units import format_si


def run(
    name: Annotated[str | None, typer.Argument(help="A profile's name, or the path of a profile file.")] = None,
    as_json: Json = False,
) -> None:
    """The GPUs and arrays that are there; one name: every number with its source.

    Example: einsight hardware h200-sxm
    """
    if name is not None:
        return _one(name, as_json)
    found: list[Any] = [load_hardware(each) for each in names()]
    if as_json:
        return print_json([_summary(h) for h in found])
    columns = ("name", "title", "units", "clock", "memory", "memory rate", "bf16 peak", "TDP", "family")
    gpus = [_gpu_row(h) for h in found if isinstance(h, Gpu)]
    print_table("GPUs", columns, gpus, right=columns[2:8], wrap=("title",))
    if others := [(h.name, h.title, _own_quantities(h)) for h in found if not isinstance(h, Gpu)]:
        print_table("\nArrays", ("name", "title", "what it has"), others, wrap=("title",))


def _one(name: str, as_json: bool) -> None:
    hardware: Any = load_hardware(name)
    if as_json:
        return print_json(_as_plain(hardware))
    rows = [(place, q.text, q.kind, q.source) for place, q in quantities(hardware)]
    if isinstance(hardware, Gpu):
        rows += _sustained_rows(hardware) + _operator_rows(hardware)
    print_table(f"{hardware.name}: {hardware.title}", ("quantity", "value", "kind", "source"), rows, wrap=("value",))
    if hardware.devices:
        print(f"Known to drivers as: {', '.join(hardware.devices)}")


def _own_quantities(hardware: Any) -> str:
    """The numbers that stand at the top of a profile, in one line."""
    own = ((place, q.text) for place, q in quantities(hardware) if "." not in place)
    return ", ".join(f"{_UNIT.sub('', place).replace('_', ' ')} {text}" for place, text in own)


_UNIT = re.compile("_(hz|bytes_per_s|bytes)$")
"""What a field's name says of its unit, beside a text that says it too."""


def _sustained_rows(gpu: Gpu) -> list[tuple[str, str, str, str]]:
    """The clock of long runs by operand type, which follows from boost, TDP and the energy of a tensor-core operation."""
    where = ("derived", "boost less what the energy of busy tensor cores takes of TDP (tensor_energy)")
    types = [t for t in ("bf16", "fp8_e4m3") if t in gpu.tensor_flops_per_cycle]
    return [(f"sustained clock, {t}", f"{gpu.sustained_hz(t) / 1e6:.0f} MHz", *where) for t in types]


def _operator_rows(gpu: Gpu) -> list[tuple[str, str, str, str]]:
    """What one application of each operator class costs."""
    arch = gpu.architecture
    costs = {klass: ", ".join(f"{n:g} {unit}" for unit, n in cost.items()) for klass, cost in arch.operators.items()}
    where = (arch.operators_kind, arch.operators_source)
    return [(f"operator {klass}", cost or "free", *where) for klass, cost in costs.items()]


def _gpu_row(gpu: Gpu) -> tuple[str, ...]:
    peak = gpu.tensor_flops_per_s("bf16") if "bf16" in gpu.tensor_flops_per_cycle else None
    return (
        gpu.name, gpu.title, f"{gpu.sms.value:g} SM", gpu.boost_hz.text, gpu.hbm_bytes.text, gpu.hbm_bytes_per_s.text,
        format_si(peak, "FLOP/s") if peak else "", gpu.tdp_w.text, ", ".join(dict.fromkeys(gpu.family.values())),
    )  # fmt: skip


def _summary(hardware: Any) -> dict[str, Any]:
    """What a program needs to choose a target; of a GPU also its rates."""
    common = {
        "name": hardware.name, "title": hardware.title, "kind": hardware.kind,
        "devices": list(hardware.devices), "family": dict(hardware.family),
    }  # fmt: skip
    own = {place: q.value for place, q in quantities(hardware) if "." not in place}
    if not isinstance(hardware, Gpu):
        return common | own
    rates = {dtype: hardware.tensor_flops_per_s(dtype) for dtype in hardware.tensor_flops_per_cycle}
    sustained = {dtype: hardware.sustained_hz(dtype) for dtype in hardware.tensor_flops_per_cycle}
    return common | {"architecture": hardware.architecture.name} | own | {
        "tensor_flops_per_s": rates, "sustained_hz": sustained,
    }  # fmt: skip


def _as_plain(value: Any) -> Any:
    """A profile as dictionaries; a quantity as its value, text, kind and source."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _as_plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "items"):
        return {str(key): _as_plain(item) for key, item in value.items()}
    return [_as_plain(item) for item in value] if isinstance(value, tuple) else value
