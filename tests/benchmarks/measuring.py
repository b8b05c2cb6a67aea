"""How the benchmarks measure: in turns, garbage collected in between, medians."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

__all__ = ["rates", "resident_kib", "row", "seconds"]


async def seconds(body: Callable[[], Awaitable[object]]) -> float:
    """Return how long a body took."""
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        await body()
        return time.perf_counter() - began
    finally:
        gc.enable()


async def rates(
    bodies: dict[str, Callable[[], Awaitable[object]]], *, operations: int, rounds: int = 7
) -> dict[str, float]:
    """Run the bodies in turns; return the median rate of each, in operations a second."""
    samples: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(rounds):
        for name, body in bodies.items():
            samples[name].append(operations / await seconds(body))
    return {name: statistics.median(values) for name, values in samples.items()}


def row(what: str, bound: str, measured: str) -> None:
    """Print a row of the table."""
    print(f"| {what} | {bound} | {measured} |", flush=True)


def resident_kib() -> float:
    """Return the memory that this process has now, in KiB; where the system does not say it, the most it ever had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 1024 if sys.platform == "darwin" else most
