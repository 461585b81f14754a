"""How attention kernels can be built beyond tile sizes, and what an architecture lacks for it. Needs no torch."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from einsight.kernels.spaces import Config


@dataclass(frozen=True, slots=True, order=True)
class AttentionConfig(Config):
    """A `Config` that also says how the forward kernel reads its tiles.

    descriptors       K and V by tensor descriptors (TMA) where the inputs allow it: see `attention.descriptor_refusal`
    warp_specialize   loads, products and softmax by warp groups of their own
    """

    descriptors: bool = False
    warp_specialize: bool = False


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
