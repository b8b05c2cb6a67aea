"""`TaskFollowers`: one wait in the store for each followed task and process, any number of readers.

How to follow a task, in an adapter for example, after a check that its client may see it:

    with runtime.followers.follow(task_id, after=record.revision) as follower:
        while not is_terminal(record.status):
            record = await follower.changed()
            view = await follower.view()      # with its questions: one read for all readers of this revision

One reader of many tasks has a function called for each of them, `TaskFollower.call_at_news`, and reads `news` then.

A reader that is slow sees fewer of the revisions in between, always in order and always the last one. Many readers are
woken in turns, so that other tasks of the event loop run in between. Outages are waited out; a store that fails in
another way raises `StoreError` in each reader, who may go on reading. Without an open runtime each reader waits in the
store itself.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Final, TypeAlias

import anyio
import anyio.lowlevel
from typing_extensions import Self

from mcp_task_runtime.core.functions import without
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.store import TaskEndWatching, TaskStore, TaskWatching
from mcp_task_runtime.core.store_calls import log_store_error, outlasting, pause_after
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import StoreClosedError, StoreError, StoreUnavailableError, TaskNotFoundError

__all__ = ["ChangeCallback", "TaskFollower", "TaskFollowers"]

logger: logging.Logger = logging.getLogger(__name__)

_BATCH: Final = 32
"""Readers that are woken before other tasks of the event loop have their turn."""

_STRAY: Final = "The wait was cancelled by code that does not own it"

ChangeCallback: TypeAlias = Callable[[TaskRecord | None], None]
"""Called with a task after a change, or with `None` when it is gone."""


class TaskFollowers:
    """The followed tasks of one process."""

    def __init__(
        self, store: TaskStore, group: IsolatedGroup, read_view: Callable[[TaskRecord], Awaitable[TaskView | None]]
    ) -> None:
        """Make the followers of a store.

        Args:
            store: Where tasks are kept.
            group: Runs the waits while it is open.
            read_view: Reads a task's open questions.
        """
        self._store = store
        self._group = group
        self._read_view = read_view
        self._watching = store if isinstance(store, TaskWatching) else None
        self._ends = store if isinstance(store, TaskEndWatching) else None
        self._topics: dict[str, _Topic] = {}
        self._on_unused = self._drop_unused  # bound once: each callback keeps it

    def __len__(self) -> int:
        """Return the number of followed tasks."""
        return len(self._topics)

    @property
    def readers(self) -> int:
        """Number of readers and callbacks of all followed tasks."""
        return sum(topic.users for topic in self._topics.values())

    def follow(self, task_id: str, *, after: int = 0) -> TaskFollower:
        """Return a reader of a task's changes; enter it as a context manager.

        Args:
            task_id: The task.
            after: The revision that the reader has already; 0 to begin with the task as it is.
        """
        return TaskFollower(partial(self._join, task_id, after), self._leave, after)

    def watch(self, task_id: str, on_change: ChangeCallback, *, after: int) -> Callable[[], None]:
        """Call a function after each change of a task, until the function that this returns is called.

        What `on_change` raises is logged. Without an open runtime there are no calls.

        Args:
            task_id: The task.
            on_change: Called with the task, or with `None` once when the task is gone.
            after: The revision that the caller has already.
        """
        topic = self._topic(task_id, after)
        topic.callbacks = (*topic.callbacks, on_change)
        topic.begin()
        if topic.is_gone or (topic.record is not None and topic.record.revision > after):
            _call(on_change, None if topic.is_gone else topic.record)
        return _StopCalling(self._on_unused, topic, on_change)

    def watch_end(self, task_id: str, on_end: Callable[[], None], *, after: int) -> Callable[[], None]:
        """Call a function when a task has ended or is gone, until the function that this returns is called.

        It may be called at once, before this returns, and more than once. For a task that this process made or claimed.
        A store with `TaskEndWatching` reads nothing for it.

        Args:
            task_id: The task.
            on_end: Does not raise.
            after: The revision that the caller has already.
        """
        if self._ends is None:
            return self.watch(task_id, partial(_call_at_end, on_end), after=after)
        try:
            return self._ends.watch_end(task_id, on_end) if self._group.is_open else _do_nothing
        except StoreClosedError:
            return _do_nothing

    def feed(self, record: TaskRecord) -> None:
        """Tell the readers of a change that this process made, without a read."""
        topic = self._topics.get(record.task.task_id)
        if topic is not None:
            topic.publish(record)
            if is_terminal(record.status):
                topic.stop()

    def reset(self) -> None:
        """Stop all waits: the group closes, or opens again. Readers that are left wait in the store themselves."""
        topics, self._topics = self._topics, {}
        for topic in topics.values():
            topic.stop()

    def _topic(self, task_id: str, after: int) -> _Topic:
        topic = self._topics.get(task_id)
        if topic is None:
            topic = _Topic(task_id, after, self._store, self._watching, self._group, self._read_view)
            self._topics[task_id] = topic
        return topic

    def _join(self, task_id: str, after: int) -> _Topic:
        topic = self._topic(task_id, after)
        topic.readers += 1
        topic.begin()
        return topic

    def _leave(self, topic: _Topic) -> None:
        topic.readers -= 1
        self._drop_unused(topic)

    def _drop_unused(self, topic: _Topic) -> None:
        if topic.readers or topic.callbacks:
            topic.begin()
            return
        topic.stop()
        if self._topics.get(topic.task_id) is topic:
            del self._topics[topic.task_id]


class _StopCalling:
    """Stops the calls of one callback; a partial of a method would be three objects for each task."""

    __slots__ = ("_on_change", "_on_unused", "_topic")

    def __init__(self, on_unused: Callable[[_Topic], None], topic: _Topic, on_change: ChangeCallback) -> None:
        self._on_unused = on_unused
        self._topic = topic
        self._on_change = on_change

    def __call__(self) -> None:
        topic = self._topic
        if self._on_change in topic.callbacks:
            topic.callbacks = without(topic.callbacks, self._on_change)
            self._on_unused(topic)


class TaskFollower:
    """One reader of a task's changes. Use it inside `with`, from one task of the event loop at a time.

    Attributes:
        revision: The last revision that was returned.
    """

    __slots__ = ("_join", "_leave", "_topic", "revision")

    def __init__(self, join: Callable[[], _Topic], leave: Callable[[_Topic], None], after: int) -> None:
        """Make a reader; `TaskFollowers.follow` does."""
        self.revision: int = after
        self._join = join
        self._leave = leave
        self._topic: _Topic | None = None

    def __enter__(self) -> Self:
        self._topic = self._join()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        topic, self._topic = self._topic, None
        assert topic is not None
        topic.forget(self)
        self._leave(topic)

    async def changed(self) -> TaskRecord:
        """Wait until the task is newer than `revision`, and return it as it is then.

        Raises:
            TaskNotFoundError: The task is unknown, expired or was deleted.
            StoreClosedError: The store was closed.
            StoreError: The store failed, other than by an outage.
        """
        assert self._topic is not None, "enter the follower first"
        record = await self._topic.changed(self)
        self.revision = record.revision
        return record

    def call_at_news(self, function: Callable[[], object]) -> None:
        """Call a function each time there may be news, at once if there is some, until the `with` block ends.

        A call may still come afterwards. The function does not raise.
        """
        assert self._topic is not None, "enter the follower first"
        self._topic.call_at_news(self, function)

    @property
    def has_to_read(self) -> bool:
        """Whether `news` reads something in the store."""
        assert self._topic is not None, "enter the follower first"
        return self._topic.has_to_read(self.revision)

    async def news(self) -> TaskView | None:
        """Return the task with its open questions if it is newer than `revision`, otherwise `None`, without a wait.

        Raises:
            TaskNotFoundError: The task is unknown, expired or was deleted.
            StoreClosedError: There will be no more news: the runtime closes.
            StoreError: The store failed.
        """
        assert self._topic is not None, "enter the follower first"
        view = await self._topic.news(self.revision)
        if view is not None:
            self.revision = view.record.revision
        return view

    async def view(self) -> TaskView:
        """Return the task with its open questions, at `revision` or later.

        Raises:
            TaskNotFoundError: The task expired or was deleted.
            StoreError: The store failed.
        """
        assert self._topic is not None, "enter the follower first"
        return await self._topic.current_view(self.revision)


class _Topic:
    """One followed task, with one wait in the store; for callbacks alone, a store with `TaskWatching` calls back."""

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
        self.task_id = task_id
        self.record: TaskRecord | None = None
        self.is_gone = False
        self.readers = 0
        self.callbacks: tuple[ChangeCallback, ...] = ()
        self._store = store
        self._watching = watching
        self._group = group
        self._read_view = read_view
        self._revision = revision  # the newest that is known, with or without its record
        self._waiting: dict[TaskFollower, Callable[[], object]] | None = None
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
            self._unwatch = _do_nothing  # the store may call back before it returns
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
            _call(callback, record)
        self._wake()

    async def changed(self, follower: TaskFollower) -> TaskRecord:
        """Wait until the task is newer than the follower's revision."""
        failures = self._failures
        while True:
            record = self.record
            if record is not None and record.revision > follower.revision:
                return record
            if self.is_gone:
                raise TaskNotFoundError(self.task_id)
            if self._failures != failures and self._failure is not None:
                text = str(self._failure) if isinstance(self._failure, StoreError) else "Internal error"
                raise StoreError(text) from self._failure
            if not self._is_pumped or follower.revision < self._revision:
                record = await self._store.wait_for_update(self.task_id, after=follower.revision)
                self.publish(record)
                return record
            if self._waiting is None:
                self._waiting = {}
            event = anyio.Event()
            self._waiting[follower] = event.set
            try:
                await event.wait()
            finally:
                del self._waiting[follower]

    def call_at_news(self, follower: TaskFollower, function: Callable[[], object]) -> None:
        """Call a function at news for a follower, at once if there is some, until `forget`."""
        if self._waiting is None:
            self._waiting = {}
        self._waiting[follower] = function
        if self.is_gone or self._revision > follower.revision or not self._is_pumped:
            function()

    def forget(self, follower: TaskFollower) -> None:
        """Call nothing more for a follower."""
        if self._waiting is not None:
            self._waiting.pop(follower, None)

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
            _call(callback, None)

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


def _do_nothing() -> None:
    pass


def _call_at_end(on_end: Callable[[], None], record: TaskRecord | None) -> None:
    if record is None or is_terminal(record.status):
        on_end()


def _call(callback: ChangeCallback, record: TaskRecord | None) -> None:
    try:
        callback(record)
    except Exception:
        logger.exception("A callback for changes of a task raised an exception")
