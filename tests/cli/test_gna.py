"""`einsight gna`: the interface that NATTEN's users know, what it prints, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Einsight = Callable[..., Any]
VIDEO = ("gna", "-i", "30x48x80", "-w", "18x24x24", "-n", "24", "--head-dim", "128")
TILES = ("--q-tile", "4x8x8", "--kv-tile", "2x8x8")
COUNTS = (
    "flop_speedup", "tile_speedup_max", "tile_speedup_avg", "num_q_tiles", "total_kv_tiles", "max_kv_tiles",
    "dense_kv_tiles", "fully_block_sparse", "reason", "padding",
)  # fmt: skip
TIMES = ("time_s", "permute_time_s", "total_time_s", "dense_time_s", "speedup", "speedup_total")


def test_json_has_the_agreed_keys(einsight: Einsight) -> None:
    found = einsight(*VIDEO, "-s", "16x8x8", *TILES, "--target", "b200", "--target", "h100-sxm", "--json").json
    assert [found[k] for k in COUNTS[3:7]] == [480, 480 * 81, 81, 900]
    assert found["fully_block_sparse"] is True and found["reason"] == ""
    assert found["tile_speedup_max"] == pytest.approx(900 / 81)
    assert set(found["targets"]) == {"b200", "h100-sxm"}
    for name in found["targets"]:
        case = found["targets"][name]
        assert set(COUNTS) | set(TIMES) <= set(case)
        assert case["total_time_s"] == pytest.approx(case["time_s"] + case["permute_time_s"])
        assert case["speedup"] == pytest.approx(case["dense_time_s"] / case["time_s"])
        assert case["speedup_total"] == pytest.approx(case["dense_time_s"] / case["total_time_s"])


def test_one_target_stands_on_top_too(einsight: Einsight) -> None:
    found = einsight(*VIDEO, "--target", "h100-sxm", "--json").json
    assert found["time_s"] == found["targets"]["h100-sxm"]["time_s"]


def test_without_a_target_there_are_bounds_only(einsight: Einsight) -> None:
    found = einsight(*VIDEO, *TILES, "--json").json
    assert found["targets"] == {} and "time_s" not in found and found["max_kv_tiles"] == 275


def test_defaults_are_the_profilers(einsight: Einsight) -> None:
    """fp16, batch 1, heads 1, head dimension 64, stride 1, dilation 1, no causal dimension, the whole grid as window."""
    bare = einsight("gna", "-i", "4096", "--target", "h100-sxm", "--json").json
    words = ("-w", "4096", "-s", "1", "-d", "1", "-n", "1", "-b", "1", "--head-dim", "64", "--dtype", "fp16")
    assert bare == einsight("gna", "-i", "4096", *words, "--target", "h100-sxm", "--json").json
    assert bare["flop_speedup"] == 1 and bare["fully_block_sparse"]


def test_one_number_stands_for_every_dimension(einsight: Einsight) -> None:
    short = einsight("gna", "-i", "64x64", "-w", "16", "-s", "4", "--q-tile", "8x8", "--kv-tile", "8x8", "--json").json
    long = einsight("gna", "-i", "64x64", "-w", "16x16", "-s", "4x4", "--q-tile", "8x8", "--kv-tile", "8x8", "--json").json
    assert short == long


def test_element_types_by_nattens_names(einsight: Einsight) -> None:
    words = (*VIDEO, "--target", "b200", "--json")
    eight, sixteen = (einsight(*words, "--dtype", name).json["time_s"] for name in ("e4m3", "bf16"))
    assert eight < sixteen == einsight(*words, "--dtype", "bfloat16").json["time_s"]


def test_natten_rule_is_about_static_tiles(einsight: Einsight) -> None:
    words = ("gna", "-i", "64x64", "-w", "16x16", "-s", "8x8", "--q-tile", "8x8", "--kv-tile", "8x8", "--json")
    assert einsight(*words, "--tiling", "dynamic").json["natten_fully_block_sparse"] is None
    assert einsight(*words, "--tiling", "static").json["natten_fully_block_sparse"] in (True, False)


def test_causal_in_all_or_some_dimensions(einsight: Einsight) -> None:
    grid = ("gna", "-i", "48x64", "-w", "24x24", "--q-tile", "8x8", "--kv-tile", "8x8", "--json")
    assert einsight(*grid, "--causal").json["total_kv_tiles"] == 468  # NATTEN's own block mask
    some = einsight(*grid, "--causal", "1x0").json
    assert some["causal"] == [True, False]
    assert einsight(*grid, "--causal=1x0").json == some
    assert einsight(*grid, "--causal", "1x1").json["total_kv_tiles"] == 468
    assert einsight(*grid, "--causal", "0x0").json["total_kv_tiles"] == 816


def test_dynamic_and_plain_tiling(einsight: Einsight) -> None:
    line = ("gna", "-i", "1024", "-w", "64", "--q-tile", "64", "--kv-tile", "64", "--json")
    assert einsight(*line).json["max_kv_tiles"] == 3  # queries 64 to 127 see [32, 159): tiles 0 to 2
    assert einsight(*line, "--tiling", "dynamic").json["max_kv_tiles"] == 2  # from 32 on
    plain = einsight("gna", "-i", "256x256", "-w", "80x80", "--q-tile", "256", "--kv-tile", "128", "--json").json
    assert plain["tile_speedup_max"] == pytest.approx(3.2)


def test_printed_words(einsight: Einsight) -> None:
    out = einsight(*VIDEO, "-s", "1x8x8", *TILES, "--target", "h100-sxm", "--share", "0.607", "--steps", "50",
                   "--dense-steps", "15").out  # fmt: skip
    for words in ("11.11x by FLOPs", "9.09x by the worst tile", "stride 1 is no multiple of the Q tile's 4",
                  "1.61x tile max", "Fully block-sparse strides near the asked one", "hopper-fna has no such pair",
                  "with permuting"):  # fmt: skip
        assert words in re.sub(r"\s+", " ", out), words


@pytest.mark.parametrize("what", ["strides", "windows"])
def test_sweeps_draw_and_print(einsight: Einsight, tmp_path: Path, what: str) -> None:
    picture = tmp_path / "sweep.svg"
    small = ("gna", "-i", "16x32x32", "-w", "8x8x8", "--head-dim", "128", "--target", "h100-sxm", "--sweep", what)
    points = einsight(*small, "--plot", str(picture), "--json").json["points"]
    assert picture.read_text().startswith("<svg") and len(points) >= 2
    assert all(p["time_s"] > 0 for p in points)
    assert einsight(*small).code == 0


def test_a_sweep_of_strides_is_the_front_and_says_so_or_all_of_them(einsight: Einsight) -> None:
    small = ("gna", "-i", "16x32x32", "-w", "4x8x8", "--head-dim", "128", "--target", "h100-sxm", "--sweep", "strides")
    front, every = (einsight(*small, *more, "--json").json for more in ((), ("--all",)))
    assert front["strides_tried"] == every["strides_tried"] == len(every["points"]) == 4 * 8 * 8
    times = {tuple(p["stride"]): p["total_time_s"] for p in every["points"]}
    assert len(front["points"]) < 40
    assert all(times[tuple(p["stride"])] == pytest.approx(p["total_time_s"]) for p in front["points"])
    assert min(p["total_time_s"] for p in every["points"]) == pytest.approx(front["points"][-1]["total_time_s"], rel=0.01)
    out = einsight(*small).out
    assert "the front of 256 strides" in out and "--all" in out
    shown = einsight(*small, "--all").out
    assert "the front" not in shown and sum(line.lstrip().startswith("4x8x8") for line in shown.splitlines()) == 256


REFUSED = [
    (("gna", "-i", "64", "-w", "8", "--target", "h100-sxm", "--sweep", "windows", "--all"), "found 'a sweep of windows'"),
    (("gna", "-i", "64", "-w", "8", "--target", "h100-sxm", "--sweep", "strides", "--all", "--plot", "x.svg"), "which draws"),
    (("gna", "-w", "3"), "-i: found nothing; expected the grid"),
    (("gna", "-i", "30x48x80", "-w", "18x24x90"), "dimension 2 has window 90; expected 2 to 80"),
    (("gna", "-i", "30x48x80", "-w", "18x24x24", "-s", "19x1x1"), "dimension 0 has stride 19; expected 1 to 18"),
    (("gna", "-i", "30x48x80", "-w", "18x24x24", "-d", "1x1x4"), "dimension 2 has dilation 4; expected 1 to 3"),
    (("gna", "-i", "30x48x80", "-w", "18x24"), "window has 2 entries; expected 3"),
    (("gna", "-i", "30xa"), "expected integers such as 30x48x80"),
    (("gna", "-i", "2x2x2x2"), "has 4 dimensions; expected 1, 2 or 3"),
    (("gna", "-i", "64", "-w", "8", "--q-tile", "8"), "expected both or neither"),
    (("gna", "-i", "64", "-w", "8", "--q-tile", "8xb", "--kv-tile", "8"), "whole numbers such as 2x8x8"),
    (("gna", "-i", "64", "-w", "8", "--causal", "2"), "expected 0 or 1 per dimension"),
    (("gna", "-i", "64", "-w", "8", "--causal="), "--causal: found ''; expected 0 or 1 per dimension"),
    (("gna", "-i", "64", "-w", "8", "1x0"), "expected options only"),
    (("gna", "-i", "64", "-w", "8", "--dtype", "fp12"), "--dtype: found 'fp12'"),
    (("gna", "-i", "64", "-w", "8", "--tiling", "loose"), "expected static or dynamic"),
    (("gna", "-i", "64", "-w", "8", "--target", "fusemax"), "expected a GPU"),
    (("gna", "-i", "64", "-w", "8", "--target", "h100"), "h100-sxm"),
    (("gna", "-i", "64", "-w", "8", "--target", "h100-sxm:blackwell-fna"), "a kernel that runs on wgmma"),
    (("gna", "-i", "64", "-w", "8", "--target", "h100-sxm:nobody"), "hopper-fna"),
    (("gna", "-i", "64", "-w", "8", "--target", "h100-sxm", "--dtype", "fp8_e4m3"), "natten_hopper covers"),
    (("gna", "-i", "64", "-w", "8", "--target", "h100-sxm", "--dtype", "fp8_e4m3"), "or a kernel with it: triton-gna"),
    (("gna", "-i", "64", "-w", "8", "--target", "h100-sxm", "--head-dim", "512"), "32, 64, 128, 256"),
    (("gna", "-i", "64", "-w", "8", "--target", "b200", "--head-dim", "20"), "built for: 8, 16, ... 128"),
    (("gna", "-i", "4000000000", "--q-tile", "1", "--kv-tile", "1"), "at most 2^62 pairs"),
    (("gna", "-i", "4000000000", "-w", "64", "--q-tile", "1", "--kv-tile", "1"), "more than 2^62 tiles"),
    (("gna", "-i", "9" * 40, "-w", "5"), "at most 2^62 pairs"),
    (("gna", "-i", "\u00b2x64"), "expected integers such as 30x48x80"),
    (("gna", "-i", "9" * 5000), "expected integers such as"),
    (("gna", "-i", "64", "-w", "8", "--q-tile", "9" * 5000, "--kv-tile", "8"), "such as 2x8x8"),
    (("gna", "-i", "64", "-w", "8", "--share", "2"), "from 0 to 1"),
    (("gna", "-i", "64", "-w", "8", "--dense-steps", "2"), "--share: found nothing; expected attention's share"),
    (("gna", "-i", "64", "-w", "8", "--steps", "50"), "--share: found nothing"),
    (("gna", "-i", "64", "-w", "8", "--sweep", "tiles", "--target", "h100-sxm"), "strides or windows"),
    (("gna", "-i", "64", "-w", "8", "--sweep", "strides"), "expected one --target"),
    (("gna", "-i", "64", "-w", "8", "--plot", "x.svg"), "--sweep: found nothing"),
    (("gna", "-i", "8x8", "-w", "4", "--target", "h100-sxm", "--head-dim", "128", "--sweep", "strides", "--q-tile", "64",
      "--kv-tile", "64"), "a sweep has no plain 1-D tiling"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_bad_input_is_refused_with_the_reason(einsight: Einsight, words: tuple[str, ...], message: str) -> None:
    found = einsight(*words)
    assert found.code == 2 and message in found.err, found.err


def test_dense_attention_with_and_without_padding(einsight: Einsight) -> None:
    """Without a window no score is masked; tiles that reach over the end of the grid still compare positions."""
    words = ("--q-tile", "8x8", "--kv-tile", "8x8")
    whole, padded = (einsight("gna", "-i", grid, *words).out for grid in ("16x16", "15x16"))
    assert "; 0 need a mask" in whole and "yes: no score needs the mask\n" in whole
    assert "; 0 need a mask" not in padded and "the mask, the padded end of the grid aside\n" in padded


def test_sweeps_and_advice_are_about_the_tiles_and_tiling_that_are_asked(einsight: Einsight) -> None:
    small = ("gna", "-i", "16x32", "-w", "8x8", "--head-dim", "128", "--target", "h100-sxm", "--json")
    tiles = ("--q-tile", "8x4", "--kv-tile", "4x8")
    for sweep in ("strides", "windows"):
        points = einsight(*small, "--sweep", sweep, *tiles).json["points"]
        assert {(tuple(p["q_tile"]), tuple(p["kv_tile"])) for p in points} == {((8, 4), (4, 8))}
    static, dynamic = (einsight(*small, "-s", "4x4", "--tiling", t).json for t in ("static", "dynamic"))
    for found in (static, dynamic):
        of_pair = {(tuple(c["q_tile"]), tuple(c["kv_tile"])): c for c in found["targets"]["h100-sxm"]["advice"]["tiles"]}
        own = of_pair[tuple(found["q_tile"]), tuple(found["kv_tile"])]
        assert own["time_s"] == pytest.approx(found["time_s"]) and own["tile_speedup_max"] == found["tile_speedup_max"]
    assert static["tile_speedup_max"] < dynamic["tile_speedup_max"]


def test_a_capital_x_is_a_cross_too(einsight: Einsight) -> None:
    small, capital = (
        einsight("gna", "-i", f"30{x}48", "-w", "6", "-s", f"2{x}3", "--q-tile", f"2{x}8", "--kv-tile", f"2{x}8", "--json").json
        for x in "xX"
    )
    assert small == capital and small["window_size"] == [6, 6]


def test_tiles_without_a_target_are_no_kernel_s(einsight: Einsight) -> None:
    words = ("gna", "-i", "64x64", "-w", "7", "--q-tile", "2x32", "--kv-tile", "2x32")
    assert "has no such pair" not in einsight(*words).out
    assert "hopper-fna has no such pair" in einsight(*words, "--target", "h100-sxm").out
