"""`FollowedTask`: what this process knows of a task that is followed, and its one wait in the store."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.store import TaskStore, TaskWatching
from mcp_task_runtime.core.store_calls import log_store_error, outlasting, pause_after
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import StoreClosedError, StoreError, StoreUnavailableError, TaskNotFoundError

__all__ = ["ChangeCallback", "FollowedTask", "call_back", "do_nothing"]

logger: logging.Logger = logging.getLogger(__name__)

_BATCH: Final = 32
"""Readers that are woken before other tasks of the event loop have their turn."""

_STRAY: Final = "The wait was cancelled by code that does not own it"

ChangeCallback: TypeAlias = Callable[[TaskRecord | None], None]
"""Called with a task after a change, or with `None` when it is gone."""


class FollowedTask:
    """One followed task, with one wait in the store; where there are only callbacks, a store that watches calls back.

    Attributes:
        task_id: The task.
        record: The newest that is known; `None` until there is news.
        is_gone: Whether the task is unknown, has expired or was deleted.
        readers: How many readers it has. Call `begin` after a change.
        callbacks: Called with each new record, or with `None` when the task is gone. The same holds.
    """

    __slots__ = (
        "_failure",
        "_failures",
        "_group",
        "_is_looking",
        "_is_pumped",
        "_is_stale",
        "_lock",
        "_read_view",
        "_revision",
        "_scope",
        "_store",
        "_unwatch",
        "_view",
        "_waiting",
        "_watching",
        "callbacks",
        "is_gone",
        "readers",
        "record",
        "task_id",
    )

    def __init__(
        self,
        task_id: str,
        revision: int,
        store: TaskStore,
        watching: TaskWatching | None,
        group: IsolatedGroup,
        read_view: Callable[[TaskRecord], Awaitable[TaskView | None]],
    ) -> None:
        """Follow no task yet; see `begin`.

        Args:
            task_id: The task.
            revision: The newest revision that is known.
            store: Where it is kept.
            watching: The same store, if it calls back.
            group: Runs the wait while it is open.
            read_view: Reads the task's open questions.
        """
        self.task_id: str = task_id
        self.record: TaskRecord | None = None
        self.is_gone: bool = False
        self.readers: int = 0
        self.callbacks: tuple[ChangeCallback, ...] = ()
        self._store = store
        self._watching = watching
        self._group = group
        self._read_view = read_view
        self._revision = revision  # the newest that is known, with or without its record
        self._waiting: dict[object, Callable[[], object]] | None = None  # by reader
        self._failure: Exception | None = None
        self._failures = 0
        self._is_pumped = False
        self._scope: anyio.CancelScope | None = None
        self._view: TaskView | None = None
        self._lock: anyio.Lock | None = None
        self._unwatch: Callable[[], None] | None = None
        self._is_looking = False
        self._is_stale = False

    @property
    def users(self) -> int:
        """Number of readers and callbacks."""
        return self.readers + len(self.callbacks)

    def begin(self) -> None:
        """Start to wait in the store for readers and callbacks, if the group is open and the task can still change."""
        if not self._group.is_open or self.is_gone or self._has_ended():
            return
        if self.readers or self._watching is None:
            self._stop_watching()
            if not self._is_pumped:
                self._is_pumped = True
                scope = self._scope = anyio.CancelScope()
                self._group.start(partial(self._pump, scope), scope)
        elif self._unwatch is None:
            self._stop_pump()
            self._unwatch = do_nothing  # the store may call back before it returns
            try:
                unwatch = self._watching.watch_task(self.task_id, self, after=self._revision)
            except StoreClosedError:
                return
            if self._unwatch is None:  # the first call was the last one
                unwatch()
            else:
                self._unwatch = unwatch

    def stop(self) -> None:
        """Stop the wait; readers wait in the store themselves from now on."""
        self._stop_watching()
        self._stop_pump()
        self._wake()

    def _stop_watching(self) -> None:
        unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:
            unwatch()

    def _stop_pump(self) -> None:
        self._is_pumped = False
        if self._scope is not None:
            self._group.cancel_soon(self._scope)
            self._scope = None

    def _has_ended(self) -> bool:
        return self.record is not None and is_terminal(self.record.status)

    def __call__(self, record: TaskRecord | None) -> None:  # a bound method would be one more object for each task
        """Take a change from a store that calls back, or look at the task where it does not say what it is."""
        if self._unwatch is None:
            return
        if record is not None:
            self.publish(record)
            if self._has_ended():
                self._stop_watching()
            return
        self._is_stale = True
        if not self._is_looking and self._group.is_open:
            self._is_looking = True
            self._group.start(self._look)  # without a scope: the store may call back outside of any task

    async def _look(self) -> None:
        """Read the task until there is no more news. Outages are waited out."""
        failures = 0
        try:
            while self._is_stale and self._unwatch is not None:
                self._is_stale = False
                try:
                    record = await self._store.get_task(self.task_id)
                except StoreClosedError:
                    return
                except Exception as error:
                    failures = await self._wait_out(error, failures)
                except anyio.get_cancelled_exc_class():
                    if not await self._group.is_stray(anyio.CancelScope()):  # no scope but those around it counts
                        raise
                    failures = await self._wait_out(RuntimeError(_STRAY), failures)
                else:
                    failures = 0
                    if record is None:
                        self._lose()
                    elif record.revision > self._revision:
                        self.publish(record)
                    if self.is_gone or self._has_ended():
                        self._stop_watching()
        finally:
            self._is_looking = False

    async def _wait_out(self, error: Exception, failures: int) -> int:
        """Note that a look has failed, and wait; return how many have failed in a row."""
        if isinstance(error, StoreUnavailableError):
            logger.debug("A followed task cannot be read; trying again")
        else:
            self._fail(error, is_first=not failures)
        self._is_stale = True
        failures += 1
        await pause_after(failures)
        return failures

    def publish(self, record: TaskRecord) -> None:
        """Tell readers and callbacks of a record, if it is news."""
        known = 0 if self.record is None else self.record.revision
        if record.revision <= known or record.revision < self._revision:
            return
        self.record = record
        self._revision = record.revision
        self._failure = None
        for callback in self.callbacks:
            call_back(callback, record)
        self._wake()

    async def changed(self, reader: object, revision: int) -> TaskRecord:
        """Wait for a reader until the task is newer than its revision; see `TaskFollower.changed`."""
        failures = self._failures
        while True:
            record = self.record
            if record is not None and record.revision > revision:
                return record
            if self.is_gone:
                raise TaskNotFoundError(self.task_id)
            if self._failures != failures and self._failure is not None:
                text = str(self._failure) if isinstance(self._failure, StoreError) else "Internal error"
                raise StoreError(text) from self._failure
            if not self._is_pumped or revision < self._revision:
                record = await self._store.wait_for_update(self.task_id, after=revision)
                self.publish(record)
                return record
            if self._waiting is None:
                self._waiting = {}
            event = anyio.Event()
            self._waiting[reader] = event.set
            try:
                await event.wait()
            finally:
                del self._waiting[reader]

    def call_at_news(self, reader: object, revision: int, function: Callable[[], object]) -> None:
        """Call a function at news for a reader, at once if there is some beyond its revision, until `forget`."""
        if self._waiting is None:
            self._waiting = {}
        self._waiting[reader] = function
        if self.is_gone or self._revision > revision or not self._is_pumped:
            function()

    def forget(self, reader: object) -> None:
        """Call nothing more for a reader."""
        if self._waiting is not None:
            self._waiting.pop(reader, None)

    def has_to_read(self, revision: int) -> bool:
        """Return whether it takes a read to return what is newer than this revision."""
        if self.is_gone or self._revision <= revision:
            return False
        return self.record is None or self.record.revision <= revision or self.record.status == "input_required"

    async def news(self, revision: int) -> TaskView | None:
        """Return the task with its questions if it is newer than this revision."""
        if self.is_gone:
            raise TaskNotFoundError(self.task_id)
        if self._revision > revision:
            return await self.current_view(revision + 1)
        if not self._is_pumped:
            raise StoreClosedError
        return None

    async def current_view(self, revision: int) -> TaskView:
        """Return the task with its questions, at this revision or later; readers at once share a read."""
        record = self.record
        if record is None or record.revision < revision:
            record = await outlasting(partial(self._store.get_task, self.task_id))
            if record is None:
                raise TaskNotFoundError(self.task_id)
            self.publish(record)
        if record.status != "input_required":
            return TaskView(record)
        if self._lock is None:
            self._lock = anyio.Lock()
        async with self._lock:
            if self._view is None or self._view.record.revision < record.revision:
                self._view = await outlasting(partial(self._read_view, record))
            if self._view is None:
                raise TaskNotFoundError(self.task_id)
            return self._view

    async def _pump(self, scope: anyio.CancelScope) -> None:
        """Wait in the store for the task's changes until it has ended or is gone."""
        failures = 0
        try:
            while self._is_pumped:
                after = self._revision
                try:
                    record = await self._store.wait_for_update(self.task_id, after=after)
                    if record.revision <= after:
                        raise StoreError("wait_for_update returned a revision that is not newer")
                except TaskNotFoundError:
                    self._lose()
                    return
                except StoreClosedError:
                    return
                except StoreUnavailableError:
                    logger.debug("A followed task cannot be read; trying again")
                except Exception as error:
                    self._fail(error, is_first=not failures)
                except anyio.get_cancelled_exc_class():
                    if not await self._group.is_stray(scope):
                        raise
                    self._fail(RuntimeError(_STRAY), is_first=not failures)
                else:
                    failures = 0
                    self.publish(record)
                    if is_terminal(record.status):
                        return
                    continue
                failures += 1
                await pause_after(failures)
        finally:
            if self._scope is scope:
                self._is_pumped = False
                self._wake()

    def _lose(self) -> None:
        self.is_gone = True
        for callback in self.callbacks:
            call_back(callback, None)

    def _fail(self, error: Exception, *, is_first: bool) -> None:
        if is_first:
            log_store_error(logger, "The store failed for a followed task; trying again", error)
        self._failure = error
        self._failures += 1
        self._wake()

    def _wake(self) -> None:
        if not self._waiting:
            return
        calls = list(self._waiting.values())
        if len(calls) > _BATCH and self._group.is_open:
            self._group.start(partial(_call_in_turns, calls), anyio.CancelScope())
            return
        for call in calls:
            call()


async def _call_in_turns(calls: list[Callable[[], object]]) -> None:
    for start in range(0, len(calls), _BATCH):
        for call in calls[start : start + _BATCH]:
            call()
        await anyio.lowlevel.checkpoint()


def do_nothing() -> None:
    """Stop a watch that has stopped already."""


def call_back(callback: ChangeCallback, record: TaskRecord | None) -> None:
    """Call a callback; what it raises is logged."""
    try:
        callback(record)
    except Exception:
        logger.exception("A callback for changes of a task raised an exception")
