"""The instruction cross-check of every tabled build, as the table of docs/kernels.md.

    PYTHONPATH=.src python3 benchmarks/instruction_table.py            prints it
    PYTHONPATH=.src python3 benchmarks/instruction_table.py --write    puts it into docs/kernels.md
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from einsight.kernels import table
from einsight.kernels.catalog import KERNELS, Kernel
from einsight.kernels.resources import OK, Estimate
from einsight.kernels.spaces import Heads, parse_config
from einsight.sim.hardware import Gpu, load_hardware, names
from einsight.tuner.instructions import why_unchecked
from einsight.tuner.resources import Build, ResourceError, agrees, capability_of

CHECKED = (80, 89, 90, 120)  # accumulators in registers; sm_100 keeps them in tensor memory
PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
BEGIN, END = "<!-- instruction check -->", "<!-- end -->"
HEAD = ("kernel", "sm", "builds", "agree", "tensor-core", "special", "fp32", "not checked")


def gpus() -> dict[int, Gpu]:
    """A target of each compute capability."""
    found: dict[int, Gpu] = {}
    for hardware in map(load_hardware, names()):
        if isinstance(hardware, Gpu):
            try:
                found.setdefault(capability_of(hardware), hardware)
            except ResourceError:  # no CUDA device
                continue
    return found


def builds() -> Iterator[tuple[Build, Estimate]]:
    """Every entry of the shipped table."""
    targets = gpus()
    for name in table.load()["builds"]:
        kernel, capability, width, config = name.split(" ")
        sizes = {k: int(v) for k, v in re.findall(r"([A-Z]|bytes)=(\d+)", width)}
        heads = Heads(sizes["E"], sizes["F"], sizes["bytes"], sizes.get("R", 0), KERNELS[kernel].matrix)
        build = Build(KERNELS[kernel], heads, parse_config(config), targets[int(capability.removeprefix("sm_"))])
        found = table.lookup(build.kernel, heads, build.config, build.capability)
        if found is not None:
            yield build, found


def row(kernel: Kernel, capability: int, entries: list[tuple[Build, Estimate]]) -> tuple[str, ...]:
    """Counts of one kernel on one architecture, and the figures (found, expected) of its first checked build."""
    reasons: dict[str, int] = {}
    agreed, checked, shown = 0, 0, ("", "", "")
    for build, estimate in entries:
        why = why_unchecked(kernel, build.heads, build.config, build.gpu.architecture)
        if not why and (estimate.status != OK or estimate.spill_bytes):
            why = "spills, whose loop holds other instructions too" if estimate.status == OK else "does not run"
        both = None if why else build.instruction_check(estimate)
        if both is None:
            reasons[why or "no loop"] = reasons.get(why or "no loop", 0) + 1
            continue
        expected, found = both
        checked, agreed = checked + 1, agreed + agrees(expected, found)
        if checked == 1:
            pairs = ((getattr(found, n), getattr(expected, n)) for n in ("tensor", "special", "fp32"))
            shown = tuple(f"{a:g} / {b:g}" for a, b in pairs)  # type: ignore[assignment]
    told = "; ".join(f"{count}: {why}" for why, count in reasons.items())
    return (kernel.name, str(capability), str(len(entries)), f"{agreed} of {checked}", *shown, told)


def text() -> str:
    """The table in Markdown."""
    grouped: dict[tuple[str, int], list[tuple[Build, Estimate]]] = {}
    for build, estimate in builds():
        grouped.setdefault((build.kernel.name, build.capability), []).append((build, estimate))
    rows = [row(kernel, cc, grouped[kernel.name, cc]) for kernel in KERNELS.values() for cc in CHECKED
            if (kernel.name, cc) in grouped]  # fmt: skip
    lines = [HEAD, tuple("---" for _ in HEAD), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def written(page: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text()}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text()))
    else:
        print(text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
