"""Where each number of a profile comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from einsight.sim.hardware import Quantity


def quantities(profile: Any) -> Iterator[tuple[str, Quantity]]:
    """Every `Quantity` of a profile with its dotted name, in the order of the fields."""
    for field in fields(profile):
        yield from _below(field.name, getattr(profile, field.name))


def _below(name: str, value: Any) -> Iterator[tuple[str, Quantity]]:
    if isinstance(value, Quantity):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _below(f"{name}.{key}", item)
    elif isinstance(value, tuple):
        for position, item in enumerate(value):
            yield from _below(f"{name}[{position}]", item)
    elif is_dataclass(value):
        yield from ((f"{name}.{inner}", quantity) for inner, quantity in quantities(value))
