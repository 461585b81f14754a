"""How attention kernels can be built beyond tile sizes, and what an architecture lacks for it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple

from einsight.kernels.spaces import AttentionConfig as AttentionConfig
from einsight.kernels.spaces import Config, Heads, Limits, power_of_two, tile_refusal

FP8_CAPABILITY = 89  # the first with fp8 tensor cores
DESCRIPTOR_CAPABILITY = 90  # the first with a unit that reads tensor descriptors
# Why warp specialisation is left out, by the first digits of the compute capability; seen with Triton 3.6.0 and 3.7.1.
NOT_WARP_SPECIALIZED = {
    8: "no unit loads tiles without the warps that compute",
    9: "Triton's pass for sm_90 aborts on masked loops and on a Q that pointers load, and ignores 8 warps",
    12: "Triton's pass aborts on sm_120",
}


def attention_config(config: Config) -> AttentionConfig:
    """`config` with both flags, off where it has none."""
    return config if isinstance(config, AttentionConfig) else AttentionConfig(*astuple(config))


def fp8_refusal(capability: int) -> str:
    """Why there is no fp8 on a compute capability, "" where there is."""
    if capability >= FP8_CAPABILITY:
        return ""
    return f"sm_{capability} has no fp8 tensor cores (they begin with sm_{FP8_CAPABILITY})"


def path_refusal(config: Config, capability: int) -> str:
    """Why a kernel on a compute capability does without a flag of `config`, "" where both can be had."""
    asked = attention_config(config)
    if asked.descriptors and capability < DESCRIPTOR_CAPABILITY:
        return f"sm_{capability} has no unit that reads tensor descriptors"
    return NOT_WARP_SPECIALIZED.get(capability // 10, "") if asked.warp_specialize else ""


def attention_excluded(heads: Heads, config: Config, limits: Limits, rows: int | None = None) -> str:
    """`spaces.excluded` of a kernel that also has fp8 (`heads.element_bytes` 1), descriptors and warp specialisation."""
    if heads.element_bytes == 1 and (why := fp8_refusal(limits.capability)):
        return why
    return path_refusal(config, limits.capability) or tile_refusal(heads, config, limits, rows)


# Default builds of the backward kernels (of dQ, of dK and dV): `block_m` positions held, `block_n` in each tile walked over.
# By the first digits of the compute capability, whose tensor cores read registers, shared or tensor memory, and by the
# wider head dimension. Chosen by compiling for sm_80, 90, 100 (Triton 3.7.1, bfloat16, causal, grouped heads): nothing is
# spilled unless a line says so, and nothing inside the unmasked loop. Those of 8 fit the 99 KiB of sm_89 and sm_120.
# dK and dV at 256: 128 to 176 bytes. With 8 warps none, but then warps along the columns compute everything 1.5 times.
BACKWARD: Mapping[int, Mapping[int, tuple[Config, Config]]] = {
    8: {
        64: (Config(64, 32, 4, 2), Config(64, 32, 4, 1)),
        128: (Config(128, 32, 8, 2), Config(64, 64, 8, 1)),
        256: (Config(64, 32, 8, 1), Config(32, 32, 4, 1)),
    },
    9: {
        64: (Config(64, 32, 4, 2), Config(64, 32, 4, 2)),
        # dK and dV: 148 bytes. What spills less (64 x 32 with 8 warps) computes everything twice.
        128: (Config(128, 32, 8, 2), Config(128, 32, 8, 2)),
        # With 64 rows both kernels spill 400 bytes and more, inside the loop too.
        256: (Config(32, 32, 4, 1), Config(32, 32, 4, 1)),
    },
    10: {
        # dK and dV: a pipeline of two stages spills 50 to 550 bytes.
        64: (Config(64, 32, 4, 2), Config(64, 32, 4, 1)),
        128: (Config(128, 32, 8, 2), Config(128, 32, 8, 1)),
        # dK and dV: 64 keys want 528 columns of tensor memory, which is a trap; 32 want none.
        256: (Config(64, 32, 8, 1), Config(32, 32, 4, 1)),
    },
}


def backward_configs(e: int, f: int, capability: int | None = None) -> tuple[Config, Config]:
    """The default builds (of dQ, of dK and dV) for a compute capability; None: what runs nowhere in particular."""
    family = 9 if capability is None else capability // 10
    return BACKWARD.get(family, BACKWARD[8])[max(64, power_of_two(max(e, f)))]
