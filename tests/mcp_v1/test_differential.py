"""A call with tasks on `mcp` 1.x answers as the SDK alone does, plain and as a task (laws L11 and L14)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest
from mcp import types
from mcp.server.fastmcp import Context, FastMCP, Image
from mcp.server.fastmcp.exceptions import ToolError
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import McpError, UrlElicitationRequiredError

from mcp_task_runtime import TaskSettings
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.mcp_v1.in_memory import connect
from tests.mcp_v1.raw_client import Answer
from tests.mcp_v1.schemas import Wire
from tests.support.low_level import low_level as inner_of
from tests.support.patience import PATIENCE
from tests.tool_bodies import (
    ARGUMENTS,
    ASKING,
    CAPABILITIES,
    SDK,
    accept_all,
    answer_nonsense,
    bodies,
    heard,
    refuse_all,
)

Make = Callable[["Tasks | None", Sequence[str], bool], Server[Any, Any]]


class Picture(Image):
    def __repr__(self) -> str:
        return "Picture"


def url_required() -> Exception:
    url = types.ElicitRequestURLParams(message="Log in", url="https://example.org/", elicitationId="e1")
    return UrlElicitationRequiredError([url], "Log in first")


LINE = SDK(
    context=Context,
    tool_error=ToolError,
    protocol_error=lambda code, message, data: McpError(types.ErrorData(code=code, message=message, data=data)),
    url_required=url_required,
    image=lambda data: Picture(data=data, format="png"),
    result=types.CallToolResult.model_validate,
    result_class=types.CallToolResult,
    prompt=lambda text: types.SamplingMessage(role="user", content=types.TextContent(type="text", text=text)),
)
BODIES = bodies(LINE)
NAMES = tuple(BODIES)


def fast(tasks: Tasks | None, names: Sequence[str], adopted: bool) -> Server[Any, Any]:
    mcp: FastMCP[Any] = FastMCP("same", log_level="CRITICAL")
    if tasks is not None:
        tasks.install(mcp, tools="all" if adopted else ())
    for body in map(BODIES.__getitem__, names):
        (mcp.tool() if tasks is None or adopted else tasks.tool())(body)
    inner: Server[Any, Any] = inner_of(mcp)
    return inner


def low_level(tasks: Tasks | None, names: Sequence[str], adopted: bool) -> Server[Any, Any]:
    """Return a server whose handler calls the bodies itself, with the SDK's own session for a context."""
    server: Server[Any, Any] = Server("same")

    @server.list_tools()  # type: ignore[no-untyped-call,untyped-decorator]
    async def list_tools() -> list[types.Tool]:
        execution = None if adopted else types.ToolExecution(taskSupport="optional")
        return [types.Tool(name=name, inputSchema={"type": "object"}, execution=execution) for name in names]

    @server.call_tool()  # type: ignore[untyped-decorator]
    async def call_tool(name: str, arguments: dict[str, Any]) -> Any:
        async def work(task: Any) -> Any:
            given = {"ctx": Context(request_context=server.request_context)} if "ctx" in hints else {}
            value = BODIES[name](**given, **arguments)
            return await value if hasattr(value, "__await__") else value

        hints = BODIES[name].__annotations__
        return await (work(None) if tasks is None or adopted else tasks.run(work))

    if tasks is not None:
        tasks.install(server, tools="all" if adopted else ())
    return server


async def called(server: Server[Any, Any], name: str, arguments: Wire, answer: Answer, *, as_task: bool) -> Wire:
    """Call a tool and return all that the client got."""
    params = {"name": name, "arguments": arguments, "_meta": {"progressToken": "p"}}
    async with connect(server, answer, capabilities=CAPABILITIES) as client:
        if as_task:
            created = await client.result("tools/call", {**params, "task": {}})
            reply = await client.outcome(created["task"]["taskId"])
        else:
            reply = await client.request("tools/call", params)
        return heard(client, reply)


@pytest.fixture(scope="module")
def plain_servers() -> dict[Make, Server[Any, Any]]:
    return {make: make(None, NAMES, False) for make in (fast, low_level)}


@pytest.mark.parametrize("adopted", [False, True], ids=["declared", "adopted"])
@pytest.mark.parametrize("make", [fast, low_level])
@pytest.mark.parametrize("name", NAMES)
async def test_a_call_with_tasks_answers_as_the_sdk_alone(
    name: str, make: Make, adopted: bool, plain_servers: dict[Make, Server[Any, Any]]
) -> None:
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0))
    ours = make(tasks, [name], adopted)
    answers = (accept_all, refuse_all, answer_nonsense) if name in ASKING else (accept_all,)
    with anyio.fail_after(PATIENCE):
        async with tasks:
            for arguments in ARGUMENTS if name in ("with_arguments", "text") else ({},):
                for answer in answers:
                    expected = await called(plain_servers[make], name, arguments, answer, as_task=False)
                    # What fits no question is refused at the task's door, with an error of its own.
                    for as_task in (False,) if answer is answer_nonsense else (False, True):
                        got = await called(ours, name, arguments, answer, as_task=as_task)
                        assert got == expected, f"as a task: {as_task}"
