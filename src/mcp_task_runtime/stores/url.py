"""`open_store`: a store by its URL, for configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from typing_extensions import Self

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.text import check_text
from mcp_task_runtime.stores.memory import InMemoryTaskStore

__all__ = ["BundledTaskStore", "database_file", "open_store"]


class BundledTaskStore(TaskStore, Protocol):
    """A store that comes with this library: it brings its message queue, and must be closed after use."""

    @property
    def message_queue(self) -> TaskMessageQueue:
        """The queue on the same backend and connection."""
        ...

    async def __aenter__(self) -> Self:
        """Connect; otherwise the first use does.

        Raises:
            StoreUnavailableError: The backend cannot be reached; the message names it.
        """
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        ...

    async def aclose(self) -> None:
        """Close the store and its queue: waiters wake with `StoreClosedError`."""
        ...


def open_store(url: str, *, clock: Clock | None = None) -> BundledTaskStore:
    """Return the store that a URL names. It connects when it is first used, or by `async with`.

    | URL | store |
    | --- | --- |
    | `memory://` | the memory of this process |
    | `sqlite:///tasks.db`, `sqlite:////var/lib/tasks.db` | a SQLite file, relative or absolute |
    | `redis://host:6379/0`, `rediss://…` | Redis; needs the extra `redis` |
    | `redis://host:6379/0?prefix=reports` | the same, for a server that shares a Redis with others |
    | `postgresql://user@host/database` | PostgreSQL; needs the extra `postgres` |
    | `postgresql://user@host/database?schema=reports` | the same, in a schema of its own |

    Parameters of all but the first are `timeout`, in seconds as in the constructors, for SQLite `synchronous`, and
    what the driver knows: of Redis `client_name`, `connect_timeout`, `db`, `max_connections`, `max_idle_time`,
    `stream_timeout` and `ssl_…`, of PostgreSQL the parameters of libpq.

    Args:
        url: The store's URL. It may hold a password: errors never show it.
        clock: Where time comes from; the store's own clock when `None`.

    Raises:
        ValueError: The URL is none of these, or has a parameter that is unknown; the message names it.
        ImportError: The driver is not installed; the message says what to install.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may show a password
        raise ValueError('Invalid url: percent-encode special characters, for example "[" as %5B') from None
    if parts.scheme == "memory":
        _take_options(parts, {})
        return InMemoryTaskStore(clock=clock)
    if parts.scheme == "sqlite":
        return _open_sqlite(url, parts, clock)
    check_text("url", url)  # for a file it may be other bytes
    if parts.scheme in ("redis", "rediss"):
        from mcp_task_runtime.stores.redis.store import RedisTaskStore

        options, theirs = _take_options(parts, {"prefix": str, "timeout": _seconds}, _of_redis)
        store = RedisTaskStore(_with_parameters(url, parts, theirs), clock=clock, **options)
        if parts.path.strip("/") and not parts.path.strip("/").isdigit():  # the driver would take database 0
            raise ValueError("The path in the url of Redis is the number of a database")
        return store
    if parts.scheme in ("postgresql", "postgres"):
        from mcp_task_runtime.stores.postgres.store import PostgresTaskStore

        # libpq knows its own parameters, and the store names those that are unknown.
        options, theirs = _take_options(parts, {"schema": str, "timeout": _seconds}, lambda name: True)
        return PostgresTaskStore(_with_parameters(url, parts, theirs), clock=clock, **options)
    raise ValueError(
        f"url has the scheme {parts.scheme!r};"
        " use memory://, sqlite:///FILE, redis://HOST or postgresql://HOST/DATABASE"
    )


def _open_sqlite(url: str, parts: SplitResult, clock: Clock | None) -> BundledTaskStore:
    from mcp_task_runtime.stores.sqlite.store import SQLiteTaskStore

    path = _path_of(parts)
    if not url.startswith("sqlite:///") or not path:
        raise ValueError("url must be sqlite:///FILE, or sqlite:////FILE for an absolute path")
    if parts.fragment:
        raise ValueError("url of a file takes no fragment; write # in its name as %23")
    try:
        options, _ = _take_options(parts, {"synchronous": str, "timeout": _seconds})
    except ValueError as error:
        raise ValueError(f"{error}; write ? in the name of a file as %3F") from error
    return SQLiteTaskStore(path, clock=clock, **options)


def database_file(url: str) -> Path | None:
    """Return the file that the URL of a SQLite store names; `None` for any other URL that `open_store` takes."""
    parts = urlsplit(url)
    return Path(_path_of(parts)) if parts.scheme == "sqlite" else None


def _path_of(parts: SplitResult) -> str:
    return unquote(parts.path[1:])


def _of_redis(name: str) -> bool:
    """Whether the driver of Redis knows a parameter: it ignores those it does not know."""
    return name in _REDIS_PARAMETERS or name.startswith("ssl_")


_REDIS_PARAMETERS: Final = frozenset(
    {"client_name", "connect_timeout", "db", "max_connections", "max_idle_time", "stream_timeout"}
)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("timeout must be a number of seconds") from None


def _take_options(
    parts: SplitResult, ours: Mapping[str, Callable[[str], Any]], is_theirs: Callable[[str], bool] = lambda name: False
) -> tuple[dict[str, Any], list[str]]:
    """Return the parameters of a URL that are ours, parsed, and those that are the driver's, as they are.

    Raises:
        ValueError: A parameter is neither, or is there twice, or its value makes no sense.
    """
    options: dict[str, Any] = {}
    theirs: list[str] = []
    for pair in filter(None, parts.query.split("&")):
        name, _, value = pair.partition("=")
        if name in options:
            raise ValueError(f"url has the parameter {name!r} twice")
        if name in ours:
            options[name] = ours[name](unquote(value))
        elif is_theirs(name):
            theirs.append(pair)
        else:
            raise ValueError(f"url has the unknown parameter {name!r}")
    return options, theirs


def _with_parameters(url: str, parts: SplitResult, parameters: list[str]) -> str:
    """Return the URL with these parameters only."""
    if not url.partition(":")[2].startswith("//"):
        raise ValueError(f"url must begin with {parts.scheme}://")
    rest = f"{parts.scheme}://{parts.netloc}{parts.path}"  # urlunsplit would drop the slashes of an empty netloc
    if parameters:
        rest += "?" + "&".join(parameters)
    if parts.fragment:
        rest += "#" + parts.fragment
    return rest
