"""What a runtime is doing, in numbers: for operators, and for tests in place of private state."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RuntimeStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStatistics:
    """A snapshot of `TaskRuntime.statistics`. Everything is about this process alone.

    Attributes:
        calls: Work that runs, ordinary calls included.
        running: The ids of the tasks whose work runs here, or whose outcome waits to be written.
        live_tasks: Tasks counted as live: running, or open after their work returned.
        owners: Owners that have live tasks.
        deadlines: Deadlines that are watched.
        detached: Open tasks whose work has returned, watched for an end by another process.
        worker: This process's name in leases; `None` with a store without leases.
    """

    calls: int
    running: frozenset[str]
    live_tasks: int
    owners: int
    deadlines: int
    detached: int
    worker: str | None
