"""`einsight hardware [NAME]`: the targets and where their numbers come from."""

from __future__ import annotations

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
    found = [load_hardware(each) for each in names()]
    if as_json:
        return print_json([_summary(h) for h in found])
    columns = ("name", "title", "units", "clock", "memory", "memory rate", "bf16 peak", "TDP", "family")
    print_table("Hardware", columns, [_row(h) for h in found], right=columns[2:8], wrap=("title",))


def _one(name: str, as_json: bool) -> None:
    hardware = load_hardware(name)
    if as_json:
        return print_json(_as_plain(hardware))
    rows = [(place, q.text, q.kind, q.source) for place, q in quantities(hardware)]
    rows += _operator_rows(hardware)
    print_table(f"{hardware.name}: {hardware.title}", ("quantity", "value", "kind", "source"), rows, wrap=("value",))
    print(f"Known to drivers as: {', '.join(hardware.devices) or 'no device'}")


def _operator_rows(gpu: Gpu) -> list[tuple[str, str, str, str]]:
    """What one application of each operator class costs."""
    arch = gpu.architecture
    costs = {klass: ", ".join(f"{n:g} {unit}" for unit, n in cost.items()) for klass, cost in arch.operators.items()}
    where = (arch.operators_kind, arch.operators_source)
    return [(f"operator {klass}", cost or "free", *where) for klass, cost in costs.items()]


def _row(gpu: Gpu) -> tuple[str, ...]:
    peak = gpu.tensor_flops_per_s("bf16") if "bf16" in gpu.tensor_flops_per_cycle else None
    return (
        gpu.name, gpu.title, f"{gpu.sms.value:g} SM", gpu.boost_hz.text, gpu.hbm_bytes.text, gpu.hbm_bytes_per_s.text,
        format_si(peak, "FLOP/s") if peak else "", gpu.tdp_w.text, ", ".join(dict.fromkeys(gpu.family.values())),
    )  # fmt: skip


def _summary(gpu: Gpu) -> dict[str, Any]:
    return {
        "name": gpu.name, "title": gpu.title, "kind": gpu.kind, "architecture": gpu.architecture.name,
        "devices": list(gpu.devices), "family": dict(gpu.family), "sms": gpu.sms.value,
        "boost_hz": gpu.boost_hz.value, "hbm_bytes": gpu.hbm_bytes.value,
        "hbm_bytes_per_s": gpu.hbm_bytes_per_s.value, "tdp_w": gpu.tdp_w.value,
        "tensor_flops_per_s": {dtype: gpu.tensor_flops_per_s(dtype) for dtype in gpu.tensor_flops_per_cycle},
    }  # fmt: skip


def _as_plain(value: Any) -> Any:
    """A profile as dictionaries; a quantity as its value, text, kind and source."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _as_plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "items"):
        return {str(key): _as_plain(item) for key, item in value.items()}
    return [_as_plain(item) for item in value] if isinstance(value, tuple) else value
