"""`ServerWatch`: what one process knows of its Redis server: where it is, its time, and whether it can be used."""

from __future__ import annotations

import logging
from collections.abc import Collection
from time import monotonic

from mcp_task_runtime.stores._outage import Outage
from mcp_task_runtime.stores._server_clock import ServerClock

__all__ = ["ServerWatch", "reason_of"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.redis")


class ServerWatch:
    """Keeps the server's clock, and logs what an operator must know: each outage once, and a server that evicts.

    Attributes:
        address: Host and port, or the path of a socket; never a password.
        clock: The server's clock.
        is_silent: Whether outages are not logged, because a caller gets them as an error.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.clock = ServerClock()
        self.is_silent = False
        self._reach = Outage(logger, f"Redis at {address}")
        self._writes = Outage(logger, f"Redis at {address}", ability="take writes")
        self._refused: set[str] = set()
        self._warned = False

    @property
    def is_unavailable(self) -> bool:
        """Whether the latest attempt to reach the server, or to write, failed."""
        return self._reach.is_on or self._writes.is_on

    def failed(self, started_at: float) -> None:
        """Note that an attempt, begun at this time by `time.monotonic`, did not reach the server."""
        if not self.is_silent:
            self._reach.failed(started_at)

    def refused(self, names: Collection[str]) -> None:
        """Note that the server, which can be reached, cannot carry out these scripts now."""
        if not self.is_silent:
            self._refused.update(names)
            self._writes.failed(monotonic())

    def succeeded(self, names: Collection[str] = ()) -> None:
        """Note that the server could be reached, and carried out these scripts."""
        self._reach.succeeded()
        if self._refused and not self._refused.isdisjoint(names):
            self._refused.clear()
            self._writes.succeeded()

    def check_memory(self, info: bytes) -> None:
        """Warn once of a server that may evict tasks, by its `INFO memory`."""
        fields = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
        policy = fields.get(b"maxmemory_policy", b"noeviction").decode(errors="replace")
        if not self._warned and fields.get(b"maxmemory", b"0") != b"0" and policy != "noeviction":
            self._warned = True
            logger.warning(
                "Redis at %s may evict tasks: its maxmemory-policy is %s; set maxmemory-policy to noeviction",
                self.address,
                policy,
            )


def reason_of(error: BaseException) -> str:
    """Return in one line why a server cannot be used."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if isinstance(cause, TimeoutError):
            return "it does not answer"
        error, cause = cause, cause.__cause__
    return str(error).partition("\n")[0] or type(error).__name__
