"""Times on the wire: RFC 3339 in UTC (wire rule A4)."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

__all__ = ["format_timestamp"]


@lru_cache(maxsize=256)  # a task is shown more often than its times change
def format_timestamp(when: datetime) -> str:
    """Return an aware UTC datetime as RFC 3339 text with microseconds and a `Z`."""
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")
