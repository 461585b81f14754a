"""Kernel strings of measured tables: every rule reaches a family that can run there, and names stand for several kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from einsight.sim.family import load_family
from einsight.sim.hardware import load_gpu
from einsight.sim.kernel_names import family_for, framework_name, known_kernels, read_table, value_dims, windows
from einsight.sim.strict_yaml import SpecError

H100, B200, A100 = load_gpu("h100-sxm"), load_gpu("b200"), load_gpu("a100-sxm-80gb")


def named(
    kernel: str, phase: str, gpu: object, group: int = 4, head_dim: int = 128, batch: int = 64, seq: int = 4096,
    framework: str = "TRTLLM 1.0", cached: str = "bf16",
) -> str:  # fmt: skip
    one = np.ones(1)
    sizes = one * group * 8, one * 8, one * head_dim, one * batch, one * seq
    return str(family_for(kernel, framework, phase, gpu, *sizes, cached)[0])  # type: ignore[arg-type]


def test_one_name_stands_for_several_kernels() -> None:
    assert named("torch_flow", "prefill", H100) == "trtllm_hopper"
    assert named("torch_flow", "prefill", B200) == "trtllm_blackwell"
    assert named("torch_flow", "decode", B200) == "trtllm_gen"
    assert named("torch_flow", "decode", H100) == "xqa"
    assert named("torch_flow", "decode", H100, group=1) == "mmha"
    assert named("torch_flow", "decode", H100, group=64) == named("torch_flow", "decode", B200, group=64) == "mmha"
    assert named("flash_attention", "prefill", H100) == "flash3"
    assert named("flash_attention", "prefill", A100) == "flash3_sm80"
    assert named("no_such_kernel", "prefill", A100) == ""


def test_a_grid_below_a_quarter_of_the_sms_takes_the_ungrouped_kernel() -> None:
    """32 blocks of 132 SMs are below a quarter, 40 are not; splitting a long cache adds blocks."""
    assert named("torch_flow", "decode", H100, batch=4, seq=100) == "mmha"
    assert named("torch_flow", "decode", H100, batch=5, seq=100) == "xqa"
    assert named("torch_flow", "decode", H100, batch=4, seq=256) == "xqa"


def test_flashinfers_caller_chooses_lanes_or_tensor_cores() -> None:
    """SGLang: fp32 lanes below four query heads per KV head; vLLM and TensorRT-LLM: tensor cores always."""
    assert [named("flashinfer", "decode", A100, group=g) for g in (1, 3, 4)] == ["flashinfer_lanes"] * 2 + ["flashinfer"]
    for kernel in ("vllm_flashinfer_fidecode", "torch_flow_flashinfer"):
        assert named(kernel, "decode", A100, group=1) == "flashinfer"


OCCURRING = (  # the kernel strings of public tables, on the devices of public tables
    "fa3", "vllm_flash_attn_fa3", "flash_attention", "vllm_flash_attn", "vllm_flash_attn_fa2", "vllm_flash_attn_fa4",
    "torch_flow", "trtllm_mha", "flashinfer", "torch_flow_flashinfer", "vllm_flashinfer_fiprefill", "vllm_flashinfer_fidecode",
    "triton", "vllm_triton_attn", "vllm_flashinfer_trtllmprefill", "vllm_flashinfer_trtllmdecode", "vllm_flashinfer",
)  # fmt: skip
DEVICES = ("a100-sxm-80gb", "h100-sxm", "h200-sxm", "l40s", "b200", "gb200", "b300", "rtx-pro-6000")
NOWHERE = {("fa3", "tcgen05"), ("vllm_flash_attn_fa3", "tcgen05")}
"""FlashAttention-3 needs wgmma, or is compiled for mma.sync: there is no kernel to predict."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", [64, 128, 192, 256, 512])
def test_whatever_occurs_has_a_family_on_every_device(device: str, head_dim: int) -> None:
    gpu = load_gpu(device)
    for kernel in OCCURRING:
        for phase in ("prefill", "decode"):
            for cached in ("bf16", "fp8_e4m3"):
                for group in (1, 4, 64):
                    name = named(kernel, phase, gpu, group, head_dim, cached=cached)
                    missing = (kernel, gpu.architecture.instructions) in NOWHERE
                    assert bool(name) != missing, (kernel, phase, cached, group)
                    assert missing or load_family(name).why_unusable(gpu, "bf16") is None, (kernel, name)


@pytest.mark.parametrize(("kernel", "phase", "device", "cached", "family"), [
    ("fa4", "prefill", "h100-sxm", "bf16", "flash3"),
    ("vllm_flash_attn_fa4", "decode", "rtx-pro-6000", "bf16", "flash2"),
    ("vllm_flash_attn_fa4", "prefill", "b300", "bf16", "trtllm_blackwell"),
    ("vllm_flash_attn_fa3", "prefill", "a100-sxm-80gb", "bf16", "flash3_sm80"),
    ("vllm_flash_attn", "prefill", "h200-sxm", "bf16", "flash3"),
    ("vllm_flash_attn", "prefill", "b200", "bf16", "flash2"),
    ("vllm_flashinfer_trtllmprefill", "prefill", "b200", "fp8_e4m3", "trtllm_blackwell"),
    ("vllm_flashinfer_trtllmdecode", "decode", "gb200", "bf16", "trtllm_gen"),
    ("vllm_flashinfer_trtllmdecode", "decode", "rtx-pro-6000", "bf16", "xqa"),
    ("vllm_flashinfer_trtllmdecode", "decode", "h100-sxm", "fp8_e4m3", "xqa_fp8"),
    ("vllm_flashinfer", "prefill", "b200", "bf16", "trtllm_blackwell"),
    ("vllm_flashinfer", "decode", "b200", "fp8_e4m3", "flashinfer"),
    ("vllm_flashinfer", "decode", "l40s", "bf16", "flashinfer"),
    ("vllm_flashinfer", "prefill", "h100-sxm", "bf16", "flash3"),
    ("trtllm-gen", "decode", "b300", "bf16", "trtllm_gen"),
    ("triton_attn", "prefill", "b200", "bf16", "triton_unified"),
])  # fmt: skip
def test_other_stacks_call_the_same_kernels_by_other_names(
    kernel: str, phase: str, device: str, cached: str, family: str
) -> None:
    assert named(kernel, phase, load_gpu(device), framework="VLLM 0.24.0", cached=cached) == family


def test_names_are_known_in_any_case() -> None:
    assert named(" FA3 ", "prefill", H100) == named("fa3", "prefill", H100)
    assert named("Vllm_Flash_Attn_FA2", "decode", A100) == "flash2"
    assert windows("FlashInfer", "sglang 0.5.14", "prefill", np.array([128.0]), np.array([512.0])).tolist() == [0.0]
    spelled = {"vLLM 0.14.0": "VLLM", "sglang 0.5": "SGLang", "TensorRT-LLM 1.2": "TRTLLM", "trtllm": "TRTLLM", "X 1": "X"}
    assert {text: framework_name(text) for text in spelled} == spelled


@pytest.mark.parametrize("gpu", [H100, B200, A100])
def test_every_family_named_for_a_device_can_run_there(gpu: object) -> None:
    for kernel in known_kernels():
        for phase in ("prefill", "decode"):
            for group in (1, 4, 64):
                if name := named(kernel, phase, gpu, group):
                    assert load_family(name).why_unusable(gpu, "bf16") is None, (kernel, name)  # type: ignore[arg-type]


def test_what_the_columns_do_not_say() -> None:
    dims = np.array([128.0, 192.0])
    assert value_dims("SGLang 0.5.14", dims).tolist() == [128.0, 128.0]
    assert value_dims("TRTLLM 1.3", dims).tolist() == [128.0, 192.0]
    assert windows("flashinfer", "SGLang 0.5.14", "decode", dims, np.array([8192.0, 8192.0])).tolist() == [0.0, 8192.0]


def test_an_unknown_family_in_the_table_says_where(tmp_path: Path) -> None:
    file = tmp_path / "names.yaml"
    file.write_text("rules:\n  - {kernels: [x], family: flash9}\nvalue_dims: []\nignored_windows: []\n", encoding="utf-8")
    with pytest.raises(SpecError, match="flash9"):
        read_table(file)
