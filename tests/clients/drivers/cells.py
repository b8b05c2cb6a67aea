"""What all drivers share: the cells of a row, filled in by what the client can do, and printed as one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Call = Callable[[str, dict[str, Any]], Awaitable[object]]
Until = Callable[[], Awaitable[None]]
SECONDS = 60  # a cell that takes longer has hung


def check(found: object, wanted: str) -> None:
    """Raise unless `wanted` stands in what was found."""
    if wanted not in str(found):
        raise AssertionError(f"expected {wanted!r}, got {found!r}")


async def fill(
    call: Call,
    *,
    task: Call | None = None,
    watch: Call | None = None,
    cancel: Callable[[Until], Awaitable[object]] | None = None,
    progress: list[Any] | None = None,
    limits: Mapping[str, str] | None = None,
) -> None:
    """Fill the row of one client and print it.

    Args:
        call: Calls a tool, and returns what the user sees of its result.
        task: The same as a task, where the client has such an option.
        watch: Calls a tool while another call runs; `call` unless that waits for the other.
        cancel: Calls the tool `wait`, awaits the function it is given, which waits until that has begun, and cancels
            the call or the task.
        progress: What the client was told of progress so far.
        limits: Cells that this client cannot do, with the reason.
    """

    async def question(by: Call) -> None:
        check(await by("ask", {}), "name Ada")

    async def stops() -> None:
        assert cancel is not None
        look = watch or call
        count = str(await look("count", {}))

        async def changed() -> None:
            nonlocal count
            before = count
            while count == before:
                await asyncio.sleep(0.05)
                count = str(await look("count", {}))

        await cancel(changed)
        await changed()

    async def reports() -> None:
        assert progress is not None
        progress.clear()
        await call("add", {"a": 1, "b": 2})
        check(progress, "2")

    async def adds(by: Call) -> None:
        check(await by("add", {"a": 1, "b": 2}), "sum 3")

    async def writes(by: Call) -> None:
        check(await by("write", {}), "a haiku")

    cells: dict[str, Callable[[], Awaitable[None]] | None] = {
        "plain": lambda: adds(call),
        "task": task and (lambda: adds(task)),
        "question, plain": lambda: question(call),
        "question, task": task and (lambda: question(task)),
        "sampling": lambda: writes(task or call),
        "cancel": cancel and stops,
        "progress": reports if progress is not None else None,
    }
    row: dict[str, str] = {}
    for name, cell in cells.items():
        if limits and name in limits:
            row[name] = limits[name]
        elif cell is None:
            row[name] = "FAULT: the driver neither fills this cell nor says why not"
        else:
            try:
                await asyncio.wait_for(cell(), SECONDS)
                row[name] = "works"
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                row[name] = f"FAULT: {type(error).__name__}: {error}"[:300]
    print(json.dumps(row))
