"""Which builds of every kernel are valid for a workload, why others are not, and what the simulator says of them."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from einsight.kernels.builds import config_of, told
from einsight.kernels.catalog import KERNELS
from einsight.kernels.decode_space import decode_excluded
from einsight.kernels.gna_space import BoxConfig
from einsight.kernels.spaces import Config, excluded
from einsight.sim.hardware import Gpu, load_hardware
from einsight.sim.mapping import Mapping as TileMapping
from einsight.sim.mask import Mask
from einsight.sim.workload import Workload
from einsight.tuner import prior
from einsight.tuner.pool import ALIKE, TIED, Pool, spread_order
from einsight.tuner.problem import BoxProblem, ChunkProblem, PackedProblem, Problem, computes, kinds, problem_of, written
from einsight.tuner.space import SpaceError

GRID = {"gna": {"layout": [12, 20], "window": [6, 10], "stride": [2, 2]}}
ATTENTION = Workload.attention(heads=32, kv_heads=8, seq_q=4096, head_dim=128, mask="causal")
WORKLOADS = {
    "attention": ATTENTION,
    "flashbias": Workload.attention(heads=8, seq_q=2048, head_dim=64, bias={"kind": "low_rank", "r": 16}, dtype="fp16"),
    "attention_with_bias": Workload.attention(heads=8, seq_q=2048, head_dim=64, bias="dense_bias"),
    "sigmoid": Workload.attention(heads=8, seq_q=2048, head_dim=64, cascade="sigmoid"),
    "decode": Workload.attention(batch=4, heads=32, kv_heads=8, seq_q=1, seq_kv=8192, head_dim=128, cascade="split_kv"),
    "lightning": Workload.attention(heads=8, seq_q=2048, head_dim=128, cascade="lightning"),
    "gla": Workload.attention(heads=8, seq_q=2048, head_dim=128, cascade="gla"),
    "gna": Workload.attention(heads=8, seq_q=240, head_dim=64, mask=[GRID]),
}


def gpu_of(name: str = "h100-sxm") -> Gpu:
    found = load_hardware(name)
    assert isinstance(found, Gpu)
    return found


def problem(capability: int = 90, workload: Workload = ATTENTION) -> Problem:
    return Problem(KERNELS["attention"], workload, capability)


def test_every_kernel_of_the_catalogue_is_tried_here() -> None:
    assert set(WORKLOADS) == set(KERNELS)


@pytest.mark.parametrize("name", sorted(WORKLOADS))
@pytest.mark.parametrize("target", ["h100-sxm", "a100-sxm-80gb"])
def test_every_kernel_has_a_space_reasons_and_a_ranking(name: str, target: str) -> None:
    gpu = gpu_of(target)
    at = problem_of(KERNELS[name], WORKLOADS[name], round(10 * float(gpu.architecture.compute_capability)))
    configs, space = at.configurations(), at.space()
    assert len(space) == len(configs) > 8 and [config_of(space.configuration(r)) for r in range(len(space))] == list(configs)
    assert all(at.why_excluded(str(c)) == "" and at.parse(str(c)) == c for c in configs[:20])
    out = [c for c, why in at.answers.items() if why]
    assert len(at.answers) == len(configs) + len(out) and sum(kinds(at.answers.values()).values()) == len(at.answers)
    logs = prior.simulated(at, gpu)
    assert logs.shape == (len(space),) and np.isfinite(logs).all() and np.ptp(logs) > 0
    seen = {at.seen(c, gpu): t for c, t in zip(configs, logs, strict=True)}
    assert all(seen[at.seen(c, gpu)] == t for c, t in zip(configs, logs, strict=True))


def test_decode_packs_the_query_heads_and_follows_its_own_rules() -> None:
    at = problem_of(KERNELS["decode"], WORKLOADS["decode"], 90)
    assert isinstance(at, PackedProblem) and at.rows == 4
    valid = [c for c in at.kernel.space.candidates() if not decode_excluded(at.heads, c, at.limits, 4)]
    assert list(at.configurations()) == valid and {c.block_m for c in valid} == {16}
    assert "64 rows for 4 packed queries" in at.why_excluded("BLOCK_M=64,BLOCK_N=64,num_warps=4,num_stages=2")
    gpu = gpu_of()
    for config in valid:
        mapping = at.mapping(config, gpu)
        blocks = 4 * 8 * mapping.splits  # batch, KV heads, pieces of each
        full = gpu.sms.value * mapping.blocks_per_sm
        assert mapping.pack_gqa and mapping.schedule == "persistent"
        assert abs(blocks - full) <= 16 or mapping.splits == math.ceil(8192 / config.block_n)  # as near as whole pieces get


def test_value_columns_of_a_recurrence_are_shared_by_programs() -> None:
    """8 heads leave most SMs idle, so narrower programs are faster; with enough heads they only repeat the scores."""
    few, many = (
        problem_of(KERNELS["gla"], Workload.attention(heads=h, seq_q=2048, head_dim=128, cascade="gla"), 90) for h in (8, 512)
    )
    gpu = gpu_of()
    wide, narrow = Config(64, 128, 4, 2), Config(64, 32, 4, 2)
    assert isinstance(few, ChunkProblem) and isinstance(many, ChunkProblem)
    assert few.seconds(few.seen(narrow, gpu), gpu) < few.seconds(few.seen(wide, gpu), gpu)
    same = TileMapping(64, 64, blocks_per_sm=2)
    assert many.seconds((same, many.as_run(narrow)), gpu) > many.seconds((same, many.as_run(wide)), gpu)


def test_neighborhoods_work_in_boxes() -> None:
    at = problem_of(KERNELS["gna"], WORKLOADS["gna"], 90)
    assert isinstance(at, BoxProblem)
    one = at.configurations()[0]
    assert isinstance(one, BoxConfig) and config_of(told(one)) == one
    assert set(told(one)) == {"q0", "q1", "k0", "k1", "num_warps", "num_stages"}
    assert "half of the tile is padding" in at.why_excluded("Q_TILE=64x1,KV_TILE=4x8,num_warps=4,num_stages=2")
    for wrong in ("BLOCK_M=64,BLOCK_N=64,num_warps=4,num_stages=2", "Q_TILE=3x8,KV_TILE=4x8,num_warps=4,num_stages=2",
                  "Q_TILE=64,KV_TILE=64,num_warps=4,num_stages=2", "Q_TILE=8x8,KV_TILE=8x8,num_warps=x,num_stages=2"):
        with pytest.raises(SpaceError, match="configuration"):
            at.why_excluded(wrong)


@pytest.mark.parametrize(
    ("name", "message"),
    [("flashbias", "no bias low_rank"), ("attention_with_bias", "no bias dense_bias"), ("gna", "no neighborhoods"),
     ("sigmoid", "computes something else than sigmoid")],
)  # fmt: skip
def test_a_kernel_refuses_what_it_does_not_compute(name: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        problem_of(KERNELS[name], ATTENTION, 90)
    assert not computes(KERNELS[name], ATTENTION) and computes(KERNELS[name], WORKLOADS[name])


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [("attention", {"head_dim": 16}, "sizes.e: got 16, expected a head dimension from 32 to 256"),
     ("attention", {"value_dim": 512}, "sizes.f: got 512"),
     ("attention", {"bias": "alibi"}, "bias alibi: kernel attention runs softcap and sink"),
     ("attention", {"bias": {"kind": "low_rank", "r": 16}}, "bias low_rank"),
     ("attention", {"mask": [{"gna": {"layout": [8, 8], "window": [4, 4]}}], "seq_q": 64}, "runs causal and window"),
     ("attention", {"mask": ["causal", {"prefix": 16}]}, "runs causal and window"),
     ("sigmoid", {"bias": "dense_bias"}, "kernel sigmoid runs no bias"),
     ("flashbias", {"bias": {"kind": "low_rank", "r": 129}}, "got rank 129, expected at most 128"),
     ("flashbias", {"bias": [{"kind": "low_rank", "r": 8}, "sink"]}, "bias sink: kernel flashbias runs low_rank")],
)  # fmt: skip
def test_a_problem_that_no_launch_takes_is_refused_without_a_gpu_too(name: str, given: dict[str, object], message: str) -> None:
    usual = {"heads": 4, "seq_q": 256, "head_dim": 64, "cascade": KERNELS[name].cascade}
    workload = Workload.attention(**(usual | given))  # type: ignore[arg-type]
    with pytest.raises(SpaceError, match=f"kernel {name}: .*{message}"):
        problem_of(KERNELS[name], workload, 90)
    assert not computes(KERNELS[name], workload)


def test_another_form_of_the_same_softmax_is_the_same_problem() -> None:
    """Records and files name the cascade in which a workload was written; a kernel computes it by its own."""
    for cascade in ("one_pass", "stable", "split_kv"):
        workload = Workload.attention(heads=8, seq_q=1, seq_kv=4096, head_dim=128, cascade=cascade)
        times = [np.exp(prior.simulated(problem_of(KERNELS[k], workload, 90), gpu_of())).min() for k in ("attention", "decode")]
        assert times[1] < times[0]  # one query of 8 heads: without pieces 8 of 132 SMs work


def test_ties_are_spread_over_the_space() -> None:
    """The simulator cannot tell stages apart; the first to be measured must differ in more than those."""
    at = problem()
    space, logs = at.space(), prior.simulated(at, gpu_of())
    first = spread_order(space.coordinates, logs, 16)
    assert len(set(first)) == 16 and logs[first[0]] == logs.min()
    for name, values in space.parameters.items():
        assert {space.configuration(r)[name] for r in first} >= set(values) - {32 if name == "block_m" else None, 2}, name
    for k, row in enumerate(first):  # nothing better was left out but for its likeness to what was chosen
        better = [r for r in range(len(space)) if r not in first[:k] and logs[r] < logs[row] - TIED]
        for other in better:
            alike = sum(np.count_nonzero(space.points[other] != space.points[c]) <= 1 for c in first[:k])
            assert alike >= ALIKE


def test_ties_of_a_long_prefill_are_as_the_page_says() -> None:
    """docs/tuner.md: they all have 8 warps, and the first three measured differ in key tile and in stages."""
    at = problem(workload=Workload.attention(heads=32, kv_heads=8, seq_q=8192, head_dim=128, mask="causal"))
    space, logs = at.space(), prior.simulated(at, gpu_of())
    tied = [space.configuration(r) for r in np.flatnonzero(logs <= logs.min() + TIED)]
    assert len(tied) > 3 and {c["num_warps"] for c in tied} == {8}
    first = [space.configuration(r) for r in Pool(space.coordinates, logs, 0, space.features).first[:3]]
    assert all(c in tied for c in first) and all(len({c[name] for c in first}) == 3 for name in ("block_n", "num_stages"))


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
def test_a_space_is_what_the_kernel_does_not_exclude(capability: int) -> None:
    at = problem(capability)
    valid = [c for c in at.kernel.space.candidates() if not excluded(at.heads, c, at.limits, 4096)]
    space = at.space()
    assert len(space) == len(valid) <= 160
    assert [space.configuration(r)["block_m"] for r in range(len(space))] == [c.block_m for c in valid]
    assert all((not at.why_excluded(str(c))) == (c in valid) for c in at.kernel.space.candidates())


def test_why_a_configuration_is_out() -> None:
    at = problem()
    assert at.why_excluded("BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2") == ""
    assert "255 exist" in at.why_excluded("BLOCK_M=256,BLOCK_N=128,num_warps=4,num_stages=3")
    assert "is not among the values searched: 1, 2, 3, 4" in at.why_excluded("BLOCK_M=64,BLOCK_N=32,num_warps=4,num_stages=5")
    with pytest.raises(SpaceError, match="num_stages missing"):
        at.why_excluded("BLOCK_M=128,BLOCK_N=64,num_warps=8")
    with pytest.raises(SpaceError, match="dtype: got fp8_e4m3"):
        problem(workload=Workload.attention(heads=4, seq_q=64, head_dim=64, dtype="fp8_e4m3"))
    with pytest.raises(SpaceError, match="compute capability 70"):
        problem(70)


def test_the_simulator_is_a_prior_over_the_whole_space() -> None:
    gpu = gpu_of()
    at = problem()
    logs = prior.simulated(at, gpu)
    assert logs.shape == (len(at.space()),) and np.isfinite(logs).all() and np.ptp(logs) > 0


def test_a_record_of_our_kernel_has_the_simulator_as_prior() -> None:
    from einsight.tuner.record import Status
    from einsight.tuner.recorded import Outcome, Recorded

    at, gpu = problem(), gpu_of()
    space = at.space()
    outcomes = (Outcome(Status.OK, (1e-3,)),) * len(space)
    record = Recorded("r", "attention", gpu.devices[0], space, outcomes, written(ATTENTION))
    np.testing.assert_allclose(prior.of_record(record), prior.simulated(at, gpu))
    for other, message in (
        (Recorded("r", "gemm", gpu.devices[0], space, outcomes, written(ATTENTION)), "no record of a kernel of ours"),
        (Recorded("r", "attention", "Unheard Of", space, outcomes, written(ATTENTION)), "no profile lists the device"),
    ):
        with pytest.raises(prior.PriorError, match=message):
            prior.of_record(other)


def test_groups_and_stages_fill_the_gaps_of_a_block_and_nothing_else_changes() -> None:
    """A mapping that says nothing of them costs what it did; a warp more on each scheduler or a buffer more never costs."""
    at, gpu = problem(), gpu_of()
    plain = TileMapping(128, 64)
    base = at.seconds(plain, gpu)
    assert at.seconds(replace(plain, warps=4), gpu) == base
    by_warps = [at.seconds(replace(plain, warps=w), gpu) for w in (1, 2, 4, 8, 16)]
    assert by_warps == sorted(by_warps, reverse=True) and by_warps[1] > 1.5 * base > 1.5 * by_warps[3]
    small = replace(plain, block_m=64, block_n=32, warps=4)
    by_stages = [at.seconds(replace(small, stages=s), gpu) for s in (1, 2, 3, 4)]
    assert by_stages == sorted(by_stages, reverse=True) and by_stages[0] > by_stages[1] and by_stages[2] == by_stages[3]
    crowd = replace(small, blocks_per_sm=8)
    alike = problem(workload=replace(ATTENTION, mask=Mask()))
    assert alike.seconds(replace(crowd, stages=1), gpu) == alike.seconds(replace(crowd, stages=4), gpu)  # others work meanwhile
    waits = at.seconds(replace(crowd, stages=1), gpu) - at.seconds(replace(crowd, stages=4), gpu)
    assert 0 < waits < by_stages[0] - by_stages[3]  # of unequal blocks the longest end alone


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/published_winners.py`: the fastest of 450 builds of another Triton attention kernel on an A100."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module = importlib.import_module("published_winners")
    if not module.FILE.exists():
        pytest.skip(f"no reference data at {module.FILE}")
    return module


def test_published_winners_of_long_prefills_are_near_the_simulators_best(published: ModuleType) -> None:
    """What is fastest there is within 5 % of the best prediction from 2048 queries on."""
    long = [one for one in published.winners() if one.queries >= 2048]
    assert len(long) == 3
    assert all(one.behind is not None and math.log1p(one.behind) < 0.05 for one in long), long


def test_the_page_has_the_table_of_published_winners(published: ModuleType) -> None:
    page = published.PAGE.read_text(encoding="utf-8")
    shown = page.partition(published.BEGIN)[2].partition(published.END)[0].strip()
    assert shown == published.table(), "python benchmarks/published_winners.py --write"
