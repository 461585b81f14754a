"""Enumerated spaces: every configuration that is valid, as rows of integers, and why the others are left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Configuration = Mapping[str, Any]
Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
ELEMENT_BYTES = {"bf16": 2, "fp16": 2}


class SpaceError(ValueError):
    """A configuration or a problem that the space does not know; says what was found and what was expected."""


@dataclass(frozen=True)
class Space:
    """The valid configurations of a kernel for one problem.

    parameters   name -> values, in an order that means something (ascending numbers where they are numbers)
    points       [N, P]: for each configuration the index of each parameter's value; the row is the configuration's name
    """

    name: str
    parameters: Mapping[str, tuple[Any, ...]]
    points: Rows = field(repr=False)

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != len(self.parameters) or not len(self.points):
            raise SpaceError(f"{self.name}: got points of shape {self.points.shape}, expected [N > 0, {len(self.parameters)}]")
        sizes = np.array([len(values) for values in self.parameters.values()])
        if (beyond := ((self.points < 0) | (self.points >= sizes)).any(1)).any():
            raise SpaceError(f"{self.name}: row {int(np.argmax(beyond))} names a value that its parameter does not have")
        if len(self._rows) < len(self.points):
            twice = next(r for r, p in enumerate(self.points.tolist()) if self._rows[tuple(p)] != r)
            raise SpaceError(f"{self.name}: {self.configuration(twice)} is listed twice, expected each configuration once")

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def identity(self) -> str:
        """Of the values and the rows: trials of one study must mean the same by an index."""
        text = json.dumps({name: list(values) for name, values in self.parameters.items()}, default=str)
        return hashlib.sha256(text.encode() + np.ascontiguousarray(self.points).tobytes()).hexdigest()[:8]

    def configuration(self, row: int) -> dict[str, Any]:
        return {name: values[i] for (name, values), i in zip(self.parameters.items(), self.points[row], strict=True)}

    def row(self, configuration: Configuration) -> int | None:
        """Which row a configuration is, or None where it is not in the space."""
        try:
            key = tuple(self.parameters[name].index(configuration[name]) for name in self.parameters)
        except (KeyError, ValueError):
            return None
        return self.row_of_point(key)

    def row_of_point(self, point: Sequence[int]) -> int | None:
        return self._rows.get(tuple(int(i) for i in point))

    @cached_property
    def _rows(self) -> dict[tuple[int, ...], int]:
        return {tuple(point): row for row, point in enumerate(self.points.tolist())}

    @cached_property
    def coordinates(self) -> Floats:
        """[N, P] in [0, 1]: the logarithm of positive numbers (tile sizes double), the index of anything else."""
        columns = []
        for (_, values), index in zip(self.parameters.items(), self.points.T, strict=True):
            positive = all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in values)
            scale = np.log2([float(v) for v in values]) if positive else np.arange(float(len(values)))
            column = scale[index]
            columns.append((column - column.min()) / max(float(np.ptp(column)), 1e-9))
        return np.stack(columns, axis=1)

    @cached_property
    def features(self) -> Floats:
        """[N, F] in [0, 1], what the model sees: the coordinates; for each pair of sizes their product and their ratio (tile
        area, threads of a block, work per thread), as logarithms; for each size the power of two in it (alignment)."""
        logs, whole = {}, []
        for place, values in enumerate(self.parameters.values()):
            if len(values) > 2 and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
                index = self.points[:, place]
                logs[place] = np.log2(np.array(values, dtype=np.float64))[index]
                whole.append(np.log2([float(v & -v) for v in values])[index])
        pairs = [(logs[a], logs[b]) for a in logs for b in logs if a < b]
        columns = [f for a, b in pairs for f in (a + b, a - b)] + whole
        spread = [(c - c.min()) / np.ptp(c) for c in columns if np.ptp(c) > 0]
        varying = [c for c in self.coordinates.T if np.ptp(c) > 0]
        distinct = {column.tobytes(): column for column in [*varying, *spread]}
        return np.stack(list(distinct.values()), axis=1) if distinct else np.zeros((len(self), 1))


def enumerated(name: str, configurations: Iterable[Configuration]) -> Space:
    """The space whose configurations are given, in their order; each parameter's values are those that occur."""
    listed = [dict(c) for c in configurations]
    if not listed:
        raise SpaceError(f"{name}: no configuration, expected at least one")
    names = tuple(listed[0])
    if any(set(c) != set(names) for c in listed):
        raise SpaceError(f"{name}: configurations with different parameters, expected {', '.join(names)} in each")
    values = {p: _ordered({c[p] for c in listed}) for p in names}
    places = {p: {v: i for i, v in enumerate(found)} for p, found in values.items()}
    points = np.array([[places[p][c[p]] for p in names] for c in listed], dtype=np.int64)
    return Space(name, values, points)


def _ordered(values: set[Any]) -> tuple[Any, ...]:
    numbers = all(isinstance(v, int | float) for v in values)
    return tuple(sorted(values) if numbers else sorted(values, key=str))
