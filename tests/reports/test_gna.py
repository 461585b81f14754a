"""`reproduce gna`: rows from published files, ours over a stated sweep, and what falls short."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from einsight.cli import main
from einsight.reports import gna

REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", "../shared/reference")) / "gna"
A100 = gna.generations_gpu()


def reference() -> Path:
    if not REFERENCE.is_dir():
        pytest.skip(f"no {REFERENCE}")
    return REFERENCE


def test_every_tile_count_agrees() -> None:
    rows = gna.count_rows(reference())
    assert rows and all(r.ours == r.published for r in rows)


def test_the_simulator_column_within_two_hundredths() -> None:
    rows = gna.simulator_rows(reference())
    assert rows and max(abs(r.off) for r in rows) <= gna.SIMULATOR_ALLOWED


def test_kernel_times_within_fifteen_percent_and_some_rows_held_out() -> None:
    rows = [r for r in gna.profile_rows(reference()) if r.kernel != "cutlass-fna"]
    assert all(abs(r.off) <= gna.TIME_ALLOWED for r in rows)
    for word in ("h100", "b200"):
        held_out = [r for r in rows if r.name.endswith(word) and not r.fitted]
        assert len(held_out) >= 2


def test_fitted_rows_are_those_that_the_family_files_name() -> None:
    fitted = {r.name for r in gna.profile_rows(reference()) if r.fitted}
    assert "1d-32k-w2k-s256-hopper-fna-h100" in fitted and "1d-32k-w2k-hopper-fna-h100" not in fitted


def test_generations_come_in_the_published_order() -> None:
    """GEMM-based kernels beat naive ones, and by more in 1-D, as published; 3-D has none."""
    rows = {(r.kernel, r.rank, r.precision): r for r in gna.generation_rows(A100)}
    assert all(r.published is not None and r.published > 0 for r in rows.values()) and len(rows) == 7
    for rank in (1, 2):
        ours = rows["gemm", rank, "fp16"].improvement
        assert ours is not None and ours > 0
    assert rows["gemm", 1, "fp16"].improvement > rows["gemm", 2, "fp16"].improvement
    assert rows["fused", 1, "fp16"].improvement > rows["gemm", 1, "fp16"].improvement


def test_dilation_is_never_slower_on_the_cases_shown() -> None:
    rows = gna.dilated_rows(A100)
    assert len(rows) == len(gna.DILATED) and all(r.time_s <= r.undilated_s for r in rows)


def test_the_command_says_when_the_folder_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "gna", "--reference", str(tmp_path / "none")]) == 0
    out = capsys.readouterr().out
    assert "not there" in out and "sweep not published" in out


def test_a_wrong_count_falls_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "input_size": [64], "window_size": [16], "stride": [1], "dilation": [1], "is_causal": [False], "q_tile": [8],
        "kv_tile": [8], "natten_num_q_tiles": 8, "natten_total_kv_tiles": 1, "natten_max_kv_tiles": 3,
        "natten_partial_tiles": 0, "natten_full_tiles": 0,
    }  # fmt: skip
    (tmp_path / gna.COUNTS).write_text(json.dumps({"rows": [row]}))
    (tmp_path / gna.PAPER).write_text('{"rows": []}')
    (tmp_path / gna.PROFILES).write_text('{"records": []}')
    assert main(["reproduce", "gna", "--reference", str(tmp_path), "--json"]) == 1
    assert "tile counts differ" in json.loads(capsys.readouterr().out)["short"][0]
    (tmp_path / gna.PROFILES).write_text("[]")
    assert main(["reproduce", "gna", "--reference", str(tmp_path)]) == 2
    assert gna.PROFILES in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "key", "row", "lacks"),
    [
        (gna.COUNTS, "rows", {"input_size": [64]}, "rows[0]: found no window_size"),
        (gna.PAPER, "rows", 7, "rows[0]: found no input_size"),
        (gna.PROFILES, "records", {**dict.fromkeys(("id", "device", "backend", "backprop", "kernels")), "tile_config": {}},
         "records[0]: found no tile_config.q_tile"),
        (gna.PROFILES, "records", None, "found no list under 'records'"),
    ],
)  # fmt: skip
def test_rows_without_an_entry_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, key: str, row: object, lacks: str
) -> None:
    for name, of in ((gna.COUNTS, "rows"), (gna.PAPER, "rows"), (gna.PROFILES, "records")):
        (tmp_path / name).write_text(json.dumps({of: []}))
    (tmp_path / file).write_text(json.dumps({key: [row] if row is not None else "none"}))
    assert main(["reproduce", "gna", "--reference", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert file in err and lacks in err


def test_a_folder_whose_profiles_were_all_fitted_has_nothing_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = json.loads((reference() / gna.PROFILES).read_text())["records"]
    fitted = [r for r in records if r["id"] == "profiler-1d-32k-cudnn-h100"]
    for name, text in ((gna.COUNTS, {"rows": []}), (gna.PAPER, {"rows": []}), (gna.PROFILES, {"records": fitted})):
        (tmp_path / name).write_text(json.dumps(text))
    assert main(["reproduce", "gna", "--reference", str(tmp_path)]) == 0
    assert "held-out rows: 0\n" in capsys.readouterr().out
