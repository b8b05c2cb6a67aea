"""Ports that a server can be stopped at and started at again."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

BUS: Final = 10_000
"""How far above its port a node of a Redis cluster listens, too."""

_FIRST: Final = 12_000
_COUNT: Final = 10_000


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a free port of this machine that no other test gets before the end of the block.

    Like the one `BUS` above, it is below those that the system gives to outgoing connections: one of those might
    take the port of a server that is stopped for a moment. What reserves it is a socket for UDP, whose ports are others
    than those of TCP: it ends with its process, and leaves nothing behind.
    """
    chosen = random.SystemRandom()  # Hypothesis seeds the other one: two processes would choose the same ports
    with ExitStack() as stack:
        while True:
            port = _FIRST + chosen.randrange(_COUNT)
            with suppress(OSError):  # another process has it
                reservation = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                reservation.bind(("127.0.0.1", port))
                for each in (port, port + BUS):
                    socket.create_server(("127.0.0.1", each)).close()
                break
        yield port
