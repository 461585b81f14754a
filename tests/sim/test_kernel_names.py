"""Kernel strings of measured tables: every rule reaches a family that can run there, and names stand for several kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from einsight.sim.family import load_family
from einsight.sim.hardware import load_gpu
from einsight.sim.kernel_names import family_for, known_kernels, read_table, value_dims, windows
from einsight.sim.strict_yaml import SpecError

H100, B200, A100 = load_gpu("h100-sxm"), load_gpu("b200"), load_gpu("a100-sxm-80gb")


def named(kernel: str, phase: str, gpu: object, group: int = 4, head_dim: int = 128, batch: int = 64, seq: int = 4096) -> str:
    one = np.ones(1)
    found = family_for(kernel, "TRTLLM 1.0", phase, gpu, one * group * 8, one * 8, one * head_dim, one * batch, one * seq)  # type: ignore[arg-type]
    return str(found[0])


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
