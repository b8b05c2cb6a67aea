"""`RateLimit`: how often something may happen, for each of many keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from datetime import datetime, timedelta

from mcp_task_runtime.errors import LimitExceededError

__all__ = ["RateLimit"]

_BURST = timedelta(seconds=1)


class RateLimit:
    """At most this many times a second for each key, and as many at once after a pause.

    A key is remembered for at most a second after its last use (law L8).
    """

    __slots__ = ("_full_again", "_limit", "_per_second", "_step")

    def __init__(self, limit: str, per_second: int) -> None:
        """Make a limit.

        Args:
            limit: What is limited, for the error's text.
            per_second: How often it may happen.
        """
        self._limit = limit
        self._per_second = per_second
        self._step = timedelta(seconds=1) / per_second
        self._full_again: OrderedDict[Hashable, datetime] = OrderedDict()
        """When each key may have a whole burst again; the latest used key last."""

    def __len__(self) -> int:
        return len(self._full_again)

    def admit(self, key: Hashable, now: datetime) -> None:
        """Count once more for this key.

        Raises:
            LimitExceededError: The key is past its limit, and this does not count; the error says how long.
        """
        latest = now + _BURST
        full_again = self._full_again.get(key, now)
        if not now < full_again <= latest:  # it is past, or the clock was set back
            full_again = now
        full_again += self._step
        if full_again > latest:
            milliseconds = -((latest - full_again) // timedelta(milliseconds=1))
            raise LimitExceededError(self._limit, self._per_second, retry_after_ms=milliseconds)
        self._full_again[key] = full_again
        self._full_again.move_to_end(key)
        while not now < next(iter(self._full_again.values())) <= latest:
            self._full_again.popitem(last=False)
