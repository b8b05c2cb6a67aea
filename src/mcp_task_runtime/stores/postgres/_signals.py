"""Who waits in this process, and for what. Knows no driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal, TypeAlias

import anyio

__all__ = ["Signal", "Signals", "Topic"]

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


class Signal:
    """Wakes the waiters for one topic of one task.

    Attributes:
        event: Set and replaced when something may have changed.
        waiters: How many wait.
        clears: How often this process cleared the mailbox while they waited.
        cleared_by: The latest transaction of another process that cleared the mailbox; -1 for none.
    """

    __slots__ = ("cleared_by", "clears", "event", "waiters")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.waiters = 0
        self.clears = 0
        self.cleared_by = -1

    def fire(self) -> None:
        """Wake all waiters."""
        self.event.set()
        self.event = anyio.Event()


class Signals:
    """Signals that callers on one event loop wait for; one without waiters is removed."""

    def __init__(self) -> None:
        self._signals: dict[tuple[Topic, str], Signal] = {}

    def __len__(self) -> int:
        return len(self._signals)

    @contextmanager
    def watch(self, topic: Topic, task_id: str) -> Iterator[Signal]:
        """Return the signal for a topic of a task; it is kept as long as a block of this kind lasts."""
        signal = self._signals.setdefault((topic, task_id), Signal())
        signal.waiters += 1
        try:
            yield signal
        finally:
            signal.waiters -= 1
            if not signal.waiters:
                del self._signals[topic, task_id]

    def fire(self, topic: Topic, task_id: str) -> None:
        """Wake the waiters for a topic of a task."""
        signal = self._signals.get((topic, task_id))
        if signal is not None:
            signal.fire()

    def fire_all(self) -> None:
        """Wake all waiters."""
        for signal in self._signals.values():
            signal.fire()

    def fire_cleared(self, task_id: str) -> None:
        """Wake the waiters for a mailbox that this process cleared."""
        self.fire("answer", task_id)
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
        for topic in _TOPICS.get(head[:1], ()):
            signal = self._signals.get((topic, task_id))
            if signal is not None:
                if len(head) > 1:
                    signal.cleared_by = max(signal.cleared_by, int(head[1:]))
                signal.fire()
