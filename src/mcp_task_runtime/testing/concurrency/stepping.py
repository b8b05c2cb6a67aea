"""Watching and holding a coroutine at each of its awaits, on asyncio and trio alike.

Both event loops run a task in the same way: they `send` into its outermost coroutine, which runs until
something deep inside *yields* a request to the loop (asyncio: a future; trio: a trap), and send again
when that request is fulfilled. `Stepper` stands between the loop and a coroutine: it is awaited in the
coroutine's place, passes every request and every reply through unchanged, and so sees each moment at
which the coroutine really gives up control. An `await` that does not reach the loop is no such moment:
nothing else can run there, and no cancellation can arrive.

The coroutine still runs in its own task, so cancel scopes, task groups and context variables behave as
they would without the stepper.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel

__all__ = ["Stepper", "quiesce"]

T = TypeVar("T")

_QUIESCE_SECONDS = 0.3


class Stepper(Generic[T]):
    """An awaitable that runs an operation and counts the moments at which it yields to the event loop."""

    def __init__(
        self,
        operation: Callable[[], Awaitable[T]],
        *,
        on_yield: Callable[[int], None] | None = None,
        before_resume: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Prepare a run of an operation.

        Args:
            operation: Called once, when the stepper is awaited.
            on_yield: Called with 1, 2, … just before the operation's n-th request goes to the loop.
            before_resume: Awaited before the first step and before each further one. It holds the reply
                of the loop back, so it is shielded: a cancellation reaches the operation at its own awaits.
        """
        self._operation = operation
        self._on_yield = on_yield
        self._before_resume = before_resume
        self.yields: int = 0

    def __await__(self) -> Generator[Any, Any, T]:
        coroutine = self._run()
        reply: Any = None
        error: BaseException | None = None
        while True:
            if self._before_resume is not None:
                yield from self._hold(self._before_resume).__await__()
            try:
                request = coroutine.send(reply) if error is None else coroutine.throw(error)
            except StopIteration as stop:
                result: T = stop.value
                return result
            self.yields += 1
            if self._on_yield is not None:
                self._on_yield(self.yields)
            reply = error = None
            try:
                reply = yield request
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as thrown:  # belongs to the operation: it may have clean-up to do
                error = thrown

    async def _run(self) -> T:
        return await self._operation()

    @staticmethod
    async def _hold(before_resume: Callable[[], Awaitable[None]]) -> None:
        with anyio.CancelScope(shield=True):
            await before_resume()


async def quiesce() -> None:
    """Let every other task run until it waits for something, or for a fraction of a second.

    A task that waits for a thread or a socket counts as waiting: with such a backend more may happen
    later, so nothing may depend on this but how strict a test is.
    """
    for _ in range(6):  # usually enough, and on asyncio `wait_all_tasks_blocked` sleeps when it is not
        await anyio.lowlevel.checkpoint()
    with anyio.move_on_after(_QUIESCE_SECONDS):
        await anyio.wait_all_tasks_blocked()
