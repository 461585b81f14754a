"""`einsight reproduce fusemax` and spatial arrays as targets: rows that read back, published values, bad input."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Einsight = Callable[..., Any]
COLUMNS = ["design", "model", "seq_len", "traffic_bytes", "latency_s", "energy_pj", "util_2d", "util_1d"]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(autouse=True)
def without_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EINSIGHT_REFERENCE", str(tmp_path / "nowhere"))


def test_csv_of_attention(einsight: Einsight) -> None:
    ran = einsight("reproduce", "fusemax", "--csv", "--artifact")
    found = rows(ran.out)
    assert ran.code == 0 and ran.err == "" and len(found) == 120
    assert ran.out.splitlines()[0].split(",") == COLUMNS
    assert {r["design"] for r in found} == {"unfused", "flat", "cascade", "architecture", "binding"}
    assert {r["seq_len"] for r in found} == {"1K", "4K", "16K", "64K", "256K", "1M"}
    first = next(r for r in found if (r["design"], r["model"], r["seq_len"]) == ("binding", "BERT", "1K"))
    assert float(first["latency_s"]) == pytest.approx(0.002013140425531915, rel=1e-12)


def test_csv_of_layers_and_arrays(einsight: Einsight) -> None:
    layers = rows(einsight("reproduce", "fusemax", "--csv", "--end-to-end", "--model", "T5", "--seq", "1K,24K").out)
    assert len(layers) == 10 and list(layers[0])[:8] == COLUMNS
    assert all(float(r["linear_latency_s"]) < float(r["latency_s"]) for r in layers)
    arrays = rows(einsight("reproduce", "fusemax", "--csv", "--pareto").out)
    assert len(arrays) == 24 and {r["pe_dim"] for r in arrays} == {"16", "32", "64", "128", "256", "512"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--artifact", "--reference", "absent"), "absent: no such folder"),
        (("--artifact", "--reference", "."), "no .csv file there"),
        (("--shapes", "64"), "--search beside it"),
        (("--buffers", "1m"), "--search beside it"),
        (("--workload", "mine.yaml"), "--search beside it"),
        (("--buffer-ports",), "--search beside it"),
        (("--plot", "x.svg"), "--search or --pareto beside it"),
        (("--pareto", "--end-to-end"), "--end-to-end: found '--end-to-end beside --pareto'; expected one of them"),
        (("--pareto", "--seq", "1K"), "--seq beside --pareto"),
        (("--pareto", "--design", "flat"), "--design beside --pareto"),
        (("--pareto", "--array", "flat"), "--array beside --pareto"),
        (("--pareto", "--differences"), "--differences beside --pareto"),
        (("--search", "--model", "T5", "--seq", "1K", "--csv"), "--csv beside --search"),
        (("--search", "--model", "T5", "--seq", "1K", "--artifact"), "--artifact beside --search"),
        (("--search", "--workload", "mine.yaml", "--seq", "1K"), "--seq beside --workload"),
        (("--differences", "--design", "flat"), "--design beside --differences"),
        (("--csv", "--json"), "--json beside --csv"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    einsight: Einsight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = einsight("reproduce", "fusemax", *words)
    assert ran.code == 2 and message in ran.err and ran.out == ""


def test_a_comparison_without_published_rows_says_so(einsight: Einsight, tmp_path: Path) -> None:
    ran = einsight("reproduce", "fusemax", "--artifact", "--model", "BERT", "--seq", "1K")
    assert ran.code == 0 and f"{tmp_path / 'nowhere' / 'fusemax'}: not there, so only our own rows" in ran.out


def test_biases_of_gpus_are_not_reproduced_on_an_array(einsight: Einsight) -> None:
    ran = einsight("reproduce", "flashbias", "--target", "fusemax")
    assert ran.code == 2 and "a spatial array; expected a GPU" in ran.err


def test_arrays_of_the_paper_as_a_picture(einsight: Einsight, tmp_path: Path) -> None:
    file = tmp_path / "sides.svg"
    ran = einsight("reproduce", "fusemax", "--pareto", "--model", "BERT", "--plot", str(file))
    assert ran.code == 0 and "512x512" in file.read_text(encoding="utf-8")


def test_sizes_and_arrays_that_no_table_has(einsight: Einsight) -> None:
    words = ("reproduce", "fusemax", "--csv", "--artifact", "--design", "binding", "--model", "BERT")
    (row,) = rows(einsight(*words, "--seq", "24K", "--head-dim", "96", "--heads", "5", "--array", "edge-32").out)
    bh, n, e, side = 64 * 5, 24576, 96, 32
    u, a = bh * n * n / side**2, bh * e * n / side
    assert float(row["latency_s"]) == pytest.approx((max((e + 1) * u, (e + 1) * u + a) + 9 * u + e * u) / 940e6, rel=1e-12)


def test_attention_on_an_array_whose_buffer_is_too_small_for_the_layers(einsight: Einsight) -> None:
    words = ("reproduce", "fusemax", "--seq", "8K", "--head-dim", "96", "--array", "edge-32", "--design", "binding")
    assert len(einsight(*words, "--csv").out.splitlines()) == 5
    refused = einsight(*words, "--csv", "--end-to-end")
    assert refused.code == 2 and "FFN2 needs" in refused.err


def test_published_values_stand_beside_ours(einsight: Einsight, tmp_path: Path) -> None:
    table = "model,seq_len,traffic,latency,energy,util_2d,util_1d\nBERT,1K,{},0.002013140425531915,1950645149855.2659,{}\n"
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder, traffic in ((good, 402653184), (bad, 402653185)):
        folder.mkdir()
        (folder / "attn-binding.csv").write_text(table.format(traffic, "0.8896103896103895,1.0"), encoding="utf-8")
    words = ("reproduce", "fusemax", "--artifact", "--design", "binding", "--model", "BERT", "--seq", "1K", "--reference")
    met, missed = einsight(*words, str(good)), einsight(*words, str(bad))
    assert met.code == 0 and "published" in met.out
    assert missed.code == 1 and "binding BERT 1K: traffic_bytes is 402653184.0, published 402653185.0" in missed.out
    document = einsight(*words, str(good), "--json").json
    assert document["rows"][0]["published"]["traffic_bytes"] == 402653184


def test_headlines_and_what_the_omissions_do(einsight: Einsight) -> None:
    out = einsight("reproduce", "fusemax", "--artifact", "--end-to-end").out
    for printed in ("6.7226", "10.0520", "5.3017", "7.6021", "0.8335"):
        assert printed in out
    differences = einsight("reproduce", "fusemax", "--differences", "--json").json
    assert len(differences) == 10 and differences["as published"][0]["mean"] == pytest.approx(6.7226, abs=1e-4)


def test_search_draws_the_arrays(einsight: Einsight, tmp_path: Path) -> None:
    words = ("reproduce", "fusemax", "--search", "--model", "BERT", "--seq", "4K", "--shapes", "32,64x128", "--buffers")
    file = tmp_path / "arrays.svg"
    found = einsight(*words, "256k,1m", "--plot", str(file), "--json").json
    assert len(found["points"]) == 4 and any(p["best"] for p in found["points"])
    assert "64x128" in file.read_text(encoding="utf-8")
    assert "no array that can run" in einsight(*words, "1k").err


BAD = [
    (("--design", "bindin"), "--design: found 'bindin'; expected all, or one or more of unfused"),
    (("--model", "GPT"), "--model: found 'GPT'"),
    (("--seq", "0"), "--seq: found '0'"),
    (("--search",), "--search: found '4 workloads and 1 designs'"),
    (("--search", "--model", "T5", "--shapes", "4x4x4"), "--shapes: found '4x4x4'"),
    (("--array", "h100-sxm"), "a GPU"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_options_get_one_line(einsight: Einsight, words: tuple[str, ...], message: str) -> None:
    ran = einsight("reproduce", "fusemax", *words)
    assert ran.code == 2 and message in ran.err and ran.err.count("\n") == 1


def test_an_array_is_a_target_like_any_other(einsight: Einsight) -> None:
    words = ("simulate", "--cascade", "one_pass", "--heads", "8", "--seq", "4k", "--head-dim", "64")
    names = ("fusemax", "fusemax:architecture", "flat", "flat:unfused", "edge-32", "h100-sxm")
    found = einsight(*words, "--json", *(w for n in names for w in ("--target", n))).json
    assert [p["target"] for p in found] == ["fusemax", "fusemax", "flat", "flat", "edge-32", "h100-sxm"]
    assert [p["family"] for p in found[:5]] == ["binding", "architecture", "flat-fused", "unfused", "binding"]
    assert all(p["energy_pj"] > 0 and p["area_mm2"] > 0 and p["cycles"] for p in found[:5])
    curves = einsight(*words, "--target", "fusemax", "--sweep", "n=1k:4k:3", "--json").json["curves"]
    assert len(curves[0]["time_s"]) == 3 and curves[0]["time_s"][-1] == pytest.approx(found[0]["time_s"])


def test_a_cascade_that_the_array_cannot_run_is_one_line(einsight: Einsight) -> None:
    ran = einsight("simulate", "--cascade", "sigmoid", "--heads", "8", "--seq", "4k", "--target", "fusemax")
    assert ran.code == 2 and "the 2-D array has no sigmoid, which SN of cascade sigmoid needs" in ran.err
