"""Counting work and leftovers instead of measuring time (law L8)."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import PurePath
from types import FrameType
from typing import Any

__all__ = ["count_work", "measured_memory"]

_NOT_COUNTED = {"anyio", "asyncio", "trio"}


async def count_work(operation: Callable[[], Awaitable[Any]]) -> int:
    """Return how many bytecode instructions this thread executes while an operation runs.

    The same on a fast and a slow machine. What runs in C, in another thread or in a database is not
    seen: a backend's own benchmarks have to show that.
    """
    work = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal work
        work += 1
        frame.f_trace_opcodes = True
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        await operation()
    finally:
        sys.settrace(previous)
    return work


@contextmanager
def measured_memory() -> Iterator[Callable[[], int]]:
    """Measure, during a block, the bytes that Python objects made in the block occupy.

    What event loops allocate does not count: they keep used-up timers for a while.
    """
    freezes = not gc.get_freeze_count()  # Python can thaw everything, and not only what was frozen here
    if freezes:
        gc.freeze()  # what was there before is not looked at again and again
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()

    def measure() -> int:
        gc.collect()
        traces = tracemalloc.take_snapshot().traces
        return sum(trace.size for trace in traces if _counts(trace.traceback[-1].filename))

    try:
        yield measure
    finally:
        if freezes:
            gc.unfreeze()
        if started:
            tracemalloc.stop()


@cache  # tracemalloc's own filters match the name again for each trace
def _counts(filename: str) -> bool:
    return _NOT_COUNTED.isdisjoint(PurePath(filename).parts[:-1])
