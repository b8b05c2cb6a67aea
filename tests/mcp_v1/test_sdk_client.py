"""The SDK's own client for tasks (`ClientSession.experimental`) against our servers, on every transport.

The servers on `mcp` 2.x need that SDK's environment, which `tests/run.py` keeps next to this one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import ClientSession, McpError, StdioServerParameters, types
from mcp.client.experimental.task_handlers import ExperimentalTaskHandlers
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client
from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_client_server_memory_streams

from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.mcp_v1.scenarios import World, add_tools, greet
from tests.support.low_level import low_level
from tests.support.patience import PATIENCE
from tests.support.processes import HTTPServerProcess

SERVE = Path(__file__).with_name("serve.py")
ROOT = Path(__file__).resolve().parents[2]
SERVE_V2 = ROOT / "tests" / "mcp_v2" / "serve_legacy.py"


def python_with_mcp_2() -> str:
    """Return the Python of the environment with `mcp` 2.x, or skip the test."""
    version = f"py{sys.version_info[0]}.{sys.version_info[1]}"
    named = os.environ.get("MCP2_PYTHON")
    python = Path(named) if named else ROOT / ".venvs" / f"{version}-mcp2" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"there is no environment with mcp 2.x at {python}")
    return str(python)


pytestmark = [
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),  # the SDK's HTTP client knows no other
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of this client, and of its HTTP function's name
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # the SDK's streams, when a client leaves
]


@pytest.fixture(scope="module")
def url() -> Generator[str, None, None]:
    with HTTPServerProcess([str(SERVE), "http"]) as server:
        yield server.url


@pytest.fixture(scope="module")
def url_of_mcp_2() -> Generator[str, None, None]:
    other = ["-c", "import os, sys; os.execv(sys.argv[1], sys.argv[1:])", python_with_mcp_2()]
    with HTTPServerProcess([*other, str(SERVE_V2), "http"]) as server:
        yield server.url


async def answer_yes(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult | types.ErrorData:
    return types.ElicitResult(action="accept", content={"ok": True})


async def write(context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
    content = types.TextContent(type="text", text="old pond")
    return types.CreateMessageResult(role="assistant", content=content, model="m")


class ClientTasks:
    """The client's own tasks: it asks its user in the background."""

    def __init__(self) -> None:
        self.polls = 0

    def handlers(self) -> ExperimentalTaskHandlers:
        return ExperimentalTaskHandlers(
            augmented_elicitation=self.create,
            augmented_sampling=self.create,
            get_task=self.get,
            get_task_result=self.fetch,
        )

    def _task(self, status: types.TaskStatus) -> dict[str, Any]:
        now = datetime.now(timezone.utc)
        return {
            "taskId": "mine",
            "status": status,
            "createdAt": now,
            "lastUpdatedAt": now,
            "ttl": 5000,
            "pollInterval": 20,
        }

    async def create(self, context: Any, params: Any, task_metadata: types.TaskMetadata) -> types.CreateTaskResult:
        return types.CreateTaskResult(task=types.Task(**self._task("working")))

    async def get(self, context: Any, params: types.GetTaskRequestParams) -> types.GetTaskResult:
        self.polls += 1
        return types.GetTaskResult(**self._task("working" if self.polls < 3 else "completed"))

    async def fetch(self, context: Any, params: types.GetTaskPayloadRequestParams) -> Any:
        return types.ElicitResult(action="decline")


@asynccontextmanager
async def connect(
    transport: str, request: pytest.FixtureRequest, *, elicitation_callback: Any = answer_yes
) -> AsyncGenerator[tuple[ClientSession, ClientTasks], None]:
    async with AsyncExitStack() as stack:
        if transport == "memory":
            mcp: FastMCP[Any] = FastMCP("world", log_level="CRITICAL")
            tasks = Tasks()
            tasks.install(mcp)
            mcp.tool()(greet)
            add_tools(World(tasks, None))  # type: ignore[arg-type]  # no client connects by it
            server = low_level(mcp)
            await stack.enter_async_context(tasks)
            group = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(group.cancel_scope.cancel)
            (read, write_), served = await stack.enter_async_context(create_client_server_memory_streams())
            group.start_soon(lambda: server.run(*served, server.create_initialization_options()))
        elif transport.startswith("stdio"):
            python, script = (sys.executable, SERVE) if transport == "stdio" else (python_with_mcp_2(), SERVE_V2)
            parameters = StdioServerParameters(command=python, args=[str(script), "stdio"], env=dict(os.environ))
            read, write_ = await stack.enter_async_context(stdio_client(parameters))
        else:
            url = request.getfixturevalue("url" if transport == "http" else "url_of_mcp_2")
            read, write_, _ = await stack.enter_async_context(streamablehttp_client(url))
        mine = ClientTasks()
        session = ClientSession(
            read,
            write_,
            elicitation_callback=elicitation_callback,
            sampling_callback=write,
            experimental_task_handlers=mine.handlers(),
        )
        await stack.enter_async_context(session)
        await session.initialize()
        yield session, mine


@pytest.mark.parametrize("transport", ["memory", "stdio", "http", "stdio-mcp2", "http-mcp2"])
async def test_it_passes_through_every_tool_and_every_error(transport: str, request: pytest.FixtureRequest) -> None:
    with anyio.fail_after(3 * PATIENCE):
        async with connect(transport, request) as (session, mine):
            client = session.experimental
            capabilities = session.get_server_capabilities()
            assert capabilities is not None
            assert capabilities.tasks is not None
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            assert tools["ask"].execution == types.ToolExecution(taskSupport="required")

            async def finish(tool: str, arguments: dict[str, Any] | None = None) -> tuple[str, str]:
                created = await client.call_tool_as_task(tool, arguments or {}, ttl=60_000)
                result = await client.get_task_result(created.task.taskId, types.CallToolResult)
                task = await client.get_task(created.task.taskId)
                assert isinstance(result.content[0], types.TextContent)
                return task.status, result.content[0].text

            assert await finish("double", {"x": 3}) == ("completed", "6")
            assert await finish("ask") == ("completed", "Sure? accept True")
            assert await finish("ask_two") == ("completed", "accept accept")
            assert await finish("haiku") == ("completed", "old pond")
            assert await finish("in_a_thread") == ("completed", "done in a thread")
            assert await finish("ask_as_task") == ("completed", "decline")
            assert mine.polls == 3
            assert (await finish("boom"))[0] == "failed"

            created = await client.call_tool_as_task("refuse", {})
            with pytest.raises(McpError) as refused:
                await client.get_task_result(created.task.taskId, types.CallToolResult)
            assert (refused.value.error.code, refused.value.error.data) == (-32050, {"retryAfter": 30})

            created = await client.call_tool_as_task("wait", {})
            polled = client.poll_task(created.task.taskId)
            assert (await polled.__anext__()).status == "working"
            assert (await client.cancel_task(created.task.taskId)).status == "cancelled"
            assert [each.status async for each in polled] == ["cancelled"]
            with pytest.raises(McpError):
                await client.cancel_task(created.task.taskId)
            with pytest.raises(McpError):
                await client.get_task_result(created.task.taskId, types.CallToolResult)
            for call in (client.get_task("unknown"), client.list_tasks("garbage"), session.call_tool("ask", {})):
                with pytest.raises(McpError):
                    await call
            listed = await client.list_tasks()
            assert len(listed.tasks) == 9
            assert (await session.call_tool("greet", {"name": "Ada"})).isError is False


async def test_an_error_of_the_users_callback_raises_in_the_asker(request: pytest.FixtureRequest) -> None:
    async def refuse(context: Any, params: types.ElicitRequestParams) -> types.ErrorData:
        return types.ErrorData(code=-32042, message="The user is not there")

    async with connect("memory", request, elicitation_callback=refuse) as (session, _):
        created = await session.experimental.call_tool_as_task("what_went_wrong", {})
        result = await session.experimental.get_task_result(created.task.taskId, types.CallToolResult)
        assert result.content == [types.TextContent(type="text", text="-32042 The user is not there")]
