"""`EndWatches`: functions that are called for the ends of tasks, on one channel of the store object.

The operations that created and last claimed a task stand in its record, and name the store objects that sent them.
Scripts that end a task publish its tag on the channels of these. So nothing is subscribed to, and nothing read, for a
task alone; only when the subscription begins all watched tasks are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from mcp_task_runtime.core.functions import do_nothing, without
from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.stores._recent_ends import RecentEnds

__all__ = ["EndWatches"]


class EndWatches:
    """The watches of one event loop. A look at tasks is asked for with `unsure`; what it found ended is `ended`.

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
        self._watches: dict[bytes, tuple[Callable[[], None], ...]] = {}
        self._recent = RecentEnds[bytes]()
        self._unsure: set[bytes] = set()
        self._news = Signal()

    def __len__(self) -> int:
        return len(self._watches)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._watches)

    def watch(self, tag: bytes, on_end: Callable[[], None]) -> Callable[[], None]:
        """Call a function when a task has ended, or at once if it has, until the function returned is called."""
        self.is_needed = True
        has_ended = self._recent.find(tag)
        if has_ended:
            on_end()
            return do_nothing
        watch = partial(on_end)  # equal to no other
        self._watches[tag] = (*self._watches.get(tag, ()), watch)
        if has_ended is None and self._recent.is_listening:  # a subscription that begins looks at all
            self._look_at([tag])

        def unwatch() -> None:
            left = without(self._watches.get(tag, ()), watch)
            if left:
                self._watches[tag] = left
            else:
                self._watches.pop(tag, None)

        return unwatch

    @property
    def mark(self) -> int:
        """What `made` takes, read before a task is made or claimed."""
        return self._recent.mark

    def made(self, tag: bytes, mark: int) -> None:
        """Note that this object has made or claimed a task: its end may be watched soon.

        Args:
            tag: The task.
            mark: `mark` before that.
        """
        self._recent.made(tag, mark)

    def ended(self, tag: bytes) -> None:
        """Call those that watch a task that has ended."""
        self._recent.ended(tag)
        for watch in self._watches.pop(tag, ()):
            watch()

    def begin(self) -> None:
        """Look at all tasks: the subscription has begun, and what was published before was missed."""
        self._recent.begin()
        self._look_at(self._watches)

    def end(self) -> None:
        """Note that the subscription has ended."""
        self._recent.stop()

    def doubt(self, tags: Iterable[bytes]) -> None:
        """Have tasks looked at that may have ended without notice, now or when their watch begins."""
        for tag in tags:
            self._recent.forget(tag)
        self._look_at(tags)

    def _look_at(self, tags: Iterable[bytes]) -> None:
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
