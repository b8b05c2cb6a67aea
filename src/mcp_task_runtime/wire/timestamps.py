"""Times on the wire: RFC 3339 in UTC (wire rule A4)."""

from __future__ import annotations

from datetime import datetime

__all__ = ["format_timestamp"]


def format_timestamp(when: datetime) -> str:
    """Return an aware UTC datetime as RFC 3339 text with microseconds and a `Z`."""
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")
