"""Which keys a query sees when the mask is a band around the diagonal: dense, causal, sliding window."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENTS = ("first", "last")


@dataclass(frozen=True, slots=True)
class Band:
    """Query m sees key n when d - left <= n <= d + right, with d = m ("first") or d = m + N - M ("last").

    left, right   keys before and after the diagonal; None: all of them
    align         "first": query 0 and key 0 meet on the diagonal; "last": the last query and the last key do
                  (a prompt's last block, or decoding against a cache)
    """

    left: int | None = None
    right: int | None = None
    align: str = "last"

    def __post_init__(self) -> None:
        if self.align not in ALIGNMENTS:
            raise ValueError(f"align: got {self.align!r}, expected one of {', '.join(map(repr, ALIGNMENTS))}")
        for name, value in (("left", self.left), ("right", self.right)):
            if value is not None and value < 0:
                raise ValueError(f"{name}: got {value}, expected 0 or more keys, or None for all of them")

    @property
    def dense(self) -> bool:
        return self.left is None and self.right is None

    def diagonal(self, m: int, M: int, N: int) -> int:
        """The key position that query m is aligned with; negative or past N - 1 when there is no such key."""
        return m + N - M if self.align == "last" else m


def band(causal: bool = False, window: int | tuple[int | None, int | None] | None = None, align: str = "last") -> Band:
    """The band of a causal and/or windowed mask.

    window = w lets a query see the w keys that end at the diagonal and, unless causal, the w - 1 after it;
    window = (left, right) states both sides. Raises ValueError for an empty window or one that contradicts `causal`.
    """
    if window is None:
        return Band(right=0 if causal else None, align=align)
    if isinstance(window, tuple):
        if causal and window[1] != 0:
            raise ValueError(f"window: got {window} with causal=True, expected (left, 0) or causal=False")
        return Band(window[0], window[1], align)
    if window < 1:
        raise ValueError(f"window: got {window}, expected at least 1 key (the diagonal itself)")
    return Band(window - 1, 0 if causal else window - 1, align)
