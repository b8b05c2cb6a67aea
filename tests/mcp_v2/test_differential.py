"""A call with tasks on `mcp` 2.x answers as the SDK alone does, plain and as a task, to clients of either protocol
revision (laws L11 and L14)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import anyio
import pytest
from mcp.server import MCPServer, Server
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError
from mcp_types import (
    SERVER_INFO_META_KEY,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequestURLParams,
    ListToolsResult,
    SamplingMessage,
    TextContent,
    Tool,
)

from mcp_task_runtime import TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from tests.mcp_v1 import raw_client as raw_client_2025
from tests.mcp_v1.schemas import Wire
from tests.mcp_v2.in_process import connect_2025, memory_client
from tests.mcp_v2.raw_client import DECLARED
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

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

Anything: TypeAlias = "MCPServer[Any] | Server[Any]"
Make = Callable[["Tasks | None", Sequence[str], bool], Anything]


class Picture(Image):
    def __repr__(self) -> str:
        return "Picture"


def url_required() -> Exception:
    url = ElicitRequestURLParams(message="Log in", url="https://example.org/", elicitation_id="e1")
    return UrlElicitationRequiredError([url], "Log in first")


LINE = SDK(
    context=Context,
    tool_error=ToolError,
    protocol_error=MCPError,
    url_required=url_required,
    image=lambda data: Picture(data=data, format="png"),
    result=CallToolResult.model_validate,
    result_class=CallToolResult,
    prompt=lambda text: SamplingMessage(role="user", content=TextContent(text=text)),
)
BODIES = bodies(LINE)
NAMES = tuple(BODIES)
SPEAKING = ("progress", "logs", *ASKING)


def high_level(tasks: Tasks | None, names: Sequence[str], adopted: bool) -> MCPServer[Any]:
    mcp: MCPServer[Any] = MCPServer("same")
    if tasks is not None:
        tasks.install(mcp, tools="all" if adopted else ())
    for body in map(BODIES.__getitem__, names):
        (mcp.tool() if tasks is None or adopted else tasks.tool())(body)
    return mcp


def low_level(tasks: Tasks | None, names: Sequence[str], adopted: bool) -> Server[Any]:
    """Return a server whose handler calls the bodies itself, and makes results of texts alone."""
    mcp: MCPServer[Any] = MCPServer("context")

    async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
        return ListToolsResult(tools=[Tool(name=name, input_schema={"type": "object"}) for name in names])

    async def call_tool(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
        body = BODIES[params.name]

        async def work(task: Any) -> Any:
            given = {"ctx": Context(request_context=ctx, mcp_server=mcp)} if "ctx" in body.__annotations__ else {}
            value = body(**given, **(params.arguments or {}))
            value = await value if hasattr(value, "__await__") else value
            return value if isinstance(value, CallToolResult) else CallToolResult(content=[TextContent(text=value)])

        return await (work(None) if tasks is None or adopted else tasks.run(work))

    server: Server[Any] = Server("same", on_call_tool=call_tool, on_list_tools=list_tools)
    if tasks is not None:
        tasks.install(server, tools="all" if adopted else ())
        for name in () if adopted else names:
            tasks.task(name=name)(BODIES[name])
    return server


async def called_2025(
    server: Anything, name: str, arguments: Wire, answer: raw_client_2025.Answer, *, as_task: bool
) -> Wire:
    """Call a tool and return all that the client got."""
    params = {"name": name, "arguments": arguments, "_meta": {"progressToken": "p"}}
    async with connect_2025(server, answer, capabilities=CAPABILITIES) as client:
        if as_task:
            created = await client.result("tools/call", {**params, "task": {}})
            reply = await client.outcome(created["task"]["taskId"])
        else:
            reply = await client.request("tools/call", params)
        return heard(client, reply)


async def called_2026(
    server: Any, name: str, arguments: Wire, *, as_task: bool = False, declared: Wire | None = None
) -> Wire:
    """Call a tool and return what it ended with."""
    async with memory_client(server) as client:
        reply = (await client.call(name, arguments, capabilities=DECLARED if as_task else declared or {})).message
        result = reply.get("result", {})
        if result.get("resultType") == "task":
            task = await client.until(result["taskId"], "completed", "failed")
            reply = {"error": task["error"]} if "error" in task else {"result": task["result"]}
            result = reply.get("result", {})
        if "error" in reply:
            return {"error": reply["error"]}
        meta = {key: value for key, value in result.get("_meta", {}).items() if key != SERVER_INFO_META_KEY}
        return {"result": {**result, "_meta": meta}}


PLAIN: dict[Make, Anything] = {make: make(None, NAMES, False) for make in (high_level, low_level)}


@pytest.mark.parametrize("adopted", [False, True], ids=["declared", "adopted"])
@pytest.mark.parametrize("make", [high_level, low_level])
@pytest.mark.parametrize("name", NAMES)
async def test_a_client_of_2025_gets_what_the_sdk_alone_gives(name: str, make: Make, adopted: bool) -> None:
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0))
    ours = make(tasks, [name], adopted)
    answers = (accept_all, refuse_all, answer_nonsense) if name in ASKING else (accept_all,)
    with anyio.fail_after(PATIENCE):
        async with tasks:
            for arguments in ARGUMENTS if name in ("with_arguments", "text") else ({},):
                for answer in answers:
                    expected = await called_2025(PLAIN[make], name, arguments, answer, as_task=False)
                    # What fits no question is refused at the task's door, with an error of its own.
                    for as_task in (False,) if answer is answer_nonsense else (False, True):
                        got = await called_2025(ours, name, arguments, answer, as_task=as_task)
                        assert got == expected, f"as a task: {as_task}"


@pytest.mark.parametrize("adopted", [False, True], ids=["declared", "adopted"])
@pytest.mark.parametrize("make", [high_level, low_level])
@pytest.mark.parametrize("name", NAMES)
async def test_a_client_of_2026_gets_what_the_sdk_alone_gives(name: str, make: Make, adopted: bool) -> None:
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0))
    ours = make(tasks, [name], adopted)
    with anyio.fail_after(PATIENCE):
        async with tasks:
            for arguments in ARGUMENTS if name in ("with_arguments", "text") else ({},):
                expected = await called_2026(PLAIN[make], name, arguments)
                assert await called_2026(ours, name, arguments) == expected
                if name not in ASKING:  # the SDK alone cannot ask under this revision
                    assert await called_2026(ours, name, arguments, declared=CAPABILITIES) == expected
                    assert await called_2026(ours, name, arguments, as_task=True) == expected
