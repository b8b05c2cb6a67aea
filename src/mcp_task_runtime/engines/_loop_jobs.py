"""`LoopJobs`: runs the jobs of an engine on the event loop of another thread, so many at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from threading import Event, Lock
from time import monotonic
from typing import Final, Protocol

__all__ = ["Job", "LoopJobs"]

logger: logging.Logger = logging.getLogger(__name__)

_GATHER_SECONDS: Final = 0.02
"""How long after jobs have begun the next ones begin while others run, all at once: one after the other costs twice."""
_SETTLE_SECONDS: Final = 0.05
"""How long after the end of a job the engine may hear of it, with other ends or with the next job, if none waits."""
_LOOK_SECONDS: Final = 1.0
"""How often the last jobs are waited for before a look whether the event loop is there still."""


class Job(Protocol):
    """What an engine wants to run. Its methods are called in threads of the engine, and may block."""

    def accept(self) -> str:
        """Tell the engine that the job begins; return the identifier of its task. If this raises, it does not begin."""
        ...

    def end(self, error: Exception | None, ended_at: float) -> None:
        """Tell the engine that the job has ended, with which error, if any, and when, as `time.monotonic` says it."""
        ...


class LoopJobs:
    """Runs a function of an event loop for each job. No thread waits for a job.

    A thread for each job costs more than the job: Python's lock goes from one to the other several times.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        execute: Callable[[str], Awaitable[object]],
        *,
        limit: int,
        on_end: Callable[[], object],
    ) -> None:
        """Make an empty set of jobs.

        Args:
            loop: The event loop, which runs in another thread.
            context: The context variables that jobs begin with.
            execute: The function, which gets the identifier of a task.
            limit: Most jobs that run at once. The others wait, and are not accepted.
            on_end: Has a thread of the engine call `settle`; called in the thread of the event loop, must not block.
        """
        self._loop = loop
        self._context = context
        self._execute = execute
        self._limit = limit
        self._on_end = on_end
        self._is_closed = False
        self._lock = Lock()  # of the engine's threads
        self._waiting: deque[Job] = deque()
        self._running = 0
        self._starting: deque[tuple[Job, str]] = deque()
        self._is_starting = False
        self._ended: deque[tuple[Job, Exception | None, float]] = deque()
        self._is_settling = False
        self._will_settle = False
        self._last_ended = Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started_at = float("-inf")

    # -- in threads of the engine

    def put(self, job: Job) -> None:
        """Run a job as soon as fewer than `limit` run."""
        with self._lock:
            self._waiting.append(job)  # first, so that a job which ends meanwhile sees it or is seen
            self._settle()

    def settle(self) -> None:
        """Tell the engine of the jobs that have ended, and begin others in their place."""
        with self._lock:
            self._is_settling = False
            self._settle()

    def drop_waiting(self) -> None:
        """Forget the jobs that wait: the engine delivers them again."""
        with self._lock:
            self._waiting.clear()

    def close(self) -> None:
        """Begin no more jobs. A handler of a signal may call this."""
        self._is_closed = True

    def join(self) -> None:
        """Begin no more jobs, and wait until those that run have ended, or their event loop."""
        self.close()
        self.settle()  # what has ended before it was closed
        while self._running and not self._loop.is_closed():
            self._last_ended.wait(_LOOK_SECONDS)
            self._last_ended.clear()
            self.settle()

    def _settle(self) -> None:
        while self._ended:
            self._end(*self._ended.popleft())
        self._begin_waiting()

    def _begin_waiting(self) -> None:
        while self._waiting and self._running < self._limit and not self._is_closed:
            job = self._waiting.popleft()
            self._running += 1
            try:
                self._hand_over(job, job.accept())
            except Exception as error:
                self._end(job, error, monotonic())
            except BaseException:  # the engine's thread is to end: the job has not begun, and is delivered again
                self._running -= 1
                raise

    def _hand_over(self, job: Job, task_id: str) -> None:
        self._starting.append((job, task_id))
        is_full = self._running == self._limit  # so that no more can come to begin with it
        if self._is_starting and not is_full:
            return
        self._is_starting = True  # before the event loop can say that it has started
        try:
            self._loop.call_soon_threadsafe(self._start_all if is_full else self._start)
        except RuntimeError:  # it has ended
            self._is_starting = False
            self._starting.clear()
            raise

    def _end(self, job: Job, error: Exception | None, ended_at: float) -> None:
        self._running -= 1
        try:
            job.end(error, ended_at)
        except Exception:
            logger.exception("The end of a job could not be reported to its engine")

    # -- in the event loop

    def _start(self) -> None:
        begins_at = self._started_at + _GATHER_SECONDS
        if self._tasks and self._loop.time() < begins_at:
            self._loop.call_at(begins_at, self._start_all)
        else:
            self._start_all()

    def _start_all(self) -> None:
        self._is_starting = False  # before it looks: what comes from now on starts another time
        while self._starting:
            self._started_at = self._loop.time()
            run = self._run(*self._starting.popleft())
            task = self._context.copy().run(self._loop.create_task, run)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, job: Job, task_id: str) -> None:
        error: Exception | None = RuntimeError("The event loop of the worker has ended")
        try:
            await self._execute(task_id)
            error = None
        except Exception as raised:
            error = raised
        finally:
            self._ended.append((job, error, monotonic()))
            if self._is_closed:
                self._last_ended.set()
            self._call_to_settle()

    def _call_to_settle(self) -> None:
        """Have the engine settle: at once if jobs may wait for a place, otherwise soon, for it is work to call it.

        With no place free, an engine that acknowledges jobs at their end may hold others back until it hears of one.
        """
        is_full = self._running >= self._limit
        if self._waiting or is_full or self._is_closed or self._loop.is_closed():
            self._have_settled()
        elif not self._will_settle:
            self._will_settle = True
            self._loop.call_later(_SETTLE_SECONDS, self._settle_late)

    def _settle_late(self) -> None:
        self._will_settle = False
        if self._ended:
            self._have_settled()

    def _have_settled(self) -> None:
        if not self._is_settling:
            self._is_settling = True
            self._on_end()
