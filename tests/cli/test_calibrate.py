"""`einsight calibrate` on tables that a family with known constants made: it must find them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from einsight.reports.compare import rows_of
from einsight.reports.fitting import FEWEST_ROWS, Ground, samples, with_fits
from einsight.reports.measured import COLUMNS, TEXTS, Measured, read, write
from einsight.sim.calibration import DOUBT, Calibration, _most_doubtful, held_out, regimes_of, with_constants
from einsight.sim.family import CONSTANTS, family_file, load_family
from einsight.sim.framework import read_additions
from einsight.sim.hardware import load_gpu
from einsight.sim.nearness import Fit
from einsight.sim.rows import times

Einsight = Callable[..., Any]
TRUE = {"launch_s": 1.2e-5, "mma_efficiency": 0.5, "hbm_fraction": 0.8}
DEVICES = {"a100-sxm-80gb": "NVIDIA A100-SXM4-80GB", "l40s": "NVIDIA L40S"}


def made_table(profile: str = "a100-sxm-80gb", noise: float = 0.01) -> Measured:
    """Prefill cases that took what flash2 with the constants TRUE predicts, give or take `noise`."""
    sizes = [(b, n, h) for b in (1, 4, 16) for n in (512, 1024, 2048, 4096, 8192) for h in (8, 16, 32, 64)]
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for b, n, h in sizes:
        kind = (DEVICES[profile], "VLLM 0.14.0", "vllm_flash_attn_fa2", "prefill")
        cells = (*kind, b, n, n, h, 8, 128, "bfloat16", "bfloat16", 0, 1.0)
        for name, value in zip(COLUMNS, cells, strict=True):
            columns[name].append(value)
    m = Measured(**{n: np.array(v, dtype=np.str_ if n in TEXTS else np.float64) for n, v in columns.items()})
    family = with_constants(load_family("flash2"), list(TRUE), list(TRUE.values()))
    wave = 1.0 + noise * np.sin(np.arange(len(m)))
    took = 1e3 * times(rows_of(m), load_gpu(profile), family) * wave
    return Measured(*(took if name == "latency_ms" else m.column(name) for name in COLUMNS))


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    for profile in DEVICES:
        write(tmp_path / f"{profile}.csv", made_table(profile), {})
    return [str(tmp_path / f"{profile}.csv") for profile in DEVICES]


def test_constants_that_made_the_rows_are_found(einsight: Einsight, tables: list[str]) -> None:
    found = einsight("calibrate", tables[0], "--family", "flash2", "--json").json
    fit = found["fits"][0]
    ground = [fit[name] for name in ("architecture", "phase", "framework", "dtypes")]
    assert ground == ["sm_80", "prefill", "VLLM", ["bf16", "bf16"]]
    assert fit["constants"]["launch_s"]["value"] == pytest.approx(TRUE["launch_s"], rel=0.1)
    assert fit["error_held_out_percent"] < 2.0 < fit["error_before_percent"]
    for name, entry in fit["constants"].items():
        assert CONSTANTS[name].low <= entry["value"] <= CONSTANTS[name].high and entry["unit"] == CONSTANTS[name].unit
        assert name.startswith("interval") or entry["standard_error"] >= 0.0


def test_a_constant_that_the_rows_do_not_tell_is_given_up_first() -> None:
    """An error of half its physical range: another constant makes up for any value of it."""
    told = {"launch_s": 1e-6, "hbm_fraction": 0.1, "unhidden_memory": 0.3}
    found = Calibration(dict.fromkeys(told, 0.5), told, 100, 100, 9.0, 5.0, 5.0, 9.0)
    assert _most_doubtful(found) is None
    loose = {**told, "hbm_fraction": 0.5 * DOUBT + 0.2, "unhidden_memory": DOUBT + 0.1}
    assert _most_doubtful(Calibration(found.constants, loose, 100, 100, 9.0, 5.0, 5.0, 9.0)) == "hbm_fraction"


def test_rows_that_fit_and_rows_that_judge_are_apart(einsight: Einsight, tables: list[str]) -> None:
    table = made_table()
    judging = int(held_out(rows_of(table))[table.latency_ms >= 0.015].sum())
    fit = einsight("calibrate", tables[0], "--family", "flash2", "--json").json["fits"][0]
    assert fit["rows_held_out"] == judging and fit["rows_fitted"] == int((table.latency_ms >= 0.015).sum()) - judging


def test_the_written_family_is_the_old_one_with_fits(einsight: Einsight, tables: list[str], tmp_path: Path) -> None:
    out, again = tmp_path / "fitted.yaml", tmp_path / "again.yaml"
    assert einsight("calibrate", tables[0], "--family", "flash2", "--out", str(out)).code == 0
    old = family_file("flash2").read_text(encoding="utf-8")
    assert out.read_text(encoding="utf-8").startswith(old.partition("fits:")[0])
    ground = ("sm_80", "prefill", "VLLM")
    mine = [f for f in load_family(str(out)).fits if (f.architecture, f.phase, f.framework) == ground]
    assert len(mine) == 1 and "a100-sxm-80gb.csv (sha256 " in mine[0].fitted_on and "held-out" in mine[0].error
    einsight("calibrate", tables[0], "--family", "flash2", "--out", str(again))
    assert again.read_bytes() == out.read_bytes()


def test_the_written_interval_is_that_of_the_written_constants(
    einsight: Einsight, tables: list[str], tmp_path: Path
) -> None:
    """Constants are rounded in the file: the interval is set under those, so that it can be made again from the file alone."""
    out = tmp_path / "fitted.yaml"
    einsight("calibrate", tables[0], "--family", "flash2", "--out", str(out))
    family = load_family(str(out))
    ((ground, made),) = samples(read([Path(tables[0])]), family).items()
    fitted, _ = family.on(made[0].gpu, ground.phase, *ground.dtypes, ground.framework)
    half, regimes = regimes_of(made, replace(fitted, fits=()))
    assert half == pytest.approx(fitted.constant("interval"), rel=1e-3)
    assert [(r.shares, round(r.below, 3), round(r.above, 3)) for r in regimes.listed] == [
        (r.shares, r.below, r.above) for r in fitted.regimes.listed
    ]


def test_fits_of_other_grounds_stay(einsight: Einsight, tables: list[str], tmp_path: Path) -> None:
    first, both = tmp_path / "first.yaml", tmp_path / "both.yaml"
    bare = tmp_path / "bare.yaml"
    bare.write_text(family_file("flash2").read_text(encoding="utf-8").partition("fits:")[0], encoding="utf-8")
    einsight("calibrate", tables[0], "--family", str(bare), "--out", str(first))
    einsight("calibrate", tables[1], "--family", str(first), "--out", str(both))
    assert [f.architecture for f in load_family(str(both)).fits] == ["sm_80", "sm_89"]
    kept = first.read_text(encoding="utf-8").partition("fits:")[2]
    assert kept in both.read_text(encoding="utf-8")


def test_what_a_framework_adds_is_written_beside(einsight: Einsight, tables: list[str], tmp_path: Path) -> None:
    """Entries of both architectures stand in one file, with the values that the fits of the family have."""
    out, folder = tmp_path / "f.yaml", tmp_path / "frameworks"
    for table in tables:
        words = ("calibrate", table, "--family", "flash2", "--out", str(out), "--frameworks", str(folder))
        assert einsight(*words).code == 0
    assert [file.name for file in folder.iterdir()] == ["vllm.yaml"]
    entries = read_additions(folder / "vllm.yaml")
    assert [(a.family, a.architecture, a.phase) for a in entries] == [("flash2", f"sm_{n}", "prefill") for n in (80, 89)]
    fit = next(f for f in load_family(str(out)).fits if f.architecture == "sm_89" and f.phase == "prefill")
    assert entries[1].constants.items() <= fit.constants.items() and "launch_s" in entries[1].constants


def test_a_device_left_out_is_judged_under_the_other_s_constants(einsight: Einsight, tables: list[str]) -> None:
    found = einsight("calibrate", *tables, "--family", "flash2", "--leave-out", "NVIDIA L40S", "--json").json
    assert [fit["devices"] for fit in found["fits"]] == [["a100-sxm-80gb"]]
    left = found["left_out"]["l40s"]["overall"]
    assert left["n"] == int((made_table("l40s").latency_ms >= 0.015).sum()) and left["mape_percent"] < 30.0


def test_every_device_left_out_in_turn(einsight: Einsight, tables: list[str]) -> None:
    found = einsight("calibrate", *tables, "--family", "flash2", "--leave-one-out", "--json").json
    assert len(found["fits"]) == 2 and sorted(found["left_out"]) == sorted(DEVICES)


def test_rows_of_other_families_noise_and_short_rows_do_not_fit(tmp_path: Path) -> None:
    table = made_table()
    assert samples(table, load_family("flash3")) == {}
    made = samples(table, load_family("flash2"))
    assert list(made) == [Ground("sm_80", "prefill", "VLLM", ("bf16", "bf16"))]
    assert len(made[next(iter(made))][0].rows) == int((table.latency_ms >= 0.015).sum()) >= FEWEST_ROWS


def test_the_text_around_the_fits_is_kept() -> None:
    text = "# comment\nname: x\nfits:\n# old\n  - architecture: sm_80\n    phase: decode\ntail: 1  # end\n"
    one = Fit("sm_80", "decode", ("bf16", "bf16"), {}, "")
    assert with_fits(text, [one], [], "") == text
    with pytest.raises(ValueError, match="1 entries"):
        with_fits(text, (), [], "")
    assert with_fits("name: x", (), [], "") == "name: x\nfits:\n"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--family", "flash3"), "no row to fit flash3 on"),
        (("--family", "flash9"), "flash9"),
        (("--family", "flash2", "--leave-out", "NVIDIA Nothing"), "NVIDIA Nothing"),
        (("--family", "flash2", "--leave-out", "l40s", "--leave-one-out"), "--leave-out"),
        (("--family", "flash2", "--leave-out", "b200"), "the files have rows of, one of a100-sxm-80gb"),
        (("--family", "flash2", "--out", "."), "a folder"),
        (("--family", "flash2", "--out", "absent/fitted.yaml"), "in a folder that does not exist"),
    ],
)
def test_bad_options_are_one_message(einsight: Einsight, tables: list[str], words: tuple[str, ...], why: str) -> None:
    ran = einsight("calibrate", tables[0], *words)
    assert ran.code == 2 and why in ran.err
