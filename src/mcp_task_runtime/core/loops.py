"""Which event loop runs here, told at little cost on asyncio."""

from __future__ import annotations

import asyncio

__all__ = ["asyncio_task"]


def asyncio_task() -> asyncio.Task[object] | None:
    """Return the asyncio task that runs, or `None` on another event loop, also where asyncio hosts that loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
