"""Connections to PostgreSQL: a small pool of this library's own, or one that the caller made.

The statements of a store need the isolation level READ COMMITTED: where one waits for another and then looks at what
that has done, a snapshot of an earlier time would hide it. So no default of a server, database or role decides it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import ceil
from threading import Condition
from time import monotonic
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, urlsplit

import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo
from psycopg_pool import ConnectionPool, PoolTimeout

__all__ = ["BorrowedPool", "BusyError", "Connections", "OwnPool", "address_of"]

_DEFAULTS: Final = {
    "application_name": "mcp-task-runtime",
    "client_encoding": "UTF8",
    # A server that vanished is noticed within half a minute, also by a connection that only listens.
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

_READ_COMMITTED: Final = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"
_WAIT_SECONDS: Final = 0.5
_IDLE_SECONDS: Final = 600.0
_LONGEST_SECONDS: Final = 3_600.0


class BusyError(Exception):
    """All connections are in use, or the caller's pool has none yet."""


class Connections(Protocol):
    """Connections to one database. Every method blocks, and may be called from any thread."""

    @property
    def maximum(self) -> int:
        """How many may be in use at once; 0 for no limit."""
        ...

    @property
    def address(self) -> str:
        """Host, port and database for messages; never a password."""
        ...

    def connect(self) -> Connection[Any]:
        """Return a new connection outside of the pool, in autocommit mode.

        Raises:
            psycopg.Error: No connection could be made.
        """
        ...

    def take(self) -> Connection[Any]:
        """Return a connection to use until `put`.

        Raises:
            BusyError: There was none within half a second.
            psycopg.Error: A new one could not be made.
        """
        ...

    def using(self, connection: Connection[Any]) -> AbstractContextManager[object]:
        """Return a block that commits what is done in it, or rolls it back."""
        ...

    def put(self, connection: Connection[Any]) -> None:
        """Return a connection that was taken."""
        ...

    def discard(self, connection: Connection[Any]) -> None:
        """Return a connection that was taken and is not needed again; one of a caller's pool stays open."""
        ...

    def close(self) -> None:
        """Close what is idle, and what is put back later. A caller's pool stays open."""
        ...

    def counts(self) -> tuple[int, int]:
        """Return how many connections are in use, and how many are ready to be taken."""
        ...


class OwnPool:
    """Connections that are made when they are needed.

    One that was idle for ten minutes, or is an hour old, is closed.
    """

    def __init__(self, database: str, maximum: int, *, timeout: float) -> None:
        """Make an empty pool.

        Args:
            database: URL or connection string.
            maximum: Most connections that are open at once.
            timeout: Seconds after which an attempt to connect ends, unless `database` says it.

        Raises:
            ValueError: `database` is neither, or has a parameter that the driver does not know.
        """
        try:
            defaults = {**_DEFAULTS, "connect_timeout": str(max(2, ceil(min(timeout, 60))))}  # it takes no less than 2
            parameters: dict[str, Any] = {**defaults, **conninfo_to_dict(database)}
        except psycopg.Error:  # its text may show a password
            unknown = _unknown_parameter(database)
            if unknown is not None:
                raise ValueError(f"database has the unknown parameter {unknown!r}") from None
            raise ValueError("database must be a PostgreSQL URL or connection string") from None
        self._conninfo = make_conninfo(**parameters)
        self._maximum = maximum
        self._condition = Condition()
        self._idle: deque[tuple[Connection[Any], float]] = deque()
        self._made_at: dict[Connection[Any], float] = {}
        self._in_use = 0
        self._closed = False

    @property
    def maximum(self) -> int:
        """See `Connections`."""
        return self._maximum

    @property
    def address(self) -> str:
        """See `Connections`."""
        return address_of(self._conninfo)

    def connect(self) -> Connection[Any]:
        """See `Connections`."""
        connection = psycopg.connect(self._conninfo, autocommit=True)
        try:
            connection.execute(_READ_COMMITTED)
        except BaseException:
            connection.close()
            raise
        return connection

    def take(self) -> Connection[Any]:
        """See `Connections`."""
        give_up_at = monotonic() + _WAIT_SECONDS
        with self._condition:
            while self._in_use >= self._maximum:
                if not self._condition.wait(give_up_at - monotonic()):
                    raise BusyError
            self._in_use += 1
        try:
            while (connection := self._pop_idle()) is not None:
                if is_alive(connection):
                    return connection
                self._drop(connection)
            connection = self.connect()
            self._made_at[connection] = monotonic()
            return connection
        except BaseException:
            self._release()
            raise

    def using(self, connection: Connection[Any]) -> AbstractContextManager[object]:
        """See `Connections`: in autocommit mode, each statement commits."""
        return nullcontext()

    def put(self, connection: Connection[Any]) -> None:
        """See `Connections`."""
        now = monotonic()
        is_idle = not connection.closed and connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with self._condition:
            keep = is_idle and not self._closed and now - self._made_at[connection] < _LONGEST_SECONDS
            if keep:
                self._idle.append((connection, now))
            while self._idle and now - self._idle[0][1] > _IDLE_SECONDS:
                self._drop(self._idle.popleft()[0])
        if not keep:
            self._drop(connection)
        self._release()

    def discard(self, connection: Connection[Any]) -> None:
        """See `Connections`."""
        connection.close()
        self.put(connection)

    def close(self) -> None:
        """See `Connections`."""
        with self._condition:
            self._closed = True
            while self._idle:
                self._drop(self._idle.pop()[0])

    def counts(self) -> tuple[int, int]:
        """See `Connections`."""
        return self._in_use, len(self._idle)

    def _pop_idle(self) -> Connection[Any] | None:
        with self._condition:
            return self._idle.pop()[0] if self._idle else None

    def _drop(self, connection: Connection[Any]) -> None:
        self._made_at.pop(connection, None)
        connection.close()

    def _release(self) -> None:
        with self._condition:
            self._in_use -= 1
            self._condition.notify()


class BorrowedPool:
    """A pool of `psycopg_pool`, which stays the caller's to open and close."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self._pool = pool

    @property
    def maximum(self) -> int:
        """See `Connections`."""
        return self._pool.max_size

    @property
    def address(self) -> str:
        """See `Connections`."""
        conninfo, kwargs = self._arguments()
        return address_of(conninfo, kwargs)

    def connect(self) -> Connection[Any]:
        """See `Connections`."""
        conninfo, kwargs = self._arguments()
        connection: Connection[Any] = self._pool.connection_class.connect(conninfo, **{**kwargs, "autocommit": True})
        return connection

    def take(self) -> Connection[Any]:
        """See `Connections`."""
        while True:
            try:
                connection: Connection[Any] = self._pool.getconn(_WAIT_SECONDS)
            except PoolTimeout as error:
                raise BusyError from error
            if is_alive(connection):
                return connection
            self._pool.putconn(connection)

    def using(self, connection: Connection[Any]) -> AbstractContextManager[object]:
        """See `Connections`: in one transaction, unless the caller's pool is in autocommit mode."""
        return _read_committed(connection)

    def put(self, connection: Connection[Any]) -> None:
        """See `Connections`."""
        self._pool.putconn(connection)

    def discard(self, connection: Connection[Any]) -> None:
        """See `Connections`."""
        self._pool.putconn(connection)

    def close(self) -> None:
        """See `Connections`."""

    def counts(self) -> tuple[int, int]:
        """See `Connections`."""
        statistics = self._pool.get_stats()
        available = statistics.get("pool_available", 0)
        return statistics.get("pool_size", 0) - available, available

    def _arguments(self) -> tuple[str, Mapping[str, Any]]:
        pool = self._pool
        conninfo = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
        kwargs = pool.kwargs() if callable(pool.kwargs) else pool.kwargs
        return conninfo, kwargs or {}


@contextmanager
def _read_committed(connection: Connection[Any]) -> Iterator[None]:
    """Commit what is done with a connection of a caller's pool in a block, or roll it back."""
    given = connection.isolation_level
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    try:
        with connection:  # one of a pool is not closed at the end of the block
            yield
    finally:
        if not connection.closed:
            connection.isolation_level = given


def is_alive(connection: Connection[Any]) -> bool:
    """Return whether the server has not closed a connection while it was idle. Costs no round trip."""
    try:
        connection.pgconn.consume_input()  # the last message of the server
        connection.pgconn.consume_input()  # the end of the connection
    except psycopg.Error:
        return False
    return not connection.closed


def address_of(conninfo: str, more: Mapping[str, Any] | None = None) -> str:
    """Return host, port and database of a connection string for messages; never a password."""
    try:
        values: dict[str, Any] = {**_environment(), **conninfo_to_dict(conninfo), **(more or {})}
    except psycopg.Error:
        values = {**_environment(), **(more or {})}
    host = values.get("host") or values.get("hostaddr") or "the local socket"
    name = values.get("dbname") or values.get("user")
    return f"{host}:{values.get('port') or 5432} (database {name!r})"


def _environment() -> dict[str, str]:
    """Return what stands in the environment for what a connection string leaves out."""
    return {
        default.keyword.decode(): default.val.decode(errors="replace")
        for default in Conninfo.get_defaults()
        if default.val is not None and default.keyword in (b"host", b"hostaddr", b"port", b"dbname", b"user")
    }


def _unknown_parameter(database: str) -> str | None:
    """Return a parameter of a URL that PostgreSQL does not know."""
    known = {default.keyword.decode() for default in Conninfo.get_defaults()}
    try:
        pairs = parse_qsl(urlsplit(database).query, keep_blank_values=True)
    except ValueError:
        return None
    return next((name for name, _ in pairs if name not in known and name != "ssl"), None)
