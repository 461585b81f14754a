"""Array profiles and designs: every number has a source, bad files are refused with the place, areas match by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from einsight.sim import array_design
from einsight.sim.array import run
from einsight.sim.array_design import load_design
from einsight.sim.array_hardware import Array, load_array, load_technology
from einsight.sim.array_linear import Product, encoder_layer, run_linear
from einsight.sim.array_search import resized
from einsight.sim.hardware import KINDS, PROFILES, Quantity, load_hardware
from einsight.sim.mapping import Mapping as GpuMapping
from einsight.sim.predict import IllegalMapping, predict
from einsight.sim.strict_yaml import SpecError
from einsight.sim.workload import Workload

ARRAYS = ("fusemax", "flat", "edge-32")


def array(name: str) -> Array:
    found = load_hardware(name)
    assert isinstance(found, Array)
    return found


def quantities(value: object) -> Iterator[Quantity]:
    if isinstance(value, Quantity):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from quantities(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from quantities(inner)
    elif isinstance(value, tuple):
        for inner in value:
            yield from quantities(inner)


@pytest.mark.parametrize("name", ARRAYS)
def test_every_number_has_a_kind_and_a_source(name: str) -> None:
    found = list(quantities(array(name)))
    assert len(found) > 40
    for quantity in found:
        assert quantity.kind in KINDS and len(quantity.source) > 10 and quantity.value > 0, quantity


def changed(folder: Path, old: str, new: str, name: str = "fusemax") -> Path:
    text = (PROFILES / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.count(old) >= 1
    path = folder / f"{name}.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


BAD = [
    ('dram_rate: {value: "400 GB/s"', 'dram_rate: {value: "0 GB/s"', ("dram_rate.value", "above zero")),
    ('dram_rate: {value: "400 GB/s"', 'dram_rate: {value: "400 GB"', ("dram_rate.value", "is `/s` missing?")),
    ('buffer: {value: "16 MiB"', 'buffer: {value: "16 MB"', ("buffer.value", "KiB or MiB")),
    ('clock: {value: "940 MHz"', "clock: {value: 940", ("clock.value", "text with a unit")),
    ("rows: {value: 256", "rows: {value: 2.5", ("array_2d.rows.value", "found 2.5; expected a whole number")),
    ("rows: {value: 256", "rows: {value: true", ("found true; expected a whole number",)),
    ("dtypes: [fp16, bf16]", "dtypes: []", ("dtypes: found a list of 0; expected what the array computes in",)),
    ("{macc: 1, max: 1", "{macc: 0, max: 1", ("array_2d.functions.macc", "above zero")),
    ("{macc: 1, max: 1", "{macc: 1, rsqrt: 1, max: 1", ("rsqrt, which has none", "give {cycles, energy, area")),
    ("exp: {macc: 6}", "exp: {div: 6}", ("array_2d.functions.exp", "one of: macc")),
    ("exp: {macc: 6}", "expp: {macc: 6}", ('"expp"', "did you mean")),
    ("technology: accelergy-45nm", "technology: accelergy-45", ("technology", "accelergy-45nm")),
    ("name: fusemax", "name: fusemix", ("the name of the file",)),
    ("kind: array", "kind: arrays", ('did you mean "array"',)),
]


@pytest.mark.parametrize(("old", "new", "says"), BAD, ids=[new for _, new, _ in BAD])
def test_a_bad_profile_is_refused_with_the_place(tmp_path: Path, old: str, new: str, says: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as refused:
        load_hardware(changed(tmp_path, old, new))
    assert all(part in str(refused.value) for part in ("fusemax.yaml:", *says)), refused.value


def test_the_smallest_buffer_of_the_papers_arrays_is_a_buffer(tmp_path: Path) -> None:
    found = load_array(changed(tmp_path, 'buffer: {value: "16 MiB"', 'buffer: {value: "16 KiB"'))
    assert found.buffer_bytes.value == 16 * 1024


def test_areas_by_hand() -> None:
    """FuseMax, MICRO 2024: FuseMax is 6.4 % smaller than FLAT; per element, register file, comparator and multiplier."""
    fusemax, flat = (array(n).areas_um2() for n in ("fusemax", "flat"))
    file = 16791.04 + 11.63484 * math.ceil(math.log2(12))
    assert fusemax["2-D array"] == pytest.approx(256**2 * (file + 49.28944 + 1545) + 256)
    vector = 16791.04 + 11.63484 * 5 + 49.28944 + 1545 + 23740.9375
    assert fusemax["1-D array"] == pytest.approx(256 * vector + 1)
    assert 1 - sum(fusemax.values()) / sum(flat.values()) == pytest.approx(0.064, abs=0.002)


def test_buffer_tables_are_met_at_their_points_and_monotone_in_capacity() -> None:
    made = load_technology(PROFILES / "technologies" / "accelergy-45nm.yaml")
    for point in made.buffer_area:
        assert made.buffer_um2(point.capacity, point.row) == point.values["area"].value
    for point in made.buffer_energy:
        assert made.buffer_access_pj("read", point.capacity, 512) == point.values["read"].value
    capacities = [2.0**k for k in range(14, 28)]
    energies = [made.buffer_access_pj("write", c, 512) for c in capacities]
    areas = [made.buffer_um2(c, 512) for c in capacities]
    assert energies == sorted(energies) and areas == sorted(areas)
    assert made.buffer_access_pj("read", 2**24, 64) == pytest.approx(made.buffer_access_pj("read", 2**24, 512) / 8)


@pytest.mark.parametrize("name", array_design.names())
def test_designs_load_and_say_where_they_come_from(name: str) -> None:
    design = load_design(name)
    assert design.name == name and "MICRO 2024" in design.source
    assert all(0 <= (p.residency.spilled or 0) < 1 for p in design.published)


def test_an_unknown_design_gets_a_suggestion() -> None:
    with pytest.raises(SpecError, match=r'"bindin"; expected one of the array designs .* \(did you mean "binding"\?\)'):
        predict(Workload.attention(heads=1, seq_q=512, head_dim=64), "fusemax:bindin")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rule: pipelined", "rule: pipeline", r'schedule.rule: found "pipeline".*did you mean "pipelined"'),
        ("cascade: one_pass", "cascade: one_pas", r'cascade: found "one_pas".*did you mean "one_pass"'),
        ("- [RM]", "- [RN]", r'schedule.epochs\[1\]\[0\]: found "RN"; expected one of: .*RM'),
        ("- [RM]", "- [RM, LM]", r'schedule.epochs\[1\]\[1\]: found "LM"'),  # a second time
        ("scores: chip}", "scores: chip, spilled: 1.5}", r"residencies\[0\].spilled: found 1.5; expected a share from 0 to 1"),
    ],
)
def test_a_bad_design_file_is_refused_with_the_place(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = (PROFILES.parent / "sim" / "designs" / "binding.yaml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(SpecError, match=rf"mine.yaml:\d+: {says}"):
        load_design(str(path))


def test_a_design_of_the_users_own(tmp_path: Path) -> None:
    text = (PROFILES.parent / "sim" / "designs" / "binding.yaml").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("drain: hidden ", "drain: exposed"), encoding="utf-8")
    workload = Workload.attention(heads=8, seq_q=4096, head_dim=64)
    assert predict(workload, f"fusemax:{path}").time_s > predict(workload, "fusemax:binding").time_s


def test_a_prediction_names_its_limit_and_carries_the_array_fields() -> None:
    workload = Workload.attention(heads=8, seq_q=4096, head_dim=64)
    found = predict(workload, "fusemax")
    direct = run(workload, array("fusemax"), load_design("binding"))
    out = found.as_json()
    assert found.time_s == direct.time_s and out["family"] == "binding"
    assert out["bytes"] == {"DRAM": direct.dram_bytes, "buffer": direct.buffer_bytes}
    assert sum(out["energy_by_component_pj"].values()) == pytest.approx(out["energy_pj"])
    assert set(out["cycles"]) == {s.name for s in direct.case.flow.stages}
    assert out["area_mm2"] == pytest.approx(sum(direct.areas_um2.values()) * 1e-6)
    assert "940 MHz (guide)" in found.bound.because
    assert found.time_low_s <= found.time_s <= found.time_high_s
    assert out["flops"]["matmul"] == 2 * 8 * 4096**2 * 128
    rows, chunks = 8 * 4096, 4096 // 256  # a chunk has as many keys as the array has rows
    assert out["flops"]["by_class"]["exp"] == out["flops"]["by_class"]["sub"] == rows * (4096 + chunks)
    assert out["flops"]["by_class"]["div"] == rows * 64


def test_a_gpu_mapping_is_refused() -> None:
    mapping = GpuMapping(block_m=128, block_n=128)
    with pytest.raises(IllegalMapping, match="fusemax is an array"):
        predict(Workload.attention(heads=8, seq_q=4096, head_dim=64), "fusemax", mapping=mapping)


def test_element_types_that_the_array_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fusemax computes in fp16, bf16; \w+ is fp8_e4m3"):
        predict(Workload.attention(heads=8, seq_q=4096, head_dim=64, dtype="fp8_e4m3"), "fusemax")


# -- linear layers


def test_a_product_that_fits_reads_its_weights_once() -> None:
    t, k, n = 4096, 512, 1024
    found = run_linear([Product("X", t, k, n)], array("fusemax"))
    assert found.dram_bytes == 2 * (t * k + k * n + t * n)
    assert found.time_s == pytest.approx((t // 256 * (n // 256) * k + 512) / 940e6)
    assert found.busy_s == pytest.approx(t * k * n / 65536 / 940e6)


def test_weights_that_do_not_fit_are_read_once_per_cut() -> None:
    t, k, n = 8192, 2048, 8192
    found = run_linear([Product("FFN", t, k, n)], array("fusemax"))  # 2 x 16 Mi words in a buffer of 8 Mi
    assert found.dram_bytes == 2 * (t * k + t / 2048 * k * n + t * n)


def test_a_layer_has_six_products() -> None:
    layer = encoder_layer(100, 512, 8, 64, 2048)
    assert sum(p.count for p in layer) == 6
    assert sum(p.count * p.inner * p.columns for p in layer) == 4 * 512 * 512 + 2 * 512 * 2048


def test_a_strip_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="one strip of wide needs"):
        run_linear([Product("wide", 512, 2**20, 512)], resized(array("fusemax"), 256, 2**20))


# -- the page


def test_the_profile_of_the_page_loads_and_runs(tmp_path: Path) -> None:
    page = (PROFILES.parent / "docs" / "spatial-arrays.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    target = str(tmp_path / "mine.yaml")
    workload = Workload.attention(heads=8, seq_q=1024, head_dim=64, cascade="sigmoid", mask="causal")
    found = predict(workload, target)
    assert found.target == "mine" and found.time_s > 0
    with pytest.raises(ValueError, match="no sigmoid"):
        predict(workload, f"{target}:cascade")  # only its 2-D array has one


def test_the_arrays_of_the_page_are_those_that_exist() -> None:
    page = (PROFILES.parent / "docs" / "spatial-arrays.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in ARRAYS)
    assert all(f"`{name}`" in page for name in array_design.names())
