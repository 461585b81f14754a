"""FuseMax's published tables and headlines, met within the bars; the rows that need the tables skip without them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from einsight.reports import fusemax
from einsight.reports.fusemax import ARTIFACT, MODELS, SEQUENCES, TARGETS
from einsight.sim.array_design import load_design

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("EINSIGHT_REFERENCE", ROOT.parent / "shared" / "reference")) / "fusemax"
needs_tables = pytest.mark.skipif(
    not (FOLDER / "attn-binding.csv").is_file(), reason=f"no published tables in {FOLDER}; EINSIGHT_REFERENCE names them"
)


def off(ours: float, published: float) -> float:
    return abs(ours / published - 1)


@needs_tables
@pytest.mark.parametrize("design", list(TARGETS))
def test_attention_rows(design: str) -> None:
    known = fusemax.published(FOLDER)
    rows = [r for r in fusemax.attention([design], replicate=ARTIFACT) if r.key in known]
    assert len(rows) >= 18
    for row in rows:
        table = known[row.key]
        assert off(row.traffic_bytes, table["traffic"]) < 1e-9, row.key
        assert off(row.latency_s, table["latency"]) < 1e-9, row.key
        assert off(row.energy_pj, table["energy"]) < 1e-4, row.key
        assert off(row.util_2d, table["util_2d"]) < 1e-9 and off(row.util_1d, table["util_1d"]) < 1e-9, row.key


@needs_tables
@pytest.mark.parametrize("design", list(TARGETS))
def test_utilisation_of_each_einsum_on_the_2d_array(design: str) -> None:
    known = fusemax.published(FOLDER)
    for row in fusemax.attention([design], replicate=ARTIFACT):
        for name, value in known.get(row.key, {}).items():
            ours = row.einsums.get(name, row.einsums.get(f"B{name}"))  # one_pass writes BQK for the tables' QK
            if name.isupper() and ours is not None:
                assert off(ours, value) < 1e-9, (row.key, name)


@needs_tables
def test_linear_layers() -> None:
    known = fusemax.published_layers(FOLDER)
    assert len(known) >= 36
    for (profile, model, seq_len), table in known.items():
        found = fusemax.linear(profile, MODELS[model], seq_len, ARTIFACT)
        assert off(found.dram_bytes, table["traffic"]) < 1e-8
        assert off(found.time_s, table["latency"]) < 1e-8
        assert off(sum(found.energy_pj.values()), table["energy"]) < 1e-8


@needs_tables
def test_arrays_of_other_sizes() -> None:
    known = fusemax.published_pareto(FOLDER)
    rows = [r for r in fusemax.pareto(replicate=ARTIFACT) if (r.row.model, r.side) in known]
    assert len(rows) >= 18
    for row in rows:
        table = known[row.row.model, row.side]
        found = {"traffic": row.row.traffic_bytes, "latency": row.row.latency_s, "mem_lat": row.memory_s,
                 "comp_2d_lat": row.array_2d_s, "comp_1d_lat": row.array_1d_s, "array_2d_area": row.array_2d_um2}  # fmt: skip
        for name, ours in found.items():
            assert off(ours, table[name]) < 1e-9, (row.row.model, row.side, name)
        assert off(row.area_um2, table["area"]) < 0.03


@needs_tables
def test_flats_mappings_are_those_of_its_search() -> None:
    """The facts restated in the design file, row by row, against the published table."""
    rows = fusemax.read_table(FOLDER / "flat_mappings.csv")
    restated = {(p.e, p.n): p.residency for p in load_design("flat-fused").published}
    cloud = [r for r in rows if r["platform"] == "cloud"]
    assert {(int(r["E"]), int(r["M"])) for r in cloud} == set(restated)
    where = {"onchip": "whole", "offchip": "stream"}
    for row in cloud:
        found = restated[int(row["E"]), int(row["M"])]
        assert found.dataflow == row["QK_stationarity"] == row["AV_stationarity"]
        assert found.rows == ("all" if row["fusion_granularity"] == "head" else int(row["P1"]))
        locations = (found.queries, found.keys, found.values, found.outputs)
        assert locations == tuple(where[row[f"{t}_loc"]] for t in ("Q", "K", "V", "AV"))
        assert (found.scores == "chip") == (row["QK_loc"] == "onchip") == (row["A_loc"] == "onchip")
        assert found.spilled == float(row["proportion_spilled"])


# -- without the tables: test vectors of the paper's artifact, and the paper's own numbers

VECTORS = {  # BERT, 1K tokens: bytes, seconds, pJ
    "unfused": (6845104128, 0.02182357659574468, 2605413731452.846),
    "flat": (1308622848, 0.013386076595744681, 2485343541836.59),
    "cascade": (402653184, 0.015333855319148937, 2241395704198.6035),
    "architecture": (402653184, 0.005987131914893616, 1950645149855.2659),
    "binding": (402653184, 0.002013140425531915, 1950645149855.2659),
}


@pytest.mark.parametrize("design", list(VECTORS))
def test_the_first_row_of_each_table(design: str) -> None:
    (row,) = fusemax.attention([design], [MODELS["BERT"]], ["1K"], ARTIFACT)
    assert row.traffic_bytes == VECTORS[design][0]
    assert row.latency_s == pytest.approx(VECTORS[design][1], rel=1e-12)
    assert row.energy_pj == pytest.approx(VECTORS[design][2], rel=1e-4)


def means(rows: object) -> Mapping[str, float]:
    return {h.what: h.mean for h in fusemax.headlines(rows)}  # type: ignore[arg-type]


def test_headlines_of_the_paper() -> None:
    found = fusemax.headlines(fusemax.attention(replicate=ARTIFACT), fusemax.layers(replicate=ARTIFACT))
    printed = {h.what: (h.mean, h.printed) for h in found if h.printed}
    assert len(printed) == 8
    for what, (mean, paper) in printed.items():
        digits = 2 if paper < 1 else 0 if paper == 10 else 1
        assert round(mean, digits) == paper, what
    assert all(h.low <= h.geometric <= h.mean <= h.high for h in found)


def test_each_omission_moves_the_headlines_its_own_way() -> None:
    found = fusemax.differences()
    assert len(found) == len(ARTIFACT) + 2
    base = {h.what: h.mean for h in found.pop("as published")}
    change = {name: {h.what: h.mean / base[h.what] for h in heads} for name, heads in found.items()}
    energy, speed = "attention energy over FLAT", "attention speedup over FLAT"
    assert change[f"without: {fusemax.MEANING['wrap']}"][energy] > 1.005
    assert change[f"without: {fusemax.MEANING['registers']}"][energy] > 1.05
    assert change[f"without: {fusemax.MEANING['one cycle']}"][speed] > 1.15
    assert change[f"without: {fusemax.MEANING['energy left out']}"]["+Cascade energy over FLAT"] > 1.02
    assert change[f"without: {fusemax.MEANING['binary bandwidth']}"][speed] > 1.01
    assert 0.99 < change[f"without: {fusemax.MEANING['no fill']}"][speed] < 1


def test_a_layer_is_its_attention_and_its_linear_layers() -> None:
    (row,) = fusemax.layers(["binding"], [MODELS["XLM"]], ["4K"])
    assert row.total.latency_s == row.attention.latency_s + row.linear.time_s
    assert row.total.traffic_bytes == row.attention.traffic_bytes + row.linear.dram_bytes
    useful = row.attention.util_2d * row.attention.latency_s + row.linear.busy_s
    assert row.total.util_2d == pytest.approx(useful / row.total.latency_s)


def test_other_lengths_and_the_order_of_rows() -> None:
    rows = fusemax.attention(["binding", "flat"], [MODELS["T5"]], ["8K", "24K", "1000"])
    assert [r.key for r in rows] == [(d, "T5", s) for d in ("binding", "flat") for s in ("8K", "24K", "1000")]
    assert len(fusemax.attention()) == len(TARGETS) * len(MODELS) * len(SEQUENCES) == 120
    assert len(fusemax.pareto(list(MODELS.values()))) == 24


def test_the_means_on_the_page_are_those_computed() -> None:
    page = (ROOT / "docs" / "spatial-arrays.md").read_text(encoding="utf-8")
    table = [line for line in page.split("| what the numbers contain |")[1].splitlines()[2:] if line.startswith("|")]
    shown = [[float(cell) for cell in line.split("|")[2:-1]] for line in table]
    found = fusemax.differences()
    order = ["binary bandwidth", "one cycle", "row blocks", "wrap", "registers", "no fill"]
    names = ["as published", *(f"without: {fusemax.MEANING[name]}" for name in order), "none of these"]
    assert len(shown) == len(names)
    for name, row in zip(names, shown, strict=True):
        for value, headline in zip(row, found[name][:6], strict=True):
            assert value == pytest.approx(headline.mean, abs=0.006 if value > 9 else 0.0006), (name, headline.what)
