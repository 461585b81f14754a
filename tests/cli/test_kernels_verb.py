"""`einsight kernels`: what it prints for programs, and that bad input is named. No compiler is run."""

from __future__ import annotations

import json

import pytest

from einsight.cli import main
from einsight.kernels.catalog import KERNELS
from einsight.kernels.spaces import LIMITS, Config, Heads, configurations, shared_bytes

BUILD = "BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2"


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> object:
    assert main(["kernels", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_kernel_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = ask(capsys)
    assert [k["name"] for k in listed] == list(KERNELS)  # type: ignore[attr-defined,index]


def test_a_kernel_shows_its_valid_builds_and_the_reasons_of_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    found = ask(capsys, "attention", "--target", "h100-sxm", "--head-dim", "64")
    answer = found["targets"]["h100-sxm"]  # type: ignore[index]
    valid = configurations(Heads(64, 64), LIMITS[90])
    assert answer["configurations"] == [str(c) for c in valid]
    assert sum(answer["excluded"].values()) == len(list(KERNELS["attention"].space.candidates())) - len(valid)


@pytest.mark.parametrize(("source", "registers"), [("closed_form", False), ("table", True)])
def test_a_build_has_the_promised_fields(capsys: pytest.CaptureFixture[str], source: str, registers: bool) -> None:
    found = ask(capsys, "attention", "--config", BUILD, "--target", "h100-sxm", "--source", source)
    assert isinstance(found, dict)
    assert found["shared_bytes"] == shared_bytes(Heads(128, 128), Config(128, 64, 8, 2), 90)
    assert found["source"] == source and found["status"] == "ok" and found["tmem_columns"] == 0
    assert (found["registers"] is not None) == registers == (found["spill_bytes"] is not None)
    assert found["blocks_per_sm"] == (1 if registers else 2)  # registers of two blocks of 8 warps do not fit
    if registers:
        assert found["instructions"]["agree"] and found["instructions"]["expected"]["tensor"] == 12


KEYS = {"registers", "spill_bytes", "shared_bytes", "tmem_columns", "blocks_per_sm", "status", "reason", "source"}


@pytest.mark.parametrize("target", ["a100-sxm-80gb", "l40s", "h100-sxm", "b200", "rtx-pro-6000"])
@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_the_default_build_of_every_kernel_is_known(capsys: pytest.CaptureFixture[str], kernel: str, target: str) -> None:
    config = str(KERNELS[kernel].default(128, 128))
    found = ask(capsys, kernel, "--config", config, "--target", target, "--source", "table")
    assert isinstance(found, dict) and set(found) >= KEYS
    assert found["status"] == "ok" and found["source"] == "table", found
    assert 0 < found["registers"] <= 255 and found["shared_bytes"] > 0 and found["blocks_per_sm"] >= 1
    assert found["instructions"] is None or found["instructions"]["agree"]


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_without_a_compiler_and_without_an_entry_it_says_what_is_not_known(
    capsys: pytest.CaptureFixture[str], kernel: str
) -> None:
    config = str(KERNELS[kernel].default(64, 128))
    words = (kernel, "--config", config, "--target", "h100-sxm", "--head-dim", "64", "--value-dim", "128")
    found = ask(capsys, *words, "--source", "closed_form")
    assert isinstance(found, dict) and set(found) >= KEYS
    assert found["registers"] is None and found["spill_bytes"] is None and "from a compiler only" in found["reason"]
    assert (found["shared_bytes"] is not None) == KERNELS[kernel].closed == (found["blocks_per_sm"] is not None)
    assert main(["kernels", *words, "--source", "table"]) == 2
    assert f"no entry for {kernel}" in capsys.readouterr().err


def test_flags_and_fp8_have_a_reason_where_an_architecture_is_without(capsys: pytest.CaptureFixture[str]) -> None:
    found = ask(capsys, "attention", "--target", "a100-sxm-80gb", "--target", "h100-sxm", "--target", "b200")
    assert found["flags"] == ["descriptors", "warp_specialize"]  # type: ignore[index,call-overload]
    flags = {name: answer["flags"] for name, answer in found["targets"].items()}  # type: ignore[index,call-overload]
    assert "sm_80 has no unit" in flags["a100-sxm-80gb"]["descriptors"] and flags["h100-sxm"]["descriptors"] == ""
    assert "sm_90 aborts" in flags["h100-sxm"]["warp_specialize"] and set(flags["b200"].values()) == {""}
    assert ask(capsys, "decode", "--target", "b200")["targets"]["b200"]["flags"] == {}  # type: ignore[index,call-overload]
    answer = ask(capsys, "attention", "--target", "a100-sxm-80gb", "--dtype", "fp8_e4m3")["targets"]["a100-sxm-80gb"]  # type: ignore[index,call-overload]
    assert not answer["configurations"] and "has no fp8 tensor cores" in next(iter(answer["excluded"]))


def test_a_build_with_a_flag_is_answered_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("attention", "--source", "closed_form", "--config", BUILD + ",descriptors=1", "--dtype", "fp8_e4m3", "--target")
    fine = ask(capsys, *words, "b200")
    assert isinstance(fine, dict) and fine["status"] == "ok" and fine["configuration"]["descriptors"] is True
    assert fine["shared_bytes"] == shared_bytes(Heads(128, 128, 1), Config(128, 64, 8, 2), 100) < 60000
    out = ask(capsys, *words, "a100-sxm-80gb")
    assert isinstance(out, dict) and out["status"] == "excluded" and "sm_80 has no fp8" in out["reason"]


@pytest.mark.parametrize(("target", "flag", "reason"), [
    ("a100-sxm-80gb", "descriptors", "sm_80 has no unit that reads tensor descriptors"),
    ("h100-sxm", "descriptors", "descriptors: can be built and given to a launch; a search does not try it"),
    ("h100-sxm", "warp_specialize", "Triton's pass for sm_90 aborts"),
])  # fmt: skip
def test_a_search_explains_why_it_is_without_a_flag(
    capsys: pytest.CaptureFixture[str], target: str, flag: str, reason: str
) -> None:
    words = ["attention", "--seq", "4096", "--heads", "8", "--head-dim", "128", "--target", target]
    assert main(["tune", *words, "--explain", f"{BUILD},{flag}=1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["valid"] and reason in found["reason"]


def test_silent_failures_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("BLOCK_M=128,BLOCK_N=128,num_warps=8,num_stages=4", "h100-sxm"): ("shared_memory", "294912"),
        ("BLOCK_M=256,BLOCK_N=128,num_warps=8,num_stages=1", "b200"): ("tensor_memory", "640 columns"),
        ("BLOCK_M=64,BLOCK_N=64,num_warps=8,num_stages=2", "h100-sxm"): ("excluded", "repeat each other's work"),
        ("BLOCK_M=128,BLOCK_N=128,num_warps=4,num_stages=1", "a100-sxm-80gb"): ("excluded", "registers a thread"),
    }
    for (config, target), (status, reason) in cases.items():
        found = ask(capsys, "attention", "--config", config, "--target", target, "--source", "closed_form")
        assert isinstance(found, dict)
        assert found["status"] == status and reason in found["reason"], found


@pytest.mark.parametrize(("words", "message"), [
    (["attn"], "expected one of: attention"),
    (["attention", "--config", "BLOCK_M=96,BLOCK_N=64,num_warps=8,num_stages=2"], "block_m is 96"),
    (["attention", "--config", "BLOCK_M=64"], "missing"),
    (["attention", "--config", "BLOCK_K=64"], "expected BLOCK_M, BLOCK_N, num_warps, num_stages, each once"),
    (["attention", "--config", ""], "expected NAME=INTEGER"),
    (["attention", "--config", BUILD.replace("num_warps=8", "num_warps=64")], "num_warps is 64"),
    (["attention", "--config", BUILD.replace("num_stages=2", "num_stages=0")], "num_stages is 0"),
    (["attention", "--target", "mi300x"], "compute capability is gfx942"),
    (["attention", "--target", "fusemax"], "expected a GPU"),
    (["attention", "--rank", "4"], "no bias factors"),
    (["flashbias", "--rank", "200"], "expected 1 to 128"),
    (["attention", "--head-dim", "512"], "expected 32 to 256"),
    (["attention", "--dtype", "fp64"], "--dtype"),
    (["decode", "--dtype", "fp8_e4m3"], "expected one of: bf16, fp16"),
    (["attention", "--config", BUILD + ",descriptors=3"], "descriptors is 3, expected 0 or 1"),
    (["attention", "--source", "guess"], "--source"),
    (["--config", BUILD], "NAME"),
])  # fmt: skip
def test_bad_input_is_one_message(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["kernels", *words]) == 2
    told = capsys.readouterr()
    assert message in told.err and "Traceback" not in told.err and not told.out


def test_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "flashbias", "--config", BUILD, "--target", "h100-sxm", "--source", "table"]) == 0
    told = capsys.readouterr().out
    assert "registers" in told and "the cascade asks for 13" in told
    build = "BLOCK_M=64,BLOCK_N=32,num_warps=4,num_stages=1"
    assert main(["kernels", "gla", "--config", build, "--target", "h100-sxm", "--source", "table"]) == 0
    assert "inner loop not checked: a chunk's decays" in capsys.readouterr().out
