"""`mcp-tasks web`: the dashboard in a server of its own."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Generator, Iterable
from contextlib import contextmanager

try:
    import uvicorn
except ImportError as _missing:
    raise ImportError("The dashboard needs: pip install 'mcp-task-runtime[web]'") from _missing

from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.operations.web._app import dashboard

__all__ = ["is_loopback", "listen", "serve"]


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop at a signal. The base class raises it again afterwards, which would end the command with a traceback."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to an address that is listened at."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a socket to listen at; 0 is a free port.

    Raises:
        OSError: The address is in use, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


async def serve(
    store: TaskStore,
    listener: socket.socket,
    *,
    token: str | None,
    origins: Iterable[str],
    inbox_secret: str | None = None,
) -> None:
    """Serve the dashboard until the process is told to stop, by a signal.

    Args:
        store: The store of the servers.
        listener: Where to listen; closed when this returns.
        token: As for `dashboard`.
        origins: As for `dashboard`.
        inbox_secret: As for `dashboard`.

    Raises:
        ValueError: As for `dashboard`.
    """
    with listener:
        config = uvicorn.Config(
            dashboard(store, token=token, origins=origins, inbox_secret=inbox_secret),
            access_log=False,  # addresses hold the beginnings of identifiers
            log_level="warning",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
        )
        await _Server(config).serve(sockets=[listener])
