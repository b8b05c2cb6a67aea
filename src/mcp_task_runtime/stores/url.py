"""`open_store`: a store by its URL, for configuration."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from typing_extensions import Self

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.stores.memory import InMemoryTaskStore

__all__ = ["BundledTaskStore", "open_store"]


class BundledTaskStore(TaskStore, Protocol):
    """A store that comes with this library: it brings its message queue, and is closed when it is done with."""

    @property
    def message_queue(self) -> TaskMessageQueue:
        """The queue on the same backend and connection."""
        ...

    async def __aenter__(self) -> Self:
        """Connect; the first use would do that, too."""
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        ...

    async def aclose(self) -> None:
        """Close the store and its queue: whoever waits is woken with `StoreClosedError`."""
        ...


def open_store(url: str, *, clock: Clock | None = None) -> BundledTaskStore:
    """Return the store that a URL names. It connects when it is first used, or by `async with`.

    | URL | store |
    | --- | --- |
    | `memory://` | this process's memory |
    | `sqlite:///tasks.db`, `sqlite:////var/lib/tasks.db` | an SQLite file, relative or absolute |
    | `redis://host:6379/0`, `rediss://…` | Redis; needs the extra `redis` |
    | `redis://host:6379/0?prefix=reports` | the same, for a server that shares a Redis with others |
    | `postgresql://user@host/database` | PostgreSQL; needs the extra `postgres` |
    | `postgresql://user@host/database?schema=reports` | the same, in a schema of its own |

    Args:
        url: The store's URL. It may hold a password: errors never show it.
        clock: Where time comes from; the system's when `None`.

    Raises:
        ValueError: The URL is none of these.
        ImportError: The driver is not installed; the message says what to install.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may show a password
        raise ValueError(
            "url cannot be read; what is special in a URL, like [ in a password, is written as %5B"
        ) from None
    if parts.scheme == "memory":
        return InMemoryTaskStore(clock=clock)
    if parts.scheme == "sqlite":
        return _open_sqlite(url, parts, clock)
    if parts.scheme in ("redis", "rediss"):
        from mcp_task_runtime.stores.redis.store import RedisTaskStore

        url, options = _take_option(url, parts, "prefix")
        return RedisTaskStore(url, clock=clock, **options)
    if parts.scheme in ("postgresql", "postgres"):
        from mcp_task_runtime.stores.postgres.store import PostgresTaskStore

        url, options = _take_option(url, parts, "schema")
        return PostgresTaskStore(url, clock=clock, **options)
    raise ValueError(
        f"url has the scheme {parts.scheme!r};"
        " use memory://, sqlite:///FILE, redis://HOST or postgresql://HOST/DATABASE"
    )


def _open_sqlite(url: str, parts: SplitResult, clock: Clock | None) -> BundledTaskStore:
    from mcp_task_runtime.stores.sqlite.store import SQLiteTaskStore

    path = unquote(parts.path[1:])
    if not url.startswith("sqlite:///") or not path:
        raise ValueError("url must be sqlite:///FILE, or sqlite:////FILE for an absolute path")
    if parts.query or parts.fragment:
        raise ValueError("url of a file takes no parameters; write ? and # in its name as %3F and %23")
    return SQLiteTaskStore(path, clock=clock)


def _take_option(url: str, parts: SplitResult, name: str) -> tuple[str, dict[str, Any]]:
    """Split a parameter of ours off a URL, whose other parameters are the driver's."""
    if not url.partition(":")[2].startswith("//"):
        raise ValueError(f"url must begin with {parts.scheme}://")
    theirs: list[str] = []
    ours: dict[str, Any] = {}
    for pair in filter(None, parts.query.split("&")):
        key, _, value = pair.partition("=")
        if key == name:
            ours[name] = unquote(value)
        else:
            theirs.append(pair)
    rest = f"{parts.scheme}://{parts.netloc}{parts.path}"  # urlunsplit would drop the slashes of an empty netloc
    if theirs:
        rest += "?" + "&".join(theirs)
    if parts.fragment:
        rest += "#" + parts.fragment
    return rest, ours
