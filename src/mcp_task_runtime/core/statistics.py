"""What a runtime is doing, in numbers: for operators, and for tests in place of private state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

__all__ = ["RuntimeStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStatistics:
    """A snapshot of `TaskRuntime.statistics`. It is about this process only.

    Attributes:
        calls: Work that runs, ordinary calls included.
        running: The ids of the tasks whose work runs here, or whose outcome waits to be written.
        live_tasks: Tasks counted as live: running, or open after their work returned.
        owners: Owners that have live tasks.
        deadlines: Deadlines that are watched.
        next_deadline: When the watch of deadlines wakes next; `None` for never.
        detached: Open tasks whose work has returned, or waits for or runs in another process, watched for their end.
        postponed: Tasks whose work runs again after a delay; they count as detached, too, in a store that is shared.
        waiting_outcomes: Outcomes that wait to be written because the store failed.
        stored_tasks: Tasks that this process made and that have not expired.
        stored_bytes: Bytes of their arguments and results.
        followed: Tasks that are followed, with one wait in the store each.
        readers: Readers of followed tasks.
        used_slots: Slots of `max_running` that are held; 0 without that limit.
        queued: Tasks that wait in a `WorkQueue` to begin.
        worker: This process's name in leases; `None` with a store without leases.
    """

    calls: int
    running: frozenset[str]
    live_tasks: int
    owners: int
    deadlines: int
    next_deadline: datetime | None
    detached: int
    postponed: int
    waiting_outcomes: int
    stored_tasks: int
    stored_bytes: int
    followed: int
    readers: int
    used_slots: int
    queued: int
    worker: str | None
