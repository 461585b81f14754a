"""What kernels there are: name, cascade, module, space. Needs neither torch nor triton."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from einsight.kernels.spaces import ATTENTION, GNA, Space


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of the library.

    cascade    the library cascade it implements (a predicted and a measured row join on what that cascade computes)
    fragments  what it adds to the scores: fragments of the cascade library
    module     where it is; `function` is what a user calls, `compiler` what the offline compiler calls
    rank       of the bias's factors where resources are asked for without a problem; 0 where there are none
    matrix     whether a bias is read as a matrix
    compile_options   further arguments of `compiler`
    """

    name: str
    cascade: str
    module: str
    function: str
    compiler: str
    space: Space
    summary: str
    fragments: tuple[str, ...] = ()
    rank: int = 0
    matrix: bool = False
    compile_options: Mapping[str, Any] = field(default_factory=dict)


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
        Kernel(
            name="flashbias",
            cascade="one_pass",
            module="einsight.kernels.flashbias",
            function="flashbias",
            compiler="compile_named",
            space=ATTENTION,
            summary="attention with a bias as low-rank factors: a second product of the score tile; forward and backward",
            fragments=("low_rank",),
            rank=16,
            compile_options={"rank": 16},
        ),
        Kernel(
            name="attention_with_bias",
            cascade="one_pass",
            module="einsight.kernels.flashbias",
            function="attention_with_bias",
            compiler="compile_named",
            space=ATTENTION,
            summary="attention with a bias read as a matrix, own or shared by batch elements and heads; forward and backward",
            fragments=("dense_bias",),
            matrix=True,
        ),
        Kernel(
            name="gna",
            cascade="one_pass",
            module="einsight.kernels.gna",
            function="gna",
            compiler="compile_named",
            space=GNA,
            summary="neighborhood attention on grids of 1 to 3 dimensions: windows, strides, dilation, causal; GQA; forward",
            compile_options={"neighborhood": {"layout": (30, 48, 80), "window": (18, 24, 24), "stride": (16, 8, 8)}},
        ),
    )
}


def kernel(name: str) -> Kernel:
    """The kernel called `name`. Raises KeyError that lists the names there are."""
    if name not in KERNELS:
        raise KeyError(f"kernel {name!r}: unknown, expected one of {', '.join(sorted(KERNELS))}")
    return KERNELS[name]
