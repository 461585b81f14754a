"""What the verbs print and write, against closed forms and against each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

Einsight = Callable[..., Any]
SHAPE = ("--heads", "8", "--kv-heads", "2", "--seq", "4k", "--head-dim", "64")
MODEL = {
    "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 6,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> str:
    file = tmp_path / "small.json"
    file.write_text(json.dumps(MODEL), encoding="utf-8")
    return str(file)


@pytest.fixture
def workload(tmp_path: Path) -> str:
    file = tmp_path / "small.yaml"
    file.write_text(
        "name: small\ncascade: one_pass\nsizes: {b: 1, h: 8, g: 2, m: 4096, n: 4096, e: 64, f: 64}\ndtype: bf16\n"
        "mask: [causal]\nphase: prefill\ntargets: [h100-sxm]\n",
        encoding="utf-8",
    )
    return str(file)


# Error, passes over the keys and operation counts at M=6, N=16, E=5, F=7, N0=4, worked out from the definitions:
# per key tile a local maximum and sum, per step of a recurrence a rescaling of F+1 numbers a row.
M, N, E, F, N1 = 6, 16, 5, 7, 4
PRODUCTS = M * N * (E + F)
NAIVE = {"macc": PRODUCTS, "exp": M * N, "add": M * (N - 1), "div": M * N}
STABLE = NAIVE | {"max": M * (N - 1), "sub": M * N}
TILED = {"sub": M * (N + N1), "exp": M * (N + N1)}
TABLE = {
    "naive": (2, NAIVE),
    "naive_deferred": (1, NAIVE | {"div": M * F}),
    "stable": (3, STABLE),
    "stable_deferred": (2, STABLE | {"div": M * F}),
    "two_pass": (2, STABLE | TILED | {"macc": PRODUCTS + M * N1, "mul": M * N, "add": M * (N - N1)}),
    "split_kv": (1, STABLE | TILED | {"macc": PRODUCTS + M * N1 * (1 + F), "add": M * (N - N1), "div": M * F}),
    "one_pass": (1, TILED | {"macc": PRODUCTS, "max": M * N, "mul": M * N1 * (1 + F), "add": M * (N + N1 * F),
                             "div": M * F}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_explain_gives_errors_passes_and_counts(einsight: Einsight, name: str) -> None:
    """One --size for every algorithm; a tile is left out where the cascade does not cut its rank."""
    found = einsight("explain", name, "--size", "m=6,n=16,e=5,f=7,n0=4", "--json").json
    assert (found["total_passes"], found["counts"]) == TABLE[name]
    assert found["passes"] == {"K": TABLE[name][0], "V": 1}
    assert 0 <= found["error"] < 2e-15
    assert ("N0" in found["sizes"]) == (name in ("two_pass", "split_kv", "one_pass"))
    summed: dict[str, int] = {}
    for part in found["counts_by_einsum"].values():
        for klass, number in part.items():
            summed[klass] = summed.get(klass, 0) + number
    assert summed == found["counts"]


def test_split_kv_walks_its_summaries_twice(einsight: Einsight) -> None:
    assert einsight("explain", "split_kv", "--json").json["passes_over"]["N1"] == {"LM": 2, "SLD": 1, "SLNV": 1}


def test_explain_shows_a_cascade_that_computes_something_else(einsight: Einsight, tmp_path: Path) -> None:
    text = einsight("cascades", "stable").out.replace("cascade stable", "cascade mine")
    file = tmp_path / "mine.casc"
    file.write_text(text.replace("exp(QK[m,n] - GM[m])", "exp(GM[m] - QK[m,n])"), encoding="utf-8")
    size = ("--size", "m=6,n=16,e=5,f=7")
    assert einsight("explain", str(file), *size, "--json").json["error"] > 0.01
    assert "Largest error against the definition of softmax_attention" in einsight("explain", "stable", *size).out
    file.write_text(text.replace("computes softmax_attention", "computes mine"), encoding="utf-8")
    assert einsight("explain", str(file), *size, "--json").json["error"] is None


def test_explain_warns_of_what_is_seldom_meant(einsight: Einsight, tmp_path: Path) -> None:
    file = tmp_path / "w.casc"
    file.write_text("cascade w\ncomputes w\nrank P, K\nin A[p] B[p,k]\nout Z[p]\nZ[p] = A[p] + B[p,k]\n", encoding="utf-8")
    found = einsight("explain", str(file), "--size", "p=2,k=3")
    assert found.code == 0 and "w.casc:6:8: warning: A[p] is added K times" in found.err
    assert "added K times" in einsight("explain", str(file), "--json").json["warnings"][0]
    assert einsight("explain", "one_pass").err == ""


def test_explain_names_the_tile_it_assumes(einsight: Einsight) -> None:
    sizes = einsight("explain", "one_pass", "--size", "m=6,n=1000,e=5,f=7", "--json").json["sizes"]
    assert (sizes["N0"], sizes["N1"]) == (128, 8)


def test_explain_without_sizes_gives_formulas(einsight: Einsight) -> None:
    counts = einsight("explain", "stable", "--json").json["counts"]
    assert counts["macc"] == "M*N*(E + F)" and counts["max"] == "M*(N - 1)"


def test_explain_workload_is_the_composed_cascade(einsight: Einsight, workload: str) -> None:
    found = einsight("explain", workload, "--json").json
    assert found["sizes"]["J"] == 4
    assert "n1*N0+n0 <= m+N-M" in found["text"]
    assert found["counts_by_einsum"]["BQK"] == {"macc": 8 * 64 * (4096 * 4097 // 2)}


def test_explain_traffic_is_that_of_one_head(einsight: Einsight) -> None:
    """Compulsory: Q, K, V and AV once; unfused, the scores of a 3-pass softmax move too."""
    found = einsight("explain", "stable", "--size", "m=512,n=1024,e=64,f=64", "--block", "64", "--json").json["traffic"]
    assert found["compulsory_bytes"] == 2 * (512 + 1024 + 1024 + 512) * 64
    assert found["unfused_bytes"] > found["compulsory_bytes"] + 2 * 512 * 1024
    assert found["policies"]["buffer"]["bytes"] >= found["compulsory_bytes"]


def test_explain_prints_the_block_it_used_and_one_form(einsight: Einsight) -> None:
    size = ("--size", "m=6,n=16,e=5,f=7")
    assert "query blocks of 6, " in einsight("explain", "stable", *size).out
    assert "query blocks of 4, " in einsight("explain", "stable", *size, "--block", "4").out
    both = einsight("explain", "stable", "--dot", "--json")
    assert both.code == 2 and "found '--dot beside --json'; expected one of them" in both.err and both.out == ""


def test_explain_reads_out_flops_and_the_traffic_a_buffer_allows(einsight: Einsight) -> None:
    found = einsight("explain", "stable", "--size", "m=512,n=1024,e=64,f=32", "--json").json
    assert found["flops"]["matmul"] == 2 * 512 * 1024 * (64 + 32)
    assert einsight("explain", "stable", "--json").json["flops"]["matmul"] == "2*M*N*(E + F)"
    curve = found["traffic"]["curve"]
    assert curve[-1]["traffic_bytes"] == found["traffic"]["compulsory_bytes"] == 2 * (512 + 1024) * (64 + 32)
    for smaller, larger in pairwise(curve):
        assert smaller["buffer_bytes"] < larger["buffer_bytes"] and smaller["traffic_bytes"] > larger["traffic_bytes"]


def test_explain_weighs_operations_for_a_target(einsight: Einsight) -> None:
    words = ("explain", "one_pass", "--size", "m=4096,n=4096,e=128,f=128", "--target", "h100-sxm")
    on = einsight(*words, "--json").json["target"]
    assert on["cycles_per_sm"]["tensor cores"] == 2 * 4096 * 4096 * (128 + 128) / 4096
    assert on["least_traffic"]["buffer_bytes"] <= on["buffer_bytes"] == 227 * 1024
    assert "Cycles of one SM of h100-sxm" in einsight(*words).out
    ran = einsight("explain", "one_pass", "--target", "h100-sxm")
    assert ran.code == 2 and "sizes beside it" in ran.err
    assert einsight(*words[:-1], "fusemax").code == 2


def test_explain_over_an_unknown_rank_is_refused(einsight: Einsight) -> None:
    ran = einsight("explain", "one_pass", "--rank", "Q")
    assert ran.code == 2 and "--rank: found 'Q'; expected one of M, N, N1, N0, E, F" in ran.err
    assert einsight("explain", "one_pass", "--rank", "N0", "--json").json["passes"] == {"K": 2, "V": 1}


def test_explain_dot_is_a_graph_of_the_einsums(einsight: Einsight) -> None:
    out = einsight("explain", "stable", "--dot").out
    assert out.startswith('digraph "stable" {') and out.rstrip().endswith("}")
    assert '"QK" -> "SN";' in out and '"V" -> "AV";' in out


def test_cascades_print_back_what_they_are(einsight: Einsight, tmp_path: Path) -> None:
    text = einsight("cascades", "one_pass").out
    copy = tmp_path / "copy.casc"
    copy.write_text(text, encoding="utf-8")
    assert einsight("cascades", str(copy)).out == text


def test_a_fragment_is_shown_too(einsight: Einsight, tmp_path: Path) -> None:
    assert einsight("cascades", "alibi").out.startswith("fragment alibi\n")
    own = tmp_path / "own.casc"
    own.write_text(einsight("cascades", "alibi").out, encoding="utf-8")
    assert einsight("cascades", str(own)).out == einsight("cascades", "alibi").out


def test_hardware_lists_and_shows(einsight: Einsight) -> None:
    listed = {h["name"]: h for h in einsight("hardware", "--json").json}
    shown = einsight("hardware", "h200-sxm", "--json").json
    assert shown["hbm_bytes_per_s"]["value"] == listed["h200-sxm"]["hbm_bytes_per_s"] == 4.8e12
    assert all(q["source"] for q in shown.values() if isinstance(q, dict) and "source" in q)
    assert "4.8 TB/s" in einsight("hardware", "h200-sxm").out


def test_flags_file_and_model_agree(einsight: Einsight, workload: str, model: str) -> None:
    """The same attention said three ways: one key, one time."""
    (flags,) = einsight("simulate", *SHAPE, "--causal", "--target", "h100-sxm", "--json").json
    (file,) = einsight("simulate", workload, "--json").json
    (layer,) = einsight("simulate", "--model", model, "--seq", "4k", "--target", "h100-sxm", "--json").json
    assert flags["key"] == file["key"] == layer["key"]
    assert flags["time_s"] == file["time_s"] == layer["time_s"]
    assert layer["layers"] == 6 and layer["time_all_layers_s"] == pytest.approx(6 * layer["time_s"])


def test_layers_with_windows_are_summed(einsight: Einsight, tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = MODEL | {"num_hidden_layers": 3, "sliding_window": 512, "layer_types": kinds}
    file = tmp_path / "mixed.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    one, two = einsight("simulate", "--model", str(file), "--seq", "8k", "--target", "b200", "--json").json
    windowed, full = (one, two) if "window" in one["workload"] else (two, one)
    assert windowed["time_s"] < full["time_s"]
    total = 2 * windowed["time_s"] + full["time_s"]
    assert windowed["time_all_layers_s"] == full["time_all_layers_s"] == pytest.approx(total)


def test_model_says_what_is_left_out(einsight: Einsight, model: str) -> None:
    out = einsight("simulate", "--model", model, "--phase", "decode", "--seq", "4k", "--target", "h100-sxm").out
    assert "projections and feed-forward layers are not included" in out and "all 6 layers" in out


def test_decode_has_one_query_per_sequence(einsight: Einsight) -> None:
    words = ("simulate", *SHAPE, "--batch", "4", "--phase", "decode", "--target", "h100-sxm", "--json")
    (found,) = einsight(*words).json
    assert found["flops"]["matmul"] == 4 * (4 * 8 * 1 * 4096 * 64)


def test_table_has_a_column_per_target_and_every_line(einsight: Einsight) -> None:
    out = einsight("simulate", *SHAPE, "--target", "h100-sxm", "--target", "b200").out
    labels = "limited by|matmul work|achieved|HBM traffic|intensity|passes|energy|upper bound|h100-sxm|b200"
    for label in ("time (90 %)", "speedup over dense unfused", "speedup over dense fused", *labels.split("|")):
        assert label in out, label


def test_sweep_agrees_with_single_predictions(einsight: Einsight) -> None:
    words = ("simulate", *SHAPE, "--target", "h100-sxm", "--target", "b200", "--json")
    found = einsight(*words, "--sweep", "n=1k,4k,16k", "--within", "1 ms").json
    at_4k = {p["target"]: p["time_s"] for p in einsight(*words).json}
    for curve in found["curves"]:
        assert curve["values"] == [1024, 4096, 16384]
        assert curve["time_s"][1] == pytest.approx(at_4k[curve["target"]], rel=1e-9)
        fits = [v for v, t in zip(curve["values"], curve["time_s"], strict=True) if t <= 1e-3]
        assert max(fits) <= found["largest_within"][curve["target"]] < min({*curve["values"], 10**9} - {*fits})
    fastest = min(found["curves"], key=lambda c: c["time_s"][0])["target"]
    assert found["fastest"][0] == {"from": 1024, "target": fastest}


def test_a_sweep_over_two_families_of_one_target_answers_for_both(einsight: Einsight) -> None:
    words = ("simulate", *SHAPE, "--target", "h100-sxm", "--target", "h100-sxm:unfused", "--sweep", "n=1k:64k:9")
    found = einsight(*words, "--within", "1 ms", "--json").json["largest_within"]
    assert 0 < found["h100-sxm:unfused"] < found["h100-sxm"]
    out = einsight(*words, "--within", "1 ms").out
    for name, value in found.items():
        assert f"largest n within 1 ms on {name}: {value}\n" in out


@pytest.mark.parametrize("points", [1, 2, 12, 13, 29, 1000])
def test_a_printed_sweep_has_both_ends_and_says_what_it_leaves_out(einsight: Einsight, points: int) -> None:
    axis = f"b=1:{points}:{points}:linear"
    out = einsight("simulate", *SHAPE, "--target", "h100-sxm", "--sweep", axis, "--within", "1000 s").out
    shown = [int(line.split()[0]) for line in out.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert (f"12 of {points} points; --json has all" in out) == (points > 12)
    values = shown[: min(points, 12)]
    assert (values[0], values[-1], len(set(values))) == (1, points, min(points, 12))
    assert f"largest b within 1000 s on h100-sxm: {points}, where the sweep ends" in out


@pytest.mark.parametrize("extra", [(), ("--sweep", "n=1k:4k")])
def test_plot_writes_a_picture(einsight: Einsight, tmp_path: Path, extra: tuple[str, ...]) -> None:
    picture = tmp_path / "picture.svg"
    assert einsight("simulate", *SHAPE, "--target", "h100-sxm", *extra, "--plot", str(picture)).code == 0
    assert picture.read_text(encoding="utf-8").startswith("<svg")


def test_report_is_one_page_with_all_predictions(einsight: Einsight, tmp_path: Path, workload: str) -> None:
    made = einsight(
        "report", str(tmp_path / "new" / "out"), workload, "--target", "h100-sxm", "--target", "b200", "--json"
    ).json
    page = Path(made["page"]).read_text(encoding="utf-8")
    assert [p["target"] for p in made["predictions"]] == ["h100-sxm", "b200"]
    for section in ("predictions", "rooflines", "bounds", "passes", "sources"):
        assert f'<section id="{section}">' in page
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page


def test_report_into_a_file_is_refused_at_once(einsight: Einsight, workload: str) -> None:
    ran = einsight("report", workload, "--target", "h100-sxm")
    assert ran.code == 2 and f"DIR: found '{workload}'; expected a folder" in ran.err


def test_report_without_workloads_shows_an_example(einsight: Einsight, tmp_path: Path) -> None:
    made = einsight("report", str(tmp_path), "--json").json
    assert {p["target"] for p in made["predictions"]} == {"h100-sxm", "h200-sxm", "b200"}


def test_doctor_finds_the_reference_folder(einsight: Einsight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "measured").mkdir()
    monkeypatch.setenv("EINSIGHT_REFERENCE", str(tmp_path))
    found = einsight("doctor", "--json").json
    assert found["reference"] == {"folder": str(tmp_path), "found": ["measured"]}
    assert set(found["extras"]) == {"gpu", "tune", "dev"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--heads"),
        (("--heads", "8"), "--seq"),
        (("--heads", "8", "--seq", "4k"), "--target"),
        (("--heads", "8", "--seq", "4kk", "--target", "h100-sxm"), "4kk"),
        (("--heads", "8", "--kv-heads", "3", "--seq", "4k", "--target", "h100-sxm"), "divisor"),
        ((*SHAPE, "--target", "h100"), "h100-sxm"),
        ((*SHAPE, "--target", "h100-sxm:flash9"), "flash9"),
        ((*SHAPE, "--target", "h100-sxm", "--dtype", "int8"), "int8"),
        ((*SHAPE, "--target", "h100-sxm", "--phase", "train"), "train"),
        ((*SHAPE, "--target", "h100-sxm", "--bias", "albi"), "alibi"),
        ((*SHAPE, "--target", "h100-sxm", "--cascade", "linear", "--causal"), "linear"),
        ((*SHAPE, "--target", "h100-sxm", "--sweep", "n=4"), "--sweep"),
        ((*SHAPE, "--target", "h100-sxm", "--sweep", "z=1:4"), "z"),
        ((*SHAPE, "--target", "h100-sxm", "--within", "1 ms"), "--within"),
        ((*SHAPE, "--target", "h100-sxm", "--sweep", "n=1k:4k", "--within", "fast"), "fast"),
        ((*SHAPE, "--target", "h100-sxm", "--plot", "picture.gif"), ".svg"),
        (("absent.yaml",), "absent.yaml"),
        (("absent.yaml", "--heads", "8"), "--heads"),
        (("absent.yaml", "--batch", "8"), "--batch"),
        (("--model", "absent.json", "--seq", "4k", "--target", "b200"), "absent.json"),
        (("--model", "absent.json", "--heads", "4"), "--heads"),
        (("--model", "absent.json", "absent.yaml"), "--model: found 'absent.json beside absent.yaml'"),
        ((), "a workload file, or --model config.json"),
        (("mine.casc",), "named by --cascade mine.casc"),
        ((*SHAPE, "--target", "H100-SXM"), 'did you mean "h100-sxm"?'),
        ((*SHAPE, "--target", "h100-sxm", "--sweep", "n=1k:4k", "--within", "-3 ms"), "--within: found '-3 ms'"),
        ((*SHAPE, "--target", "h100-sxm", "--sweep", "n=1k:4k", "--within", "3 GB"), "--within: found '3 GB'"),
        ((*SHAPE, "--target", "h100-sxm", "--bias", "softcap:cap=0"), "divides by it"),
    ],
)  # fmt: skip
def test_bad_simulations_say_what_is_wrong(einsight: Einsight, words: tuple[str, ...], said: str) -> None:
    ran = einsight("simulate", *words)
    assert ran.code == 2 and said in ran.err
    assert ran.out == ""


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"hidden_size": "x"}', "\x00\xff"])
def test_broken_model_files(einsight: Einsight, tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text, encoding="utf-8")
    ran = einsight("simulate", "--model", str(file), "--seq", "4k", "--target", "b200")
    assert ran.code == 2 and str(file) in ran.err
