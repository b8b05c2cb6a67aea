"""`Batches`: what comes while a batch is made waits for the next one; and `ThreadBatches`, made by code that blocks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

__all__ = ["Batch", "Batches", "ThreadBatches"]

T = TypeVar("T")


class Batch(Generic[T]):
    """Items that are made together.

    Attributes:
        items: The items.
        errors: The errors of the first items, `None` for one that was made. All others have the end of the batch.
        is_abandoned: Whether the batch was cancelled, or has ended.
        done: Set when the batch has ended.
    """

    def __init__(self) -> None:
        self.items: list[T] = []
        self.errors: list[Exception | None] = []
        self.is_abandoned = False
        self.done = anyio.Event()

    def end(self, error: Exception | None) -> None:
        """Note how those items ended that have no end of their own."""
        self.errors += [error] * (len(self.items) - len(self.errors))

    def check(self, number: int) -> None:
        """Raise the error of an item."""
        if number >= len(self.errors):
            raise TimeoutError("The call was not made in time")
        error = self.errors[number]
        if error is not None:
            raise error


class Batches(Generic[T]):
    """Makes items one batch after the other. The first item of a batch waits for the batch before, others join it."""

    def __init__(self, make: Callable[[Batch[T]], Awaitable[None]]) -> None:
        """Make batches.

        Args:
            make: Makes the items of a batch. What it raises is the error of all items without an end of their own.
        """
        self._make = make
        self._next: Batch[T] | None = None
        self._limiter: anyio.CapacityLimiter | None = None

    async def put(self, item: T) -> None:
        """Make an item; return when it was made.

        Cancelled, the batch is cancelled if this item is its first one. The others, where it is not known whether
        they were made, fail then.

        Raises:
            TimeoutError: The batch was cancelled, and it is not known whether this item was made.
            Exception: The error of the item, or of its batch.
        """
        batch = self._next
        if batch is not None:
            number = len(batch.items)
            batch.items.append(item)
            await batch.done.wait()
        else:
            number = 0
            batch = self._next = Batch()
            batch.items.append(item)
            await self._lead(batch)
        batch.check(number)

    async def _lead(self, batch: Batch[T]) -> None:
        """Make a batch, which takes more until the batch before has ended."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(1)
        try:
            async with self._limiter:
                self._next = None
                await self._make(batch)
            batch.end(None)
        except Exception as error:
            batch.end(error)
        finally:
            if self._next is batch:
                self._next = None
            batch.is_abandoned = True
            batch.done.set()


class ThreadBatches(Batches[T]):
    """Makes batches by a function that blocks, without blocking the event loop.

    Cancelled, the thread is left alone with the batch that it makes, and the items of that batch fail.
    """

    def __init__(self, make: Callable[[Batch[T]], None]) -> None:
        """Make batches.

        Args:
            make: Makes the items of a batch; called in a thread. What it raises is the error of all items without an
                end of their own.
        """
        super().__init__(self._make_in_thread)
        self._make_blocking = make

    async def _make_in_thread(self, batch: Batch[T]) -> None:
        # A limiter of its own: other work in threads does not delay these calls, and is not delayed by them.
        apart = anyio.CapacityLimiter(1)
        await anyio.to_thread.run_sync(self._make_blocking, batch, abandon_on_cancel=True, limiter=apart)
