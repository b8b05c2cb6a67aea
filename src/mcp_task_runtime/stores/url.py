"""`open_store`: a store by its URL, for configuration."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.stores.memory import InMemoryTaskStore

__all__ = ["open_store"]


def open_store(url: str, *, clock: Clock | None = None) -> TaskStore:
    """Return the store that a URL names. It connects when it is first used, or by `async with`.

    | URL | store |
    | --- | --- |
    | `memory://` | this process's memory |
    | `sqlite:///tasks.db`, `sqlite:////var/lib/tasks.db` | an SQLite file, relative or absolute |
    | `redis://host:6379/0`, `rediss://…` | Redis; needs the extra `redis` |
    | `postgresql://user@host/database` | PostgreSQL; needs the extra `postgres` |

    Args:
        url: The store's URL. It may hold a password: errors never show it.
        clock: Where time comes from; the system's when `None`.

    Raises:
        ValueError: The URL is none of these.
        ImportError: The driver is not installed; the message says what to install.
    """
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return InMemoryTaskStore(clock=clock)
    if scheme == "sqlite":
        return _open_sqlite(url, clock)
    if scheme in ("redis", "rediss"):
        try:
            from mcp_task_runtime.stores.redis import RedisTaskStore
        except ImportError as error:
            raise _missing("Redis", "redis") from error
        return RedisTaskStore(url, clock=clock)
    if scheme in ("postgresql", "postgres"):
        try:
            from mcp_task_runtime.stores.postgres import PostgresTaskStore
        except ImportError as error:
            raise _missing("PostgreSQL", "postgres") from error
        return PostgresTaskStore(url, clock=clock)
    raise ValueError(
        f"url has the scheme {scheme!r}; use memory://, sqlite:///FILE, redis://HOST or postgresql://HOST/DATABASE"
    )


def _open_sqlite(url: str, clock: Clock | None) -> TaskStore:
    from mcp_task_runtime.stores.sqlite import SQLiteTaskStore

    parts = urlsplit(url)
    path = unquote(parts.path[1:])
    if parts.netloc or not path:
        raise ValueError("url must be sqlite:///FILE, or sqlite:////FILE for an absolute path")
    return SQLiteTaskStore(path, clock=clock)


def _missing(name: str, extra: str) -> ImportError:
    return ImportError(f"A {name} store needs its driver: pip install 'mcp-task-runtime[{extra}]'")
