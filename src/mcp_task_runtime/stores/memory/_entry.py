"""`Entry`: all that the in-memory store keeps of one task, but its mailbox."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from struct import Struct
from typing import Final, get_args

from mcp_task_runtime.core.functions import without
from mcp_task_runtime.core.sealed import event_excerpt
from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.core.transitions import EVENTS_KEPT
from mcp_task_runtime.core.types import TaskEvent, TaskEventKind, TaskRecord
from mcp_task_runtime.stores.memory._index import Indexed

__all__ = ["Entry"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)
_KINDS: Final[tuple[TaskEventKind, ...]] = get_args(TaskEventKind)
_NUMBERS: Final = {kind: number for number, kind in enumerate(_KINDS)}
_HEAD: Final = Struct("<qBh")  # microseconds, kind, bytes of text or -1 for none


class Entry(Indexed):
    """One stored task.

    Attributes:
        changed: Exists while there are waiters for the next revision.
        steps: The recorded steps, if there are any.
        watchers: Called after each change.
    """

    __slots__ = ("_events", "changed", "steps", "watchers")

    def __init__(self, record: TaskRecord, sequence: int) -> None:
        super().__init__(record, sequence)
        self.changed: Signal | None = None
        self.steps: dict[str, str] | None = None
        self.watchers: tuple[Callable[[TaskRecord | None], None], ...] = ()
        self._events = b""

    @property
    def is_removed(self) -> bool:
        """Whether the task is gone."""
        return self.owned is None

    def wake(self) -> None:
        """Wake every waiter, and call every watcher."""
        if self.changed is not None:
            self.changed.set()
            self.changed = None
        for on_change in self.watchers:
            on_change(None if self.is_removed else self.record)

    def watch(self, on_change: Callable[[TaskRecord | None], None]) -> Callable[[], None]:
        """Call a function after each change, until the function returned is called."""
        self.watchers = (*self.watchers, on_change)
        return _Unwatch(self, on_change)

    def note(self, at: datetime, events: Iterable[tuple[TaskEventKind, str | None]]) -> None:
        """Add events to the history, which keeps the last `EVENTS_KEPT` of them; about 40 bytes each.

        The beginning and the end of the task stand in its record, and need no event here.
        """
        stamp = (at - _EPOCH) // _MICROSECOND
        blob, count = self._events[1:], self._events[0] if self._events else 0
        for kind, text in events:
            if text is None:
                blob += _HEAD.pack(stamp, _NUMBERS[kind], -1)
            else:
                data = event_excerpt(text).encode()
                blob += _HEAD.pack(stamp, _NUMBERS[kind], len(data)) + data
            count += 1
        start = 0
        for _ in range(count - EVENTS_KEPT):
            start += _HEAD.size + max(0, _HEAD.unpack_from(blob, start)[2])
        self._events = bytes([min(count, EVENTS_KEPT)]) + blob[start:]

    def history(self) -> tuple[TaskEvent, ...]:
        """Return what happened to the task, oldest first."""
        events: list[TaskEvent] = []
        blob, at = self._events, 1
        while at < len(blob):
            stamp, number, size = _HEAD.unpack_from(blob, at)
            at += _HEAD.size
            text = None if size < 0 else blob[at : at + size].decode()
            at += max(0, size)
            events.append(TaskEvent(_EPOCH + stamp * _MICROSECOND, _KINDS[number], text))
        task, outcome = self.record.task, self.record.outcome
        if outcome is not None:
            text = None if outcome.status_message is None else event_excerpt(outcome.status_message)
            events.append(TaskEvent(task.last_updated_at, outcome.status, text))
        return (TaskEvent(task.created_at, "created"), *events[-EVENTS_KEPT:])


class _Unwatch:
    """Stops the calls of one watcher; a partial of a method would be three objects."""

    __slots__ = ("_entry", "_on_change")

    def __init__(self, entry: Entry, on_change: Callable[[TaskRecord | None], None]) -> None:
        self._entry = entry
        self._on_change = on_change

    def __call__(self) -> None:
        self._entry.watchers = without(self._entry.watchers, self._on_change)
