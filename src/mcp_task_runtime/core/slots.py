"""`WorkSlots`: how many pieces of work run at once (`TaskSettings.max_running`)."""

from __future__ import annotations

from collections.abc import Hashable

import anyio

__all__ = ["WorkSlots"]


class WorkSlots:
    """A number of slots; each piece of work, named by its key, holds at most one."""

    def __init__(self, total: int | None) -> None:
        """Make the slots.

        Args:
            total: How many there are; `None` for no limit.
        """
        self._total = total
        self._limiter: anyio.CapacityLimiter | None = None
        self._holders: set[Hashable] = set()
        self._acquiring: dict[Hashable, anyio.Event] = {}

    def __len__(self) -> int:
        """Return how many slots are held; without a limit none is counted."""
        return len(self._holders)

    def has_room(self, key: Hashable) -> bool:
        """Return whether a key would get a slot at once, or holds one."""
        return self._limiter is None or key in self._holders or self._limiter.available_tokens >= 1

    def reset(self) -> None:
        """Release everything: a runtime opens, maybe on another event loop."""
        self._limiter = None if self._total is None else anyio.CapacityLimiter(self._total)
        self._holders.clear()
        self._acquiring.clear()

    async def acquire(self, key: Hashable) -> None:
        """Wait for a slot. Cancelled, the key holds none, unless it did before or another caller got it one."""
        while self._limiter is not None and key not in self._holders:
            if (pending := self._acquiring.get(key)) is not None:  # another coroutine of the same work waits
                await pending.wait()
                continue
            acquired = self._acquiring[key] = anyio.Event()
            try:
                await self._limiter.acquire_on_behalf_of(key)
                self._holders.add(key)
            finally:
                del self._acquiring[key]
                acquired.set()

    def release(self, key: Hashable) -> None:
        """Release the slot that the key holds, if it holds one."""
        if self._limiter is not None and key in self._holders:
            self._holders.discard(key)
            self._limiter.release_on_behalf_of(key)
