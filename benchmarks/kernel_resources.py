"""Compile the table of resources that is shipped for machines without triton: kernels/resource_table.json.

    PYTHONPATH=.src python3 benchmarks/kernel_resources.py --workers 2     (no GPU; needs torch and triton)

For every kernel of `WIDTHS`: the default build and five others, for each compute capability. Builds that the space
excludes are left out: the closed form names their reason. The set that has to compile within 20 minutes on 2 cores is

    PYTHONPATH=.src python3 benchmarks/kernel_resources.py --capability 80 --capability 90 --capability 100 --out builds.json

Without --cache nothing of an earlier run is used. The last lines give the time by the clock and the processor time, which
is what counts where other work shares the cores.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from einsight.kernels.catalog import KERNELS, Kernel
from einsight.kernels.resources import FAILED, TIMEOUT, Estimate, Request, compile_offline, source_hash
from einsight.kernels.spaces import LIMITS, Config, Heads
from einsight.kernels.table import FILE, load, name_of, representative, save

CAPABILITIES = (80, 89, 90, 100, 120)
CONFIGS: Mapping[int, tuple[Config, ...]] = {
    64: (Config(128, 64, 8, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 3), Config(128, 128, 8, 2), Config(128, 32, 4, 2)),
    128: (Config(128, 64, 8, 3), Config(64, 64, 4, 2), Config(128, 128, 8, 2), Config(128, 32, 8, 2), Config(64, 32, 4, 3)),
}
"""Builds beside the default one, by head dimension, of the kernels that `OTHERS` does not name."""
FEW_ROWS = (Config(16, 64, 4, 3), Config(16, 128, 4, 2), Config(32, 64, 4, 2), Config(16, 64, 2, 2), Config(64, 64, 4, 2))
CHUNKS = (Config(64, 32, 4, 1), Config(32, 64, 4, 1), Config(64, 64, 8, 1), Config(64, 32, 4, 2), Config(32, 32, 2, 1))
OTHERS: Mapping[str, tuple[Config, ...]] = {"decode": FEW_ROWS, "lightning": CHUNKS, "gla": CHUNKS}
"""Builds beside the default one of kernels whose tiles mean something else: see their spaces."""
WIDTHS = {
    "attention": (64, 128), "flashbias": (128,), "attention_with_bias": (128,), "sigmoid": (64, 128), "gna": (128,),
    "decode": (128,), "lightning": (128,), "gla": (128,),
}  # fmt: skip
"""The kernels of the table and their head dimensions."""


def builds(kernels: tuple[Kernel, ...], capabilities: tuple[int, ...]) -> Iterator[tuple[Kernel, str, Request]]:
    """Every entry of the table: kernel, name, compilation."""
    for capability in capabilities:
        for kernel in kernels:
            for width in WIDTHS[kernel.name]:
                heads = Heads(width, width, rank=kernel.rank, matrix=kernel.matrix)
                for config in dict.fromkeys((kernel.default(width, width), *OTHERS.get(kernel.name, CONFIGS[width]))):
                    if not kernel.excluded(heads, config, LIMITS[capability]):
                        request = representative(kernel, heads, config, capability)
                        yield kernel, name_of(kernel, heads, config, capability), request


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--workers", type=int, default=2, help="compiling processes")
    parser.add_argument("--cache", type=Path, help="folder of finished compilations, to go on after a stop")
    parser.add_argument("--capability", action="append", type=int, choices=CAPABILITIES, help="only these; default: all")
    parser.add_argument("--kernel", action="append", choices=sorted(WIDTHS), help="only these; others stay as they are")
    given = parser.parse_args()
    if given.capability and given.out == FILE:
        parser.error("--capability: a part of the architectures goes into a file of its own, --out FILE")
    kernels = tuple(KERNELS[name] for name in given.kernel or WIDTHS)
    wanted = list(builds(kernels, tuple(given.capability or CAPABILITIES)))
    names = {id(request): name for _, name, request in wanted}
    begin, done, missing = time.monotonic(), {}, []
    for request, estimate in compile_offline([r for *_, r in wanted], workers=given.workers, cache=given.cache):
        name = names[id(request)]
        if estimate.status in (TIMEOUT, FAILED):  # of this machine, not of the build
            missing.append(name)
            print(f"left out  {name}: {estimate.reason}", flush=True)
            continue
        done[name] = estimate
        told = f"{estimate.registers} registers" if estimate.status == "ok" else estimate.reason
        print(f"{len(done):4}/{len(wanted)} {time.monotonic() - begin:6.0f} s  {name}: {told}", flush=True)
    hashes = {kernel.name: source_hash(kernel.module) for kernel in kernels}
    kept = load(given.out)  # of the kernels that were not asked for
    others = {n: Estimate(**fields, source="table") for n, fields in kept["builds"].items() if n.split()[0] not in hashes}
    save(others | done, {**kept["source_hashes"], **hashes}, given.out)
    if given.out == FILE:
        print("next: benchmarks/instruction_table.py --write puts the new figures into docs/kernels.md")
    print(f"{len(done)} of {len(wanted)} builds: {cost(time.monotonic() - begin, given.workers)}")
    return 1 if missing else 0


def cost(wall_s: float, workers: int) -> str:
    """What the builds took: time by the clock, processor time of this process and of the compilers that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(one.ru_utime + one.ru_stime for one in used)
    return (
        f"{wall_s:.0f} s by the clock with {workers} compilers, {cpu_s:.0f} s of processor time, "
        f"{cpu_s / 2:.0f} s on two cores of their own"
    )


if __name__ == "__main__":
    sys.exit(main())
