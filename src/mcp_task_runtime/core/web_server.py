"""The web server around us: when it is to stop, and how many processes it runs.

A web server waits for open responses before it ends the lifespan of its application, so an application
whose streams are open as long as it runs never learns of it. uvicorn handles the signals of its process with a
method of its server, where it can be found and asked; other servers end the streams themselves.
"""

from __future__ import annotations

import signal
from typing import Protocol, runtime_checkable

import anyio

__all__ = ["until_web_server_stops", "web_workers"]

_TICK_SECONDS = 0.1
"""How often uvicorn itself looks whether it is to stop."""


@runtime_checkable
class _Uvicorn(Protocol):
    should_exit: bool


async def until_web_server_stops() -> None:
    """Wait until the uvicorn server that runs this process is to stop; without end where there is none."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(server, _Uvicorn):
        while not server.should_exit:  # noqa: ASYNC110  # it has no event for it
            await anyio.sleep(_TICK_SECONDS)
    else:
        await anyio.sleep_forever()


def web_workers() -> int:
    """Return how many processes serve what this one does, as far as uvicorn or gunicorn says so; otherwise 1.

    Each of them handles signals of its process with a method of an object that has the server's settings.
    """
    most = 1
    for name in ("SIGTERM", "SIGUSR1"):  # where gunicorn runs uvicorn, the latter has the first one, and no workers
        number = getattr(signal, name, None)
        owner = None if number is None else getattr(signal.getsignal(number), "__self__", None)
        for settings in (getattr(owner, "config", None), getattr(owner, "cfg", None)):
            workers = getattr(settings, "workers", None)
            if isinstance(workers, int):
                most = max(most, workers)
    return most
