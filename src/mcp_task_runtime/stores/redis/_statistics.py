"""`RedisStatistics`: figures of a store, for operators and tests; and what its server says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mcp_task_runtime.core.types import Finding

__all__ = ["RedisStatistics", "findings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisStatistics:
    """Figures of one store and its queue in this process.

    Attributes:
        calls: Scripts and commands that were sent on behalf of callers, since the store was made.
        in_flight: Groups of calls whose replies are awaited now.
        waiters: Callers that wait for events of tasks now.
        channels: Channels that are subscribed to.
        is_listening: Whether there is a connection for events.
        is_unavailable: Whether the server cannot be reached, or takes no changes, as far as this process knows.
    """

    calls: int
    in_flight: int
    waiters: int
    channels: int
    is_listening: bool
    is_unavailable: bool


def findings(info: bytes) -> Iterator[Finding]:
    """Yield what an operator should know of a server, by its `INFO`."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    fields = {name: value.strip() for name, _, value in lines}
    version = f"Redis {fields.get('redis_version', 'of an unknown version')}"
    if fields.get("role", "master") != "master":
        yield Finding("server", "error", f"{version} is a replica, which takes no changes")
    else:
        yield Finding("server", "ok", version)
    policy = fields.get("maxmemory_policy", "noeviction")
    evicted = fields.get("evicted_keys", "0")
    if fields.get("maxmemory", "0") == "0" or policy == "noeviction":
        yield Finding("eviction", "ok", "the server evicts nothing")
    else:
        says = f"may evict tasks, and has evicted {evicted} keys"
        text = f"the server {says}: set maxmemory-policy to noeviction instead of {policy}"
        yield Finding("eviction", "warning", text)
    if fields.get("aof_enabled", "0") == "0":
        yield Finding(
            "persistence",
            "warning",
            "a server that stops may lose the changes since its last snapshot: set appendonly to yes",
        )
    elif fields.get("aof_last_write_status", "ok") != "ok":
        yield Finding("persistence", "error", "the append-only file cannot be written: is the disk full?")
    else:
        yield Finding("persistence", "ok", "changes are kept in an append-only file")
