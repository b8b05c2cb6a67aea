"""`Signals`: wake-ups by push. One subscribing connection serves all waiters of an event loop."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Final

import anyio
from coredis.connection import BaseConnection
from coredis.exceptions import RedisError

__all__ = ["JUST_CLOSED", "Listener", "Signals"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.redis")

JUST_CLOSED: Final = (RedisError, anyio.ClosedResourceError, anyio.BrokenResourceError)
"""What a connection raises that is closing and does not say so yet."""

_FIRST_RETRY_SECONDS: Final = 0.05
_LONGEST_RETRY_SECONDS: Final = 0.5
_BATCH: Final = 1_000


class Listener:
    """One waiter for events of one task."""

    __slots__ = ("_signals", "channel", "event", "is_subscribed", "kinds")

    def __init__(self, signals: Signals, channel: bytes, kinds: bytes) -> None:
        self._signals = signals
        self.channel = channel
        self.kinds = kinds
        self.event = anyio.Event()
        self.is_subscribed = False

    async def wait(self) -> None:
        """Wait until the caller must look again. The beginning of the subscription is a reason, too."""
        if not self.is_subscribed:
            self.is_subscribed = True
            self._signals.subscribe(self)
        await self.event.wait()
        self.event = anyio.Event()


class Signals:
    """The waiters of one event loop, and the channels that are subscribed to for them."""

    def __init__(self) -> None:
        self._listeners: dict[bytes, set[Listener]] = {}
        self._subscribers: dict[bytes, int] = {}
        self._active: set[bytes] = set()
        self._connection: BaseConnection | None = None
        self._needed = anyio.Event()

    @property
    def waiting(self) -> int:
        """How many tasks have waiters."""
        return len(self._listeners)

    @contextmanager
    def listen(self, channel: bytes, kinds: bytes) -> Iterator[Listener]:
        """Receive some kinds of events: `t`ask, `m`essage, `a`nswer, and `x` when everything is deleted."""
        listener = Listener(self, channel, kinds)
        self._listeners.setdefault(channel, set()).add(listener)
        try:
            yield listener
        finally:
            self._leave(listener)

    def _leave(self, listener: Listener) -> None:
        channel = listener.channel
        self._listeners[channel].discard(listener)
        if not self._listeners[channel]:
            del self._listeners[channel]
        if listener.is_subscribed:
            self._subscribers[channel] -= 1
            if not self._subscribers[channel]:
                del self._subscribers[channel]
                self._active.discard(channel)
                self._command(b"UNSUBSCRIBE", [channel])

    def subscribe(self, listener: Listener) -> None:
        """Subscribe to a listener's channel. It is woken when the subscription is active."""
        channel = listener.channel
        self._subscribers[channel] = self._subscribers.get(channel, 0) + 1
        self._needed.set()
        if self._subscribers[channel] == 1:
            self._command(b"SUBSCRIBE", [channel])
        elif channel in self._active:
            listener.event.set()

    def wake_all(self) -> None:
        """Make all waiters look again."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.event.set()

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
            for listener in self._listeners.get(channel, ()):
                if event in listener.kinds:
                    listener.event.set()
        elif kind == b"subscribe":
            if channel in self._subscribers:
                self._active.add(channel)
            for listener in self._listeners.get(channel, ()):
                listener.event.set()

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


def _bytes(data: Any) -> bytes:
    """Return what a connection received, which a caller's client may have decoded."""
    return data.encode() if isinstance(data, str) else bytes(data)
