"""What the log says of tools that fail as tasks on `mcp` 1.x (law L11)."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from mcp.server.fastmcp import FastMCP
from mcp.server.fastmcp.exceptions import ToolError

from mcp_task_runtime import ProtocolError, Rerun, TaskSettings
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.mcp_v1.in_memory import connect
from tests.mcp_v1.raw_client import never
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

SECRET = "a secret of the tool"


def make_server(*, masks: bool = False) -> tuple[FastMCP[Any], Tasks]:
    mcp: FastMCP[Any] = FastMCP("log", log_level="CRITICAL")
    tasks = Tasks(mask_errors=masks, settings=TaskSettings(shutdown_grace=0))
    tasks.install(mcp)

    @tasks.tool()
    async def unexpected() -> str:
        raise ValueError(SECRET)

    @tasks.tool()
    async def on_purpose() -> str:
        raise ToolError(SECRET)

    @tasks.tool()
    async def protocol() -> str:
        raise ProtocolError(-32050, SECRET)

    @tasks.tool(rerunnable=Rerun(max_attempts=2, backoff=0, on=[ConnectionError]))
    async def repeated() -> str:
        raise ConnectionError(SECRET)

    @mcp.tool()
    async def adopted() -> str:
        raise ValueError(SECRET)

    tasks.adopt("adopted")
    return mcp, tasks


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name.startswith("mcp") and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize(
    ("tool", "masks", "level", "reason"),
    [
        ("unexpected", False, "ERROR", "its work raised an exception"),
        ("unexpected", True, "ERROR", "its work raised an exception"),
        ("on_purpose", False, "WARNING", "its tool returned an error"),
        ("protocol", False, "WARNING", "error -32050"),
        ("adopted", False, "WARNING", "its tool returned an error"),
        ("adopted", True, "ERROR", "its work raised an exception"),
    ],
)
async def test_a_tool_that_fails_as_a_task_is_one_line_with_its_id(
    tool: str, masks: bool, level: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    mcp, tasks = make_server(masks=masks)
    with anyio.fail_after(PATIENCE):
        async with tasks, connect(mcp, never) as client:
            task_id = await client.start(tool)
            await client.until(task_id, "failed")
    assert lines(caplog) == [(level, f"Task {task_id} ({tool!r}) failed: {reason}")]
    shown = [SECRET in (record.exc_text or "") for record in caplog.records if task_id in record.getMessage()]
    assert shown == [level == "ERROR"]


async def test_a_run_that_will_be_repeated_is_one_warning_and_the_last_one_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mcp, tasks = make_server()
    with anyio.fail_after(PATIENCE):
        async with tasks, connect(mcp, never) as client:
            task_id = await client.start("repeated")
            await client.until(task_id, "failed")
    task = f"task {task_id} ('repeated')"
    assert lines(caplog) == [
        ("WARNING", f"Attempt 1 of 2 of {task} failed (ConnectionError); it runs again in 0 s"),
        ("ERROR", f"T{task[1:]} in attempt 2 failed: its work raised an exception"),
    ]
