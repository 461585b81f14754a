"""The shipped table of resources against the compiler that is installed, for the default build of every kernel."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest

from einsight.kernels.catalog import KERNELS
from einsight.kernels.resources import compile_offline, source_hash
from einsight.kernels.spaces import Heads
from einsight.kernels.table import load, lookup, representative

CAPABILITY, WIDTH = 90, 128


def test_every_kernel_has_its_default_build_in_the_table() -> None:
    for kernel in KERNELS.values():
        heads = Heads(WIDTH, WIDTH, rank=kernel.rank, matrix=kernel.matrix)
        for capability in (80, 90, 100):
            found = lookup(kernel, heads, kernel.default(WIDTH, WIDTH), capability)
            assert found is not None and found.status == "ok" and found.source == "table", (kernel.name, capability)
            assert found.registers and found.blocks_per_sm and found.loop


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed (extra `gpu`)")
def test_the_table_is_what_the_compiler_says() -> None:
    """Entries made from the text that the kernels have now, by the Triton that is installed, are reproduced to the byte."""
    known, wanted = load()["source_hashes"], {}
    for kernel in KERNELS.values():
        heads = Heads(WIDTH, WIDTH, rank=kernel.rank, matrix=kernel.matrix)
        config = kernel.default(WIDTH, WIDTH)
        entry = lookup(kernel, heads, config, CAPABILITY)
        if entry is not None and known.get(kernel.name) == source_hash(kernel.module):
            wanted[kernel.name] = (entry, representative(kernel, heads, config, CAPABILITY))
    if not wanted:
        pytest.skip("every entry is of an earlier text: run benchmarks/kernel_resources.py")
    found = {id(request): estimate for request, estimate in compile_offline([r for _, r in wanted.values()])}
    for name, (entry, request) in wanted.items():
        estimate = found[id(request)]
        if estimate.triton == entry.triton:
            assert replace(estimate, source="table") == entry, name
