"""Celery's pool of threads, which runs the tasks of a server on an event loop, and holds no thread for them."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from os import getpid
from time import monotonic
from typing import Any, Final

from billiard.einfo import ExceptionInfo
from celery.concurrency.thread import TaskPool
from kombu.serialization import loads, prepare_accept_content

from mcp_task_runtime.engines._loop_jobs import LoopJobs

__all__ = ["FUNCTION", "Runner", "pool_class"]

logger: logging.Logger = logging.getLogger(__name__)

FUNCTION: Final = "mcp_task_runtime.execute"
"""Name of the task, as Celery has it, that carries a task of a server."""


class Runner:
    """What runs the tasks of a server in a worker process.

    Attributes:
        loop: The event loop, which runs in another thread.
        context: The context variables that tasks begin with.
        execute: Runs a task by its identifier.
        wind_down: Starts the grace period of what runs, if it has not started; called in any thread.
        jobs: The tasks that run, once the pool is there.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        execute: Callable[[str], Awaitable[object]],
        wind_down: Callable[[], object],
    ) -> None:
        self.loop = loop
        self.context = context
        self.execute = execute
        self.wind_down = wind_down
        self.jobs: LoopJobs | None = None


def pool_class(runner: Runner) -> type:
    """Return the class of a worker's pool, as Celery wants it."""
    return type("TaskPool", (_LoopPool,), {"runner": runner})


class _LoopPool(TaskPool):  # type: ignore[misc]  # of untyped code
    runner: Runner

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._hears, self._tells = socket.socketpair()
        self._hears.setblocking(False)
        self._tells.setblocking(False)
        self._has_hub = False
        self._jobs = self.runner.jobs = LoopJobs(
            *(self.runner.loop, self.runner.context, self.runner.execute), limit=self.limit, on_end=self._call_settle
        )

    def on_apply(
        self,
        target: Any,
        args: Any = None,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        **options: Any,
    ) -> Any:
        """Run what a message asks for. `target` would do it in a thread: it gets name, key and request, then the body.

        Its signals `task_prerun` and `task_postrun` are for work that runs in a thread.
        """
        if args and args[0] == FUNCTION:
            body, content_type, encoding = args[3:]
            accepted = prepare_accept_content(self.app.conf.accept_content)
            load = partial(loads, body, content_type, encoding, accept=accepted)
            self._jobs.put(_Message(body if content_type is None else load, accept_callback, callback))
            return None
        return super().on_apply(target, args, kwargs, callback, accept_callback, **options)

    def register_with_event_loop(self, hub: Any) -> None:
        """Let the worker's own loop, where it has one, hear of what has ended; called again after an outage."""
        super().register_with_event_loop(hub)
        hub.add_reader(self._hears, self._settle)
        self._has_hub = True

    def flush(self) -> None:
        """Forget what waits, after the connection was lost: it cannot be acknowledged any more."""
        super().flush()
        self._jobs.drop_waiting()

    def on_stop(self) -> None:
        """Wait for what runs."""
        self.runner.wind_down()  # `celery control shutdown` sends no signal before
        self._jobs.join()
        super().on_stop()
        self._hears.close()
        self._tells.close()

    def _call_settle(self) -> None:
        if not self._has_hub:
            self.executor.submit(self._jobs.settle)
            return
        with suppress(OSError):  # it has enough to read, or is closed
            self._tells.send(b"1")

    def _settle(self) -> None:
        with suppress(BlockingIOError):
            self._hears.recv(1_000)
        self._jobs.settle()


class _Message:
    """A message of Celery, and what its worker wants to know of it."""

    def __init__(self, body: Any, on_accepted: Any, on_ended: Any) -> None:
        """Take a message.

        Args:
            body: Its body, or what decodes that where the application accepts its content.
            on_accepted: Acknowledges it.
            on_ended: Hears of its end.
        """
        self._body = body
        self._on_accepted = on_accepted
        self._on_ended = on_ended
        self._began_at = monotonic()

    def accept(self) -> str:
        """Acknowledge the message; return the task's identifier."""
        self._began_at = monotonic()
        self._on_accepted(getpid(), self._began_at)
        body = self._body() if callable(self._body) else self._body
        (task_id,) = body[0]
        return str(task_id)

    def end(self, error: Exception | None, ended_at: float) -> None:
        """Report the end as Celery's own tasks do: whether it failed, what it returned, and its duration."""
        runtime = ended_at - self._began_at
        if error is None:
            self._on_ended((False, repr(None), runtime))
            return
        logger.error("A task could not be run; it is submitted again later", exc_info=error)
        self._on_ended((True, ExceptionInfo((type(error), error, error.__traceback__)), runtime))
