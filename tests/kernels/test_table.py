"""The shipped table of resources against the compiler that is installed, for the default build of every kernel."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

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


def test_no_entry_is_of_an_earlier_text() -> None:
    """A change of a kernel's text is a change of its builds until the compiler has said otherwise."""
    known = load()["source_hashes"]
    stale = [kernel.name for kernel in KERNELS.values() if known.get(kernel.name) != source_hash(kernel.module)]
    again = " ".join(f"--kernel {name}" for name in stale)
    assert not stale, f"compiled from an earlier text: {', '.join(stale)}; run benchmarks/kernel_resources.py {again}"


def test_the_table_has_every_build_that_it_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default and five others of every kernel, as far as the space has them, and nothing that no kernel is called."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import kernel_resources as made_by

    kernels = tuple(KERNELS[name] for name in made_by.WIDTHS)
    assert set(made_by.WIDTHS) == set(KERNELS)
    promised = {name for _, name, _ in made_by.builds(kernels, made_by.CAPABILITIES)}
    there = load()["builds"]
    assert promised <= set(there), sorted(promised - set(there))
    assert {name.split()[0] for name in there} == set(KERNELS)


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed (extra `gpu`)")
def test_the_table_is_what_the_compiler_says() -> None:
    """The default build of every kernel is reproduced to the byte by the Triton that it was made with."""
    wanted = {}
    for kernel in KERNELS.values():
        heads = Heads(WIDTH, WIDTH, rank=kernel.rank, matrix=kernel.matrix)
        config = kernel.default(WIDTH, WIDTH)
        entry = lookup(kernel, heads, config, CAPABILITY)
        assert entry is not None, kernel.name
        wanted[kernel.name] = (entry, representative(kernel, heads, config, CAPABILITY))
    made_with = {entry.triton for entry, _ in wanted.values()}
    if made_with != {version("triton")}:
        pytest.skip(f"the table was made with triton {', '.join(sorted(made_with))}, installed is {version('triton')}")
    found = {id(request): estimate for request, estimate in compile_offline([r for _, r in wanted.values()])}
    for name, (entry, request) in wanted.items():
        assert replace(found[id(request)], source="table") == entry, name
