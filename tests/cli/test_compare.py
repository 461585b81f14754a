"""`einsight compare` on small tables: what it prints, writes and exits with."""

from __future__ import annotations

import csv
import gzip
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Einsight = Callable[..., Any]
HEADER = "device,framework,kernel,phase,batch,seq_q,seq_kv,heads_q,heads_kv,head_dim,dtype,kv_dtype,window,latency_ms"
SCORES = {
    "n", "mape_percent", "mdape_percent", "p90_percent", "bias_percent", "spearman", "coverage_percent", "width_percent",
    "n_set_aside", "unpredicted", "roofline_mape_percent",
}  # fmt: skip
ADDED = ["predicted_ms", "low_ms", "high_ms", "family", "bound", "set_aside"]
BAR_ROWS, BAR_S = 100_000, 30.0
REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", Path(__file__).parents[2].parent / "shared" / "reference")) / "measured"


def row(batch: int = 4, length: int = 2048, ms: float = 1.0, kernel: str = "vllm_flash_attn", phase: str = "prefill",
        device: str = "NVIDIA A100-SXM4-80GB") -> str:  # fmt: skip
    queries = length if phase == "prefill" else 1
    return f"{device},VLLM 0.14.0,{kernel},{phase},{batch},{queries},{length},32,8,128,bfloat16,bfloat16,0,{ms}"


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Four predictable rows, one of a kernel that nobody knows."""
    file = tmp_path / "cases.csv"
    rows = [row(1), row(4), row(8, 4096, 9.0), row(64, 8192, 0.6, phase="decode"), row(kernel="mystery")]
    file.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return str(file)


def test_overall_and_groups_with_every_score(einsight: Einsight, table: str) -> None:
    found = einsight("compare", table, "--by", "phase", "--json").json
    assert SCORES | {"mape_all_percent"} <= set(found["overall"])
    assert (found["overall"]["n"], found["overall"]["unpredicted"]) == (4, 1)
    groups = {g["phase"]: g for g in found["groups"]}
    assert (groups["prefill"]["n"], groups["decode"]["n"]) == (3, 1) and all(g.keys() >= SCORES for g in groups.values())
    assert found["unpredicted"][0]["rows"] == 1 and "'mystery'" in found["unpredicted"][0]["reason"]
    assert len(found["worst"]) == 4 and all(case["bound"] for case in found["worst"])


def test_the_worst_cases_keep_their_interval_in_one_piece(einsight: Einsight, tmp_path: Path) -> None:
    """The kernel's name and the case give way, not the numbers."""
    file = tmp_path / "long.csv"
    file.write_text("\n".join([HEADER, row(64, 65536, 9e3, device="NVIDIA RTX PRO 6000 Blackwell Server Edition")]) + "\n")
    out = einsight("compare", str(file)).out
    worst = out.partition("Worst cases")[2]
    assert re.search(r"\d m?s to [\d.]+ m?s  ", worst) and "90 % interval" in worst
    assert "Constants: constants" not in out and "\nConstants of flash2" in out


def test_the_default_groups_are_those_of_the_bars(einsight: Einsight, table: str) -> None:
    group = einsight("compare", table, "--json").json["groups"][0]
    assert (group["device"], group["framework"], group["phase"]) == ("NVIDIA A100-SXM4-80GB", "VLLM 0.14.0", "prefill")


def test_rows_are_the_input_with_predictions(einsight: Einsight, table: str, tmp_path: Path) -> None:
    """The error of the written rows is the error that is printed."""
    out = tmp_path / "out.csv"
    overall = einsight("compare", table, "--rows", str(out), "--json").json["overall"]
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*HEADER.split(","), *ADDED]
    assert len(rows) == 5 and rows[4]["predicted_ms"] == rows[4]["family"] == ""
    errors = [abs(float(r["predicted_ms"]) / float(r["latency_ms"]) - 1) for r in rows[:4]]
    assert overall["mape_percent"] == pytest.approx(100 * sum(errors) / 4, rel=1e-5)
    assert all(float(r["low_ms"]) <= float(r["predicted_ms"]) <= float(r["high_ms"]) for r in rows[:4])
    assert {r["set_aside"] for r in rows} == {"0"}


def test_compressed_tables_and_several_at_once(einsight: Einsight, table: str, tmp_path: Path) -> None:
    packed = tmp_path / "more.csv.gz"
    packed.write_bytes(gzip.compress(f"{HEADER}\n{row(2)}\n".encode()))
    assert einsight("compare", table, str(packed), "--json").json["overall"]["n"] == 5


def test_a_file_named_twice_is_refused(einsight: Einsight, table: str) -> None:
    ran = einsight("compare", table, table)
    assert ran.code == 2 and "twice" in ran.err and not ran.out


def test_exit_code_one_above_the_limit(einsight: Einsight, table: str) -> None:
    error = einsight("compare", table, "--json").json["overall"]["mape_percent"]
    above, below = (f"{factor * error:.6f}" for factor in (1.01, 0.99))
    assert einsight("compare", table, "--fail-above", above).code == 0
    assert einsight("compare", table, "--fail-above", below).code == 1


def test_exit_code_two_only_when_nothing_can_be_predicted(einsight: Einsight, tmp_path: Path) -> None:
    file = tmp_path / "unknown.csv"
    file.write_text(f"{HEADER}\n{row(device='NVIDIA Nothing')}\n", encoding="utf-8")
    ran = einsight("compare", str(file))
    assert ran.code == 2 and "'NVIDIA Nothing'" in ran.err and ran.out == ""
    assert einsight("compare", str(file), "--target", "h100-sxm", "--family", "flash3").code == 0


def test_family_and_target_override(einsight: Einsight, table: str) -> None:
    found = einsight("compare", table, "--family", "flash3", "--target", "h200-sxm", "--by", "family,target", "--json").json
    assert [(g["family"], g["target"], g["n"]) for g in found["groups"]] == [("flash3", "h200-sxm", 5)]


def test_tables_name_the_rule_and_the_reasons(einsight: Einsight, table: str) -> None:
    out = einsight("compare", table).out
    for text in ("Worst cases", "Set aside as noise", "Not predicted, 1 rows", "roofline", "mystery"):
        assert text in out


@pytest.mark.parametrize("name", ["plot.svg", "plot.png"])
def test_a_picture(einsight: Einsight, table: str, tmp_path: Path, name: str) -> None:
    einsight("compare", table, "--plot", str(tmp_path / name))
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--by", "colour"), "--by: found 'colour'"),
        (("--by", ","), "--by: found ','"),
        (("--family", "flash9"), "flash9"),
        (("--target", "h900"), "h900"),
        (("--plot", "plot.txt"), "plot.txt"),
        (("--plot", "nowhere/plot.svg"), "--plot: found 'nowhere/plot.svg, in a folder that does not exist'"),
        (("--rows", "."), "--rows: found '., a folder'"),
    ],
)
def test_bad_options_are_one_message(einsight: Einsight, table: str, words: tuple[str, ...], why: str) -> None:
    ran = einsight("compare", table, *words)
    assert ran.code == 2 and why in ran.err and ran.err.count("\n") == 1


def test_a_bad_row_names_file_and_line(einsight: Einsight, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(f"{HEADER}\n{row()}\n{row(ms=-1)}\n", encoding="utf-8")
    ran = einsight("compare", str(file))
    assert ran.code == 2 and f"{file}:3: latency_ms: found '-1'" in ran.err
    assert einsight("compare", str(tmp_path / "none.csv")).code == 2


def test_a_hundred_thousand_rows_in_time(einsight: Einsight, tmp_path: Path) -> None:
    """Rows that differ, so that nothing is predicted once and repeated."""
    file = tmp_path / "many.csv"
    side = math.isqrt(BAR_ROWS) + 1
    rows = (row(1 + i, 64 + 16 * j, 0.1 + i * j) for i in range(side) for j in range(side))
    file.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    begin = time.process_time()
    assert einsight("compare", str(file), "--rows", str(tmp_path / "out.csv"), "--json").json["overall"]["n"] > BAR_ROWS
    assert time.process_time() - begin < BAR_S


@pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no measured tables in {REFERENCE} (set EINSIGHT_REFERENCE)")
def test_published_rows_are_predicted_better_than_by_the_roofline(einsight: Einsight) -> None:
    overall = einsight("compare", str(REFERENCE / "a100_sxm-vllm-0.14.0.csv.gz"), "--json").json["overall"]
    assert overall["unpredicted"] == 0 and overall["n_set_aside"] <= 0.01 * overall["n"]
    assert overall["mape_percent"] < 0.5 * overall["roofline_mape_percent"]
