"""The operations of a cascade weighted for a target: how long each unit of one SM would be busy with all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einsight.einsum.counts import Counts, matmul_flops, weighted
from einsight.sim.hardware import Gpu

UNITS = {"fp32 pipe": "vector", "special functions": "special"}
"""What carries everything but matrix products, and how a profile's operator table calls it."""


def unit_cycles(counts: Counts, sizes: Mapping[str, Any], gpu: Gpu, dtype: str = "bf16") -> dict[str, float]:
    """Unit -> cycles of one SM at its full rate, at bound sizes. Divide by the number of SMs for the whole device.

    Matrix products run on the tensor cores at the rate of `dtype`, the rest by the profile's cost of each operator.
    """
    arch = gpu.architecture
    rates = {"vector": arch.vector_ops_per_cycle.value, "special": arch.special_ops_per_cycle.value}
    found = {"tensor cores": float(matmul_flops(counts).evaluate(sizes)) / gpu.tensor_flops_per_cycle[dtype].value}
    rest = counts.filter(where=lambda c: not c.matmul)
    for title, unit in UNITS.items():
        weights = {klass: costs.get(unit, 0.0) / rates[unit] for klass, costs in arch.operators.items()}
        found[title] = float(weighted(rest, weights, sizes))
    return found
