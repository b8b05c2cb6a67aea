"""Callers that wait for a task, and how they are woken: with what they wait for where the writer has it at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from threading import Lock
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.stores._threads import Post, event_loop, poster, set_all
from mcp_task_runtime.stores.sqlite._transaction import Transaction

__all__ = ["IRRELEVANT", "Look", "News", "Waiter", "Waiters", "Wake", "Watcher", "wake_all"]

T_co = TypeVar("T_co", covariant=True)

IRRELEVANT: Final = object()
"""What `Look.accept` returns for news that cannot end the wait."""


class Look(Protocol[T_co]):
    """What a caller waits for."""

    def __call__(self, transaction: Transaction) -> tuple[T_co | None, datetime | None]:
        """Read; return what was found, or `None` and the time to look again at the latest."""
        ...

    def accept(self, change: object) -> Any:
        """Return what the caller waits for if a change brought it, `IRRELEVANT`, or `None` to have it look."""
        ...


News: TypeAlias = tuple[str, Any]
"""The id of a task that was changed, and what is known of the change; `None` to have waiters look."""


class _Settable(Protocol):
    def set(self) -> object: ...


Wake: TypeAlias = tuple[Post, _Settable]
"""An event, and what calls a function on its event loop."""


def wake_all(wakes: Iterable[Wake]) -> None:
    """Set events, each on its event loop, with one call for each loop."""
    by_loop: dict[Post, list[_Settable]] = {}
    for post, event in wakes:
        by_loop.setdefault(post, []).append(event)
    for post, events in by_loop.items():
        with suppress(RuntimeError):  # that loop has ended, and its waiters with it
            post(set_all, events)


class Waiter:
    """A caller that waits for a task; `event` is replaced before each look.

    Attributes:
        found: What the caller waits for, once the news of a commit had it.
    """

    __slots__ = ("event", "found", "look", "post", "task_id")

    def __init__(self, task_id: str, look: Look[Any]) -> None:
        self.task_id = task_id
        self.look = look
        self.post = poster(event_loop())
        self.event = Signal()
        self.found: Any = None


class Watcher:
    """A function that is called when a task may have changed: the waiter that never ends.

    Attributes:
        event: Itself: what wakes waiters calls the function.
        found: The task as it was last written here, until the function has it.
    """

    __slots__ = ("_on_change", "event", "found", "look", "post", "task_id")

    def __init__(self, task_id: str, look: Look[Any], on_change: Callable[[Any], None]) -> None:
        self.task_id: str = task_id
        self.look: Look[Any] = look
        self.post: Post = poster(event_loop())
        self.event: Watcher = self
        self.found: Any = None
        self._on_change = on_change

    def set(self) -> None:
        """Call the function, with what was found or with `None`."""
        found, self.found = self.found, None
        self._on_change(found)


class Waiters:
    """All waiters of an engine, by task; used from all its threads.

    Attributes:
        pause: Seconds between two scans.
        is_scanning: Whether a scan is under way.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_task: dict[str, set[Waiter | Watcher]] = {}
        self.pause = 0.0
        self.is_scanning = False

    def __bool__(self) -> bool:
        return bool(self._by_task)

    def __len__(self) -> int:
        with self._lock:
            return sum(len(waiters) for waiters in self._by_task.values())

    def add(self, waiter: Waiter | Watcher) -> bool:
        """Add a waiter; return whether it is the only one."""
        with self._lock:
            is_first = not self._by_task
            self._by_task.setdefault(waiter.task_id, set()).add(waiter)
            return is_first

    def discard(self, waiter: Waiter | Watcher) -> None:
        """Remove a waiter."""
        with self._lock:
            waiters = self._by_task.get(waiter.task_id, set())
            waiters.discard(waiter)
            if not waiters:
                self._by_task.pop(waiter.task_id, None)

    def tell(self, news: Iterable[News]) -> list[Wake]:
        """Hand news to the waiters it is for; return what wakes them."""
        if not self._by_task:
            return []
        wakes: dict[int, Wake] = {}
        with self._lock:
            for task_id, change in news:
                for waiter in self._by_task.get(task_id, ()):
                    found = None if change is None else waiter.look.accept(change)
                    if found is IRRELEVANT:
                        continue
                    if found is not None:
                        waiter.found = found
                    wakes[id(waiter)] = (waiter.post, waiter.event)
        return list(wakes.values())

    def all(self) -> list[Waiter | Watcher]:
        """Return all waiters."""
        with self._lock:
            return [waiter for waiters in self._by_task.values() for waiter in waiters]
