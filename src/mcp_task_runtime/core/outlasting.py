"""`outlasting`: an operation on a store or a queue that waits outages out (law L12)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio

from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.errors import StoreUnavailableError

__all__ = ["outlasting"]

T = TypeVar("T")

_PAUSE: Final = Backoff(first=0.1, longest=5.0)


async def outlasting(operation: Callable[[], Awaitable[T]]) -> T:
    """Return what an operation returns, which is repeated for as long as the store cannot be reached.

    Args:
        operation: It may be carried out more than once: a store that cannot be reached may have done it.
    """
    failures = 0
    while True:
        try:
            return await operation()
        except StoreUnavailableError:  # the store logs the outage
            failures += 1
            await anyio.sleep(_PAUSE.after(failures).total_seconds())
