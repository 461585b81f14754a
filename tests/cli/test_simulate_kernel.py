"""`einsight simulate --kernel NAME --config ...`: resources of a build decide its occupancy, and bad builds are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from einsight.cli import main
from einsight.kernels.catalog import KERNELS
from einsight.kernels.resources import Estimate
from einsight.kernels.spaces import Config
from einsight.sim.hardware import Gpu, load_hardware
from einsight.sim.workload import Workload
from einsight.tuner.problem import problem_of
from einsight.tuner.resources import Build

BUILD = "BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2"
SHAPE = ("--heads", "32", "--kv-heads", "8", "--seq", "4k", "--target", "h100-sxm")
OF_KERNEL = {
    "attention": (BUILD, SHAPE),
    "flashbias": (BUILD, (*SHAPE, "--bias", "low_rank:r=16")),
    "attention_with_bias": (BUILD, (*SHAPE, "--bias", "dense_bias")),
    "sigmoid": (BUILD, SHAPE),
    "decode": ("BLOCK_M=16,BLOCK_N=64,num_warps=4,num_stages=2", (*SHAPE, "--phase", "decode")),
    "lightning": ("BLOCK_M=64,BLOCK_N=32,num_warps=4,num_stages=1", SHAPE),
    "gla": ("BLOCK_M=64,BLOCK_N=32,num_warps=4,num_stages=1", SHAPE),
}


def ask(capsys: pytest.CaptureFixture[str], kernel: str, config: str, *words: str) -> list[dict[str, object]]:
    assert main(["simulate", "--kernel", kernel, "--config", config, *words, "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("kernel", sorted(OF_KERNEL))
def test_every_kernel_but_that_of_grids_has_a_prediction(capsys: pytest.CaptureFixture[str], kernel: str) -> None:
    config, words = OF_KERNEL[kernel]
    (found,) = ask(capsys, kernel, config, *words, "--source", "closed_form")
    assert found["cascade"] == KERNELS[kernel].cascade and found["family"] == "triton"
    assert float(found["time_s"]) > 0  # type: ignore[arg-type]
    assert "(closed_form)" in found["assumptions"][0]  # type: ignore[index]
    assert set(OF_KERNEL) | {"gna"} == set(KERNELS)


def test_tiles_and_resident_blocks_are_those_of_the_build(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = ask(capsys, "attention", BUILD, *SHAPE, "--source", "table")
    mapping = found["mapping"]
    assert isinstance(mapping, dict)
    assert (mapping["block_m"], mapping["block_n"], mapping["blocks_per_sm"]) == (128, 64, 1)
    (known,) = ask(capsys, "attention", BUILD, *SHAPE, "--source", "closed_form")
    assert known["key"] == found["key"]
    packed, words = OF_KERNEL["decode"]
    (split,) = ask(capsys, "decode", packed, *words, "--source", "closed_form")
    assert isinstance(split["mapping"], dict) and split["mapping"]["pack_gqa"] and split["mapping"]["splits"] > 1


def test_columns_of_a_state_are_programs_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    """The workload keeps its name and key; the model is told as many heads as there are programs."""
    whole, parts = (f"BLOCK_M=64,BLOCK_N={columns},num_warps=4,num_stages=1" for columns in (128, 32))
    (one,), (four,) = (ask(capsys, "lightning", config, *SHAPE, "--source", "closed_form") for config in (whole, parts))
    assert one["key"] == four["key"] and one["workload"] == four["workload"]
    assert any("4 programs a head, 32 value columns each" in note for note in four["assumptions"])  # type: ignore[attr-defined]
    assert not any("programs a head" in note for note in one["assumptions"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["attention", "sigmoid"])
def test_more_registers_mean_fewer_blocks_and_no_less_time(name: str) -> None:
    gpu = load_hardware("h100-sxm")
    assert isinstance(gpu, Gpu)
    cascade = KERNELS[name].cascade
    problem = problem_of(KERNELS[name], Workload.attention(batch=64, heads=32, seq_q=8192, head_dim=64, cascade=cascade), 90)
    config = Config(64, 64, 4, 2)
    known = Estimate("ok", "", "compiled", spill_bytes=0, shared_bytes=40960, tmem_columns=0, warps=4, blocks_per_sm=32)
    blocks, times = [], []  # so many blocks that the last wave, which may be all but empty, does not show
    for registers in (64, 96, 128, 168, 255):
        mapping = problem.mapping(config, gpu, replace(known, registers=registers))
        blocks.append(mapping.blocks_per_sm)
        times.append(problem.seconds(mapping, gpu))
    assert blocks == [5, 5, 4, 3, 2]  # 228 KiB hold 5 x 41 KiB; 65536 registers hold that many x 128 threads
    assert times == sorted(times) and times[-1] > times[0]
    told = Build(problem.kernel, problem.heads, config, gpu).resources(replace(known, registers=168))
    assert (told.registers_per_thread, told.shared_bytes, told.warps) == (168, 40960, 4)


def test_spills_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spilled = Estimate(
        "ok", "", "compiled", registers=255, spill_bytes=76, shared_bytes=98304, tmem_columns=0, warps=8, blocks_per_sm=1
    )
    monkeypatch.setattr(Build, "estimate", lambda *_: spilled)
    (found,) = ask(capsys, "attention", BUILD, *SHAPE)
    assert any("spills 76 bytes a thread" in note for note in found["assumptions"])  # type: ignore[attr-defined]
    gave_up = replace(spilled, status="gave_up", reason="a stack of 9000 bytes a thread: the assembler gave up on registers")
    monkeypatch.setattr(Build, "estimate", lambda *_: gave_up)
    assert main(["simulate", "--kernel", "attention", "--config", BUILD, *SHAPE]) == 2
    assert "cannot run on h100-sxm: gave_up: a stack of 9000 bytes" in capsys.readouterr().err


def test_warps_that_repeat_each_other_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = ask(capsys, "attention", "BLOCK_M=64,BLOCK_N=64,num_warps=8,num_stages=2", *SHAPE, "--source", "closed_form")
    assert any("repeat each other's work" in note for note in found["assumptions"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(("words", "message"), [
    (["--kernel", "attenton", "--config", BUILD], "expected one of: attention"),
    (["--kernel", "attention"], "expected a build of attention, such as BLOCK_M="),
    (["--config", BUILD], "a kernel beside --config"),
    (["--source", "table"], "a kernel beside --source"),
    (["--kernel", "attention", "--config", "BLOCK_M=128"], "missing"),
    (["--kernel", "attention", "--config", BUILD.replace("128", "96")], "expected a power of two"),
    (["--kernel", "attention", "--config", BUILD, "--source", "guess"], "--source"),
    (["--kernel", "attention", "--config", "BLOCK_M=128,BLOCK_N=128,num_warps=8,num_stages=4", "--source", "closed_form"],
     "shared_memory: 294912 bytes"),
    (["--kernel", "sigmoid", "--config", BUILD, "--cascade", "one_pass"], "computes something else than sigmoid"),
    (["--kernel", "flashbias", "--config", BUILD], "no bias low_rank"),
    (["--kernel", "gna", "--config", BUILD], "`einsight gna` predicts those"),
    (["--kernel", "attention", "--config", BUILD, "--target", "fusemax"], "a GPU beside --kernel"),
    (["--kernel", "attention", "--config", BUILD, "--target", "mi300x"], "compute capability is gfx942"),
    (["--kernel", "attention", "--config", BUILD, "--target", "h100-sxm:flash3"], "whose family is triton"),
    (["--kernel", "attention", "--config", BUILD, "--sweep", "n=1k:4k"], "without --sweep"),
])  # fmt: skip
def test_bad_input_is_one_message(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["simulate", *SHAPE, *words]) == 2
    told = capsys.readouterr()
    assert message in told.err and "Traceback" not in told.err


def test_a_workload_file_and_two_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "w.yaml"
    file.write_text("name: x\ncascade: flash1\nsizes: {h: 8, m: 2048, n: 2048, e: 64}\nmask: [causal]\ndtype: fp16\n")
    words = (str(file), "--target", "h100-sxm", "--target", "a100-sxm-80gb", "--source", "closed_form")
    found = ask(capsys, "attention", "BLOCK_M=64,BLOCK_N=64,num_warps=4,num_stages=2", *words)
    assert [p["target"] for p in found] == ["h100-sxm", "a100-sxm-80gb"]
    assert {p["cascade"] for p in found} == {"one_pass"} and len({p["key"] for p in found}) == 1
