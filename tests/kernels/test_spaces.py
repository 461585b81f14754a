"""Configuration spaces and closed forms: pure data, no torch."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from einsight.kernels.band import Band, band
from einsight.kernels.catalog import KERNELS, kernel
from einsight.kernels.spaces import (
    ATTENTION,
    LIMITS,
    AttentionConfig,
    Config,
    Heads,
    accumulators_per_thread,
    configurations,
    default_config,
    excluded,
    matrix_instruction,
    parse_config,
    shared_bytes,
    tmem_columns,
)

REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
BARRIERS = 1024  # and alignment, of tiles that descriptors read
TCGEN05_SCRATCH = 4096  # barriers and reduction scratch that the closed form does not know


def recorded() -> list[dict[str, int]]:
    file = REFERENCE / "triton_offline_compile.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not there (name the folder by EINSIGHT_REFERENCE)")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_closed_forms_agree_with_every_recorded_compilation() -> None:
    rows = recorded()
    assert len(rows) == 384
    for row in rows:
        heads, capability = Heads(row["D"], row["D"]), row["cc"]
        config = Config(row["BM"], row["BN"], row["nw"], row["ns"])
        extra = row["shared"] - shared_bytes(heads, config, capability)
        allowed = TCGEN05_SCRATCH if matrix_instruction(config, capability) == "tcgen05" else 0
        assert 0 <= extra <= allowed, (row, extra)
        assert tmem_columns(heads, config, capability) == row["tmem"], row


def test_closed_forms_of_fp8_and_of_unlike_head_dimensions_agree_with_compilations() -> None:
    """`shared_memory_builds.csv`: attention compiled with Triton 3.7.1, causal, 8 heads on 2, 4096 keys."""
    with Path(__file__).with_name("shared_memory_builds.csv").open() as file:
        rows = [{name: int(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert {row["capability"] for row in rows if row["element_bytes"] == 1} == {89, 90, 100, 120} and len(rows) > 60
    for row in rows:
        heads, capability = Heads(row["e"], row["f"], row["element_bytes"]), row["capability"]
        tiles = [row[name] for name in ("block_m", "block_n", "num_warps", "num_stages")]
        config = AttentionConfig(*tiles, bool(row["descriptors"]), bool(row["warp_specialize"]))
        extra = row["shared_bytes"] - shared_bytes(heads, config, capability)
        tcgen05 = matrix_instruction(config, capability) == "tcgen05"
        allowed = TCGEN05_SCRATCH if tcgen05 else BARRIERS if config.descriptors else 0
        assert 0 <= extra <= allowed, (row, extra)
        assert tmem_columns(heads, config, capability) == row["tmem_columns"], row


def test_flags_are_written_read_and_judged() -> None:
    text = "BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2,descriptors=1"
    config = parse_config(text)
    assert config == AttentionConfig(128, 64, 8, 2, descriptors=True) and str(config) == text
    assert parse_config(text.replace("descriptors=1", "warp_specialize=0")) == Config(128, 64, 8, 2)
    with pytest.raises(ValueError, match="descriptors is 2, expected 0 or 1"):
        parse_config(text.replace("descriptors=1", "descriptors=2"))
    both = parse_config(text + ",warp_specialize=1")
    for name, entry in KERNELS.items():
        why = entry.excluded(Heads(128, 128, rank=entry.rank, matrix=entry.matrix), both, LIMITS[100])
        assert (why == "") == (name == "attention")
        assert not why or why == "descriptors and warp_specialize: of the kernels only attention is built both ways"
    rule = KERNELS["attention"].excluded
    assert "sm_80 has no unit" in rule(Heads(128, 128), config, LIMITS[80]) and rule(Heads(128, 128), config, LIMITS[90]) == ""
    assert "sm_90 aborts" in rule(Heads(128, 128), both, LIMITS[90]) and "sm_120" in rule(Heads(128, 128), both, LIMITS[120])
    assert "has no fp8 tensor cores" in rule(Heads(128, 128, 1), Config(128, 64, 8, 2), LIMITS[80])
    assert rule(Heads(128, 128, 1), Config(128, 64, 8, 2), LIMITS[89]) == ""
    large = parse_config("BLOCK_M=128,BLOCK_N=128,num_warps=8,num_stages=4,descriptors=1")
    assert "294912 bytes" in rule(Heads(128, 128), large, LIMITS[90])


def test_what_the_space_excludes_is_what_the_recorded_compilations_show_to_be_unusable() -> None:
    """Kept: nothing above the limits and no assembler that gave up. Left out for registers: all of them spill a lot."""
    candidates = set(ATTENTION.candidates())
    for row in recorded():
        heads, limits = Heads(row["D"], row["D"]), LIMITS[row["cc"]]
        config = Config(row["BM"], row["BN"], row["nw"], row["ns"])
        if config not in candidates:
            continue
        why = excluded(heads, config, limits)
        if not why:
            assert row["shared"] <= limits.shared_bytes_per_block and row["tmem"] <= limits.tmem_columns, row
            assert row["stack"] <= 1024, row
        elif "registers" in why and row["reg"] != 4:  # 4 registers: the trap stub of a tile beyond tensor memory
            assert row["stack"] >= 256, row


def test_shared_memory_by_hand() -> None:
    D, tile = 128, 128 * 128 * 2
    heads = Heads(D, D)
    assert shared_bytes(heads, Config(128, 128, 8, 2), 90) == tile + 2 * 2 * tile  # Q, and two pairs of K and V
    assert shared_bytes(heads, Config(128, 128, 8, 2), 80) == tile + 1 * 2 * tile
    assert shared_bytes(heads, Config(128, 128, 8, 1), 90) == 2 * tile
    assert shared_bytes(heads, Config(64, 64, 4, 2), 80) == 3 * 64 * D * 2 + 64 * 64 * 2  # and the weights
    assert shared_bytes(Heads(192, 128), Config(128, 64, 8, 3), 90) == 128 * 256 * 2 + 3 * 64 * (256 + 128) * 2


def test_shared_memory_of_a_bias_by_hand() -> None:
    """One stage: with mma.sync tiles follow each other in the same place, wgmma needs both operands of the score."""
    D, R, M, N = 128, 16, 128, 64
    q, k, pq, pk, score = (2 * size for size in (M * D, N * D, M * R, N * R, M * N))
    factors, matrix, build = Heads(D, D, rank=9), Heads(D, D, matrix=True), Config(M, N, 8, 1)
    assert shared_bytes(factors, build, 80) == q + pq + k and shared_bytes(matrix, build, 80) == q + max(k, score)
    assert shared_bytes(factors, build, 90) == q + pq + k + pk and shared_bytes(matrix, build, 90) == q + k + score
    deep = Config(M, N, 8, 3)
    assert shared_bytes(factors, deep, 90) == q + pq + 3 * (k + pk + k)
    assert shared_bytes(matrix, deep, 80) == q + 2 * (k + k) + score


def test_registers_by_hand() -> None:
    assert accumulators_per_thread(Heads(128, 64), Config(128, 32, 4, 2)) == (128 * 32 + 128 * 64) / 128


@pytest.mark.parametrize("capability", LIMITS)
@pytest.mark.parametrize("width", [32, 64, 96, 128, 192, 256])
def test_every_candidate_is_in_or_has_a_reason(capability: int, width: int) -> None:
    heads, limits = Heads(width, width), LIMITS[capability]
    valid = configurations(heads, limits)
    candidates = list(ATTENTION.candidates())
    assert 8 <= len(valid) <= 160 and len(set(candidates)) == len(candidates)
    left_out = {config: excluded(heads, config, limits) for config in candidates if config not in valid}
    assert all(left_out.values())
    assert default_config(width, width) in valid


def test_reasons_name_their_numbers() -> None:
    wide, limits = Heads(128, 128), LIMITS[90]
    assert excluded(wide, Config(128, 128, 8, 4), limits) == "294912 bytes of shared memory, a block may have 232448"
    assert "repeat each other's work" in excluded(wide, Config(64, 64, 8, 2), limits)
    assert "256 registers a thread" in excluded(wide, Config(128, 128, 4, 1), limits)
    assert "no whole group of 4" in excluded(Heads(32, 32), Config(64, 32, 2, 1), limits)
    assert "640 columns of tensor memory" in excluded(wide, Config(256, 128, 16, 1), LIMITS[100])
    assert "idle" in excluded(wide, Config(128, 32, 8, 1), limits, rows=40)
    assert not excluded(wide, Config(64, 32, 4, 1), limits, rows=40)


def test_configurations_are_written_and_read() -> None:
    config = Config(128, 64, 8, 2)
    assert str(config) == "BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2"
    assert parse_config(str(config)) == config
    for text, message in (
        ("BLOCK_M=128", "block_n, num_warps, num_stages missing"),
        ("BLOCK_M=x", "expected NAME=INTEGER"),
        ("BLOCK_K=4", "'block_k' is unknown"),
        ("BLOCK_M=4,BLOCK_M=4", "given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_config(text)


def test_bands() -> None:
    assert band() == Band() and Band().dense
    assert band(causal=True) == Band(None, 0, "last")
    assert band(causal=True, window=4) == Band(3, 0) and band(window=4) == Band(3, 3)
    assert Band(align="last").diagonal(0, M=3, N=10) == 7 and Band(align="first").diagonal(2, M=3, N=10) == 2
    for wrong in ({"window": 0}, {"window": (2, 1), "causal": True}, {"align": "end"}, {"window": (-1, 0)}):
        with pytest.raises(ValueError, match="got"):
            band(**wrong)  # type: ignore[arg-type]


def test_the_catalog_names_cascades_that_exist() -> None:
    cascades = Path(__file__).parents[2] / "einsum" / "cascades"
    for entry in KERNELS.values():
        assert (cascades / f"{entry.cascade}.casc").exists()
    with pytest.raises(KeyError, match="attention"):
        kernel("attenton")


def test_limits_agree_with_the_architecture_profiles() -> None:
    """The same fact stands in `hw_profiles/` for the models and here for kernels that run without them."""
    yaml = pytest.importorskip("yaml")
    folder = Path(__file__).parents[2] / "hw_profiles" / "architectures"
    checked = 0
    for file in folder.glob("sm_*.yaml"):
        limits = LIMITS[int(file.stem.removeprefix("sm_"))]
        text = json.dumps(yaml.safe_load(file.read_text()))
        assert f"{limits.shared_bytes_per_block // 1024} KiB" in text, file.name
        assert f"{limits.shared_bytes // 1024} KiB" in text, file.name
        checked += 1
    assert checked >= 4
