"""Where work runs: `TaskRunner`, and `InProcessRunner` with one cancel scope for each piece of work."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol

import anyio
import anyio.abc
from typing_extensions import Self

__all__ = ["InProcessRunner", "TaskRunner"]

logger: logging.Logger = logging.getLogger(__name__)


class TaskRunner(Protocol):
    """Runs work apart from whoever started it. Open it as an async context manager."""

    def start(self, work: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        """Start work inside a cancel scope of its own, with the caller's context variables.

        Nothing that the work raises goes anywhere but to the log.

        Raises:
            RuntimeError: The runner is not open.
        """
        ...

    async def __aenter__(self) -> Self:
        """Open the runner."""
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Wait until all work has ended, and close. Cancelled, it cancels the work."""
        ...


class InProcessRunner:
    """Runs work on this event loop, in one task group that nothing can break."""

    def __init__(self) -> None:
        self._group: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("The runner is already open")
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        group = self._group
        assert group is not None
        try:
            # Not this block's exception: the group would cancel the work and wrap it. Nor its answer: on trio
            # it says that the exception, which it never saw, was dealt with.
            await group.__aexit__(None, None, None)
        finally:
            self._group = None

    def start(self, work: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        """Start work in the task group; see `TaskRunner.start`."""
        if self._group is None:
            raise RuntimeError("The runner is not open")
        self._group.start_soon(_run, work, scope)


async def _run(work: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
    try:
        with scope:
            await work()
    except (anyio.get_cancelled_exc_class(), KeyboardInterrupt):
        raise
    except BaseException:  # SystemExit and groups too: no work takes others down with it (law L13)
        logger.exception("Work raised an exception")
