"""What a cascade means, checked without sizes."""

from __future__ import annotations

from einsight.einsum.errors import Problem
from einsight.einsum.ir import Cascade


def validate(cascade: Cascade, excused: frozenset[str] = frozenset()) -> tuple[Problem, ...]:
    """Every fault that can be seen without sizes."""
    return ()
