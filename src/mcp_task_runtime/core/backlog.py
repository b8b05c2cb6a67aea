"""`Backlog`: tells an observer, from time to time, how much work waits for a worker."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import datetime, timedelta
from typing import Final

from mcp_task_runtime.core.clock import Clock, sleep_by
from mcp_task_runtime.core.observer import TaskObserver, WorkWaiting
from mcp_task_runtime.core.store import TaskSearch
from mcp_task_runtime.core.types import TaskFilter
from mcp_task_runtime.errors import StoreClosedError

__all__ = ["Backlog"]

logger: logging.Logger = logging.getLogger(__name__)

_LIVE: Final = TaskFilter(statuses=frozenset({"working"}))
_MOST: Final = 500
"""Tasks that one look reads: the oldest, among which is the work that has waited longest."""


class Backlog:
    """Looks into the store three times a lease, one bounded read each time; it runs only where there is an observer."""

    def __init__(self, store: TaskSearch, clock: Clock, observer: TaskObserver, *, lease_ms: int) -> None:
        """Make one that has not begun.

        Args:
            store: Where the tasks wait.
            clock: The store's clock.
            observer: Hears how much waits.
            lease_ms: How long a lease lasts, in milliseconds.
        """
        self._store = store
        self._clock = clock
        self._observer = observer
        self._pause = timedelta(milliseconds=lease_ms) / 3

    async def run(self) -> None:
        """Look and tell until cancelled, or until the store is closed. A look that fails is left out."""
        while True:
            try:
                self._observer.observe(await self._look())
            except StoreClosedError:
                return
            except Exception:  # the store's outage is reported where it matters
                logger.debug("What waits for a worker could not be counted", exc_info=True)
            await sleep_by(self._clock, self._pause)

    async def _look(self) -> WorkWaiting:
        page = await self._store.search_tasks(_LIVE, newest_first=False, limit=_MOST)
        waiting = [record for record in page.records if record.lease is not None and not record.lease.worker]
        oldest: datetime | None = min((record.task.created_at for record in waiting), default=None)
        age = 0.0 if oldest is None else (self._clock.now() - oldest).total_seconds()
        numbers = Counter(record.request.name for record in waiting)
        return WorkWaiting(dict(numbers), max(0.0, age), page.next_cursor is None)
