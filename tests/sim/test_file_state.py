"""A user's files are kept in memory until they change: the next prediction sees an edit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from einsight.reports import fusemax
from einsight.sim.file_state import state
from einsight.sim.hardware import PROFILES, load_hardware
from einsight.sim.predict import predict
from einsight.sim.workload import Workload

WORKLOAD = Workload.attention(heads=8, seq_q=1024, head_dim=64)


def copied(folder: Path, source: Path, *changes: tuple[str, str]) -> Path:
    text = source.read_text(encoding="utf-8")
    for old, new in (*changes, (f"name: {source.stem}\n", "name: mine\n")):
        assert old in text
        text = text.replace(old, new)
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    os.utime(file, ns=(0, state(file)[0] + 1_000_000_000))  # type: ignore[index]  # file systems count coarsely


def test_a_file_that_did_not_change_is_read_once(tmp_path: Path) -> None:
    file = copied(tmp_path, PROFILES / "fusemax.yaml")
    assert load_hardware(file) is load_hardware(str(file))
    assert state("h100-sxm") is None and state("no\0file") is None


@pytest.mark.parametrize(
    ("profile", "old", "new"),
    [("fusemax", '"940 MHz"', '"470 MHz"'), ("h200-sxm", '"4.8 TB/s"', '"0.48 TB/s"')],
)
def test_an_edited_profile_is_seen(tmp_path: Path, profile: str, old: str, new: str) -> None:
    file = copied(tmp_path, PROFILES / f"{profile}.yaml")
    decode = Workload.attention(heads=8, seq_q=1, seq_kv=65536, head_dim=64, batch=8)
    before = predict(decode, str(file))
    ratio = before.speedup["over_dense_unfused"]
    edit(file, old, new)
    after = predict(decode, str(file))
    assert after.time_s > 1.2 * before.time_s
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    other = copied(fresh, PROFILES / f"{profile}.yaml", (old, new))
    assert after.speedup == predict(decode, str(other)).speedup  # the baselines, too
    assert ratio > 0


def test_an_edited_technology_beside_a_profile_is_seen(tmp_path: Path) -> None:
    beside = tmp_path / "technologies"
    beside.mkdir()
    technology = beside / "mine.yaml"
    technology.write_text((PROFILES / "technologies/accelergy-45nm.yaml").read_text().replace("accelergy-45nm", "mine"))
    file = copied(tmp_path, PROFILES / "fusemax.yaml", ("technology: accelergy-45nm", "technology: mine"))
    before = predict(WORKLOAD, str(file)).energy_by_component_pj
    edit(technology, '"31.2 pJ/B"', '"62.4 pJ/B"')
    after = predict(WORKLOAD, str(file)).energy_by_component_pj
    assert before is not None and after is not None and after["DRAM"] == pytest.approx(2 * before["DRAM"])
    (row,) = fusemax.attention(["binding"], [fusemax.MODELS["T5"]], ["1K"], array=str(file))
    edit(technology, '"62.4 pJ/B"', '"31.2 pJ/B"')
    (less,) = fusemax.attention(["binding"], [fusemax.MODELS["T5"]], ["1K"], array=str(file))
    assert row.energy_pj - less.energy_pj == pytest.approx(31.2 * row.traffic_bytes)


def test_an_edited_design_and_family_are_seen(tmp_path: Path) -> None:
    sim = Path(__file__).parents[2] / "sim"
    design = copied(tmp_path, sim / "designs/binding.yaml")
    before = predict(WORKLOAD, f"fusemax:{design}")
    edit(design, "rule: pipelined", "rule: overlap")
    assert predict(WORKLOAD, f"fusemax:{design}").time_s < before.time_s
    family = copied(tmp_path, sim / "families/unfused.yaml")
    before = predict(WORKLOAD, f"h100-sxm:{family}")
    edit(family, "fuses: false", "fuses: true")
    assert predict(WORKLOAD, f"h100-sxm:{family}").bytes_by_memory["HBM"] < before.bytes_by_memory["HBM"]
