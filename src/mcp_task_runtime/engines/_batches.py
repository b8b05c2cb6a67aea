"""`ThreadBatches`: calls that block, in a thread: those that come while it is busy are made one after the other."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.to_thread

__all__ = ["ThreadBatches"]


class _Batch:
    """Calls that one turn of the thread makes."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.errors: list[Exception | None] = []
        self.is_abandoned = False
        self.done = anyio.Event()

    def make(self) -> None:
        """Make the calls in turn, in the thread."""
        for call in self.calls:
            if self.is_abandoned:
                return
            try:
                call()
            except Exception as error:
                self.errors.append(error)
            else:
                self.errors.append(None)

    def check(self, number: int) -> None:
        """Raise the error of a call."""
        if number >= len(self.errors):
            raise TimeoutError("The call was not made in time")
        error = self.errors[number]
        if error is not None:
            raise error


class ThreadBatches:
    """Makes calls that block, without blocking the event loop. A burst of them costs one way to a thread and back."""

    def __init__(self) -> None:
        self._next: _Batch | None = None
        self._limiter: anyio.CapacityLimiter | None = None

    async def call(self, function: Callable[[], object]) -> None:
        """Make a call; return when it was made.

        Cancelled, the thread is left alone with the call that it makes, and calls that wait for it fail.

        Raises:
            TimeoutError: Another call was cancelled, and it is not known whether this one was made.
            Exception: What the function raises.
        """
        batch = self._next
        if batch is not None:
            number = len(batch.calls)
            batch.calls.append(function)
            await batch.done.wait()
        else:
            number = 0
            batch = self._next = _Batch()
            batch.calls.append(function)
            await self._lead(batch)
        batch.check(number)

    async def _lead(self, batch: _Batch) -> None:
        """Make the calls of a batch, which takes more until the thread is free."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(1)
        try:
            async with self._limiter:
                self._next = None
                # A limiter of its own: other work in threads does not delay this call, and is not delayed by it.
                apart = anyio.CapacityLimiter(1)
                await anyio.to_thread.run_sync(batch.make, abandon_on_cancel=True, limiter=apart)
        finally:
            if self._next is batch:
                self._next = None
            batch.is_abandoned = True
            batch.done.set()
