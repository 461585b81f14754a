"""The model reads the cascade: another operator in its text moves the right unit's cycles, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from einsight.einsum import library
from einsight.sim.array import Run, run
from einsight.sim.array_case import IllegalArray
from einsight.sim.array_design import load_design, names
from einsight.sim.array_flow import flow
from einsight.sim.array_hardware import Array
from einsight.sim.array_schedule import first_fit
from einsight.sim.hardware import PROFILES, load_hardware
from einsight.sim.workload import Workload

ONE_PASS = (library.FOLDER / "one_pass.casc").read_text(encoding="utf-8")


def array(name: str) -> Array:
    found = load_hardware(name)
    assert isinstance(found, Array)
    return found


def with_function(folder: Path, name: str, unit: str, text: str) -> Array:
    """A copy of a shipped profile whose unit has one more function."""
    lines = (PROFILES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    at = lines.index(f"{unit}:")
    row = next(i for i in range(at, len(lines)) if lines[i].startswith("  functions: {"))
    lines[row] = lines[row].removesuffix("}") + f", {text}}}"
    path = folder / f"{name}.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    found = load_hardware(path)
    assert isinstance(found, Array)
    return found


def edited(folder: Path, old: str, new: str) -> str:
    """one_pass with one line of its text changed, as a file of a user."""
    assert ONE_PASS.count(old) == 1
    path = folder / "edited.casc"
    path.write_text(ONE_PASS.replace(old, new), encoding="utf-8")
    return str(path)


def at(cascade: str, on: Array, design: str = "binding") -> Run:
    return run(Workload.attention(batch=2, heads=3, seq_q=1024, head_dim=64, cascade=cascade), on, load_design(design))


PLAIN, SIGMOID = "SLN[n1,n0,m]  = exp(BQK[n1,n0,m] - RM[n1+1,m])", "SLN[n1,n0,m]  = sigmoid(BQK[n1,n0,m] - RM[n1+1,m])"


def test_exp_to_sigmoid_is_refused_where_the_array_lacks_it(tmp_path: Path) -> None:
    with pytest.raises(IllegalArray) as refused:
        at(edited(tmp_path, PLAIN, SIGMOID), array("fusemax"))
    for part in ("fusemax: the 2-D array has no sigmoid", "SLN", "binding", "functions: {sigmoid: ...}"):
        assert part in str(refused.value)


def test_the_function_makes_it_legal_and_moves_cycles_energy_and_area(tmp_path: Path) -> None:
    u = 2 * 3 * 1024**2 / 256**2
    before = at("one_pass", array("fusemax"))
    made = with_function(tmp_path, "fusemax", "array_2d", "sigmoid: 9")
    after = at(edited(tmp_path, PLAIN, SIGMOID), made)
    assert (before.cycles["SLN"], after.cycles["SLN"]) == (7 * u, 10 * u)  # 6 + 1 and 9 + 1 a score
    assert {n: c for n, c in before.cycles.items() if n != "SLN"} == {n: c for n, c in after.cycles.items() if n != "SLN"}
    assert sum(e.length for e in after.epochs) == sum(e.length for e in before.epochs) + 3 * u
    points, unit = 2 * 3 * 1024**2, made.technology.functions["sigmoid"]
    assert after.energy_pj["2-D array"] - before.energy_pj["2-D array"] == pytest.approx(
        points * (unit.energy_pj.value - 6 * 17.1645), rel=1e-9
    )
    assert unit.area_um2 is not None
    assert after.areas_um2["2-D array"] - before.areas_um2["2-D array"] == pytest.approx(
        256**2 * unit.area_um2.value, rel=1e-9
    )


def test_a_function_with_numbers_of_its_own(tmp_path: Path) -> None:
    text = 'sigmoid: {cycles: 2, energy: "50 pJ", area: "100 um^2", kind: assumed, source: "a test"}'
    made = with_function(tmp_path, "fusemax", "array_2d", text)
    found = at(edited(tmp_path, PLAIN, SIGMOID), made)
    assert found.cycles["SLN"] == 3 * 2 * 3 * 1024**2 / 256**2
    assert made.areas_um2()["2-D array"] - array("fusemax").areas_um2()["2-D array"] == pytest.approx(256**2 * 100)


def test_a_function_made_of_others_costs_no_area(tmp_path: Path) -> None:
    made = with_function(tmp_path, "fusemax", "array_2d", "sigmoid: {macc: 12}")
    assert at(edited(tmp_path, PLAIN, SIGMOID), made).cycles["SLN"] == 13 * 2 * 3 * 1024**2 / 256**2
    assert made.areas_um2() == array("fusemax").areas_um2()


def test_an_operator_of_the_vector_array_moves_the_vector_array(tmp_path: Path) -> None:
    """PRM is per chunk: a second exponential there costs the 1-D array 6 cycles a tile and the 2-D array nothing."""
    found = at(edited(tmp_path, "PRM[n1,m]     = exp(RM[n1,m] - RM[n1+1,m])", "PRM[n1,m] = exp(exp(RM[n1,m] - RM[n1+1,m]))"),
               array("fusemax"))  # fmt: skip
    before, u = at("one_pass", array("fusemax")), 2 * 3 * 1024**2 / 256**2
    assert found.cycles["PRM"] - before.cycles["PRM"] == 6 * u
    assert found.bounds_s["2-D array"] == before.bounds_s["2-D array"]


def test_the_names_of_the_chunks_do_not_matter(tmp_path: Path) -> None:
    text = ONE_PASS.replace("N1", "T").replace("N0", "C").replace("n1", "t").replace("n0", "c")
    path = tmp_path / "renamed.casc"
    path.write_text(text, encoding="utf-8")
    before, after = at("one_pass", array("fusemax")), at(str(path), array("fusemax"))
    assert (before.time_s, before.dram_bytes, before.energy_pj) == (after.time_s, after.dram_bytes, after.energy_pj)


LEGAL = {
    "flash1": "all but flat on binding and architecture", "one_pass": "all but flat on binding and architecture",
    "split_kv": "all but flat on binding and architecture", "stable_deferred": "all but flat on binding and architecture",
    "naive_deferred": "all but flat on binding and architecture", "linear": "all",
    "stable": "vector division only", "naive": "vector division only", "two_pass": "vector division only",
    "sigmoid": "none",
}  # fmt: skip
"""Which targets run each cascade of the library: a 2-D element of `flat` only multiplies, one of `fusemax` cannot
divide, none has a sigmoid."""


@pytest.mark.parametrize("cascade", ["gla", "lightning"])
def test_a_recurrence_is_refused(cascade: str) -> None:
    with pytest.raises(IllegalArray, match="walks one sequence in chunks"):
        at(cascade, array("fusemax"))


@pytest.mark.parametrize("cascade", sorted(LEGAL))
@pytest.mark.parametrize("design", names())
@pytest.mark.parametrize("name", ["fusemax", "flat", "edge-32"])
def test_every_cascade_of_the_library_runs_or_says_why(cascade: str, design: str, name: str) -> None:
    all_pairs_on_2d = design in ("binding", "architecture")
    legal = {
        "all": True, "none": False, "vector division only": not all_pairs_on_2d,
        "all but flat on binding and architecture": not (name == "flat" and all_pairs_on_2d),
    }[LEGAL[cascade]]  # fmt: skip
    workload = Workload.attention(heads=4, seq_q=700, head_dim=32, cascade=cascade)
    if not legal:
        with pytest.raises(IllegalArray, match=r"has no (div|max|sigmoid|exp|add|mul|sub)"):
            run(workload, array(name), load_design(design))
        return
    found = run(workload, array(name), load_design(design))
    assert found.time_s >= max(v for n, v in found.bounds_s.items() if n != "schedule") * (1 - 1e-12)
    assert 0 < max(found.busy.values()) <= 1 + 1e-12
    least = sum(found.case.words(t.name) for t in found.case.flow.data.values() if t.role != "inner") * 2
    assert found.dram_bytes >= least * (1 - 1e-12)  # everything is read and written at least once


def test_the_rule_for_epochs_finds_the_published_binding() -> None:
    """First fit over the cascade's dependencies gives the epochs that FuseMax was bound to by hand."""
    design = load_design("binding")
    for e, n in ((64, 1024), (96, 8192), (128, 65536)):
        found = run(Workload.attention(heads=2, seq_q=n, head_dim=e), array("fusemax"), design)
        by_rule = first_fit(found.case.flow, found.cycles, wrap=True)
        assert [set(g) for g in by_rule] == [set(g) for g in design.schedule.epochs]


def test_epochs_keep_the_order_of_the_cascade() -> None:
    """Without wrapping, what an Einsum reads of its tile is in an earlier epoch, or in its own on the same array."""
    for cascade in ("one_pass", "flash1", "stable_deferred", "split_kv"):
        workload = Workload.attention(heads=2, seq_q=512, head_dim=64, cascade=cascade)
        found = run(workload, array("fusemax"), load_design("binding"))
        groups = first_fit(found.case.flow, found.cycles, wrap=False)
        when = {name: k for k, group in enumerate(groups) for name in group}
        assert sorted(when) == sorted(s.name for s in found.case.flow.stages)
        for stage in found.case.flow.stages:
            for other in (s for s in found.case.flow.stages if s.name in stage.same_step and s is not stage):
                assert when[other.name] + (other.unit != stage.unit) <= when[stage.name]


def test_the_flow_of_a_composed_cascade() -> None:
    found = flow(Workload.attention(heads=2, seq_q=512, head_dim=64).composed(masked=False), ("matmul",))
    assert [s.name for s in found.on("2d")] == ["BQK", "SLNV"]
    walks = {s.name: s.walk for s in found.stages}
    assert walks["SLN"] == "pairs" and walks["RNV"] == "chunks" and walks["AV"] == "rows"
    carried = {d.name for d in found.data.values() if d.carried}
    assert carried == {"RM", "RD", "RNV"}
