"""The event loops that tests run on: asyncio's and trio's, in the machine's time or in one of their own."""

from __future__ import annotations

import asyncio
import os
import selectors
from typing import Any

import pytest
import trio.testing

__all__ = ["EVENT_LOOPS", "in_virtual_time", "on_one_loop", "virtual_time"]

EVENT_LOOPS = os.environ.get("MCP_TASK_RUNTIME_EVENT_LOOPS", "asyncio trio").split()
"""The gate takes both on its first Python, and one of them on each of the others."""

on_one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""Runs a test on one event loop: its server runs on its own, in a thread or process, and its client is the test's."""


class _Selector(selectors.SelectSelector):
    """Where it would wait for a timer, it is that much later instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(None if timeout is None else 0)
        self.now += timeout if timeout and not events else _TURN_SECONDS
        return events


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._timers = _Selector()
        super().__init__(self._timers)

    def time(self) -> float:
        return self._timers.now


_TURN_SECONDS = 1e-6
"""What a turn of asyncio's loop takes in virtual time: what is never idle comes to an end, too."""

_TRIO_RATE = 0.01
"""How much slower virtual time passes on trio while there is something to do."""

_VIRTUAL: dict[str, dict[str, Any]] = {
    "asyncio": {"loop_factory": _Loop},
    "trio": {"clock": trio.testing.MockClock(rate=_TRIO_RATE, autojump_threshold=0)},
}
_PARAMETERS = [pytest.param((name, _VIRTUAL[name]), id=name) for name in EVENT_LOOPS]

in_virtual_time = pytest.mark.parametrize("anyio_backend", _PARAMETERS)
"""Runs a test in a time that hardly passes while there is something to do, and jumps while there is nothing.

Sleeps take no time then, and no timeout comes too early on a slow machine. It is for tests that wait for their own
event loop alone: to it, a thread or another process is nothing to do.
"""


@pytest.fixture(name="anyio_backend", params=_PARAMETERS)
def virtual_time(request: pytest.FixtureRequest) -> Any:
    """Run each async test of the module that imports this as `in_virtual_time` does."""
    return request.param
