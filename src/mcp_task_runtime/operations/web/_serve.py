"""`mcp-tasks web`: the dashboard in a server of its own."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager

try:
    import uvicorn
except ImportError as _missing:
    raise ImportError("The dashboard needs: pip install 'mcp-task-runtime[web]'") from _missing

from starlette.applications import Starlette

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


async def serve(application: Starlette, listener: socket.socket) -> None:
    """Serve the dashboard until the process is told to stop, by a signal.

    Args:
        application: What `dashboard` returned.
        listener: Where to listen; closed when this returns.
    """
    with listener:
        config = uvicorn.Config(
            application,
            access_log=False,  # addresses hold the beginnings of identifiers
            log_level="warning",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
        )
        await _Server(config).serve(sockets=[listener])
