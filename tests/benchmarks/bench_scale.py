"""Many waiting tasks in one process: what one costs in memory, and whether calls, polls and answers cost more.

`MCP_TASK_RUNTIME_BENCH_WAITING` says how many: 100,000 unless it is set. Of these 10,000 are polled, answered and end.
"""

from __future__ import annotations

import logging
import os

import anyio

from tests.benchmarks.capacity import SAMPLE, measured
from tests.benchmarks.measuring import row

WAITING = int(os.environ.get("MCP_TASK_RUNTIME_BENCH_WAITING", "100000"))
ENDED = 10_000


async def main() -> None:
    logging.disable(logging.CRITICAL)
    few, _ = await measured(SAMPLE, polls=1)
    ended = min(WAITING, ENDED)
    many, seconds = await measured(WAITING, polls=1, ended=ended)
    what = f"{WAITING:,} tasks that wait on a question in one process"
    row(f"{what}: memory of each", "≤ 10 KiB", f"{many.kib:.1f} KiB")
    for step, before, now in (
        ("a call", few.call, many.call),
        ("a poll", few.poll, many.poll),
        ("an answer and the end", few.answer, many.answer),
    ):
        row(f"{what}: {step}: time / that with {SAMPLE:,}", "≤ 1.5", f"{now / before:.2f} ({1e3 * now:.2f} ms)")
    row(
        f"{what}: processor time / what `capacity.py` predicts from {SAMPLE:,}",
        "≤ 1.5",
        f"{seconds / few.seconds(WAITING, ended, ended):.2f} ({seconds:.0f} s)",
    )


if __name__ == "__main__":
    anyio.run(main)
