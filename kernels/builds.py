"""Builds of kernels as records name them: a flat mapping of integers, so that every search and format can carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from einsight.kernels.gna_space import BoxConfig, box_config
from einsight.kernels.spaces import FLAGS, AttentionConfig, Config

SIDES = ("q", "k")  # the sides of a box along dimension 0, 1, ... are q0, q1, ... of queries and k0, k1, ... of keys


def told(config: Config) -> dict[str, int]:
    """A build in the form of records; of boxes their sides, from which the tile sizes follow."""
    if isinstance(config, BoxConfig):
        tiles = zip(SIDES, (config.q_tile, config.kv_tile), strict=True)
        sides = {f"{side}{d}": size for side, tile in tiles for d, size in enumerate(tile)}
        return sides | {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return {f.name: int(getattr(config, f.name)) for f in fields(config)}


def config_of(configuration: Mapping[str, Any]) -> Config:
    """The build that a record names. Raises TypeError or KeyError for names that no build has."""
    if "q0" not in configuration:
        flags = {name: bool(configuration[name]) for name in FLAGS if name in configuration}
        return AttentionConfig(**{**configuration, **flags}) if flags else Config(**configuration)
    rank = sum(name.startswith(SIDES[0]) for name in configuration)
    tiles = [tuple(configuration[f"{side}{d}"] for d in range(rank)) for side in SIDES]
    return box_config(tiles[0], tiles[1], configuration["num_warps"], configuration["num_stages"])
