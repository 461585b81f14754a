"""When a file was last changed: part of the key of what is kept of it in memory, so that an edit is seen."""

from __future__ import annotations

import os
from pathlib import Path

State = tuple[int, int] | None


def state(name_or_path: str | Path) -> State:
    """Time of the last change in ns and size in bytes; None for a name that is no file, such as a shipped one."""
    try:
        status = os.stat(name_or_path)
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None
    return status.st_mtime_ns, status.st_size
