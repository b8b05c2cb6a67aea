"""`SQLiteStatistics`: figures of a store, for operators and tests."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SQLiteStatistics"]


@dataclass(frozen=True, slots=True)
class SQLiteStatistics:
    """Figures of one store and its queue in this process, since it was made.

    Attributes:
        writes: Transactions that were committed on behalf of callers; one may serve many.
        reads: Reads, those for waiters included.
        queued: Operations that no thread has taken yet; it may be one more.
        waiting: Callers that wait for a change, a message or an answer.
    """

    writes: int
    reads: int
    queued: int
    waiting: int
