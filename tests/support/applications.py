"""Web applications over HTTP in a thread of this process: a start costs a fraction of a process's."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from tests.support.patience import PATIENCE


@contextmanager
def application_over_http(make: Callable[[], ASGIApp]) -> Generator[str, None, None]:
    """Run an application in a thread of its own, where it is made as well: uvicorn runs on asyncio alone."""
    made: queue.Queue[uvicorn.Server] = queue.Queue()

    def serve() -> None:
        server = uvicorn.Server(uvicorn.Config(make(), log_level="error", timeout_graceful_shutdown=1))
        made.put(server)
        server.run(sockets=[listener])

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        server = made.get(timeout=PATIENCE)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server did not stop"
