"""`einsight tune`: every way to call it that needs no GPU, and what it says where one is missing."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from einsight.kernels.catalog import KERNELS
from einsight.sim.hardware import load_gpu
from einsight.sim.workload import Workload
from einsight.tuner.pool import Pool
from einsight.tuner.prior import simulated
from einsight.tuner.problem import problem_of

pytest.importorskip("optuna", reason="the extra `tune` is not installed")

Einsight = Callable[..., Any]
SHAPE = ("--heads", "32", "--kv-heads", "8", "--seq", "4096", "--causal")
ON = ("--target", "h100-sxm")


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded space in the slim form: 8 x 6 configurations, one of which fails."""
    values = {"tile": [8, 16, 24, 32, 40, 48, 56, 64], "warps": [1, 2, 3, 4, 5, 6]}
    rows: list[list[Any]] = [[a, b, 1.0 + (a - 5) ** 2 + 0.5 * (b - 2) ** 2, 10.0] for a in range(8) for b in range(6)]
    rows[7] = [1, 1, None, "CompilationFailedConfig"]
    file = tmp_path_factory.mktemp("space") / "toy.json"
    file.write_text(json.dumps({
        "name": "toy", "kernel": "toy", "device": "nowhere", "time_unit": "ms", "param_values": values, "rows": rows,
    }))  # fmt: skip
    return file


def test_replay_gives_rows_curve_and_percent(einsight: Einsight, space: Path) -> None:
    told = einsight("tune", "--replay", str(space), "--trials", "24", "--seeds", "4", "--json").json
    assert len(told["evaluated"]) == len(told["seeds"]) == 4 and len(told["curve"]) == 24
    assert all(len(set(rows)) == 24 and set(rows) <= set(range(48)) for rows in told["evaluated"])
    times = {r: 1.0 + (r // 6 - 5) ** 2 + 0.5 * (r % 6 - 2) ** 2 for r in range(48) if r != 7}
    final = [100 / min(times[r] for r in rows if r in times) for rows in told["evaluated"]]
    assert told["percent_of_optimum"] == pytest.approx(sum(final) / 4) == pytest.approx(told["curve"][-1])
    assert told["curve"] == sorted(told["curve"])
    again = einsight("tune", "--replay", str(space), "--trials", "24", "--seeds", "4", "--json").json
    assert again == told


def test_replay_shows_rivals_and_a_picture(einsight: Einsight, space: Path, tmp_path: Path) -> None:
    plot = tmp_path / "c.svg"
    words = ("--trials", "20", "--seeds", "2", "--prior", "noisy:0.9", "--against", "tpe,random", "--plot", str(plot))
    shown = einsight("tune", "--replay", str(space), *words)
    assert shown.code == 0 and plot.read_text().startswith("<svg")
    for word in ("pool", "tpe", "random (exact)", "Evaluations to within", "Mean regret", "prior noisy:0.9", "o pool"):
        assert word in shown.out, word


def test_a_search_is_kept_resumed_and_exported(einsight: Einsight, space: Path, tmp_path: Path) -> None:
    record, out = tmp_path / "r.jsonl", tmp_path / "configs.py"
    words = ("tune", "--replay", str(space), "--record", str(record), "--no-stop", "--trials")
    first = einsight(*words, "12", "--json").json
    assert (first["measured"], first["resumed"]) == (12, 0) and len(record.read_text().splitlines()) == 12
    second = einsight(*words, "30", "--export", str(out), "--as", "triton", "--json").json
    assert (second["measured"], second["resumed"]) == (30, 12)
    assert second["best_time_s"] <= first["best_time_s"] and "triton.Config" in out.read_text()
    assert einsight(*words, "30").out.startswith("30 of 48 configurations measured, 30 of them from the record")
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert len({json.dumps(line["configuration"]) for line in lines}) == 30


def test_a_space_becomes_another_format(einsight: Einsight, space: Path, tmp_path: Path) -> None:
    t4 = tmp_path / "toy.json"
    assert einsight("tune", "--replay", str(space), "--export", str(t4), "--as", "t4").code == 0
    again = einsight("tune", "--replay", str(space), "--export", str(t4), "--as", "t4", "--json").json
    assert again == {"written": str(t4), "as": "t4", "configurations": 48}
    told = einsight("tune", "--replay", str(t4), "--trials", "10", "--seeds", "2", "--json").json
    assert told["configurations"] == 48


def test_without_a_gpu_it_says_what_can_be_done(einsight: Einsight) -> None:
    if importlib.util.find_spec("torch") is not None and importlib.import_module("torch").cuda.is_available():
        pytest.skip("there is a GPU here")
    said = einsight("tune", "attention", *SHAPE)
    assert said.code == 2 and "no GPU" in said.err
    assert "--predict-only" in said.err and "--replay" in said.err


def test_the_simulator_ranks_the_space(einsight: Einsight) -> None:
    told = einsight("tune", "attention", *SHAPE, *ON, "--predict-only", "--json").json
    times = [entry["time_s"] for entry in told["ranking"]]
    assert times == sorted(times) and 10 < len(times) <= 160
    assert "configurations of" in einsight("tune", "attention", *SHAPE, *ON, "--predict-only").out


def test_the_turns_shown_are_those_of_the_search(einsight: Einsight) -> None:
    told = einsight("tune", "attention", *SHAPE, *ON, "--predict-only", "--json").json
    turns = {entry["turn"]: entry["configuration"] for entry in told["ranking"] if entry["turn"]}
    workload = Workload.attention(heads=32, kv_heads=8, seq_q=4096, head_dim=128, mask="causal")
    problem = problem_of(KERNELS["attention"], workload, 90)
    space, logs = problem.space(), simulated(problem, load_gpu("h100-sxm"))
    search, asked = Pool(space.coordinates, logs, 7, space.features), list[int]()
    for turn in range(1, len(turns) + 1):
        row = search.propose(asked)
        assert row is not None and space.configuration(row) == turns[turn]
        asked.append(row)


def test_a_configuration_is_explained_for_a_usual_shape_where_none_is_given(einsight: Einsight) -> None:
    words = ("tune", "attention", *ON, "--explain", "BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2")
    usual, said = einsight(*words), einsight(*words, "--heads", "32", "--seq", "8192")
    assert usual.code == 0 and usual.out == said.out and "h32/32 8192x8192 d128" in usual.out


def test_a_configuration_is_explained(einsight: Einsight) -> None:
    inside = einsight("tune", "attention", *SHAPE, *ON, "--explain", "BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2")
    assert ": in\n" in inside.out
    words = ("--explain", "BLOCK_M=256,BLOCK_N=128,num_warps=4,num_stages=3")
    outside = einsight("tune", "attention", *SHAPE, *ON, *words, "--json").json
    assert not outside["valid"] and "registers" in outside["reason"]


def test_few_configurations_for_many_shapes(einsight: Einsight, tmp_path: Path) -> None:
    file = tmp_path / "shapes.yaml"
    file.write_text("".join(
        f"- {{name: s{m}, cascade: one_pass, sizes: {{b: 1, h: 32, g: 8, m: {m}, n: 8192, e: 128}}, dtype: bf16}}\n"
        for m in (16, 128, 1024, 8192)
    ))  # fmt: skip
    words = ("tune", "attention", "--shapes", str(file), "--keep", "2", "--predict-only", *ON)
    told = einsight(*words, "--json").json
    assert len(told["kept"]) <= 2 and [d["workload"] for d in told["dispatch"]] == ["s16", "s128", "s1024", "s8192"]
    assert all(d["configuration"] in told["kept"] and d["loss"] >= 0 for d in told["dispatch"])
    assert "mean loss" in einsight(*words).out


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tuner.md").read_text(encoding="utf-8")
COMMANDS = [line.partition("#")[0].split()[1:] for line in PAGE.splitlines() if line.startswith("    einsight tune ")]


@pytest.mark.parametrize("words", [w for w in COMMANDS if "--target" in w], ids=" ".join)
def test_commands_of_the_page_that_need_no_gpu_run(
    words: list[str], einsight: Einsight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    shown = einsight(*words)
    assert shown.code == 0 and ("by the simulator" if "--predict-only" in words else ": out: ") in " ".join(shown.out.split())


def test_options_of_the_page_exist(einsight: Einsight, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    known = einsight("tune", "--help").out
    scripts = "".join((ROOT / "benchmarks" / f"{name}.py").read_text() for name in ("gpu_tune", "bench_tuner"))
    assert len(COMMANDS) >= 6
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)):
        assert option in known or option in scripts, option


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected a kernel such as `attention`, or --replay FILE"),
        (("gemm", *SHAPE, *ON, "--predict-only"), "expected a kernel: attention"),
        (("attention", *SHAPE, "--target", "fusemax", "--predict-only"), "kernels do not run on an array"),
        (("attention", *SHAPE, "--target", "mi300x", "--predict-only"), "expected a CUDA GPU"),
        (("attention", *SHAPE, *ON, "--explain", "BLOCK_M=12"), "missing"),
        (("--replay", "missing.json"), "missing.json"),
        (("--replay", "SPACE", "--sampler", "best"), "--sampler"),
        (("--replay", "SPACE", "--prior", "noisy:x"), "noisy:0.9"),
        (("--replay", "SPACE", "--prior", "noisy:1.5"), "at most 1"),
        (("--replay", "SPACE", "--trials", "none"), "--trials"),
        (("--replay", "SPACE", "--export", "x", "--as", "xml"), "--as"),
        (("--replay", "SPACE", "--record", "r.jsonl", "--storage", "mysql://x"), "--storage"),
        (("attention", "--replay", "SPACE"), "either a kernel or a recorded space"),
        (("attention", *SHAPE, *ON, "--explain", "BLOCK_M=128,BLOCK_N=64,num_warps=0,num_stages=2"), "got num_warps = 0"),
        (("--replay", "FAILING"), "every configuration failed"),
        (("--replay", "FAILING", "--prior", "noisy:0.9"), "every configuration"),
        (("--replay", "FAILING", "--prior", "noisy:0.9", "--record", "r.jsonl"), "every configuration of the record failed"),
        (("--replay", "BEYOND"), "row 1 names a value that its parameter does not have"),
        (("--replay", "SPACE", "--seed", "-1"), "--seed"),
        (("--replay", "SPACE", "--record", "."), "is a folder"),
        (("--replay", "SPACE", "--record", "r.journal"), "is the study's journal as well"),
        (("--replay", "SPACE", "--target", "h100-sxm"), "--target beside --replay"),
        (("--replay", "SPACE", "--shapes", "s.yaml"), "--shapes beside --replay"),
        (("attention", "--replay", "SPACE", "--explain", "BLOCK_M=1"), "--explain beside --replay"),
        (("--replay", "SPACE", "--seq", "4096"), "--seq beside --replay"),
        (("--replay", "SPACE", "--key", "4e4b"), "only .jsonl records have keys"),
        (("attention", "--key", "4e4b"), "--replay RECORD.jsonl beside it"),
        (("attention", "--seeds", "3"), "--replay RECORD.jsonl beside it"),
        (("attention", "--against", "tpe"), "--replay RECORD.jsonl beside it"),
        (("attention", "--plot", "curves.svg"), "--replay RECORD.jsonl beside it"),
        (("--replay", "SPACE", "--seeds", "2", "--export", "x", "--as", "t4"), "--seeds beside --export"),
        (("--replay", "SPACE", "--record", "r.jsonl", "--against", "tpe"), "--against beside --record"),
        (("attention", *SHAPE, *ON, "--predict-only", "--record", "r.jsonl"), "--record beside --predict-only"),
        (("attention", *SHAPE, *ON, "--predict-only", "--prior", "none"), "--prior beside --predict-only"),
        (("attention", *ON, "--explain", "BLOCK_M=1", "--storage", "s"), "--storage beside --explain"),
        (("attention", *ON, "--explain", "BLOCK_M=1", "--as", "lookup"), "--export beside --explain"),
        (("attention", "--shapes", "s.yaml", *SHAPE, "--predict-only"), "--heads beside --shapes s.yaml"),
        (("attention", "--shapes", "s.yaml", "--explain", "BLOCK_M=1"), "--explain beside --shapes s.yaml"),
    ],
)
def test_what_cannot_be_is_one_message(
    words: tuple[str, ...], message: str, einsight: Einsight, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    slim = {"kernel": "k", "device": "d", "time_unit": "ms", "param_values": {"a": [1, 2]}}
    (tmp_path / "FAILING").write_text(json.dumps(slim | {"rows": [[0, None, "compile"], [1, None, "compile"]]}))
    (tmp_path / "BEYOND").write_text(json.dumps(slim | {"rows": [[0, 1.0, 1.0], [2, 1.0, 1.0]]}))
    said = einsight("tune", *(str(space) if word == "SPACE" else word for word in words))
    assert said.code == 2 and message in said.err, said.err
