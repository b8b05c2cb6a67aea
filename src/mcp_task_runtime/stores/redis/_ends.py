"""`EndWatches`: who is told of the ends of tasks, on one channel of the store object.

The operations that created and last claimed a task stand in its record, and name the store objects that sent them.
Scripts that end a task publish its tag on the channels of these. So nothing is subscribed to, and nothing read, for a
task alone; only when the subscription begins all watched tasks are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from mcp_task_runtime.core.signal import Signal

__all__ = ["EndWatches"]

_MOST_KEPT: Final = 1_000
"""Tasks without a watch of which something is remembered: it may begin later than the task ends."""


class _EndWatch:
    """A function that is called when a task has ended."""

    __slots__ = ("on_end",)

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.on_end = on_end


class EndWatches:
    """The watches of one event loop. A look at tasks is asked for with `unsure`, and what it found said with `heard`.

    Attributes:
        channel: The channel of this store object.
        is_needed: Whether something was watched, so that the channel is subscribed to.
    """

    def __init__(self, channel: bytes) -> None:
        """Make no watches.

        Args:
            channel: The channel of this store object.
        """
        self.channel = channel
        self.is_needed: bool = False
        self._watches: dict[bytes, tuple[_EndWatch, ...]] = {}
        self._heard: dict[bytes, None] = {}
        self._doubtful: dict[bytes, None] = {}
        self._unsure: set[bytes] = set()
        self._news = Signal()
        self._subscriptions = 0
        self._is_active = False
        self._looks_at_all = False

    def __len__(self) -> int:
        return len(self._watches)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._watches)

    def watch(self, tag: bytes, on_end: Callable[[], None]) -> Callable[[], None]:
        """Call a function when a task has ended, or at once if it has, until the function returned is called."""
        self.is_needed = True
        if tag in self._heard:
            del self._heard[tag]
            on_end()
            return _do_nothing
        watch = _EndWatch(on_end)
        self._watches[tag] = (*self._watches.get(tag, ()), watch)
        if self._looks_at_all or tag in self._doubtful:
            self._doubtful.pop(tag, None)
            self.look_at([tag])

        def unwatch() -> None:
            left = tuple(each for each in self._watches.get(tag, ()) if each is not watch)
            if left:
                self._watches[tag] = left
            else:
                self._watches.pop(tag, None)

        return unwatch

    @property
    def subscription(self) -> int | None:
        """The number of the subscription that lasts; `None` without one."""
        return self._subscriptions if self._is_active else None

    def made(self, tag: bytes, since: int | None) -> None:
        """Note that this object has made or claimed a task, whose watch may follow.

        Args:
            tag: The task.
            since: The `subscription` before that. If it is another one now, an end may have been missed.
        """
        if self.is_needed and (since is None or since != self.subscription):
            self._keep(self._doubtful, tag)

    def _keep(self, tags: dict[bytes, None], tag: bytes) -> None:
        if len(tags) >= _MOST_KEPT:
            tags.clear()
            self._looks_at_all = True  # from now on at each task whose watch begins
        tags[tag] = None

    def heard(self, tag: bytes) -> None:
        """Call those that watch a task that has ended."""
        for watch in self._watches.pop(tag, ()):
            watch.on_end()

    def published(self, tag: bytes) -> None:
        """Take an event of the channel, also of a task that is not watched yet."""
        if tag in self._watches:
            self.heard(tag)
            return
        self._keep(self._heard, tag)

    def begin(self) -> None:
        """Look at all tasks: the subscription has begun, and what was published before was missed."""
        self._is_active = True
        self._subscriptions += 1
        self._heard.clear()
        self.look_at(self._watches)

    def end(self) -> None:
        """Note that the subscription has ended."""
        self._is_active = False
        self._heard.clear()

    def look_at(self, tags: Iterable[bytes]) -> None:
        """Have these tasks looked at."""
        self._unsure.update(tags)
        if self._unsure:
            self._news.set()

    async def unsure(self) -> list[bytes]:
        """Wait until tasks must be looked at, and return them."""
        await self._news.wait()
        self._news = Signal()
        tags = [tag for tag in self._unsure if tag in self._watches]
        self._unsure.clear()
        return tags


def _do_nothing() -> None:
    pass
