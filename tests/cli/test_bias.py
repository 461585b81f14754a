"""`einsight bias`: the issue's lines, what they print, and every kind of bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from einsight.sim.bias_exact import alibi
from einsight.sim.bias_examples import pair_bias, swin_v2_tables

Einsight = Callable[..., Any]
ALIBI = ("bias", "--kind", "alibi", "--heads", "16", "--seq-q", "8192", "--seq-kv", "8192")
WINDOW = 12


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bias")
    tables = swin_v2_tables(4, WINDOW)
    side = 2 * WINDOW - 1
    rng = np.random.default_rng(0)
    for name, array in {
        "swin": tables, "swin_t": tables.T, "swin_grid": tables.reshape(4, side, side), "swin_one": tables[0],
        "offsets": rng.normal(size=(2, 2 * 64 - 1)).cumsum(axis=1), "matrix": alibi(3, 96, 96).rows(np.arange(96)),
        "single": rng.normal(size=(80, 3)) @ rng.normal(size=(3, 64)), "noise": rng.normal(size=(1, 47**2)),
        "pair": pair_bias(96)[1], "nan": np.where(np.arange(12).reshape(3, 4) == 5, np.nan, 1.0),
        "complex": np.eye(3) * 1j, "text": np.array([["a"]]), "flat": np.zeros(7), "half": tables[:2].astype(np.float16),
        "classes": np.arange(64) % 3, "points": rng.normal(size=(64, 2)),
        "kinds": rng.normal(size=(2, 3, 3)), "huge": np.where(np.arange(24).reshape(2, 3, 4) == 15, 1e300, 1.0),
    }.items():  # fmt: skip
        np.save(folder / f"{name}.npy", array)
    (folder / "broken.npy").write_bytes(b"not an array")
    np.savez(folder / "archive.npy.npz", a=np.eye(2))
    np.save(folder / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return folder


def test_alibi_on_a_target(einsight: Einsight) -> None:
    found = einsight(*ALIBI, "--target", "h100-sxm", "--json").json
    assert found["rank"] == [1] * 16 and found["rank_exact"] == [2] * 16
    assert max(found["error"]["bias"]) < 1e-14 and max(found["error"]["output"]) < 1e-12
    times = found["times"]["h100-sxm"]
    assert times["none_s"] <= times["low_rank_s"] < times["dense_s"]
    assert times["speedup"] == pytest.approx(times["dense_s"] / times["low_rank_s"])
    assert found["break_even_rank"]["h100-sxm"] >= 16 and times["useful"]
    assert found["bytes_saved"]["h100-sxm"] == pytest.approx(2 * 16 * 8192**2, rel=0.01)


def test_two_models_of_traffic_stand_apart(einsight: Einsight) -> None:
    found = einsight(*ALIBI, "--target", "h100-sxm", "--json").json["traffic"]["h100-sxm"]
    assert found["tile_loop"].keys() == {"block_m", "dense_elements", "low_rank_elements", "ratio", "break_even_rank"}
    assert found["theorem"].keys() == {"capacity_elements", "ratio", "ratio_with_constants"}
    out = einsight(*ALIBI, "--target", "h100-sxm").out
    assert "tile loop of" in out and "theorem, S =" in out and "model, L2 included" in out


def test_positions_that_a_type_rounds_are_mentioned(einsight: Einsight) -> None:
    assert any("split them into 2 digits, rank 4" in line for line in einsight(*ALIBI, "--json").json["rests_on"])
    short = einsight("bias", "--kind", "alibi", "--heads", "2", "--seq", "512", "--json").json
    assert not any("digits" in line for line in short["rests_on"])


def test_sigmoid_keeps_row_constants(einsight: Einsight) -> None:
    assert einsight(*ALIBI, "--cascade", "sigmoid", "--json").json["rank"] == [2] * 16


@pytest.mark.parametrize(
    ("kind", "more", "rank", "whole"),
    [
        ("linear", (), 1, 2), ("polynomial", ("--power", "3", "--scale", "1e-6"), 3, 4), ("distance", ("--dims", "2"), 3, 4),
        ("weighted_distance", (), 4, 5), ("cosine", (), 2, 2), ("sphere", (), 3, 3),
    ],
)  # fmt: skip
def test_exact_kinds(einsight: Einsight, kind: str, more: tuple[str, ...], rank: int, whole: int) -> None:
    found = einsight("bias", "--kind", kind, "--seq", "512", "--heads", "2", *more, "--json").json
    assert found["rank"] == [rank] * 2 and found["rank_exact"] == [whole] * 2
    assert max(found["error"]["output"]) < 1e-12


def test_segments_and_points_from_files(einsight: Einsight, files: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.random.default_rng(1).normal(size=(2, 3, 3)))
    words = ("bias", "--kind", "segments", "--table", str(tmp_path / "t.npy"), "--classes", str(files / "classes.npy"))
    assert einsight(*words, "--json").json["rank"] == [2, 2]
    found = einsight("bias", "--kind", "distance", "--points", str(files / "points.npy"), "--json").json
    assert (found["rank"], found["seq_q"]) == ([3], 64)


def test_absolute_offsets_are_of_full_rank(einsight: Einsight) -> None:
    words = ("bias", "--kind", "absolute", "--heads", "4", "--seq", "256", "--json")
    assert einsight(*words, "--energy", "1").json["rank_exact"] == [256] * 4
    low = einsight(*words, "--energy", "0.95", "--cascade", "sigmoid").json
    assert low["rank"] == [2] * 4


@pytest.mark.parametrize("name", ["swin", "swin_t", "swin_grid"])
def test_every_layout_of_a_table(einsight: Einsight, files: Path, name: str) -> None:
    words = ("--window", f"{WINDOW}x{WINDOW}", "--energy", "0.995", "--json")
    found = einsight("bias", "--table", str(files / f"{name}.npy"), *words).json
    first = einsight("bias", "--table", str(files / "swin.npy"), *words).json
    assert len(found["rank"]) == 4 and found["rank"] == first["rank"]
    assert max(found["error"]["bias"]) <= np.sqrt(0.005) * (1 + 1e-9)
    assert all(0 < e < 1 for e in found["error"]["output"])


def test_table_picture_and_text(einsight: Einsight, files: Path, tmp_path: Path) -> None:
    picture = tmp_path / "bias.svg"
    ran = einsight(
        "bias", "--table", str(files / "swin.npy"), "--window", f"{WINDOW}x{WINDOW}", "--batch", "64", "--head-dim", "32",
        "--target", "a100-sxm-80gb", "--plot", str(picture),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "made in the kernel" in ran.out and "singular values" in ran.out and "rests on" in ran.out
    assert picture.read_text(encoding="utf-8").startswith("<svg")


def test_other_files(einsight: Einsight, files: Path) -> None:
    offsets = einsight("bias", "--table", str(files / "offsets.npy"), "--window", "64", "--json").json
    assert (len(offsets["rank"]), offsets["seq_q"]) == (2, 64)
    matrix = einsight("bias", "--matrix", str(files / "matrix.npy"), "--energy", "1", "--json").json
    assert (matrix["rank"], matrix["rank_exact"]) == ([1] * 3, [2] * 3)
    single = einsight("bias", "--matrix", str(files / "single.npy"), "--heads", "5", "--energy", "1", "--json").json
    assert single["rank_exact"] == [3] * 5 and (single["seq_q"], single["seq_kv"]) == (80, 64)
    one = einsight("bias", "--table", str(files / "swin_one.npy"), "--window", f"{WINDOW}x{WINDOW}", "--json").json
    assert len(one["rank"]) == 1
    half = einsight("bias", "--table", str(files / "half.npy"), "--window", f"{WINDOW}x{WINDOW}", "--json").json
    assert len(half["rank"]) == 2


def test_error_of_the_output_as_the_goal(einsight: Einsight, files: Path) -> None:
    words = ("bias", "--matrix", str(files / "pair.npy"), "--head-dim", "32", "--json", "--output-error")
    loose, tight = (einsight(*words, error).json for error in ("0.1", "0.01"))
    assert max(loose["error"]["output"]) <= 0.1 and max(tight["error"]["output"]) <= 0.01
    assert all(a < b for a, b in zip(loose["rank"], tight["rank"], strict=True))


def test_a_verdict_names_the_head_whose_output_suffers(einsight: Einsight, files: Path) -> None:
    words = ("bias", "--table", str(files / "swin.npy"), "--window", "12x12")
    loose, tight = einsight(*words, "--energy", "0.9"), einsight(*words, "--output-error", "0.01")
    errors = einsight(*words, "--energy", "0.9", "--json").json["error"]["output"]
    worst = max(range(len(errors)), key=errors.__getitem__)
    assert errors[worst] > 0.05
    assert f"head {worst}: at this rank the attention output is off by" in loose.out.replace("\n", " ")
    assert "is off by" not in tight.out


def test_an_array_has_times_and_a_tile_loop_of_its_rows(einsight: Einsight) -> None:
    words = ("bias", "--kind", "alibi", "--heads", "8", "--seq", "2048", "--target", "fusemax")
    ran = einsight(*words)
    assert ran.code == 0 and "tile loop of" in ran.out and "theorem" not in ran.out
    assert einsight(*words, "--json").json["traffic"]["fusemax"]["tile_loop"]["block_m"] > 0


def test_a_kernel_that_makes_distances_takes_the_coordinates_of_the_file(einsight: Einsight, files: Path) -> None:
    """Points with 2 coordinates: the same work as --dims 2, not as the default of 3."""
    words = ("bias", "--kind", "distance", "--heads", "8", "--target", "h100-sxm", "--json")
    of_file = einsight(*words, "--points", str(files / "points.npy")).json
    plane = einsight(*words, "--dims", "2", "--seq", "64").json
    assert of_file["rank"] == plane["rank"] == [3] * 8
    assert of_file["times"]["h100-sxm"]["computed_s"] == plane["times"]["h100-sxm"]["computed_s"]
    space = einsight(*words, "--dims", "3", "--seq", "64").json
    assert space["times"]["h100-sxm"]["computed_s"] != plane["times"]["h100-sxm"]["computed_s"]


def test_what_is_not_useful_is_said_with_its_curve(einsight: Einsight, files: Path) -> None:
    ran = einsight("bias", "--table", str(files / "noise.npy"), "--window", "24x24", "--target", "h100-sxm", "--batch", "64")
    assert "is not useful" in ran.out and "keep the matrix" in ran.out and "99.5 %" in ran.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "one of --kind, --table and --matrix"),
        (("--kind", "albi", "--seq", "64", "--heads", "2"), "alibi"),
        (("--kind", "alibi", "--seq", "64"), "--heads"),
        (("--kind", "alibi", "--heads", "2"), "--seq"),
        (("--kind", "alibi", "--heads", "2", "--seq", "64", "--energy", "0"), "(0, 1]"),
        (("--kind", "alibi", "--heads", "2", "--seq", "64", "--energy", "nan"), "(0, 1]"),
        (("--kind", "alibi", "--heads", "2", "--seq", "64", "--output-error", "-1"), "above 0"),
        (("--kind", "alibi", "--heads", "2", "--seq", "64", "--shared", "all"), "--shared"),
        (("--kind", "alibi", "--heads", "2", "--seq", "64", "--target", "h100"), "h100-sxm"),
        (("--kind", "alibi", "--heads", "2", "--seq", "64", "--cascade", "linear"), "no score to add a bias to"),
        (("--kind", "alibi", "--heads", "2", "--seq", "64", "--cascade", "backward"), "computes gradients"),
        (("--kind", "alibi", "--heads", "2", "--seq", "64", "--plot", "x.svg"), "neither"),
        (("--kind", "polynomial", "--seq", "64", "--power", "0"), "power"),
        (("--kind", "distance", "--seq", "64", "--dims", "0"), "--dims"),
        (("--kind", "segments", "--seq", "64"), "--classes"),
        (("--kind", "alibi", "--matrix", "single.npy"), "one of"),
        (("--table", "swin.npy"), "--window"),
        (("--table", "swin.npy", "--window", "24x24"), "2209"),
        (("--table", "swin.npy", "--window", "0x3"), "at least 1"),
        (("--table", "swin.npy", "--window", "12x12", "--heads", "3"), "--heads"),
        (("--table", "swin.npy", "--window", "twelve"), "24x24"),
        (("--matrix", "nan.npy"), "NaN"),
        (("--matrix", "complex.npy"), "complex"),
        (("--matrix", "text.npy"), "elements of type"),
        (("--matrix", "flat.npy"), "shape (7,)"),
        (("--matrix", "absent.npy"), "existing"),
        (("--matrix", "broken.npy"), "numpy.save"),
        (("--matrix", "pickled.npy"), "numpy.save"),
        (("--matrix", "archive.npy.npz"), "archive"),
        (("--matrix", "single.npy", "--seq-q", "8"), "--seq-q"),
        (("--matrix", "matrix.npy", "--heads", "2"), "--heads"),
        (("--matrix", "matrix.npy", "--energy", "1.2"), "(0, 1]"),
        (("--kind", "cosine", "--seq", "64", "--frequency", "nan"), "--frequency: found 'nan'"),
        (("--kind", "cosine", "--seq", "64", "--scale", "inf"), "--scale: found 'inf'"),
        (("--kind", "polynomial", "--seq", "512", "--power", "100"), "errors stay finite"),
        (("--kind", "distance", "--points", "points.npy", "--seq", "65"), "64, as points.npy has tokens"),
        (("--kind", "segments", "--table", "swin.npy", "--classes", "classes.npy", "--seq", "7"), "as classes.npy has tokens"),
        (("--kind", "segments", "--table", "kinds.npy", "--classes", "classes.npy", "--heads", "3"), "2, as kinds.npy has"),
        (("--kind", "distance", "--points", "points.npy", "--dims", "5"), "2, as points.npy has"),
        (("--kind", "alibi", "--heads", "2", "--seq", "64", "--scale", "7"), "--kind linear or polynomial"),
        (("--kind", "alibi", "--heads", "2", "--seq", "64", "--window", "12x12"), "--table FILE.npy beside it"),
        (("--matrix", "matrix.npy", "--power", "3"), "--kind polynomial beside it"),
        (("--kind", "linear", "--seq", "64", "--points", "points.npy"), "--kind distance or weighted_distance or sphere"),
        (("--kind", "linear", "--seq", "64", "--classes", "classes.npy"), "--kind segments beside it"),
        (("--matrix", "huge.npy"), "head 1, element [0, 3]: found 1e+300; expected below 1e+60"),
        (("--kind", "polynomial", "--seq", "512", "--power", "500"), "factors as large as inf"),
    ],
)  # fmt: skip
def test_bad_input_says_what_is_wrong(
    einsight: Einsight, files: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(files)
    ran = einsight("bias", *words)
    assert ran.code == 2 and said in ran.err, (ran.code, ran.err)
    assert ran.out == ""
