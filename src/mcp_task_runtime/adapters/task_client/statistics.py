"""`ClientStatistics`: what a `TasksClient` holds at one time."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ClientStatistics"]


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """What a `TasksClient` holds at one time.

    Attributes:
        followed: Tasks whose end is waited for, by any number of callers.
        pushed: Tasks whose changes are wanted as pushes.
        listen_streams: Open streams over which changes are pushed; none on `mcp` 1.x.
    """

    followed: int
    pushed: int = 0
    listen_streams: int = 0
