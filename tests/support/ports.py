"""Ports that a server can be stopped at and started at again."""

from __future__ import annotations

import fcntl
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

BUS: Final = 10_000
"""How far above its port a node of a Redis cluster listens, too."""

_FIRST: Final = 12_000
_COUNT: Final = 10_000


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a free port of this machine that no other test gets before the end of the block.

    Like the one `BUS` above, it is below those that the system gives to outgoing connections: one of those might
    take the port of a server that is stopped for a moment.
    """
    chosen = random.SystemRandom()  # Hypothesis seeds the other one: two processes would choose the same ports
    with ExitStack() as stack:
        while True:
            port = _FIRST + chosen.randrange(_COUNT)
            with suppress(OSError):  # another process has it
                lock = stack.enter_context((Path(tempfile.gettempdir()) / f"mcp-task-runtime-{port}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for each in (port, port + BUS):
                    socket.create_server(("127.0.0.1", each)).close()
                break
        yield port
