"""`Signals`: wake-ups by push. One subscribing connection serves all waiters of an event loop.

A channel stays subscribed for a moment after its last waiter has left, for the same task is often waited for again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Any, Final, NamedTuple

import anyio
from coredis.connection import BaseConnection
from coredis.exceptions import RedisError

from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.stores.redis._ends import EndWatches

__all__ = ["JUST_CLOSED", "Listener", "Signals"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.redis")

JUST_CLOSED: Final = (RedisError, anyio.ClosedResourceError, anyio.BrokenResourceError)
"""What a connection raises that is closing and does not say so yet."""

_FIRST_RETRY_SECONDS: Final = 0.05
_LONGEST_RETRY_SECONDS: Final = 0.5
_BATCH: Final = 1_000

_SLICES: Final = 20
"""In how many parts all watchers are called where events can be lost."""

_LINGER_SECONDS: Final = 2.0
_MOST_LINGERING: Final = 1_000


class Listener:
    """One waiter for events of one task."""

    __slots__ = ("_signals", "channel", "event", "is_subscribed", "kinds")

    def __init__(self, signals: Signals, channel: bytes, kinds: bytes) -> None:
        self._signals = signals
        self.channel = channel
        self.kinds = kinds
        self.event = Signal()
        self.is_subscribed = False

    async def wait(self) -> None:
        """Wait until the caller must look again. The beginning of the subscription is a reason, too."""
        if not self.is_subscribed:
            self.is_subscribed = True
            self._signals.subscribe(self)
        if self._signals.look_again_after is None:  # a scope takes a kilobyte
            await self.event.wait()
        else:
            with anyio.move_on_after(self._signals.look_again_after):
                await self.event.wait()
        self.event = Signal()

    def wake(self) -> None:
        """Make the waiter look again."""
        self.event.set()


class _Watcher:
    """A function that is called for events of one task: a waiter that costs the entry of a table."""

    __slots__ = ("_on_change", "channel", "is_left", "kinds")

    is_subscribed = True

    def __init__(self, channel: bytes, kinds: bytes, on_change: Callable[[None], None]) -> None:
        self.channel = channel
        self.kinds = kinds
        self._on_change = on_change
        self.is_left = False

    def wake(self) -> None:
        """Call the function."""
        if not self.is_left:
            self._on_change(None)


class _News:
    """What is known of a subscribed channel: how much was heard on it, and what its task was like then."""

    __slots__ = ("known", "number")

    def __init__(self) -> None:
        self.number = 0
        self.known: tuple[int, datetime | None] | None = None


class SignalStatistics(NamedTuple):
    """How many wait, on how many channels, and whether there is a connection for events."""

    waiters: int
    channels: int
    is_connected: bool


NO_SIGNALS: Final = SignalStatistics(0, 0, False)


class Signals:
    """The waiters of one event loop, and the channels that are subscribed to for them."""

    def __init__(self, ends: EndWatches, *, look_again_after: float | None = None) -> None:
        """Make the waiters of an event loop.

        Args:
            ends: Those who watch ends of tasks alone, on a channel of their own.
            look_again_after: Longest time that a waiter waits for an event before it looks again; `None` for as
                long as it takes, where no event can be lost.
        """
        self.look_again_after = look_again_after
        self._ends = ends
        self._listeners: dict[bytes, set[Listener | _Watcher]] = {}
        self._watchers: set[_Watcher] = set()
        self._subscribers: dict[bytes, int] = {}
        self._lingering: dict[bytes, float] = {}
        self._active: dict[bytes, _News] = {}
        self._connection: BaseConnection | None = None
        self._needed = anyio.Event()

    def statistics(self) -> SignalStatistics:
        """Return what waits now."""
        waiters = sum(len(listeners) for listeners in self._listeners.values()) + len(self._ends)
        is_connected = self._connection is not None and self._connection.usable
        return SignalStatistics(waiters, len(self._subscribers), is_connected)

    @contextmanager
    def listen(self, channel: bytes, kinds: bytes) -> Iterator[Listener]:
        """Receive some kinds of events: `t`ask, `m`essage, `a`nswer, and `x` when everything is deleted."""
        listener = Listener(self, channel, kinds)
        self._listeners.setdefault(channel, set()).add(listener)
        if channel in self._active:  # so what happens after the caller has looked is heard of
            listener.is_subscribed = True
            self._enter(channel)
        try:
            yield listener
        finally:
            self._leave(listener)

    def watch(self, channel: bytes, kinds: bytes, on_change: Callable[[None], None]) -> Callable[[], None]:
        """Call a function after events, and when the subscription has begun, until the function returned is called."""
        watcher = _Watcher(channel, kinds, on_change)
        self._listeners.setdefault(channel, set()).add(watcher)
        self._watchers.add(watcher)
        self._subscribe(channel)
        if channel in self._active:
            watcher.wake()

        return partial(self._unwatch, watcher)

    def watch_end(self, tag: bytes, on_end: Callable[[], None]) -> Callable[[], None]:
        """Call a function when a task has ended, until the function returned is called; see `EndWatches`."""
        if not self._ends.is_needed:
            self._subscribe(self._ends.channel)
        return self._ends.watch(tag, on_end)

    def _unwatch(self, watcher: _Watcher) -> None:
        if not watcher.is_left:
            watcher.is_left = True
            self._watchers.discard(watcher)
            self._leave(watcher)

    def heard(self, channel: bytes) -> int | None:
        """Return how much was heard on a channel, for `remember`; `None` where it may have missed something."""
        news = self._active.get(channel)
        return None if news is None else news.number

    def remember(self, channel: bytes, heard: int | None, revision: int, expires_at: datetime | None) -> None:
        """Note what a task is like, unless something was heard of it since `heard` was asked for."""
        news = self._active.get(channel)
        if news is not None and news.number == heard:
            news.known = revision, expires_at

    def known(self, channel: bytes) -> tuple[int, datetime | None] | None:
        """Return a task's revision and time of expiry, if nothing has happened to it since they were noted."""
        news = self._active.get(channel)
        return None if news is None else news.known

    def _enter(self, channel: bytes) -> None:
        self._lingering.pop(channel, None)
        self._subscribers[channel] = self._subscribers.get(channel, 0) + 1

    def _leave(self, listener: Listener | _Watcher) -> None:
        channel = listener.channel
        self._listeners[channel].discard(listener)
        if not self._listeners[channel]:
            del self._listeners[channel]
        if listener.is_subscribed:
            self._subscribers[channel] -= 1
            if not self._subscribers[channel]:
                del self._subscribers[channel]
                self._linger(channel)

    def _linger(self, channel: bytes) -> None:
        """Unsubscribe from channels without listeners, those apart that had some until a moment ago."""
        now = monotonic()
        if channel in self._active:
            self._lingering[channel] = now
            channel = b""
        over = [] if not channel else [channel]
        for name, since in self._lingering.items():  # oldest first
            if now - since < _LINGER_SECONDS and len(self._lingering) - len(over) <= _MOST_LINGERING:
                break
            over.append(name)
        for name in over:
            self._lingering.pop(name, None)
            self._active.pop(name, None)
        self._command(b"UNSUBSCRIBE", over)

    def subscribe(self, listener: Listener) -> None:
        """Subscribe to a listener's channel. It is woken when the subscription is active."""
        if not self._subscribe(listener.channel) and listener.channel in self._active:
            listener.wake()

    def _subscribe(self, channel: bytes) -> bool:
        """Subscribe to a channel for one more; return whether it is the first one."""
        is_first = channel not in self._subscribers and channel not in self._lingering
        self._enter(channel)
        self._needed.set()
        if is_first:
            self._command(b"SUBSCRIBE", [channel])
        return is_first

    def wake_all(self) -> None:
        """Make all waiters look again."""
        for listeners in list(self._listeners.values()):
            for listener in tuple(listeners):
                listener.wake()

    async def call_again(self) -> None:
        """Call all watchers from time to time until cancelled, where events can be lost; a part of them at a time."""
        while self.look_again_after is not None:
            watchers = tuple(self._watchers)
            ends = tuple(self._ends)
            for number in range(_SLICES):
                await anyio.sleep(self.look_again_after / _SLICES)
                for watcher in watchers[number::_SLICES]:
                    watcher.wake()
                self._ends.doubt(ends[number::_SLICES])

    async def run(self, connect: Callable[[], Awaitable[BaseConnection]]) -> None:
        """Receive until cancelled, on a new connection whenever the last one is lost."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            await self._needed.wait()
            try:
                self._connection = await connect()
                delay = _FIRST_RETRY_SECONDS
                await self._receive(self._connection)
            except (*JUST_CLOSED, OSError) as error:
                logger.debug("The subscribing connection was lost", exc_info=error)
            finally:
                self._disconnect()
            await anyio.sleep(delay)
            delay = min(2 * delay, _LONGEST_RETRY_SECONDS)

    async def _receive(self, connection: BaseConnection) -> None:
        self._command(b"SUBSCRIBE", list(self._subscribers))
        messages: AsyncGenerator[list[Any], None] = connection.push_messages
        async with aclosing(messages):
            async for kind, channel, content, *_ in messages:
                self._received(_bytes(kind), _bytes(channel), content)

    def _received(self, kind: bytes, channel: bytes, content: Any) -> None:
        if kind == b"message":
            event = _bytes(content)
            if channel == self._ends.channel:
                self._ends.ended(event)
                return
            news = self._active.get(channel)
            if news is not None and event in b"tx":
                news.number, news.known = news.number + 1, None
            for listener in tuple(self._listeners.get(channel, ())):
                if event in listener.kinds:
                    listener.wake()
        elif kind == b"subscribe":
            if channel in self._subscribers or channel in self._lingering:
                self._active[channel] = _News()
            if channel == self._ends.channel:
                self._ends.begin()
            for listener in tuple(self._listeners.get(channel, ())):
                listener.wake()

    def _command(self, command: bytes, channels: list[bytes]) -> None:
        connection = self._connection
        if connection is not None and connection.usable:
            with suppress(*JUST_CLOSED):  # the next connection subscribes to all
                for start in range(0, len(channels), _BATCH):
                    connection.send_command(command, *channels[start : start + _BATCH])

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.invalidate("No longer used")
            self._connection = None
        self._active.clear()
        self._lingering.clear()
        self._ends.end()


def _bytes(data: Any) -> bytes:
    """Return what a connection received, which a caller's client may have decoded."""
    return data.encode() if isinstance(data, str) else bytes(data)
