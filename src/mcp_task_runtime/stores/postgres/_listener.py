"""`Listener`: hears of what other processes change, while callers wait."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

import anyio
import psycopg
from psycopg import Connection, sql

from mcp_task_runtime.core.event_loop import start_background_task
from mcp_task_runtime.errors import StoreUnavailableError
from mcp_task_runtime.stores._outage import Outage
from mcp_task_runtime.stores._threads import Threads
from mcp_task_runtime.stores.postgres._errors import translated
from mcp_task_runtime.stores.postgres._signals import Signals

__all__ = ["Listener"]

logger: logging.Logger = logging.getLogger(__name__)

_RECONNECT_SECONDS: Final = 0.25
_IDLE_SECONDS: Final = 30.0


class _Session:
    """One LISTEN session, from the first waiter until none has been there for a while."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.begun = anyio.Event()
        self.ended = anyio.Event()
        self.error: Exception | None = None


class Listener:
    """Listens on a connection outside the pool, and passes on what it hears to the signals of one event loop.

    Attributes:
        is_on: Whether there is a connection that listens now.
    """

    def __init__(
        self,
        signals: Signals,
        connect: Callable[[], Connection[Any]],
        channels: Sequence[str],
        *,
        threads: Threads,
        outage: Outage,
    ) -> None:
        self.is_on = False
        self._signals = signals
        self._connect = connect
        self._channels = channels
        self._threads = threads
        self._outage = outage
        self._session: _Session | None = None

    async def listen(self, seconds: float) -> None:
        """Make sure that everything committed from now on will be heard of. The caller is a waiter.

        Args:
            seconds: How long to wait for the server.

        Raises:
            StoreUnavailableError: The server could not be reached in time.
            StoreError: The server refuses to let this process listen.
        """
        session = self._session
        if session is None:
            session = self._session = _Session()
            start_background_task(self._keep_listening)
        with anyio.move_on_after(seconds):
            await session.begun.wait()
        if session.error is not None:
            raise translated(session.error) from session.error
        if not session.begun.is_set():
            raise StoreUnavailableError("PostgreSQL could not be reached")

    async def aclose(self) -> None:
        """Stop listening."""
        session = self._session
        if session is not None:
            session.scope.cancel()
            await session.ended.wait()

    async def _keep_listening(self) -> None:
        session = self._session
        assert session is not None
        try:
            with session.scope:
                while await self._listen_again(session):  # noqa: ASYNC110 - the pause between attempts
                    await anyio.sleep(_RECONNECT_SECONDS)
        finally:
            self._session = None
            session.begun.set()
            session.ended.set()

    async def _listen_again(self, session: _Session) -> bool:
        """Listen; return whether to connect again, which may take several attempts in an outage."""
        started_at = monotonic()
        try:
            with anyio.CancelScope(shield=True):
                connection = await self._threads.run(self._connect_to_listen)
        except Exception as error:  # any kind: there are waiters, and they must hear
            if isinstance(error, psycopg.OperationalError | OSError | StoreUnavailableError):
                self._outage.failed(started_at)
                return bool(self._signals)
            if not session.begun.is_set():
                session.error = error
                return False
            logger.exception("Listening to PostgreSQL failed; connecting again")
            return True
        self._outage.succeeded(started_at)
        try:
            self.is_on = True
            session.begun.set()
            self._signals.fire_all()  # nothing was heard before
            self._signals.watchers.listening()
            return await self._hear(connection)
        except (psycopg.Error, OSError):
            return True
        except Exception:
            logger.exception("Listening to PostgreSQL failed; connecting again")
            return True
        finally:
            self.is_on = False
            self._signals.watchers.deaf()
            connection.close()

    async def _hear(self, connection: Connection[Any]) -> bool:
        """Pass on what is heard; return `False` when there has been no waiter for a while."""
        server, encoding = connection.pgconn, connection.info.encoding
        while True:
            with anyio.move_on_after(_IDLE_SECONDS) as idle:
                await anyio.wait_readable(connection)
            if idle.cancelled_caught and not self._signals:
                return False
            server.consume_input()
            while (notification := server.notifies()) is not None:
                self._signals.notify(notification.extra.decode(encoding))

    def _connect_to_listen(self) -> Connection[Any]:
        connection = self._connect()
        try:
            statements = [sql.SQL("LISTEN {}").format(sql.Identifier(channel)) for channel in self._channels]
            connection.execute(sql.SQL("; ").join(statements), prepare=False)  # several cannot be prepared as one
        except BaseException:
            connection.close()
            raise
        return connection
