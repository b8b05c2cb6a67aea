"""`Watch`: when to look at a task again, and which pushed state makes a look needless.

This is the only place that decides when to look. The first look is at once and costs nothing else, unless a
stream will show the task at less cost. After that a watch subscribes to pushes, if there are any, and looks as often
as the server suggests. A pushed state that is newer than what was seen counts like a look; anything else that is
pushed only makes the next look due, and looks that come early for that reason are limited in number.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from mcp_task_runtime.adapters.task_client.errors import BaseTaskError, is_passing, retry_after_ms
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot
from mcp_task_runtime.core.event_loop import call_later, event_loop_time
from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.core.transitions import is_terminal

__all__ = ["PollSettings", "Pushes", "Watch"]

_EARLY_LOOKS: Final = 10
"""Looks that may come early in a row; more of them are as far apart as the shortest poll interval."""

_OPENING_PART: Final = 0.1
"""How much of the time between two polls of a task whose changes are pushed a change may take to be shown."""


@dataclass(frozen=True, slots=True)
class PollSettings:
    """How often a task is looked at.

    Attributes:
        bounds_ms: The shortest and the longest time between two polls, in milliseconds.
        interval_ms: Milliseconds between two polls where the server suggests nothing.
        pushed_interval_ms: Milliseconds between two polls of a task whose changes are pushed, at least.
        retry_pause: Seconds until a failed request is tried again, doubled with each failure in a row.
        max_failures: How often in a row a request may fail for a reason that may pass.
    """

    bounds_ms: tuple[float, float] = (50, 60_000)
    interval_ms: float = 1_000
    pushed_interval_ms: float = 5_000
    retry_pause: float = 0.5
    max_failures: int = 3

    def __post_init__(self) -> None:
        shortest, longest = self.bounds_ms
        if not 0 < shortest <= longest:
            raise ValueError("poll_bounds_ms must be two positive numbers, the smaller one first")
        for name in ("interval_ms", "pushed_interval_ms"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name.replace('interval', 'poll_interval')} must be positive")
        if not self.retry_pause >= 0:
            raise ValueError("retry_pause must not be negative")
        if self.max_failures < 1:
            raise ValueError("max_failures must be positive")

    @property
    def pushed_within(self) -> float:
        """Seconds in which a stream shows what a task should have come to."""
        return self.pushed_interval_ms * _OPENING_PART / 1000

    def seconds(self, wanted_ms: float | None, *, is_pushed: bool = False) -> float:
        """Return the seconds until the next look, within the bounds."""
        shortest, longest = self.bounds_ms
        interval = self.interval_ms if wanted_ms is None else wanted_ms
        if is_pushed:
            interval = max(interval, self.pushed_interval_ms)
        return min(max(interval, shortest), longest) / 1000

    def rest_after(self, error: Exception) -> float | None:
        """Return when a server that was asked too often wants to be asked again; `None` if it does not say."""
        wanted = retry_after_ms(error)
        return None if wanted is None else self.seconds(wanted)

    def pause_after(self, error: Exception, failures: int) -> float:
        """Return the seconds until a request that failed is tried again, after so many failures in a row."""
        rest = self.rest_after(error)
        return self.retry_pause * 2 ** (failures - 1) if rest is None else rest


class Pushes(Protocol):
    """Has the changes of tasks pushed to watches."""

    def follow(self, watch: Watch) -> None:
        """Push the changes of the watch's task to it from now on. Calling it again changes nothing."""
        ...

    def join(self, watch: Watch) -> bool:
        """Follow the watch, which has not looked, if that shows its task soon at less cost; return whether it does."""
        ...

    def unfollow(self, watch: Watch) -> None:
        """Stop that. A watch that is not followed is ignored."""
        ...


class Watch:
    """Looks at one task, for one caller at a time. Call `close` at the end."""

    def __init__(
        self,
        task_id: str,
        get: Callable[[], Awaitable[TaskSnapshot]],
        settings: PollSettings,
        pushes: Pushes | None,
        *,
        handle: TaskSnapshot | None = None,
    ) -> None:
        """Make a watch that has not looked yet.

        Args:
            task_id: The task.
            get: Looks at it.
            settings: How often it is looked at.
            pushes: Has its changes pushed, if they are wanted.
            handle: What its call was answered with, if the caller knows it: a push of the same state is no news.
        """
        self.task_id = task_id
        self.begun: int = 0
        self._get = get
        self._settings = settings
        self._pushes = pushes
        self._handle = handle
        self._seen: TaskSnapshot | None = None
        self._pushed: TaskSnapshot | None = None
        self._is_pushed = False
        self._due = -math.inf
        self._not_before = -math.inf
        self._is_woken = False
        self._early = -math.inf  # the next early look may be at this time
        self._changed: Signal | None = None

    @property
    def is_working(self) -> bool:
        """Whether the task was at work when it was last seen."""
        return self._seen is not None and self._seen.status == "working"

    def close(self) -> None:
        """Stop having changes pushed."""
        if self._pushes is not None:
            self._pushes.unfollow(self)

    def wake(self) -> None:
        """Make the next look due now, or as soon as it may be."""
        self._is_woken = True
        self._notify()

    def look_within(self, seconds: float) -> None:
        """Look in so many seconds at the latest."""
        self._due = min(self._due, event_loop_time() + seconds)
        self._notify()

    def push(self, snapshot: TaskSnapshot) -> bool:
        """Take a state that the server pushed, if it is newer than what was seen.

        Returns:
            Whether it was the same state again.
        """
        if not self._is_pushed:
            self._is_pushed = True
            self._due = max(self._due, event_loop_time() + self._settings.pushed_interval_ms / 1000)
        latest = self._pushed or self._seen
        known = latest or self._handle
        if known is not None and _is_repeated(snapshot, known):
            return True
        if latest is None or _is_later(snapshot, latest):
            self._pushed = snapshot
            self._notify()
        elif not is_terminal(latest.status) and snapshot.last_updated_at == latest.last_updated_at:
            self.wake()  # which of the two is newer, only a look can tell
        return False

    def expect(self) -> None:
        """Leave a stream that is being opened the time to show the task, before the task is polled again."""
        if not self._is_pushed:
            within = self._settings.pushed_within
            seconds = within if self._seen is None else self._settings.seconds(1000 * within)
            self._due = max(self._due, event_loop_time() + seconds)

    def expect_change(self) -> None:
        """See soon what this side led to: it is pushed, or looked at where no stream has shown the task."""
        if self._is_pushed:
            self.look_within(self._settings.pushed_within)
        else:
            self.wake()

    def lapse(self) -> None:
        """Poll as often as the server suggests again: changes are no longer pushed."""
        self._is_pushed = False
        if self._seen is None:
            self.wake()
        else:
            self.look_within(self._settings.seconds(self._seen.poll_interval_ms))

    async def next(self, *, grace: float = 0) -> TaskSnapshot:
        """Return how the task stands: the next pushed state, or what the next look shows.

        Args:
            grace: Seconds to wait before changes are first subscribed to.

        Raises:
            BaseTaskError: The look failed, and not for the first time if the reason is one that may pass.
        """
        failures = 0
        while True:
            if self._may_wait() and (pushed := await self._until_due(grace)) is not None:
                return self._show(pushed)
            self._begin_look()
            try:
                snapshot = await self._get()
            except BaseTaskError as error:
                rest = self._settings.rest_after(error)
                if rest is not None:  # no failure, and no push makes it sooner
                    self._due = self._not_before = event_loop_time() + rest
                    continue
                failures += 1
                if not is_passing(error) or failures == self._settings.max_failures:
                    raise
                self._due = event_loop_time() + self._settings.retry_pause * 2 ** (failures - 1)
            else:
                return self._show(self._newer(snapshot))

    def _may_wait(self) -> bool:
        """Return whether there was a look, or a stream shows the task without one."""
        if self.begun or self._seen is not None:
            return True
        return self._pushes is not None and self._pushes.join(self)

    def _begin_look(self) -> None:
        self.begun += 1
        self._is_woken = False
        now = event_loop_time()
        shortest = self._settings.bounds_ms[0] / 1000
        self._early = max(self._early, now - _EARLY_LOOKS * shortest) + shortest

    def _newer(self, looked: TaskSnapshot) -> TaskSnapshot:
        """Return what a look showed, or what was pushed meanwhile if that is newer."""
        pushed, self._pushed = self._pushed, None
        return pushed if pushed is not None and _is_later(pushed, looked) else looked

    def _show(self, snapshot: TaskSnapshot) -> TaskSnapshot:
        self._seen = snapshot
        if not is_terminal(snapshot.status):
            interval = self._settings.seconds(snapshot.poll_interval_ms, is_pushed=self._is_pushed)
            self._due = event_loop_time() + interval
        return snapshot

    async def _until_due(self, grace: float) -> TaskSnapshot | None:
        """Wait until a look is due or a state was pushed, which is returned."""
        follow_at = event_loop_time() + grace if self._pushes is not None else math.inf
        while True:
            if (pushed := self._pushed) is not None:
                self._pushed = None
                return pushed
            now = event_loop_time()
            due = max(min(self._due, self._early) if self._is_woken else self._due, self._not_before)
            if now >= due:
                return None
            if now >= follow_at and self._pushes is not None:
                follow_at = math.inf
                self._pushes.follow(self)
                continue  # it may have pushed already
            self._changed = Signal()
            stop = call_later(min(due, follow_at) - now, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                stop()
                self._changed = None

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()


def _is_later(one: TaskSnapshot, other: TaskSnapshot) -> bool:
    """Return whether one state is known to have followed the other. Nothing follows an end, and clocks may jump."""
    if is_terminal(other.status):
        return False
    return is_terminal(one.status) or one.last_updated_at > other.last_updated_at


def _is_repeated(one: TaskSnapshot, other: TaskSnapshot) -> bool:
    """Return whether two states say the same of the task: the suggested poll interval may depend on its age."""
    return one.last_updated_at == other.last_updated_at and _said(one) == _said(other)


def _said(snapshot: TaskSnapshot) -> tuple[object, ...]:
    return (
        snapshot.status,
        snapshot.status_message,
        snapshot.created_at,
        snapshot.ttl_ms,
        snapshot.input_requests_json,
        snapshot.result_json,
        snapshot.error_json,
    )
