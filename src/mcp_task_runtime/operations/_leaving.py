"""The end of a worker process, which does not wait for threads that cannot be stopped."""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress
from typing import Final, NoReturn

__all__ = ["leave_now", "leave_soon"]

logger: logging.Logger = logging.getLogger(__name__)

_SECONDS: Final = 5.0
"""How long threads may go on that Python would wait for: supervisors often kill a process 30 s after they stop it."""


def leave_soon() -> None:
    """End this process in 5 seconds, with status 0, if only threads that still run keep it from ending."""
    timer = threading.Timer(_SECONDS, _leave_if_held)
    timer.daemon = True
    timer.start()


def leave_now() -> NoReturn:
    """End this process with status 0 at once, even if threads still run in it."""
    logger.warning("Exiting although work that was stopped still runs in a thread")
    with suppress(Exception):
        logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(0)


def _leave_if_held() -> None:
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        leave_now()  # otherwise functions registered with `atexit` run, which may take their time
