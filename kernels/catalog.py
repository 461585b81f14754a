"""What kernels there are: name, cascade, module, space. Needs neither torch nor triton."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol

from einsight.kernels.attention_space import attention_excluded
from einsight.kernels.decode_space import DECODE, decode_excluded, default_decode_config
from einsight.kernels.linear_space import LINEAR, default_linear_config, linear_excluded
from einsight.kernels.spaces import (
    ATTENTION,
    FLAGS,
    GNA,
    AttentionConfig,
    Config,
    Heads,
    Limits,
    Space,
    default_config,
    excluded,
)


class Rule(Protocol):
    """Why a build is left out, "" when it is in; `rows`: of the problem that can lie in one tile, where they are known."""

    def __call__(self, heads: Heads, config: Config, limits: Limits, rows: int | None = None) -> str: ...


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of the library.

    cascade    the library cascade it implements (a predicted and a measured row join on what that cascade computes)
    loop       the cascade of its inner loop where that is another one: the parts of a split are swept, then merged
    fragments  what it adds to the scores: fragments of the cascade library
    module     where it is; `function` is what a user calls, `compiler` what the offline compiler calls
    rank       of the bias's factors where resources are asked for without a problem; 0 where there are none
    matrix     whether a bias is read as a matrix
    compile_options   further arguments of `compiler`
    dtypes     of the inputs, as workload files name them
    flags      that a build may set beside the sizes of the space; a search does not try them
    excluded   why a build of the space is left out for head dimensions and limits, "" when it is in
    default    the build taken for E and F where none is given
    closed     whether `spaces.shared_bytes` and `spaces.tmem_columns` are closed forms of what it occupies
    """

    name: str
    cascade: str
    module: str
    function: str
    compiler: str
    space: Space
    summary: str
    loop: str = ""
    fragments: tuple[str, ...] = ()
    rank: int = 0
    matrix: bool = False
    compile_options: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("bf16", "fp16")
    flags: tuple[str, ...] = ()
    excluded: Rule = excluded
    default: Callable[[int, int], Config] = default_config
    closed: bool = True

    def flag_excluded(self, name: str, heads: Heads, limits: Limits) -> str:
        """Why no build has the flag `name` for head dimensions and limits, "" where the default one has."""
        sizes = astuple(self.default(heads.e, heads.f))
        return self.excluded(heads, AttentionConfig(*sizes, **{name: True}), limits)


def _chunked(name: str, kind: str, decays: str) -> Kernel:
    """Linear attention whose state decays in one way: the kernels differ in what they are compiled for."""
    return Kernel(
        name=name,
        cascade=name,
        module="einsight.kernels.linear",
        function="linear_attention",
        compiler="compile_named",
        space=LINEAR,
        summary=f"chunked causal linear attention with a carried state, {decays}; GQA; forward",
        compile_options={"kind": kind},
        excluded=linear_excluded,
        default=default_linear_config,
        closed=False,
    )


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
            summary="fused attention: dense, causal, window, GQA, softcap, sinks, lengths, packed; forward in fp16, bf16 and "
            "(from sm_89 on) fp8, backward in fp16 and bf16",
            dtypes=("bf16", "fp16", "fp8_e4m3", "fp8_e5m2"),
            flags=FLAGS,
            excluded=attention_excluded,
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
        Kernel(
            name="decode",
            cascade="split_kv",
            loop="one_pass",
            module="einsight.kernels.decode",
            function="decode",
            compiler="compile_named",
            space=DECODE,
            summary="few queries over a long cache: stream-K or split-KV pieces and a merge, packed heads, lengths; forward",
            compile_options={"queries": 1},
            excluded=decode_excluded,
            default=default_decode_config,
        ),
        Kernel(
            name="sigmoid",
            cascade="sigmoid",
            module="einsight.kernels.sigmoid",
            function="sigmoid_attention",
            compiler="compile_named",
            space=ATTENTION,
            summary="fused sigmoid attention: bias -log N, causal, window, GQA, lengths; fp16, bf16; forward",
        ),
        _chunked("lightning", "decay", "one decay a head (`log_decay`)"),
        _chunked("gla", "gates", "gates per position (`log_gates`)"),
    )
}


def kernel(name: str) -> Kernel:
    """The kernel called `name`. Raises KeyError that lists the names there are."""
    if name not in KERNELS:
        raise KeyError(f"kernel {name!r}: unknown, expected one of {', '.join(sorted(KERNELS))}")
    return KERNELS[name]
