"""Published measurements of FlashBias against predictions: the bars of the micro-benchmark, and what is printed."""

from __future__ import annotations

import csv
import io
import json

import pytest

from einsight.cli import main
from einsight.reports import flashbias


@pytest.fixture(scope="module")
def rows() -> list[flashbias.Row]:
    return flashbias.rows()


def speedups(rows: list[flashbias.Row]) -> list[flashbias.Row]:
    return [r for r in rows if r.table == flashbias.FORWARD and "over SDPA" in r.what]


def test_two_constants_of_the_baseline_are_fitted_and_nothing_else(rows: list[flashbias.Row]) -> None:
    fitted = [(r.what, r.size) for r in rows if r.basis == "fitted"]
    assert fitted == [("SDPA with the matrix", "N 4096"), ("SDPA with the matrix", "N 16384")]
    found = flashbias.baseline()
    assert set(found.constants) == {"vector_per_score", "tile_cycles"}
    assert found.residuals == pytest.approx((1.0, 1.0), abs=0.03)
    triton = flashbias.triton_family().constants
    assert not [name for name, c in triton.items() if c.kind == "fitted"]


def test_speedups_within_a_fifth_from_4096_on(rows: list[flashbias.Row]) -> None:
    """And within 26 % at 2048, where a host time of 0.1 ms that is assumed decides."""
    judged = [(int(r.size.split()[1]), r) for r in speedups(rows)]
    assert len([n for n, _ in judged if n >= 2048]) == 8
    for n, row in judged:
        if n >= 2048:
            assert row.ratio == pytest.approx(1.0, abs=0.2 if n > 2048 else 0.26), row


def test_the_sign_is_right_on_every_forward_row(rows: list[flashbias.Row]) -> None:
    """Slower at N = 256, 512 and 1024, where launches bind; faster above."""
    assert len(speedups(rows)) == 11
    assert all(r.same_sign for r in rows if r.same_sign is not None)
    small = [r for r in speedups(rows) if int(r.size.split()[1]) <= 1024]
    assert len(small) == 3 and all(r.predicted < 1 and r.published < 1 for r in small)  # type: ignore[operator]


def test_what_has_no_prediction_says_why(rows: list[flashbias.Row]) -> None:
    for row in rows:
        assert (row.predicted is None) == (row.basis == "published only")
        assert row.predicted is not None or row.note
        assert row.published is not None or "published" in row.note


def test_the_assumed_gpu_is_stated() -> None:
    first, second, *_ = flashbias.assumptions()
    assert "does not state its GPU" in first and flashbias.ASSUMED_TARGET in first
    assert "N = 4096 and 16384" in second


def test_verb_prints_json_csv_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "flashbias", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {r["table"] for r in found["rows"]} >= {flashbias.FORWARD, flashbias.MEMORY, flashbias.WHOLE}
    assert main(["reproduce", "flashbias", "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(lines) == len(found["rows"])
    assert main(["reproduce", "flashbias"]) == 0
    out = capsys.readouterr().out
    assert "rests on" in out and "AlphaFold-3" in out and "SwinV2-B" in out and "car PDE" in out


def test_a_target_without_the_rates_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "flashbias", "--target", "a100"]) == 2
    assert "a100-sxm" in capsys.readouterr().err
