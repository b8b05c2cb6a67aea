"""A call of a tool made with `tasks.tool()` ends its request when its work begins, and the work keeps nothing of it."""

from __future__ import annotations

import functools
import gc
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from mcp import ClientSession, types
from mcp.server.fastmcp import Context, FastMCP
from mcp.shared.context import RequestContext
from mcp.shared.exceptions import McpError
from mcp.shared.memory import create_connected_server_and_client_session
from pydantic import BaseModel, Field

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.support.low_level import low_level
from tests.support.noted_connections import NotedConnections
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


class Name(BaseModel):
    name: str


async def accept(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ada"})


class Level(BaseModel):
    """A level whose schema demands more than the model checks."""

    level: int = Field(json_schema_extra={"maximum": 2})


class Shouting(FastMCP[Any]):
    """A server whose author changes results after the tool layer."""

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        return shouted(await super().call_tool(name, arguments))


def shouted(result: Any) -> Any:
    content, structured = result
    return [types.TextContent(type="text", text=each.text.upper()) for each in content], structured


def shout_around_handler(mcp: FastMCP[Any]) -> None:
    handlers = low_level(mcp).request_handlers
    inner = handlers[types.CallToolRequest]

    @functools.wraps(inner)
    async def outer(request: types.CallToolRequest) -> types.ServerResult:
        result: Any = (await inner(request)).root
        content = [types.TextContent(type="text", text=each.text.upper()) for each in result.content]
        return types.ServerResult(result.model_copy(update={"content": content}))

    handlers[types.CallToolRequest] = outer


def shout_in_another_handler(mcp: FastMCP[Any]) -> None:
    async def call(name: str, arguments: dict[str, Any]) -> Any:
        return shouted(await mcp.call_tool(name, arguments))

    low_level(mcp).call_tool(validate_input=False)(call)


@asynccontextmanager
async def connected(
    *functions: Any, mcp: FastMCP[Any] | None = None, adopted: Sequence[str] = ()
) -> AsyncGenerator[ClientSession, None]:
    mcp = mcp or FastMCP("unwinding")
    tasks = Tasks()
    tasks.install(mcp, tools=adopted)
    for function in functions:
        tasks.tool()(function)
    with anyio.fail_after(PATIENCE):
        async with (
            tasks,
            create_connected_server_and_client_session(mcp, elicitation_callback=accept) as client,  # type: ignore[arg-type, unused-ignore]
        ):
            yield client


async def start(client: ClientSession, name: str, arguments: dict[str, Any]) -> types.Task:
    params = types.CallToolRequestParams(name=name, arguments=arguments, task=types.TaskMetadata())
    request = types.ClientRequest(types.CallToolRequest(params=params))
    return (await client.send_request(request, types.CreateTaskResult)).task


async def status(client: ClientSession, task: types.Task) -> str:
    request = types.ClientRequest(types.GetTaskRequest(params=types.GetTaskRequestParams(taskId=task.taskId)))
    return (await client.send_request(request, types.GetTaskResult)).status


async def result(client: ClientSession, task: types.Task) -> types.CallToolResult:
    params = types.GetTaskPayloadRequestParams(taskId=task.taskId)
    request = types.ClientRequest(types.GetTaskPayloadRequest(params=params))
    return await client.send_request(request, types.CallToolResult)


def alive(kind: type) -> int:
    gc.collect()
    return sum(isinstance(each, kind) for each in gc.get_objects())


def text(answer: types.CallToolResult) -> str:
    content = answer.content[0]
    assert isinstance(content, types.TextContent)
    return content.text


async def test_work_that_waits_keeps_nothing_of_its_call() -> None:
    async def asks(topic: str, task: ServerTaskContext) -> str:
        answer = await task.elicit(f"{topic}?", Name)
        return f"{topic} {answer.action}"

    async with connected(asks) as client:
        kept = alive(types.CallToolRequestParams)
        task = await start(client, "asks", {"topic": "bees"})
        while await status(client, task) != "input_required":
            pass
        assert alive(types.CallToolRequestParams) <= kept  # fewer where another test of this process left some
        assert text(await result(client, task)) == "bees accept"


@pytest.mark.parametrize("tool", ["asks", "adopted"])
async def test_work_that_asks_through_the_sdks_context_keeps_neither_its_call_nor_its_question(tool: str) -> None:
    said: list[tuple[object, ...]] = []

    def say(ctx: Context) -> None:  # type: ignore[type-arg]
        request, session = ctx.request_context, ctx.session
        asked_for = request.experimental.task_metadata
        assert asked_for is not None
        said.append((ctx.request_id, request.meta, request.lifespan_context, session.client_params, asked_for.ttl))

    async def asks(topic: str, ctx: Context) -> str:  # type: ignore[type-arg]
        say(ctx)
        answer = await ctx.elicit(f"{topic}?", Name)
        say(ctx)
        return f"{topic} {answer.action}"

    mcp: FastMCP[Any] = FastMCP("unwinding")
    mcp.tool("adopted")(asks)
    count = 5
    # Each task has a context of the SDK; what its request said of it, all tasks of a connection share that said it.
    most = {types.CallToolRequestParams: 0, types.ElicitRequest: 0, RequestContext: count, types.TaskMetadata: 1}
    async with connected(asks, mcp=mcp, adopted=["adopted"]) as client:
        before = {kind: alive(kind) for kind in most}
        started = [await start(client, tool, {"topic": f"bees {number}"}) for number in range(count)]
        for task in started:
            while await status(client, task) != "input_required":
                pass
        # Requests that were answered may still be ending.
        while any(alive(kind) > before[kind] + more for kind, more in most.items()):
            await anyio.lowlevel.checkpoint()
        for number, task in enumerate(started):
            assert text(await result(client, task)) == f"bees {number} accept"
    assert len(said) == 2 * count
    assert sorted(said, key=repr) == sorted(said[:count] * 2, key=repr)


async def test_a_question_of_the_sdks_session_is_withdrawn_when_its_time_is_up() -> None:
    has_asked = anyio.Event()  # the client is asked when it reads the task, and does not before

    async def asks(ctx: Context) -> str:  # type: ignore[type-arg]
        schema = Name.model_json_schema()
        params = types.ElicitRequestFormParams(message="Who?", requestedSchema=schema)
        request = types.ServerRequest(types.ElicitRequest(params=params))
        try:
            await ctx.session.send_request(request, types.ElicitResult, timedelta(milliseconds=10))
        except McpError as error:
            return f"{error.error.code} {error.error.message}"
        finally:
            has_asked.set()
        return "answered"

    async with connected(asks) as client:
        task = await start(client, "asks", {})
        await has_asked.wait()
        assert text(await result(client, task)) == "408 The client did not answer within 0.01 seconds"


async def test_the_sdks_own_context_asks_and_reports_through_the_task() -> None:
    async def asks(ctx: Context, task: ServerTaskContext) -> str:  # type: ignore[type-arg]
        await ctx.report_progress(1, 2)
        answer = await ctx.elicit("Who?", Name)
        return f"{answer.action} {task.task.status_message}"

    async with connected(asks) as client:
        assert text(await result(client, await start(client, "asks", {}))) == "accept 1/2"


async def test_a_call_that_ends_before_its_work_begins_is_a_task_too() -> None:
    runs: list[int] = []

    async def counts(number: int, task: ServerTaskContext) -> int:
        runs.append(number)
        return number

    async with connected(counts) as client:
        answer = await result(client, await start(client, "counts", {"number": "many"}))
        assert answer.isError
        assert runs == []


@pytest.mark.parametrize(("how", "said"), [("returns", "7"), ("raises", "wrong"), ("lies", "Input should be")])
async def test_the_work_runs_once_whatever_it_ends_with(how: str, said: str) -> None:
    runs: list[str] = []

    async def tool(task: ServerTaskContext) -> int:
        runs.append(how)
        if how == "raises":
            raise ValueError("wrong")
        return 7 if how == "returns" else "no number"  # type: ignore[return-value]

    async with connected(tool) as client:
        answer = await result(client, await start(client, "tool", {}))
        assert said in text(answer)
        assert bool(answer.isError) is (how != "returns")
    assert runs == [how]


@pytest.mark.parametrize("way", [None, shout_around_handler, shout_in_another_handler])
async def test_what_the_author_has_around_the_tool_layer_sees_the_result(
    way: Callable[[FastMCP[Any]], None] | None,
) -> None:
    async def says(task: ServerTaskContext) -> str:
        return "quiet"

    mcp: FastMCP[Any] = Shouting("own") if way is None else FastMCP("own")
    if way is not None:
        way(mcp)
    async with connected(says, mcp=mcp) as client:
        assert text(await result(client, await start(client, "says", {}))) == "QUIET"


async def test_a_result_that_does_not_fit_its_schema_is_an_error() -> None:
    async def measures(task: ServerTaskContext) -> Level:
        return Level(level=3)

    async with connected(measures) as client:
        answer = await result(client, await start(client, "measures", {}))
        assert answer.isError
        assert text(answer).startswith("Output validation error: 3 is greater than the maximum of 2")


class Mark(str):
    """A text of the author's own class."""


async def a_text(task: ServerTaskContext) -> str:
    return Mark("7")


async def a_number(task: ServerTaskContext) -> int:
    return True


async def a_yes(task: ServerTaskContext) -> bool:
    return True


async def a_fraction(task: ServerTaskContext) -> float:
    return 7


async def a_list(task: ServerTaskContext) -> list[str]:
    return ["7", "8"]


async def nothing(task: ServerTaskContext) -> str | None:
    return None


async def a_name(task: ServerTaskContext) -> Name:
    return Name(name="Ada")


async def a_block(task: ServerTaskContext) -> types.TextContent:
    return types.TextContent(type="text", text="7", annotations=types.Annotations(priority=0.5))


async def an_image(task: ServerTaskContext) -> list[types.ContentBlock]:
    return [types.ImageContent(type="image", data="", mimeType="image/png", _meta={"of": None})]


async def an_object(task: ServerTaskContext) -> dict[str, Any]:
    return {"result": None, "of": [None]}


async def not_a_text(task: ServerTaskContext) -> str:
    return 7  # type: ignore[return-value]


OF_ALL_KINDS = (a_text, a_number, a_yes, a_fraction, a_list, nothing, a_name, a_block, an_image, an_object, not_a_text)


async def test_a_task_has_the_result_of_a_plain_call_whatever_its_work_returns() -> None:
    async with connected(*OF_ALL_KINDS) as client:
        for function in OF_ALL_KINDS:
            name = function.__name__
            of_task = await result(client, await start(client, name, {}))
            of_call = await client.call_tool(name, {})
            assert of_task.model_copy(update={"meta": None}) == of_call, name
            assert of_task.isError == (function is not_a_text)


@pytest.mark.parametrize("tool", ["declared", "adopted"])
async def test_a_task_over_http_keeps_what_its_request_says_and_not_its_connection(tool: str) -> None:
    gate = anyio.Event()
    mcp: FastMCP[Any] = FastMCP("existing", json_response=True)
    tasks = Tasks()
    tasks.install(mcp, tools=["adopted"])

    async def said() -> str:
        await gate.wait()
        request: Any = mcp.get_context().request_context.request
        return f"{request.headers['x-user']} {(await request.json())['method']}"

    @tasks.tool("declared")
    async def declared(task: ServerTaskContext) -> str:
        return await said()

    @mcp.tool("adopted")
    async def adopted() -> str:
        return await said()

    app = NotedConnections(mcp.streamable_http_app())
    headers = {"accept": "application/json, text/event-stream", "x-user": "ada"}
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000", headers=headers)

    async def request(method: str, params: Any, request_id: int | None) -> Any:
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        response = await client.post("/mcp", json=message if request_id is None else {**message, "id": request_id})
        if "mcp-session-id" in response.headers:
            client.headers["mcp-session-id"] = response.headers["mcp-session-id"]
        return None if request_id is None else response.json()["result"]

    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    with anyio.fail_after(PATIENCE):
        async with mcp.session_manager.run(), client:
            await request("initialize", hello, 1)
            await request("notifications/initialized", {}, None)
            made = await request("tools/call", {"name": tool, "arguments": {}, "task": {"ttl": 60_000}}, 2)
            await request("ping", {}, 3)
            await app.until_gone(2)
            gate.set()
            result = await request("tasks/result", {"taskId": made["task"]["taskId"]}, 4)
    assert result["content"][0]["text"] == "ada tools/call"
