"""Signals that stop a command, on every system and event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

import anyio

__all__ = ["stop_signals"]

_STOP = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_signals() -> Iterator[AsyncIterator[int]]:
    """Receive SIGTERM and SIGINT, in place of what they did before. Only in the main thread."""
    with ExitStack() as stack:
        try:
            signals: AsyncIterator[int] = stack.enter_context(anyio.open_signal_receiver(*_STOP))
        except NotImplementedError:  # the event loops of asyncio on Windows handle no signals
            signals = stack.enter_context(_passed_on_by_python())
        yield signals


@contextmanager
def _passed_on_by_python() -> Iterator[AsyncIterator[int]]:
    loop = asyncio.get_running_loop()
    send, receive = anyio.create_memory_object_stream[int](len(_STOP))

    def put(number: int) -> None:
        with suppress(anyio.WouldBlock, anyio.ClosedResourceError):  # others are unread, or this one came too late
            send.send_nowait(number)

    def pass_on(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(put, number)

    before = {number: signal.signal(number, pass_on) for number in _STOP}
    try:
        with send, receive:
            yield receive
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
