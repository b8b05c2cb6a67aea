"""Running blocking work in threads, for the stores whose drivers block. Independent of the drivers.

`anyio.to_thread` costs about as much as a statement that finds a row by its key: it passes the event loop
twice before it begins, and makes scopes of its own. Here there is one event, and one call from the thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

from mcp_task_runtime.errors import StoreUnavailableError

__all__ = ["FORKED", "Post", "Threads", "event_loop", "poster", "set_all", "start_thread"]

T = TypeVar("T")

Post: TypeAlias = Callable[..., object]
"""Calls a function with arguments on an event loop, soon."""

FORKED: Final = "The store was in use when this process was forked; each process must make its own"
"""The error message where threads and connections belong to another process."""

_IDLE_SECONDS: Final = 10.0


def event_loop() -> Any:
    """Return the running event loop, as its library knows it."""
    token = anyio.lowlevel.current_token()
    return getattr(token, "native_token", token)  # older versions of anyio return the loop itself


def poster(loop: Any) -> Post:
    """Return what calls a function on an event loop from any thread; `RuntimeError` if the loop has ended."""
    post: Post | None = getattr(loop, "call_soon_threadsafe", None)
    return loop.run_sync_soon if post is None else post


class _Settable(Protocol):
    def set(self) -> object: ...


def set_all(events: Iterable[_Settable]) -> None:
    """Set events of the running event loop."""
    for event in events:
        event.set()


def start_thread(target: Callable[[], None], name: str) -> Thread:
    """Start a thread that keeps no process alive.

    Raises:
        StoreUnavailableError: The system has too many threads.
    """
    thread = Thread(target=target, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise StoreUnavailableError("No thread could be started") from error
    return thread


class Threads:
    """A pool of threads: each starts when it is needed and ends after some idle seconds."""

    def __init__(self, name: str) -> None:
        """Create an empty pool.

        Args:
            name: The name of the threads.
        """
        self._name = name
        self._lock = Lock()
        self._jobs: SimpleQueue[_Job[Any]] = SimpleQueue()
        self._idle = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in a thread and return its result, or raise its exception.

        Cancelled, this does not stop the function: it runs to its end and its result is dropped.

        Raises:
            StoreUnavailableError: No thread could be started.
        """
        job = _Job(work)
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                start_thread(self._serve, self._name)
            self._jobs.put(job)
        await job.done.wait()
        return job.result()

    def _serve(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if self._jobs.empty():
                        self._idle -= 1
                        return
                continue
            job.do()
            with self._lock:
                self._idle += 1  # before the caller wakes: the next call finds this thread
            job.tell()
            del job


class _Job(Generic[T]):
    __slots__ = ("_context", "_error", "_post", "_value", "_work", "done")

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._context = copy_context()
        self._post = poster(event_loop())
        self._value: T | None = None
        self._error: BaseException | None = None
        self.done = anyio.Event()

    def do(self) -> None:
        try:
            self._value = self._context.run(self._work)
        except BaseException as error:
            self._error = error

    def tell(self) -> None:
        with suppress(RuntimeError):  # the loop has ended, and its callers with it
            self._post(self.done.set)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # what the work returned
