"""Ranges of profile values: as wide as their basis says, every shipped value inside, a wrong prefix outside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from einsight.sim import strict_yaml
from einsight.sim.hardware import _ARCHITECTURE_QUANTITIES, _GPU_QUANTITIES, PROFILES, load_hardware
from einsight.sim.plausible import BY_KEY, COUNTED, RANGES, SHIPPED, Range
from einsight.sim.strict_yaml import Item, SpecError


def written(item: Item) -> Iterator[tuple[str, Item]]:
    """(dotted key, the text with its unit) of every quantity below."""
    if isinstance(item.value, dict):
        for key in ("value", "energy"):
            if key in item.value and "kind" in item.value:
                yield item.path if key == "value" else key, item.value[key]
        for child in item.value.values():
            yield from written(child)


def shipped() -> dict[Range, list[float]]:
    found: dict[Range, list[float]] = defaultdict(list)
    files = [*PROFILES.glob("*.yaml"), *PROFILES.glob("architectures/*.yaml"), *PROFILES.glob("technologies/*.yaml")]
    for path in files:
        for key, item in written(strict_yaml.load(path)):
            if known := BY_KEY.get(key) or BY_KEY.get(key.split(".")[0]):
                found[known].append(item.quantity(known.unit))
    return found


@pytest.mark.parametrize("known", RANGES, ids=lambda r: r.keys[0])
def test_a_range_is_as_wide_as_its_basis_says(known: Range) -> None:
    low, high = known.ends()
    values = shipped()[known]
    assert values and low < min(values) and max(values) < high
    if known.basis == SHIPPED:
        assert low == pytest.approx(min(values) / 10, rel=0.02)
    if known.basis == COUNTED:
        assert low == 1
    if known.basis in (SHIPPED, COUNTED):
        assert high == pytest.approx(10 * max(values), rel=0.02)


def test_every_number_of_a_gpu_has_a_range() -> None:
    keys = [key for key, _ in (*_GPU_QUANTITIES.values(), *_ARCHITECTURE_QUANTITIES.values())]
    assert not {*keys, "tensor", "tensor_energy", "l2_energy", "tensor_memory_columns"} - set(BY_KEY)


def profile(folder: Path, name: str, old: str, new: str) -> Path:
    text = (PROFILES / f"{name}.yaml").read_text().replace(f"name: {name}", "name: mine")
    assert old in text
    (folder / "mine.yaml").write_text(text.replace(old, new))
    return folder / "mine.yaml"


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("h200-sxm", '"4.8 TB/s"', '"4.8e9 TB/s"',
         'memory_rate.value: found "4.8e9 TB/s"; expected 5 GB/s to 80 TB/s, 1/10 to 10 times what shipped profiles have'
         " (is the number or its prefix 10^9 too large?)"),
        ("h200-sxm", '"4.8 TB/s"', '"4.8 MB/s"', "is the number or its prefix 10^6 too small?"),
        ("h200-sxm", '"1980 MHz"', '"1980 GHz"', "boost.value: found \"1980 GHz\"; expected 10 MHz to 10 GHz"),
        ("h200-sxm", '"700 W"', '"700 kW"', "expected 1 W to 12 kW"),
        ("h200-sxm", '"60 MiB"', '"60 KiB"', None),
        ("h200-sxm", '"60 MiB"', '"6 KiB"', "l2.value"),
        ("h200-sxm", "{value: 132,", "{value: 132000,", "sms.value: found 132000; expected 1 to 3040, at most 10 times"),
        ("h200-sxm", '"4096 FLOP/cycle"', '"4096 GFLOP/cycle"', "tensor.bf16.value"),
        ("fusemax", '"400 GB/s"', '"400 TB/s"', "dram_rate.value"),
        ("fusemax", "rows: {value: 256", "rows: {value: 256000", "array_2d.rows.value"),
    ],
)  # fmt: skip
def test_a_wrong_prefix_is_refused_with_the_range(tmp_path: Path, name: str, old: str, new: str, said: str | None) -> None:
    file = profile(tmp_path, name, old, new)
    if said is None:  # small, and a device could have it
        assert load_hardware(file)
        return
    with pytest.raises(SpecError) as caught:
        load_hardware(file)
    assert said in str(caught.value) and str(caught.value).startswith(f"{file}:")


def test_the_ends_belong_to_the_range(tmp_path: Path) -> None:
    for rate in ("5 GB/s", "80 TB/s"):
        (tmp_path / rate[:1]).mkdir()
        assert load_hardware(profile(tmp_path / rate[:1], "h200-sxm", '"4.8 TB/s"', f'"{rate}"'))
