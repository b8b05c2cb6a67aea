"""Who waits in this process, and for what. Knows no driver."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.stores.postgres._watchers import Watchers

__all__ = ["Signals", "Topic", "TopicSignal"]

Topic: TypeAlias = Literal["task", "message", "answer", "work"]
"""What a waiter waits for: a change of a task, a message in its mailbox, an answer to one of its questions; or tasks
that wait for a worker, in place of a task's id with an empty one."""

_TOPICS: Final[dict[str, tuple[Topic, ...]]] = {
    "u": ("task",),
    "m": ("message",),
    "a": ("answer",),
    "c": ("message", "answer"),
    "d": ("task", "message", "answer"),
    "w": ("work",),
}
"""The waiters that a notification wakes, by its first letter; see `_statements`."""

_GONE: Final = "d"
"""The letter of an end, or a deletion; the number of its transaction follows."""


class TopicSignal:
    """Wakes the waiters for one topic of one task.

    Attributes:
        event: Set and replaced when something may have changed.
        waiters: How many wait.
        clears: How often this process cleared the mailbox while they waited.
        cleared_by: The latest transaction of another process that cleared the mailbox; -1 for none.
    """

    __slots__ = ("cleared_by", "clears", "event", "waiters")

    def __init__(self) -> None:
        self.event = Signal()
        self.waiters = 0
        self.clears = 0
        self.cleared_by = -1

    def fire(self) -> None:
        """Wake all waiters."""
        event, self.event = self.event, Signal()
        event.set()


class Signals:
    """Signals that callers on one event loop wait for; one without waiters is removed.

    Attributes:
        watchers: Functions that are called for changes of tasks: they wait as well.
    """

    def __init__(self) -> None:
        self.watchers = Watchers()
        self._signals: dict[tuple[Topic, str], TopicSignal] = {}

    def __len__(self) -> int:
        return len(self._signals) + len(self.watchers)

    def enter(self, topic: Topic, task_id: str) -> TopicSignal:
        """Return the signal for a topic of a task, for one more waiter, which calls `leave` at its end."""
        signal = self._signals.get((topic, task_id))
        if signal is None:
            signal = self._signals[topic, task_id] = TopicSignal()
        signal.waiters += 1
        return signal

    def leave(self, topic: Topic, task_id: str) -> None:
        """Remove one waiter for a topic of a task."""
        signal = self._signals[topic, task_id]
        signal.waiters -= 1
        if not signal.waiters:
            del self._signals[topic, task_id]

    def fire(self, topic: Topic, task_id: str, record: TaskRecord | None = None) -> None:
        """Wake the waiters for a topic of a task, which is as `record` says, if that is known."""
        self._wake(topic, task_id)
        if topic == "task":
            self.watchers.tell(task_id, record)

    def fire_ended(self, task_id: str) -> None:
        """Wake the waiters for a task that this process ended or deleted."""
        self.fire_cleared(task_id)
        self.watchers.ended(task_id)

    def fire_all(self) -> None:
        """Wake all waiters."""
        for signal in self._signals.values():
            signal.fire()

    def fire_cleared(self, task_id: str) -> None:
        """Wake the waiters for a mailbox that this process cleared, and for its task."""
        self._wake("task", task_id)
        self._wake("answer", task_id)
        signal = self._signals.get(("message", task_id))
        if signal is not None:
            signal.clears += 1
            signal.fire()

    def notify(self, payload: str) -> None:
        """Wake the waiters that a notification concerns.

        Raises:
            ValueError: Another application sent the notification.
        """
        head, _, task_id = payload.partition(":")
        if head[:1] == _GONE and head[1:].isdecimal():  # another application may send anything
            self.watchers.ended(task_id)
        for topic in _TOPICS.get(head[:1], ()):
            signal = self._signals.get((topic, task_id))
            if signal is not None and len(head) > 1:
                signal.cleared_by = max(signal.cleared_by, int(head[1:]))
            self.fire(topic, task_id)

    def _wake(self, topic: Topic, task_id: str) -> None:
        signal = self._signals.get((topic, task_id))
        if signal is not None:
            signal.fire()
