"""What the log says of tools that fail as tasks on `mcp` 2.x (law L11)."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError

from mcp_task_runtime import Rerun, ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from tests.mcp_v2.listeners import memory_connection
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

SECRET = "a secret of the tool"


def make_server(released: anyio.Event | None = None, **options: Any) -> tuple[MCPServer[Any], Tasks]:
    mcp: MCPServer[Any] = MCPServer("log")
    tasks = Tasks(**options)
    tasks.install(mcp)

    @tasks.tool()
    async def unexpected() -> str:
        raise ValueError(SECRET)

    @tasks.tool()
    async def on_purpose() -> str:
        raise ToolError(SECRET)

    @tasks.tool()
    async def protocol() -> str:
        raise MCPError(-32050, SECRET)

    @tasks.tool()
    async def wrong_result() -> int:
        return SECRET  # type: ignore[return-value]

    @tasks.tool(promote_after=0.0)
    async def promoted() -> str:
        assert released is not None
        await released.wait()
        raise ValueError(SECRET)

    @tasks.tool(rerunnable=Rerun(max_attempts=3, backoff=0, on=[ConnectionError]))
    async def repeated(task: ServerTaskContext) -> str:
        raise ConnectionError(SECRET)

    @mcp.tool()
    async def adopted() -> str:
        raise ToolError(SECRET)

    tasks.adopt("adopted")
    return mcp, tasks


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name.startswith("mcp") and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize(
    ("tool", "level", "reason"),
    [
        ("unexpected", "ERROR", "its work raised an exception"),
        ("on_purpose", "WARNING", "its tool returned an error"),
        ("protocol", "WARNING", "error -32050"),
        ("wrong_result", "ERROR", "its work raised an exception"),
        ("adopted", "WARNING", "its tool returned an error"),
    ],
)
async def test_a_tool_that_fails_as_a_task_is_one_line_with_its_id(
    tool: str, level: str, reason: str, masks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    mcp, tasks = make_server(mask_errors=masks and tool != "adopted")  # before mcp 2.1, its text is all there is
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_connection(mcp) as connection:
            task_id = await connection.client.start(tool)
            await connection.client.until(task_id, "completed", "failed")
    assert lines(caplog) == [(level, f"Task {task_id} ({tool!r}) failed: {reason}")]
    assert [SECRET in (record.exc_text or "") for record in caplog.records if task_id in record.getMessage()] == [
        level == "ERROR"
    ]


async def test_a_run_that_will_be_repeated_is_one_warning_and_the_last_one_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mcp, tasks = make_server()
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_connection(mcp) as connection:
            task_id = await connection.client.start("repeated")
            await connection.client.until(task_id, "completed", "failed")
    task = f"task {task_id} ('repeated')"
    assert lines(caplog) == [
        ("WARNING", f"Attempt 1 of 3 of {task} failed (ConnectionError); it runs again in 0 s"),
        ("WARNING", f"Attempt 2 of 3 of {task} failed (ConnectionError); it runs again in 0 s"),
        ("ERROR", f"T{task[1:]} in attempt 3 failed: its work raised an exception"),
    ]


async def test_a_call_that_became_a_task_while_it_ran_is_a_line_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    released = anyio.Event()
    mcp, tasks = make_server(released)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_connection(mcp) as connection:
            task_id = await connection.client.start("promoted")
            released.set()
            await connection.client.until(task_id, "completed", "failed")
    ours = [line for line in lines(caplog) if task_id in line[1]]
    assert ours == [("ERROR", f"Task {task_id} ('promoted') failed: its work raised an exception")]
