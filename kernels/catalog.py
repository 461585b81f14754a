"""What kernels there are: name, cascade, module, space. Needs neither torch nor triton."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from einsight.kernels.spaces import ATTENTION, Space


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of the library.

    cascade    the library cascade it implements (a predicted and a measured row join on what that cascade computes)
    module     where it is; `function` is what a user calls, `compiler` what the offline compiler calls
    """

    name: str
    cascade: str
    module: str
    function: str
    compiler: str
    space: Space
    summary: str


KERNELS: Mapping[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            name="attention",
            cascade="one_pass",
            module="einsight.kernels.attention",
            function="attention",
            compiler="compile_named",
            space=ATTENTION,
            summary="fused forward attention: dense, causal, window, GQA, softcap, sinks, lengths; fp16, bf16",
        ),
    )
}


def kernel(name: str) -> Kernel:
    """The kernel called `name`. Raises KeyError that lists the names there are."""
    if name not in KERNELS:
        raise KeyError(f"kernel {name!r}: unknown, expected one of {', '.join(sorted(KERNELS))}")
    return KERNELS[name]
