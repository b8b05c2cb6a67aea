"""`ListenHub`: has the changes of all tasks that one session follows pushed over a few streams (C11).

A stream is one `subscriptions/listen` request. It lives in a background task, so that it outlives the call
that opened it, and it stops with the last follower of its tasks. Tasks that are followed at about the same
time share a stream. When no further stream may be opened, the one with the fewest tasks is replaced by one
for its tasks and the new ones: a server shows each task at the start of a stream, so nothing is missed.
Where many tasks come at once, and the server is known to do so, they share a stream instead of a look each. So does
each task where the last ones were all at work when they were looked at: a stream was opened for them anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Final

import anyio
from mcp.shared.exceptions import MCPError
from mcp_types import METHOD_NOT_FOUND, MISSING_REQUIRED_CLIENT_CAPABILITY
from pydantic import ValidationError

from mcp_task_runtime.adapters.task_client.errors import LOST_CONNECTION
from mcp_task_runtime.adapters.task_client.polling import Watch
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot
from mcp_task_runtime.core.event_loop import start_background_task
from mcp_task_runtime.core.transitions import is_terminal

__all__ = ["MAX_TASKS_PER_STREAM", "ListenHub"]

logger: logging.Logger = logging.getLogger(__name__)

MAX_TASKS_PER_STREAM: Final = 1_000
"""Tasks that one stream is for, at most: servers limit them."""

_GATHER_SECONDS: Final = 0.002
"""How long a stream waits for more tasks before it is opened, while others are open."""

_MANY: Final = 8
"""Tasks that are looked at for the first time, or gathered, from which on one stream costs less than more looks."""

_USUAL: Final = 3
"""Tasks in a row that were at work when they were first looked at, from which on the next one is taken to be."""

_REFUSALS: Final = frozenset({METHOD_NOT_FOUND, MISSING_REQUIRED_CLIENT_CAPABILITY})
"""Errors of a server that pushes nothing on this connection, however often it is asked."""

_LATE_SECONDS: Final = 0.05
"""How long after the end of a stream the last pushes may arrive."""

_LINGER_SECONDS: Final = 1.0
"""How long the server may take to end a stream whose tasks have all ended, before the stream is cancelled."""


class ListenHub:
    """The streams of one session, and the watches that are told of what comes by them."""

    def __init__(
        self,
        listen: Callable[[list[str]], Awaitable[None]],
        *,
        max_streams: int,
        max_tasks: int = MAX_TASKS_PER_STREAM,
    ) -> None:
        """Make a hub.

        Args:
            listen: Listens to tasks until the server stops.
            max_streams: How many streams may be open at a time; with 0, changes come unasked, or not at all.
            max_tasks: How many tasks one stream may be for. Tasks beyond all streams are polled.
        """
        self._listen = listen
        self._max_streams = max_streams
        self._max_tasks = max_tasks
        self._watches: dict[str, set[Watch]] = {}
        self._streams: dict[str, _Stream] = {}  # by task
        self._open: set[_Stream] = set()
        self._gathering: _Stream | None = None
        self._not_pushed: set[str] = set()  # tasks whose stream ended without showing them
        self._looking: set[Watch] = set()  # those that look for the first time
        self._joined: set[str] = set()  # tasks that were not looked at, and that their stream has not shown yet
        self._at_work = 0  # tasks that were at work when they were first looked at, since one that was not
        self._is_refused = False  # the server said that it does not push
        self._shows_at_once: bool | None = None  # whether the server shows tasks at the start of a stream, if known

    @property
    def followed(self) -> int:
        """How many tasks are followed."""
        return len(self._watches)

    @property
    def open_streams(self) -> int:
        """How many streams are open, or about to be."""
        return len(self._open)

    def follow(self, watch: Watch) -> None:
        """Tell a watch of the changes of its task, and see to it that the server pushes them."""
        task_id = watch.task_id
        self._watches.setdefault(task_id, set()).add(watch)
        self._end_look(watch)
        if not self._max_streams or self._is_refused or task_id in self._not_pushed:
            return
        stream = self._streams.get(task_id)
        if stream is not None:
            stream.tell(watch)
            return
        gathering = self._gathering
        if gathering is None or len(gathering.task_ids) == self._max_tasks:
            if not self._has_room():
                return
            gathering = self._gathering = _Stream()
            self._open.add(gathering)
            # Its context is empty: the caller's may hold a request, and would be kept.
            Context().run(start_background_task, partial(self._run, gathering))
        gathering.task_ids.add(task_id)
        self._streams[task_id] = gathering
        watch.expect()

    def join(self, watch: Watch) -> bool:
        """Follow a watch that has not looked, if a stream for its task costs less; return whether one shows it soon."""
        if not self._shows_without_look(watch.task_id):
            self._looking.add(watch)
            return False
        self._joined.add(watch.task_id)
        self.follow(watch)
        return True

    def unfollow(self, watch: Watch) -> None:
        """Stop telling a watch; a stream without tasks that are followed is closed."""
        self._end_look(watch)
        task_id = watch.task_id
        watches = self._watches.get(task_id)
        if watches is None or watch not in watches:
            return
        watches.discard(watch)
        if watches:
            return
        del self._watches[task_id]
        self._joined.discard(task_id)
        self._not_pushed.discard(task_id)
        stream = self._streams.pop(task_id, None)
        if stream is not None:
            self._leave(stream, task_id)

    def push(self, snapshot: TaskSnapshot) -> None:
        """Hand a pushed state to those who follow its task."""
        stream = self._streams.get(snapshot.task_id)
        is_first = stream is not None and snapshot.task_id not in stream.shown
        if stream is not None:
            stream.shown[snapshot.task_id] = snapshot
        if snapshot.task_id in self._joined:
            self._joined.discard(snapshot.task_id)
            if snapshot.status != "working":
                self._at_work = 0
        is_repeated = False
        for watch in self._watches.get(snapshot.task_id, ()):
            is_repeated |= watch.push(snapshot)
        if stream is not None and is_first:
            self._learn(stream, snapshot, is_repeated=is_repeated)

    def _learn(self, stream: _Stream, first: TaskSnapshot, *, is_repeated: bool) -> None:
        """Note what the first state that a stream showed of a task says of the server."""
        if is_repeated:  # it had not changed since it was looked at, or made
            self._shows_at_once = True
        elif self._shows_at_once is None and is_terminal(first.status):
            stream.ended += 1  # short tasks have often ended before their stream is open
            if stream.ended == _MANY:
                self._shows_at_once = True

    def wake(self, task_id: str) -> None:
        """Have those who follow a task look at it: something was pushed that cannot be used."""
        stream = self._streams.get(task_id)
        if stream is not None:
            stream.shown.setdefault(task_id, None)
        for watch in self._watches.get(task_id, ()):
            watch.wake()

    def _shows_without_look(self, task_id: str) -> bool:
        """Return whether a stream that is about to be opened will show a task that was not looked at."""
        gathered = 0 if self._gathering is None else len(self._gathering.task_ids)
        if gathered + len(self._looking) < _MANY and self._at_work < _USUAL:
            return False
        if not self._shows_at_once or self._is_refused:
            return False
        return task_id not in self._streams and task_id not in self._not_pushed and self._has_room()

    def _end_look(self, watch: Watch) -> None:
        """Note that a watch has looked, and that it had to although its task was expected to be shown."""
        if watch in self._looking:
            self._looking.discard(watch)
            self._at_work = self._at_work + 1 if watch.is_working else 0
        if watch.begun and watch.task_id in self._joined:
            self._joined.discard(watch.task_id)
            self._shows_at_once = False

    def _leave(self, stream: _Stream, task_id: str) -> None:
        """Take a task out of a stream; the last one closes it."""
        stream.task_ids.discard(task_id)
        if stream.task_ids:
            return
        self._open.discard(stream)
        if stream is self._gathering:
            self._gathering = None
        shown = stream.shown.get(task_id)
        if shown is not None and is_terminal(shown.status):
            stream.scope.deadline = anyio.current_time() + _LINGER_SECONDS  # the server is about to end it
        else:
            stream.scope.cancel()

    async def _run(self, stream: _Stream) -> None:
        """Open a stream and listen until it ends."""
        late = 0.0
        try:
            with stream.scope:
                if len(self._open) > 1:
                    await anyio.sleep(_GATHER_SECONDS)
                if stream is self._gathering:
                    self._gathering = None
                if stream.task_ids:
                    self._make_room(stream)
                    await self._listen(list(stream.task_ids))
            # Transports may hand over what was pushed last after the end of the stream.
            late = _LATE_SECONDS
        except MCPError as error:
            self._is_refused = self._is_refused or error.code in _REFUSALS
            logger.debug("The server does not push changes, or no longer", exc_info=True)
        except (ValidationError, *LOST_CONNECTION):
            logger.debug("Changes are no longer pushed", exc_info=True)
        except Exception:  # a background task must raise nothing
            logger.exception("Listening to tasks failed")
        finally:
            self._end(stream, late)

    def _has_room(self) -> bool:
        """Return whether one more task can be listened to."""
        return len(self._open) < self._max_streams or any(
            len(stream.task_ids) < self._max_tasks for stream in self._open if stream is not self._gathering
        )

    def _make_room(self, stream: _Stream) -> None:
        """Replace the smallest other stream by this one, if there are too many."""
        if len(self._open) <= self._max_streams:
            return
        others = [each for each in self._open if each is not stream]
        smallest = min(others, key=lambda each: len(each.task_ids))
        for task_id in list(stream.task_ids)[max(self._max_tasks - len(smallest.task_ids), 0) :]:
            stream.task_ids.discard(task_id)  # it is polled, and tried again after each poll
            del self._streams[task_id]
            for watch in self._watches[task_id]:
                watch.lapse()
        self._open.discard(smallest if stream.task_ids else stream)
        if not stream.task_ids:
            stream.scope.cancel()
            return
        for task_id in smallest.task_ids:
            self._streams[task_id] = stream
        stream.task_ids |= smallest.task_ids
        smallest.task_ids.clear()
        smallest.scope.cancel()

    def _end(self, stream: _Stream, late: float) -> None:
        """Have the followers of a stream that ended look again, in so many seconds."""
        self._open.discard(stream)
        if stream is self._gathering:
            self._gathering = None
        for task_id in stream.task_ids:
            del self._streams[task_id]
            if task_id not in stream.shown:
                self._not_pushed.add(task_id)
            for watch in self._watches[task_id]:
                watch.lapse()
                if late:
                    watch.look_within(late)
                else:
                    watch.wake()


class _Stream:
    """One `subscriptions/listen` request.

    Attributes:
        task_ids: The tasks that it is for and that are followed.
        shown: What it showed last of each task; `None` if that could not be used.
        ended: How many tasks it showed first when they had ended.
        scope: Cancels it.
    """

    def __init__(self) -> None:
        self.task_ids: set[str] = set()
        self.shown: dict[str, TaskSnapshot | None] = {}
        self.ended = 0
        self.scope = anyio.CancelScope()

    def tell(self, watch: Watch) -> None:
        """Tell a watch that was not there yet what the stream showed last."""
        if watch.task_id not in self.shown:
            return
        snapshot = self.shown[watch.task_id]
        if snapshot is None:
            watch.wake()
        else:
            watch.push(snapshot)
