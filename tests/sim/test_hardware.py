"""Every shipped profile loads, says where each number comes from, and reproduces the peaks its vendor prints."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from einsight.einsum.expression import OPERATORS
from einsight.sim import hardware
from einsight.sim.hardware import PROFILES, Gpu, Quantity, find_device, load_hardware, names
from einsight.sim.strict_yaml import SpecError

GPUS = {name: gpu for name in names() if isinstance(gpu := load_hardware(name), Gpu)}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "hardware-profiles.md"

each_gpu = pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)


def quantities(value: object) -> Iterator[Quantity]:
    if isinstance(value, Quantity):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from quantities(getattr(value, field.name))
    elif isinstance(value, dict):
        for inner in value.values():
            yield from quantities(inner)


def test_targets_that_workload_files_name() -> None:
    assert set(names()) >= {
        "a100-sxm-40gb", "a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200", "gb200", "b300", "l40s", "rtx-4090",
        "rtx-pro-6000", "mi300x",
    }  # fmt: skip


@each_gpu
def test_every_quantity_has_a_kind_and_a_source(gpu: Gpu) -> None:
    found = list(quantities(gpu))
    assert len(found) >= 6 + 10 + 2
    for quantity in found:
        assert quantity.kind in hardware.KINDS
        assert len(quantity.source) > 10, quantity
        assert quantity.value > 0
    assert gpu.architecture.operators_kind in hardware.KINDS and gpu.architecture.operators_source


@each_gpu
def test_every_operator_has_a_cost(gpu: Gpu) -> None:
    classes = {op.klass for op in OPERATORS.values() if op.klass} | {"macc"}
    assert set(gpu.architecture.operators) == classes
    for klass, cost in gpu.architecture.operators.items():
        assert set(cost) <= {"special", "vector"}
        assert sum(cost.values()) >= 1 and all(n >= 0 for n in cost.values()), klass


@each_gpu
def test_sms_times_rate_times_clock_is_the_printed_peak(gpu: Gpu) -> None:
    """Within 4 % at the clock that the vendor quotes; else at a clock up to 10 % below the one the device can reach."""
    assert gpu.peak_flops_per_s
    for dtype, peak in gpu.peak_flops_per_s.items():
        if gpu.peak_hz is None or gpu.peak_hz.kind == "datasheet":
            clock = gpu.boost_hz if gpu.peak_hz is None else gpu.peak_hz
            assert gpu.tensor_flops_per_s(dtype, clock.value) == pytest.approx(peak.value, rel=0.04)
        else:
            assert gpu.tensor_flops_per_s(dtype, gpu.peak_hz.value) == pytest.approx(peak.value, rel=1e-3)
            assert 0.9 <= gpu.peak_hz.value / gpu.boost_hz.value < 1


@each_gpu
def test_rates_and_limits_fit_together(gpu: Gpu) -> None:
    arch, rate = gpu.architecture, {dtype: q.value for dtype, q in gpu.tensor_flops_per_cycle.items()}
    assert all(flops in (256, 512, 1024, 2048, 4096, 8192, 16384) for flops in rate.values())
    assert rate["fp16"] == rate["bf16"] == 2 * rate["tf32"]
    assert all(rate[dtype] == 2 * rate["bf16"] for dtype in rate if dtype.startswith("fp8"))
    assert "fp32" not in rate  # tensor cores have no such mode
    assert arch.shared_bytes_per_block.value <= arch.shared_bytes.value
    assert arch.registers.value >= 32 * arch.warps.value * arch.warp_threads  # 32 registers at full occupancy
    assert gpu.l2_bytes.value % 2**19 == 0
    assert gpu.hbm_bytes.value > 100 * gpu.l2_bytes.value
    near = arch.l2_bytes_per_cycle.value * gpu.sms.value * gpu.boost_hz.value
    assert near > gpu.hbm_bytes_per_s.value
    assert arch.shared_bytes_per_cycle.value > arch.l2_bytes_per_cycle.value
    assert (arch.tensor_memory_columns is not None) == (arch.instructions == "tcgen05")


def test_values_in_base_units() -> None:
    h200 = load_hardware("h200-sxm")
    assert (h200.sms.value, h200.boost_hz.value, h200.hbm_bytes_per_s.value) == (132, 1.98e9, 4.8e12)
    assert (h200.hbm_bytes.value, h200.l2_bytes.value, h200.tdp_w.value) == (141e9, 60 * 2**20, 700)
    assert h200.hbm_bytes_per_s.text == "4.8 TB/s"
    assert h200.architecture.shared_bytes_per_block.value == 227 * 1024
    assert load_hardware("h200-sxm") is h200


def test_devices_as_drivers_print_them() -> None:
    expected = {
        "NVIDIA A100-SXM4-80GB": "a100-sxm-80gb", "NVIDIA H100 80GB HBM3": "h100-sxm", "NVIDIA H200": "h200-sxm",
        "NVIDIA L40S": "l40s", "NVIDIA B200": "b200", "NVIDIA GB200": "gb200", "NVIDIA B300 SXM6 AC": "b300",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000",
    }  # fmt: skip
    assert {device: find_device(device) for device in expected} == expected
    assert find_device("NVIDIA H20") is None
    listed = [device for gpu in GPUS.values() for device in gpu.devices]
    assert len(listed) == len(set(listed))


def test_every_architecture_file_is_used_or_at_least_loads() -> None:
    for path in (PROFILES / "architectures").glob("*.yaml"):
        assert hardware.load_architecture(path).name == path.stem


def test_unknown_name() -> None:
    with pytest.raises(SpecError, match='did you mean "h100-sxm"'):
        load_hardware("h100-smx")
    with pytest.raises(SpecError, match="No such file"):
        load_hardware("absent.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"4.8 TB/s"', '"4.8 TB"', "memory_rate.value: found \"4.8 TB\""),
        ('"4.8 TB/s"', "4.8e12", "YAML readers"),
        ('"4.8 TB/s"', "4.8", "bare number"),
        ('"60 MiB"', '"60 MB"', "KiB or MiB"),
        ('"60 MiB"', '"60 MIB"', "binary prefixes"),
        ('"1980 MHz"', '"1980 W"', "boost.value"),
        ("{value: 132,", "{value: 132.5,", "sms.value"),
        ("{value: 132,", '{value: "132.5",', "a whole number"),
        ("{value: 132,", "{value: 0,", "above zero"),
        ("boost:", "bost:", 'did you mean "boost"'),
        ("kind: gpu", "kind: gpx", 'did you mean "gpu"'),
        ("kind: gpu\n", "", "the key kind"),
        ("architecture: sm_90", "architecture: sm_9", 'did you mean "sm_90"'),
        ("name: mine", "name: other", '"mine", the name of the file'),
        ("bf16: {value", "bf17: {value", 'did you mean "bf16"'),
        ("kind: datasheet, source", "kind: datashet, source", 'did you mean "datasheet"'),
        ("prefill: flash3", "prefil: flash3", 'did you mean "prefill"'),
        (', source: "maximum SM clock that the driver reports"', "", "the key source"),
        ("tdp:", "boost:", "a second time"),
        ('"989.4 TFLOP/s"', '"1979 TFLOP/s"', "is it the peak with sparsity?"),
        ("{value: 132,", "{value: 120,", "what sms x tensor."),
    ],
)
def test_bad_profiles_name_file_place_and_fix(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (PROFILES / "h200-sxm.yaml").read_text().replace("name: h200-sxm", "name: mine")
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(SpecError) as caught:
        load_hardware(path)
    assert message in str(caught.value)
    assert re.match(rf"{re.escape(str(path))}:\d+: ", str(caught.value))


def test_the_profile_of_the_documentation(tmp_path: Path) -> None:
    """docs/hardware-profiles.md promises that its two YAML blocks, saved as files, are a target."""
    device, architecture = re.findall(r"```yaml\n(name: .*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "architectures").mkdir()
    (tmp_path / "a30.yaml").write_text(device)
    a30 = load_hardware(tmp_path / "a30.yaml")
    assert (a30.name, a30.architecture.name) == ("a30", "sm_80")
    for wrong in ("933 GB", "933 TB/s"):
        (tmp_path / "a30.yaml").write_text(device.replace("933 GB/s", wrong))
        hardware._load.cache_clear()
        with pytest.raises(SpecError) as caught:
            load_hardware(tmp_path / "a30.yaml")
        assert str(caught.value).replace(f"{tmp_path}/", "") in DOCS.read_text()
    (tmp_path / "architectures" / "sm_86.yaml").write_text(architecture)
    (tmp_path / "a30.yaml").write_text(device.replace("name: a30", "name: other").replace("sm_80", "sm_86"))
    (tmp_path / "a30.yaml").rename(tmp_path / "other.yaml")
    assert load_hardware(tmp_path / "other.yaml").architecture.compute_capability == "8.6"
