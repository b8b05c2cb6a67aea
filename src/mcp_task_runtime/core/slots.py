"""`WorkSlots`: how much work runs at once, in this process (`TaskSettings.max_running`) and of a `WorkQueue`.

Owners take turns: however many tasks of one owner wait, one of them at most gets a slot before that of another owner.
"""

from __future__ import annotations

from collections.abc import Hashable

import anyio

from mcp_task_runtime.core.work_queue import WorkQueue
from mcp_task_runtime.errors import LimitExceededError

__all__ = ["Slots", "WorkSlots"]


class _Waiter:
    """A piece of work that waits, in one coroutine or several."""

    __slots__ = ("coroutines", "event")

    def __init__(self) -> None:
        self.coroutines = 0
        self.event = anyio.Event()


class Slots:
    """A number of slots; each piece of work, named by its key, holds at most one. Those that wait have turns."""

    def __init__(self, total: int) -> None:
        """Make the slots.

        Args:
            total: How many there are.
        """
        self._total = total
        self._holders: set[Hashable] = set()
        self._waiting: dict[Hashable, dict[Hashable, _Waiter]] = {}
        """Those that wait, by owner; the owner whose turn it is comes first."""

    def __len__(self) -> int:
        return len(self._holders)

    def has_room(self, key: Hashable) -> bool:
        """Return whether a key would get a slot at once, or holds one."""
        return key in self._holders or len(self._holders) < self._total

    async def acquire(self, key: Hashable, owner: Hashable) -> None:
        """Wait for a slot. Cancelled, the key holds none, unless it did before or another coroutine waits for it."""
        while key not in self._holders:
            if len(self._holders) < self._total:
                self._holders.add(key)
                return
            waiter = self._waiting.setdefault(owner, {}).setdefault(key, _Waiter())
            waiter.coroutines += 1
            try:
                await waiter.event.wait()
            except BaseException:
                if waiter.coroutines == 1:  # no other one of the same work waits
                    if waiter.event.is_set():
                        self.release(key)
                    else:
                        self._leave(owner, key)
                raise
            finally:
                waiter.coroutines -= 1

    def release(self, key: Hashable) -> None:
        """Release the slot that the key holds, if it holds one; the next owner's work gets it."""
        if key in self._holders:
            self._holders.discard(key)
            if self._waiting:
                self._hand_on()

    def _hand_on(self) -> None:
        owner, waiting = next(iter(self._waiting.items()))
        key, waiter = next(iter(waiting.items()))
        self._leave(owner, key)
        if owner in self._waiting:  # its turn has passed
            self._waiting[owner] = self._waiting.pop(owner)
        self._holders.add(key)
        waiter.event.set()

    def _leave(self, owner: Hashable, key: Hashable) -> None:
        waiting = self._waiting[owner]
        del waiting[key]
        if not waiting:
            del self._waiting[owner]


class WorkSlots:
    """The slots of one process: those of all work, and those of each queue, which work acquires first."""

    def __init__(self, total: int | None) -> None:
        """Make the slots.

        Args:
            total: How many pieces of work run at once; `None` for no limit.
        """
        self._total = total
        self._queues: dict[str, WorkQueue] = {}
        self._all: Slots | None = None
        self._slots: dict[str, Slots] = {}
        self._admitted: dict[str, int] = {}
        self._entered: dict[Hashable, str] = {}
        self.reset()

    def __len__(self) -> int:
        """Return how many slots of all work are held; without a limit none is counted."""
        return 0 if self._all is None else len(self._all)

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit for all work; a queue has its own."""
        return self._all is not None

    @property
    def queued(self) -> int:
        """Number of tasks that wait in queues to begin, or are about to."""
        return sum(self._admitted.values())

    def reset(self) -> None:
        """Release everything: a runtime opens, perhaps on another event loop."""
        self._all = None if self._total is None else Slots(self._total)
        self._slots.clear()
        self._admitted.clear()
        self._entered.clear()

    def know(self, queue: WorkQueue) -> None:
        """Register a queue.

        Raises:
            ValueError: There is another one of this name.
        """
        if self._queues.setdefault(queue.name, queue) != queue:
            raise ValueError(
                f"there are two queues with the name {queue.name!r}: give all its tools the same WorkQueue"
            )

    def admit(self, queue: WorkQueue | None) -> bool:
        """Count a task that is about to be made for a queue; call `enter` or `dismiss` then.

        Returns:
            Whether its work would begin at once.

        Raises:
            LimitExceededError: As many tasks wait in the queue as may.
            ValueError: There is another queue of this name.
        """
        if queue is None:
            return self._all is None or self._all.has_room(None)
        self.know(queue)
        admitted = self._admitted.get(queue.name, 0)
        room = queue.concurrency - len(self._slots.get(queue.name, ())) - admitted
        if queue.max_queued is not None and room + queue.max_queued <= 0:
            raise LimitExceededError(f"tasks queued for {queue.name!r}", queue.max_queued)
        self._admitted[queue.name] = admitted + 1
        return room > 0 and (self._all is None or self._all.has_room(None))

    def dismiss(self, queue: WorkQueue | None) -> None:
        """Drop the count of `admit`: there is no task."""
        if queue is not None:
            self._discount(queue.name)

    def enter(self, key: Hashable, queue: WorkQueue | None) -> None:
        """Tie the count of `admit` to a piece of work, until it gets its slot or is closed."""
        if queue is not None:
            self._entered[key] = queue.name

    def has_room(self, key: Hashable, queue: WorkQueue | None = None) -> bool:
        """Return whether a key would get its slots at once, or holds them."""
        slots = None if queue is None else self._slots.get(queue.name)
        return (slots is None or slots.has_room(key)) and (self._all is None or self._all.has_room(key))

    async def acquire(self, key: Hashable, queue: WorkQueue | None = None, owner: Hashable = None) -> None:
        """Wait for the slots of a key. Cancelled, it holds what it held before, or less."""
        if queue is not None:
            slots = self._slots.get(queue.name)
            if slots is None:
                slots = self._slots[queue.name] = Slots(queue.concurrency)
            await slots.acquire(key, owner)
            self._settle(key)
        if self._all is not None:
            try:
                await self._all.acquire(key, owner)
            except BaseException:
                self.release(key, queue)
                raise

    def release(self, key: Hashable, queue: WorkQueue | None = None) -> None:
        """Release the slots that the key holds."""
        if queue is not None and queue.name in self._slots:
            self._slots[queue.name].release(key)
        if self._all is not None:
            self._all.release(key)

    def close(self, key: Hashable, queue: WorkQueue | None) -> None:
        """Release what belongs to a key: its work is over, or never began."""
        if queue is not None or self._all is not None:
            self.release(key, queue)
            self._settle(key)

    def _settle(self, key: Hashable) -> None:
        name = self._entered.pop(key, None)
        if name is not None:
            self._discount(name)

    def _discount(self, name: str) -> None:
        self._admitted[name] -= 1
        if not self._admitted[name]:
            del self._admitted[name]
