"""The benchmark of neighborhood attention without a GPU: its masks and orders, and one small contest interpreted."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import references, references_gna  # noqa: E402
from einsight.kernels.gna_space import box_config  # noqa: E402
from einsight.kernels.neighborhood import Neighborhood, neighborhood  # noqa: E402
from einsight.kernels.spaces import LIMITS  # noqa: E402

ROOT = Path(__file__).parents[2]
GRIDS = {
    "1-D": neighborhood(60, 12, 5),
    "2-D": neighborhood((12, 10), (4, 5), (2, 1), (2, 1), (True, False)),
    "3-D": neighborhood((6, 6, 5), (3, 2, 3), (2, 1, 3), (1, 3, 1), (False, False, True)),
}
EVERY = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


@pytest.fixture
def contest_gna(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("contest_gna")


@EVERY
def test_the_rivals_mask_is_the_reference(contest_gna: ModuleType, grid: Neighborhood) -> None:
    place = torch.arange(grid.tokens)
    seen = contest_gna.mask_function(grid, None)(0, 0, place[:, None], place[None, :])
    assert torch.equal(seen, references_gna.visible(grid))


def test_the_rivals_tokens_are_permuted_into_boxes(contest_gna: ModuleType) -> None:
    grid = neighborhood((4, 12), (2, 4), dilation=(1, 3))
    tokens = contest_gna.order(grid, (2, 2))
    assert sorted(tokens.tolist()) == list(range(48))
    assert tokens[:4].tolist() == [0, 3, 12, 15] and tokens[4:6].tolist() == [6, 9]  # group 0 first, its boxes in turn


def test_blocks_are_kept_and_full_as_the_mask_says(contest_gna: ModuleType) -> None:
    grid = neighborhood((16, 32), (8, 16), (8, 16))
    for tokens in (None, contest_gna.order(grid, (8, 16))):
        blocks = contest_gna.block_mask(grid, tokens, "cpu")
        seen = references_gna.visible(grid)
        seen = seen if tokens is None else seen[tokens][:, tokens]
        cut = seen.view(4, 128, 4, 128).permute(0, 2, 1, 3).reshape(4, 4, -1)
        full, some = cut.all(-1), cut.any(-1)
        assert torch.equal(blocks.full_kv_num_blocks[0, 0], full.sum(1).int())
        assert torch.equal(blocks.kv_num_blocks[0, 0], (some & ~full).sum(1).int())
        for i in range(4):
            kept = blocks.full_kv_indices[0, 0, i, : int(full[i].sum())].tolist()
            assert kept == full[i].nonzero().ravel().tolist()
    assert int(blocks.full_kv_num_blocks.sum()) == 4 and int(blocks.kv_num_blocks.sum()) == 0  # boxes see themselves only


def test_a_small_contest(contest_gna: ModuleType, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("contests"), "DEVICE", device)
    monkeypatch.setattr(contest_gna, "ROWS", 40)
    case = contest_gna.Case("small", neighborhood((16, 16), (8, 8), (8, 8)), 1, 32, "float16")
    given = contest_gna.contest(case).setup()
    assert set(given.rivals) == {"flex-natural", "flex-permuted"}
    for call in (given.ours(box_config((8, 8), (8, 8), 4, 2)), *given.rivals.values()):
        (out,) = call()
        assert references.largest_error(out, given.exact[0]) <= given.allowed[0]
    for call in given.context.values():
        assert call()


@pytest.mark.parametrize("capability", LIMITS)
def test_every_case_has_builds(contest_gna: ModuleType, capability: int) -> None:
    for contest in contest_gna.contests():
        assert contest.candidates(capability)
        assert contest.work["flops"] > 0 and contest.workload["mask"][0]["gna"]["layout"]


def test_the_bound_of_the_video_is_the_published_one(contest_gna: ModuleType) -> None:
    """11.11 over dense: GNA (arXiv:2504.16922), figure 3, and the share of visible pairs."""
    (bar,) = (b for b in contest_gna.CASES[0].bars if b.rivals == "dense")
    assert bar.factor == pytest.approx(0.8 * (30 * 48 * 80) / (18 * 24 * 24))
