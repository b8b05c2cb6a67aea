"""Signals that stop a command arrive on each event loop, also on one that cannot handle signals."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime.operations._signals import stop_signals
from tests.support.patience import PATIENCE


def refuse(*_: Any) -> None:
    raise NotImplementedError


@pytest.fixture(params=["handled by the loop", "handled by Python, as on Windows"])
def kind_of_loop(request: pytest.FixtureRequest, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "handled by Python, as on Windows":
        if anyio_backend_name == "trio":
            pytest.skip("trio handles signals on every system")
        monkeypatch.setattr(asyncio.SelectorEventLoop, "add_signal_handler", refuse)


@pytest.mark.usefixtures("kind_of_loop")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_signal_is_received(number: signal.Signals) -> None:
    with anyio.fail_after(PATIENCE), stop_signals() as signals:
        signal.raise_signal(number)
        async for received in signals:
            assert received == number
            break


@pytest.mark.usefixtures("kind_of_loop")
async def test_the_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_signals():
        await anyio.lowlevel.checkpoint()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
