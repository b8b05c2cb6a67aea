"""`PostgresStatistics`: figures of a store in one process."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PostgresStatistics"]


@dataclass(frozen=True, slots=True)
class PostgresStatistics:
    """What a store does in this process.

    Attributes:
        reads: Operations that read, since the store was made.
        writes: Transactions that may have written.
        waiters: Topics of tasks that callers wait for now.
        is_listening: Whether changes that other processes make are heard of now.
        connections_in_use: Connections of the pool that are in use.
        idle_connections: Connections of the pool that are ready to be used.
        free_slots: How many operations may begin at once.
        is_unavailable: Whether the server cannot be reached, or takes no changes, as far as this process knows.
    """

    reads: int
    writes: int
    waiters: int
    is_listening: bool
    connections_in_use: int
    idle_connections: int
    free_slots: int
    is_unavailable: bool
