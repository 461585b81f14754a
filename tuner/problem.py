"""A kernel on a workload and a compute capability: which builds are valid and why others are not, and what each is
predicted to cost.

Most kernels walk tiles of keys for a tile of queries (`Problem`). Decode packs the query heads of a KV head into a tile's
rows and cuts the keys into pieces (`PackedProblem`); neighborhood attention works in boxes of a token grid (`BoxProblem`);
recurrences work in chunks of positions (`ChunkProblem`).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from einsight.kernels.builds import told
from einsight.kernels.catalog import Kernel
from einsight.kernels.gna_space import BoxConfig, box_config, box_configurations, excluded_box
from einsight.kernels.neighborhood import Neighborhood
from einsight.kernels.resources import Estimate, closed_form
from einsight.kernels.spaces import FLAGS, LIMITS, RANKS, Config, Heads, Limits, parse_config
from einsight.kernels.table import lookup
from einsight.sim.gna_kernel import load_gna_kernel
from einsight.sim.gna_time import Problem as GridProblem
from einsight.sim.gna_time import predict_gna
from einsight.sim.hardware import Gpu
from einsight.sim.mapping import Mapping as TileMapping
from einsight.sim.mapping import Resources, occupancy
from einsight.sim.predict import IllegalMapping, estimate_of, family_on
from einsight.sim.workload import Workload
from einsight.tuner.benches import BENCHES, rank_of
from einsight.tuner.measure_kernel import UnsupportedWorkload
from einsight.tuner.resources import HEAD_DIMS, Build
from einsight.tuner.space import ELEMENT_BYTES, Space, SpaceError, enumerated

FAMILY, GRID_KERNEL = "triton", "triton-gna"  # how the model believes our Triton kernels run


def written(workload: Workload) -> dict[str, Any]:
    """A workload in the form that records carry: what a launch needs, no name."""
    sizes = {name: workload.sizes[name] for name in ("b", "h", "g", "m", "n", "e", "f")}
    out: dict[str, Any] = {
        "cascade": workload.cascade, "sizes": sizes, "dtype": workload.dtype, "phase": workload.phase,
        "cache": workload.cache,
    }  # fmt: skip
    mask = [r.as_json() for r in workload.canonical_mask.restrictions]
    bias = [added.as_json() for added in workload.bias]
    return out | ({"mask": mask} if mask else {}) | ({"bias": bias} if bias else {})


@dataclass(frozen=True)
class Problem:
    """One kernel on one workload and one compute capability."""

    kernel: Kernel
    workload: Workload
    capability: int

    def __post_init__(self) -> None:
        if self.workload.dtype not in ELEMENT_BYTES:
            raise SpaceError(f"dtype: got {self.workload.dtype}, kernel {self.kernel.name} takes {', '.join(ELEMENT_BYTES)}")
        if self.capability not in LIMITS:
            raise SpaceError(f"compute capability {self.capability}: limits known for {', '.join(map(str, LIMITS))}")
        if why := self.refusal(self.kernel, self.workload):
            raise SpaceError(f"kernel {self.kernel.name}: {why}")

    @classmethod
    def refusal(cls, kernel: Kernel, workload: Workload) -> str:
        """Why the kernel does not compute the workload; "" when it does."""
        kinds = {added.kind for added in workload.bias}
        if missing := [kind for kind in kernel.fragments if kind not in kinds]:
            option = f"--bias {missing[0]}" + (f":r={kernel.rank}" if kernel.rank else "")
            return f"the workload has no bias {missing[0]}, expected it ({option})"
        if replace(workload, cascade=kernel.cascade).key != workload.key:
            return f"the workload's cascade {workload.cascade} computes something else than {kernel.cascade}"
        least, most = HEAD_DIMS
        for name in ("e", "f"):
            if not least <= workload.sizes[name] <= most:
                return f"sizes.{name}: got {workload.sizes[name]}, expected a head dimension from {least} to {most}"
        if (rank := rank_of(as_text := written(workload))) > RANKS[-1]:
            return f"bias: got rank {rank}, expected at most {RANKS[-1]}"
        try:
            BENCHES[kernel.name].launch_of(as_text)
        except UnsupportedWorkload as error:
            return str(error)
        return ""

    @property
    def heads(self) -> Heads:
        sizes = self.workload.sizes
        rank = rank_of(written(self.workload))
        return Heads(sizes["e"], sizes["f"], ELEMENT_BYTES[self.workload.dtype], rank, self.kernel.matrix)

    @property
    def limits(self) -> Limits:
        return LIMITS[self.capability]

    @property
    def rows(self) -> int:
        """Rows of the problem that can lie in one tile."""
        return self.workload.sizes["m"]

    # -- builds ----------------------------------------------------------------------------------------------------------

    @cached_property
    def answers(self) -> Mapping[Config, str]:
        """Every candidate of the kernel's space, in its order: why it is left out, "" when it is in."""
        return {config: self._excluded(config) for config in self.kernel.space.candidates()}

    def configurations(self) -> tuple[Config, ...]:
        """Every valid configuration."""
        return tuple(config for config, why in self.answers.items() if not why)

    def space(self) -> Space:
        found = [told(config) for config in self.configurations()]
        if not found:
            raise SpaceError(f"{self.workload.name}: no configuration of {self.kernel.name} is valid here")
        return enumerated(self.kernel.name, found)

    def parse(self, text: str) -> Config:
        """A build as people write it: `BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2`. Raises SpaceError."""
        try:
            return _at_least_one(parse_config(text), text)
        except ValueError as error:
            raise SpaceError(str(error)) from None

    def why_excluded(self, text: str) -> str:
        """Why the build that `text` names is out; "" when it is in."""
        config = self.parse(text)
        if (why := self.answers.get(config)) is not None:
            return why
        if why := self._excluded(config):
            return why
        if on := [name for name in FLAGS if getattr(config, name, False)]:
            return f"{' and '.join(on)}: can be built and given to a launch; a search does not try it"
        for name in Config.__slots__:
            value, offered = getattr(config, name), getattr(self.kernel.space, name)
            if value not in offered:
                return f"{name} = {value} is not among the values searched: {', '.join(map(str, offered))}"
        return ""

    def _excluded(self, config: Config) -> str:
        return self.kernel.excluded(self.heads, config, self.limits, self.rows)

    # -- what the simulator says -----------------------------------------------------------------------------------------

    def seen(self, config: Config, gpu: Gpu) -> Hashable:
        """What the model sees of a build: it cannot tell builds apart that are equal in this."""
        return self.mapping(config, gpu)

    def as_run(self, config: Config) -> Workload:
        """The workload as the programs of this build see it."""
        return replace(self.workload, cascade=self.kernel.cascade)

    def seconds(self, seen: Any, gpu: Gpu) -> float:
        """Predicted time of a build, from what is seen of it. Raises SpaceError where the model has no answer."""
        return self._seconds(replace(self.workload, cascade=self.kernel.cascade), seen, gpu)

    def _seconds(self, workload: Workload, mapping: TileMapping, gpu: Gpu) -> float:
        try:
            family, made, _ = family_on(workload, gpu, FAMILY)
        except IllegalMapping as error:
            raise SpaceError(f"{self.workload.name} on {gpu.name}: {error}") from None
        return float(estimate_of(workload, gpu, family, mapping, made).time_s[0])

    def mapping(self, config: Config, gpu: Gpu, known: Estimate | None = None) -> TileMapping:
        """Tiles and resident blocks. `known`: what the build occupies; default: from the table of compiled builds where it
        has this one, else by closed form."""
        return TileMapping(
            config.block_m, config.block_n, blocks_per_sm=self._resident(config, gpu, known), warps=config.num_warps,
            stages=config.num_stages,
        )  # fmt: skip

    def needs(self, config: Config, gpu: Gpu) -> Resources:
        """What one block of the build occupies."""
        return Build(self.kernel, self.heads, config, gpu).resources(self._estimate(config))

    def _resident(self, config: Config, gpu: Gpu, known: Estimate | None) -> int:
        known = known or self._estimate(config)
        needs = Build(self.kernel, self.heads, config, gpu).resources(known)
        fits = occupancy(gpu.architecture, np.array(float(needs.shared_bytes)), needs.warps, needs.registers_per_thread)
        return max(1, min(known.blocks_per_sm or 1, int(fits)))

    def _estimate(self, config: Config) -> Estimate:
        found = lookup(self.kernel, self.heads, config, self.capability)
        return found or closed_form(self.heads, config, self.capability, self.kernel.excluded)


class PackedProblem(Problem):
    """The query heads of one KV head share a tile's rows; equal shares of all key tiles for as many blocks as fit."""

    @property
    def rows(self) -> int:
        return self.workload.sizes["h"] // self.workload.sizes["g"] * self.workload.sizes["m"]

    def mapping(self, config: Config, gpu: Gpu, known: Estimate | None = None) -> TileMapping:
        sizes, resident = self.workload.sizes, self._resident(config, gpu, known)
        units = sizes["b"] * sizes["g"] * -(-self.rows // config.block_m)
        splits = round(gpu.sms.value * resident / units)
        splits = max(1, min(splits, -(-sizes["n"] // config.block_n)))
        return TileMapping(
            config.block_m, config.block_n, splits, resident, "persistent", pack_gqa=True, warps=config.num_warps,
            stages=config.num_stages,
        )  # fmt: skip


class ChunkProblem(Problem):
    """A recurrence: a tile is a chunk of block_m positions, and a program holds block_n value columns of one head's state.

    The programs of a head read and multiply the same queries and keys, so each is a head of its own to the model.
    """

    def mapping(self, config: Config, gpu: Gpu, known: Estimate | None = None) -> TileMapping:
        found = super().mapping(config, gpu, known)
        return replace(found, block_n=config.block_m)

    def as_run(self, config: Config) -> Workload:
        sizes = dict(self.workload.sizes)
        columns = min(config.block_n, sizes["f"])
        parts = -(-sizes["f"] // columns)
        return replace(self.workload, cascade=self.kernel.cascade, sizes=sizes | {"b": parts * sizes["b"], "f": columns})

    def seen(self, config: Config, gpu: Gpu) -> Hashable:
        return self.mapping(config, gpu), self.as_run(config)

    def seconds(self, seen: Any, gpu: Gpu) -> float:
        mapping, workload = seen
        return self._seconds(workload, mapping, gpu)


class BoxProblem(Problem):
    """Tiles are boxes of a token grid. Tokens are gathered by the kernel, keys and values copied into boxes before."""

    @classmethod
    def refusal(cls, kernel: Kernel, workload: Workload) -> str:
        if workload.canonical_mask.gna is None:
            return "the workload has no neighborhoods, expected mask: [{gna: {layout: ..., window: ...}}] in its file"
        return super().refusal(kernel, workload)

    @cached_property
    def grid(self) -> Neighborhood:
        gna = self.workload.mask.gna
        assert gna is not None
        return Neighborhood(gna.layout, gna.window, gna.stride, gna.dilation, gna.causal)

    @cached_property
    def answers(self) -> Mapping[Config, str]:
        """The valid builds, the one that computes least first, then the block sizes that no box helps."""
        found: dict[Config, str] = dict.fromkeys(box_configurations(self.grid, self.heads, self.limits, self.kernel.space), "")
        blocks = {c: self.kernel.excluded(self.heads, c, self.limits) for c in self.kernel.space.candidates()}
        return found | {config: why for config, why in blocks.items() if why}

    def parse(self, text: str) -> Config:
        """`Q_TILE=2x8x8,KV_TILE=2x8x8,num_warps=4,num_stages=2`."""
        parts = dict(part.strip().lower().partition("=")[::2] for part in text.split(","))
        names = ("q_tile", "kv_tile", "num_warps", "num_stages")
        try:
            if set(parts) != set(names):
                raise ValueError(f"got {', '.join(parts)}")
            tiles = [tuple(int(side) for side in parts[name].split("x")) for name in names[:2]]
            config = box_config(tiles[0], tiles[1], int(parts["num_warps"]), int(parts["num_stages"]))
        except ValueError as error:
            example = ",".join(f"{n.upper()}={'x'.join(['4'] * self.grid.rank)}" for n in names[:2])
            raise SpaceError(f"configuration {text!r}: {error}; expected {example},num_warps=4,num_stages=2") from None
        if len(config.q_tile) != self.grid.rank:
            raise SpaceError(f"configuration {text!r}: {len(config.q_tile)} dimensions, the grid has {self.grid.rank}")
        return _at_least_one(config, text)

    def _excluded(self, config: Config) -> str:
        assert isinstance(config, BoxConfig)
        return excluded_box(self.grid, config, self.heads, self.limits)

    def seen(self, config: Config, gpu: Gpu) -> Hashable:
        assert isinstance(config, BoxConfig)
        return config.q_tile, config.kv_tile

    def seconds(self, seen: Any, gpu: Gpu) -> float:
        gna, sizes, kernel = self.workload.mask.gna, self.workload.sizes, load_gna_kernel(GRID_KERNEL)
        assert gna is not None
        problem = GridProblem(gna, sizes["b"], sizes["h"], sizes["e"], self.workload.dtype)
        q_tile, kv_tile = seen
        return predict_gna(problem, gpu, kernel, q_tile, kv_tile, kernel.tiling).total_s


PROBLEMS: Mapping[str, type[Problem]] = {
    "decode": PackedProblem, "gna": BoxProblem, "lightning": ChunkProblem, "gla": ChunkProblem,
}  # fmt: skip
"""Kernels that are no plain `Problem`."""


def problem_of(kernel: Kernel, workload: Workload, capability: int) -> Problem:
    """Raises SpaceError where the kernel does not compute the workload."""
    return PROBLEMS.get(kernel.name, Problem)(kernel, workload, capability)


def _at_least_one(config: Config, text: str) -> Config:
    for name in Config.__slots__:
        if getattr(config, name) < 1:
            raise SpaceError(f"configuration {text!r}: got {name} = {getattr(config, name)}, expected at least 1")
    return config


def computes(kernel: Kernel, workload: Workload) -> bool:
    return not PROBLEMS.get(kernel.name, Problem).refusal(kernel, workload)


def kinds(answers: Iterable[str]) -> dict[str, int]:
    """How often each kind of answer is given: reasons without their numbers, the most frequent first."""
    found: dict[str, int] = {}
    for reason in answers:
        kind = re.sub(r"\b\d+\b", "N", reason.partition("(")[0]).strip()
        found[kind] = found.get(kind, 0) + 1
    return dict(sorted(found.items(), key=lambda one: -one[1]))
