"""`Undelivered`: what a dispatcher did not take, until it takes it after all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.signal import Signal

__all__ = ["Undelivered"]

T = TypeVar("T")

_PAUSE: Final = Backoff(first=0.25, factor=2.0, longest=5.0)
_MOST: Final = 1_000
"""What is kept at once, unless all must be: what is dropped here is overdue in the store later."""


class Undelivered(Generic[T]):
    """Offers again what was not taken: one of it after a pause that grows with each failure, the rest after a success.

    What is refused right after another was taken may be at fault itself: it is dropped, or offered after the others if
    all must be kept.
    """

    def __init__(self, clock: Clock, offer: Callable[[T], Awaitable[bool]]) -> None:
        """Make an empty set.

        Args:
            clock: Where time comes from.
            offer: Offers one again; returns whether it was taken, and does not raise.
        """
        self._clock = clock
        self._offer = offer
        self.reset(keeps_all=False)

    def reset(self, *, keeps_all: bool) -> None:
        """Forget all: the runtime opens, perhaps on another event loop.

        Args:
            keeps_all: Whether nothing may be dropped until it is taken: nothing else would offer it again.
        """
        self._keeps_all = keeps_all
        self._kept: dict[str, T] = {}
        self._added = Signal()
        self._succeeded = Signal()

    def add(self, key: str, value: T) -> None:
        """Keep what was not taken; in place of what has the same key, and unless too much is kept."""
        if self._keeps_all or key in self._kept or len(self._kept) < _MOST:
            self._kept[key] = value
            self._added.set()

    def discard(self, key: str) -> None:
        """Drop what no longer needs to be taken."""
        self._kept.pop(key, None)

    def note_success(self) -> None:
        """Offer all at once: something else was taken."""
        if self._kept:
            self._succeeded.set()

    async def run(self) -> None:
        """Offer what is kept until cancelled."""
        failures = 0
        while True:
            if not self._kept:
                failures, self._added = 0, Signal()
                await self._added.wait()
            failures += 1
            with self._clock.move_on_at(self._clock.now() + _PAUSE.after(failures)):
                await self._succeeded.wait()
            is_taking, self._succeeded = self._succeeded.is_set, Signal()
            if await self._offer_all(is_taking=is_taking):
                failures = 0

    async def _offer_all(self, *, is_taking: bool) -> bool:
        """Offer one after the other, until one is refused where none was taken before it; return whether any was.

        Args:
            is_taking: Whether something else was taken just now.
        """
        any_taken = False
        for key, value in list(self._kept.items()):
            if self._kept.get(key) is not value:
                continue  # dropped or replaced meanwhile
            taken = await self._offer(value)
            any_taken = any_taken or taken
            if self._kept.get(key) is value:  # one that is offered is kept until then: this may be cancelled
                del self._kept[key]
                if not taken and (self._keeps_all or not is_taking):
                    self._kept[key] = value  # behind the others, if it is the one that is at fault
            if not taken and not is_taking:
                break
            is_taking = taken  # if it is not, it is at fault, or there is an outage again: the next one shows which
        return any_taken
