"""`Backend`: what a store and its queue share: the connections, the names of keys, the clock.

Everything of one backend lives in one background task, started when it is first used: there is no task group of a
caller's that could hold the connections. A call whose connection is lost is sent again, for up to `timeout`
seconds: it has a name, by which the scripts recognise it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from secrets import token_hex
from time import monotonic
from typing import Any, Final, TypeAlias, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
from coredis import Redis, RedisCluster
from coredis.connection import TCPLocation
from coredis.exceptions import ClusterDownError, ClusterError, ReadOnlyError, RedisError, TryAgainError
from coredis.exceptions import ConnectionError as ConnectionLostError
from coredis.pool import ConnectionPool

from mcp_task_runtime.core.clock import Clock, SystemClock
from mcp_task_runtime.core.event_loop import start_background_task
from mcp_task_runtime.core.types import Finding
from mcp_task_runtime.errors import StoreClosedError, StoreError, StoreUnavailableError
from mcp_task_runtime.stores.redis._connections import (
    Call,
    ClusterLink,
    Link,
    NotConnectedError,
    ServerLink,
    script_call,
)
from mcp_task_runtime.stores.redis._ends import EndWatches
from mcp_task_runtime.stores.redis._form import Keys, to_micros
from mcp_task_runtime.stores.redis._scripts import LIVE
from mcp_task_runtime.stores.redis._signals import NO_SIGNALS, Signals
from mcp_task_runtime.stores.redis._statistics import RedisStatistics, findings
from mcp_task_runtime.stores.redis._watch import ServerWatch, reason_of

__all__ = ["Backend", "Source"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.redis")

T = TypeVar("T")

Source: TypeAlias = "str | Redis[Any] | RedisCluster[Any]"

_MARGIN_MS: Final = 1_000
_FOREIGN_CLOCK_MARGIN_MS: Final = 3_600_000
"""Milliseconds that Redis keeps a task beyond its TTL, which the clock decides: much longer where the clock is
neither the server's nor the system's, for the two may run apart."""

_CLUSTER_SECONDS: Final = 2.0  # the bus between the nodes of a cluster may drop events
_FIRST_RETRY_SECONDS: Final = 0.05
_LONGEST_RETRY_SECONDS: Final = 0.5
_BATCH: Final = 1_000

# What a server says that can be reached and cannot serve now.
_AWAY: Final = ("READONLY", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM ", "BUSY ", "CLUSTERDOWN")


class _Opening:
    """One time the backend is open, on one event loop."""

    def __init__(self, ends: EndWatches, *, look_again_after: float | None) -> None:
        self.loop = anyio.lowlevel.current_token()
        self.link: Link | None = None
        self.ends = ends
        self.signals = Signals(ends, look_again_after=look_again_after)
        self.in_flight = 0
        self.landed: anyio.Event | None = None
        self.opened = anyio.Event()
        self.closing = anyio.Event()
        self.closed = anyio.Event()


class Backend:
    """A Redis as one store and its queue use it, open from the first use on.

    Attributes:
        keys: The names of keys and channels.
        clock: Where time comes from.
        margin_ms: Milliseconds that Redis keeps a task beyond its TTL.
        is_closed: Whether it was closed for good.
        is_cluster: Whether keys live in slots of several nodes.
    """

    def __init__(self, source: Source, *, prefix: str, clock: Clock | None, timeout: float) -> None:
        if not timeout > 0:
            raise ValueError("timeout must be positive")
        self.keys: Keys = Keys(prefix)
        self._source = _pool_of(source)
        self.is_cluster: bool = isinstance(self._source, RedisCluster)
        self._watch = ServerWatch(_address_of(self._source))
        self._asks_time = clock is None
        self.clock: Clock = self._watch.clock if clock is None else clock
        follows_server = clock is None or isinstance(clock, SystemClock)
        self.margin_ms = _MARGIN_MS if follows_server else _FOREIGN_CLOCK_MARGIN_MS
        self.is_closed: bool = False
        self._timeout = timeout
        self._opening: _Opening | None = None
        self._name = token_hex(8)
        self._numbers = count(1)
        self._calls = 0

    @property
    def patience_ms(self) -> int:
        """Milliseconds after which no call is sent again."""
        return int(2_000 * self._timeout) + _MARGIN_MS

    def now(self) -> int | str:
        """Return an injected clock's time in microseconds; otherwise nothing, for scripts to ask the server."""
        return "" if self._asks_time else to_micros(self.clock.now())

    def new_operation(self) -> str:
        """Return a name for one call that no other call of any process has."""
        return f"{self._name_here()}.{next(self._numbers):x}"

    def _name_here(self) -> str:
        """Return the name of this object, which scripts find in its operations."""
        return f"{self._name}.{os.getpid():x}"  # a fork has the same name, and counts on

    async def open(self) -> _Opening:
        """Return the opening on this event loop; one on another loop has ended with it."""
        opening = self._open_here()
        if opening.link is None:
            await opening.opened.wait()
            if opening.link is None:
                raise StoreUnavailableError("The event loop is ending")
        return opening

    def _open_here(self) -> _Opening:
        """Return the opening on this event loop, whose connections may not be there yet."""
        if self.is_closed:
            raise StoreClosedError
        opening = self._opening
        if opening is None or opening.loop != anyio.lowlevel.current_token():
            ends = EndWatches(self.keys.channel_of_store(self._name_here()))
            opening = self._opening = _Opening(ends, look_again_after=_CLUSTER_SECONDS if self.is_cluster else None)
            start_background_task(partial(self._host, opening))
        return opening

    async def connect(self) -> None:
        """Connect, or fail at once. A failure closes what this call opened, and nothing that was in use before.

        Raises:
            StoreUnavailableError: The server cannot be reached; the message names its address and the reason.
            StoreError: It refused the connection.
        """
        was_open = self._opening is not None and self._opening.loop == anyio.lowlevel.current_token()
        self._watch.is_silent = True
        try:
            await self.send(script_call("now", (self.keys.leases,)), is_patient=False)
        except BaseException as error:
            if not was_open:
                await self._disconnect()
            if isinstance(error, StoreError) and error.__cause__ is not None:
                says = "cannot be reached" if isinstance(error, StoreUnavailableError) else "refused the connection"
                reason = reason_of(error.__cause__)
                raise type(error)(f"Redis at {self._watch.address} {says}: {reason}") from error.__cause__
            raise
        finally:
            self._watch.is_silent = False

    async def aclose(self) -> None:
        """Close for good: wake all waiters, and release the connections."""
        self.is_closed = True
        await self._disconnect()

    async def _disconnect(self) -> None:
        opening = self._opening
        if opening is None or opening.loop != anyio.lowlevel.current_token():
            return
        opening.signals.wake_all()
        with anyio.move_on_after(self._timeout, shield=True):
            if self.is_cluster and opening.in_flight:  # over the caller's client, who may close that next
                opening.landed = anyio.Event()
                await opening.landed.wait()
        opening.closing.set()
        with anyio.move_on_after(self._timeout, shield=True):
            await opening.closed.wait()

    async def _host(self, opening: _Opening) -> None:
        try:
            async with anyio.create_task_group() as group:
                link: Link
                if isinstance(self._source, RedisCluster):
                    link = ClusterLink(self._source, group, timeout=self._timeout, watch=self._watch)
                else:
                    link = ServerLink(self._source, group, timeout=self._timeout, watch=self._watch)
                opening.link = link
                group.start_soon(opening.signals.run, link.open_connection)
                group.start_soon(self._look_for_ends, opening.ends)
                if self.is_cluster:
                    group.start_soon(opening.signals.call_again)
                opening.opened.set()
                await opening.closing.wait()
                group.cancel_scope.cancel()
        except Exception:
            logger.exception("The connections to Redis were lost")
        finally:
            if self._opening is opening:
                self._opening = None
            opening.signals.wake_all()
            opening.opened.set()
            opening.closing.set()
            opening.closed.set()

    async def send(
        self,
        *calls: Call,
        again: bool = True,
        in_order: bool = False,
        is_patient: bool = True,
        keeps_errors: bool = False,
    ) -> list[Any]:
        """Send calls in one round trip; return their replies. An outage is waited out for up to `timeout` seconds.

        Args:
            calls: What to send.
            again: Whether to send again what may have been carried out, when the connection was lost.
            in_order: Whether each call needs the one before it done.
            is_patient: Whether to wait for a server that cannot be used.
            keeps_errors: Whether a server's refusal of one call is its reply, instead of being raised.

        Raises:
            StoreUnavailableError: The server could not be used in time.
            StoreError: The server refused a call, as where what it has stored is damaged.
            StoreClosedError: The store was closed.
        """
        give_up_at = anyio.current_time() + self._timeout
        pause = _FIRST_RETRY_SECONDS
        while True:
            opening = await self.open()
            error, is_sent = await self._try(opening, calls, in_order, give_up_at - anyio.current_time())
            if isinstance(error, list):
                return error if keeps_errors else _raise_first(error)
            if self.is_closed:
                raise StoreClosedError from error
            if not is_patient or not _is_away(error) or (is_sent and not again):
                raise _store_error(error) from error
            if isinstance(error, NotConnectedError):  # the next attempt to connect has its own pause
                pause = 0.0
            if anyio.current_time() + pause >= give_up_at:
                raise _store_error(error) from error
            with anyio.move_on_after(pause):
                await opening.closing.wait()
            pause = min(max(2 * pause, _FIRST_RETRY_SECONDS), _LONGEST_RETRY_SECONDS)

    async def _try(
        self, opening: _Opening, calls: Sequence[Call], in_order: bool, seconds: float
    ) -> tuple[list[Any] | BaseException, bool]:
        """Send calls once; return the replies or why there are none, and whether they may have been carried out."""
        assert opening.link is not None
        opening.in_flight += 1
        self._calls += len(calls)
        started_at = monotonic()
        try:
            replies = await opening.link.send(calls, seconds=max(seconds, 0.001), in_order=in_order)
        except NotConnectedError as error:
            return error, False
        except (RedisError, OSError, anyio.ClosedResourceError) as error:
            if isinstance(error, TimeoutError):
                self._watch.failed(started_at)
            return error, True
        finally:
            opening.in_flight -= 1
            if opening.landed is not None and not opening.in_flight:
                opening.landed.set()
        refused = [(call.name, reply) for call, reply in zip(calls, replies, strict=True) if _is_away(reply)]
        if refused:
            self._watch.refused([name for name, _ in refused])
            return refused[0][1], False
        self._watch.succeeded([call.name for call in calls])
        return replies, True

    async def diagnose(self) -> tuple[Finding, ...]:
        """Return what an operator should know of each server."""
        opening = await self.open()
        assert opening.link is not None
        try:
            answers = await opening.link.info(self._timeout)
        except (NotConnectedError, RedisError, OSError, anyio.ClosedResourceError) as error:
            raise _store_error(error) from error
        found: list[Finding] = []
        for answer in answers:
            if isinstance(answer, bytes):
                found.extend(findings(answer))
            else:
                found.append(Finding("server", "warning", "this user may not ask with INFO what endangers tasks"))
        return tuple(dict.fromkeys(found))  # nodes of a cluster are usually alike

    def statistics(self) -> RedisStatistics:
        """Return what happens here now."""
        opening = self._opening
        waiting = NO_SIGNALS if opening is None else opening.signals.statistics()
        return RedisStatistics(
            calls=self._calls,
            in_flight=0 if opening is None else opening.in_flight,
            waiters=waiting.waiters,
            channels=waiting.channels,
            is_listening=waiting.is_connected,
            is_unavailable=self._watch.is_unavailable,
        )

    def post(self, *calls: Call) -> None:
        """Send calls if there is a connection, without waiting for replies: only what may as well be lost."""
        opening = self._opening
        if opening is not None and opening.link is not None:
            opening.link.post(calls)

    async def signals(self) -> Signals:
        """Return what waits for events on this event loop."""
        return (await self.open()).signals

    def watch(self, tag: bytes, on_change: Callable[[None], None]) -> Callable[[], None]:
        """Call a function when a task has changed, or may have, until the function returned is called.

        Raises:
            StoreClosedError: The store was closed.
        """
        return self._open_here().signals.watch(self.keys.channel(tag), b"tx", on_change)

    def watch_end(self, tag: bytes, on_end: Callable[[], None]) -> Callable[[], None]:
        """Call a function when a task of this object has ended, until the function returned is called.

        Raises:
            StoreClosedError: The store was closed.
        """
        return self._open_here().signals.watch_end(tag, on_end)

    @property
    def ends_mark(self) -> int:
        """What `note_made` takes, read before a task is made or claimed."""
        return 0 if self._opening is None else self._opening.ends.mark

    def note_made(self, tag: bytes, mark: int) -> None:
        """Note that this object has made or claimed a task; see `EndWatches.made`."""
        if self._opening is not None:
            self._opening.ends.made(tag, mark)

    def note_end(self, tag: bytes) -> None:
        """Tell those that watch a task that this object has ended it: it is not told so on its channel."""
        if self._opening is not None:
            self._opening.ends.ended(tag)

    def doubt_end(self, tag: bytes) -> None:
        """Look whether a watched task has ended: this object does not know whether it did that."""
        if self._opening is not None:
            self._opening.ends.doubt([tag])

    async def _look_for_ends(self, ends: EndWatches) -> None:
        """Look at watched tasks of which an end may have been missed, many at a time, until cancelled."""
        while True:
            tags = await ends.unsure()
            for start in range(0, len(tags), _BATCH):
                batch = tags[start : start + _BATCH]
                try:
                    for tag in await self.look_again(partial(self._ended, batch)):
                        ends.ended(tag)
                except StoreClosedError:
                    return
                except Exception:
                    logger.exception("Watched tasks could not be read; they are read again")
                    await anyio.sleep(_LONGEST_RETRY_SECONDS)
                    ends.doubt(batch)

    async def _ended(self, tags: Sequence[bytes]) -> list[bytes]:
        """Return those of these tasks that have ended, or are gone."""
        keys = [self.keys.of_task(tag)[0] for tag in tags]
        if not self.is_cluster:
            (ended,) = await self.send(script_call("ended", tuple(keys), LIVE))
            return [tags[int(number) - 1] for number in ended]
        replies = await self.send(*[script_call("ended", (key,), LIVE) for key in keys])
        return [tag for tag, ended in zip(tags, replies, strict=True) if ended]

    def task_call(self, name: str, tag: bytes, operation: str, *arguments: bytes | int | str) -> Call:
        """Return the call of a script about one task."""
        keys: tuple[bytes, ...] = self.keys.of_task(tag)
        if not self.is_cluster:
            keys = (*keys, self.keys.leases)
        return script_call(name, keys, self.now(), operation, self.keys.channel(tag), self.margin_ms, *arguments)

    def read_call(self, name: str, tag: bytes, kind: int, *arguments: bytes) -> Call:
        """Return the call of a script that reads something of a task: the record, and one of the task's other keys."""
        keys = self.keys.of_task(tag)
        return script_call(name, (keys[0], keys[kind]), self.now(), *arguments)

    def unindex(self, owner: str | None, members: Sequence[bytes]) -> None:
        """Remove entries of an owner's index, without waiting for it."""
        keys = self.keys.of_owner(owner)
        for start in range(0, len(members), _BATCH):
            self.post(script_call("unindex", keys, self.now(), self.margin_ms, *members[start : start + _BATCH]))

    def purge(self, tag: bytes, owner: bytes | None, mark: bytes) -> None:
        """Remove a task that a script found expired, without waiting for it."""
        self.post(self.task_call("purge", tag, self.new_operation()))
        self.forget(tag, owner, mark)

    def forget(self, tag: bytes, owner: bytes | None, mark: bytes) -> None:
        """Remove from its owner's index a task that is deleted."""
        try:
            name = None if owner is None else owner.decode()
        except UnicodeDecodeError:  # damaged: the entry is removed when the index is read
            return
        self.unindex(name, [mark + b" " + tag])

    def call_search(self, name: str, *arguments: bytes | int | str) -> Call:
        """Return the call of a script about the search index."""
        return script_call(name, (self.keys.search + b"all",), self.now(), *arguments)

    async def look_again(self, look: Callable[[], Awaitable[T]]) -> T:
        """Return what a waiter sees; an outage does not end its wait."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                return await look()
            except StoreUnavailableError:
                await anyio.sleep(delay)
                delay = min(2 * delay, _LONGEST_RETRY_SECONDS)


def _pool_of(source: Source) -> ConnectionPool[Any] | RedisCluster[Any]:
    if isinstance(source, RedisCluster):
        return source
    if isinstance(source, Redis):
        pool: ConnectionPool[Any] = source.connection_pool
        return pool
    if source.partition("://")[0] not in ("redis", "rediss", "unix"):
        raise ValueError("source must be a redis://, rediss:// or unix:// URL, or a client of coredis")
    try:
        from_url: ConnectionPool[Any] = ConnectionPool.from_url(source, decode_components=True)
    except ValueError:  # its text may show a password
        raise ValueError(
            "source cannot be read; special characters in a URL, like / in a password, are written as %2F"
        ) from None
    if from_url.location is None:
        raise ValueError("source must name a host")
    return from_url


def _address_of(source: ConnectionPool[Any] | RedisCluster[Any]) -> str:
    if isinstance(source, RedisCluster):
        return ", ".join(f"{node.host}:{node.port}" for node in source.connection_pool.startup_nodes)
    location: Any = getattr(source, "location", None)  # a sentinel's pool has none before it connects
    if location is None:
        return "an address that a sentinel knows"
    return f"{location.host}:{location.port}" if isinstance(location, TCPLocation) else str(location)


def _is_away(error: Any) -> bool:
    """Whether a server cannot be used now, as far as an error says."""
    cause = error.__cause__ if isinstance(error, NotConnectedError) and error.__cause__ is not None else error
    away = (
        *(ConnectionLostError, OSError, TryAgainError, ClusterDownError, ClusterError, ReadOnlyError),
        *(NotConnectedError, anyio.ClosedResourceError, anyio.BrokenResourceError),
    )
    if isinstance(cause, away):
        return True
    return isinstance(cause, RedisError) and any(word in str(cause) for word in _AWAY)


def _store_error(error: BaseException) -> StoreError:
    if _is_away(error):
        return StoreUnavailableError("Redis is not available")
    return StoreError("Redis refused an operation")


def _raise_first(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise _store_error(reply) from reply
    return replies
