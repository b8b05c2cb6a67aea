"""A tool that runs as a task is, but for that, the same tool: schemas, results, errors are the SDK's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import anyio
import mcp_types as types
import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ResourceError, ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import SERVER_INFO_META_KEY, CallToolResult, ErrorData, TextContent
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import TasksClient
from tests.mcp_v2.in_process import memory_client
from tests.mcp_v2.raw_client import DECLARED, RawClient
from tests.mcp_v2.schemas import Wire
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


class Point(BaseModel):
    x: int
    y: int = 0


class Entry(TypedDict):
    name: str
    size: int


class Detailed(Exception):
    def __str__(self) -> str:
        return "secret"


async def text(a: int, b: str = "x") -> str:
    """Return a text."""
    return f"{a}{b}"


def plain_function(a: int) -> str:
    return str(a)


async def described(
    size: Annotated[int, Field(description="How large", ge=1, le=9)],
    kind: Literal["red", "green"] = "red",
    point: Point | None = None,
    names: list[str] | None = None,
) -> str:
    return f"{size} {kind} {point} {names}"


async def aliased(value: Annotated[str, Field(alias="theValue")]) -> str:
    return value


async def model(x: int) -> Point:
    return Point(x=x)


async def typed_dict(x: int) -> Entry:
    return {"name": "n", "size": x}


async def mapping(x: int) -> dict[str, int]:
    return {"x": x}


async def numbers(x: int) -> list[int]:
    return [x, x]


async def optional(x: int) -> int | None:
    return x or None


async def nothing(x: int) -> None:
    return None


async def untyped(x):  # type: ignore[no-untyped-def]
    return {"x": x}


async def picture(x: int) -> Image:
    return Image(data=bytes([x]), format="png")


async def several(x: int) -> list[Any]:
    return ["a", x, Image(data=b"1", format="png")]


async def whole_result(x: int) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(text="t")], structured_content={"x": x}, is_error=x < 0, _meta={"example.org/key": [1]}
    )


async def checked_result(x: int) -> Annotated[CallToolResult, Point]:
    return CallToolResult(content=[], structured_content={"x": x if x > 0 else "no number"})


async def lying(x: int) -> int:
    return "no number"  # type: ignore[return-value]


async def crashing(x: int) -> str:
    raise Detailed


async def failing_on_purpose(x: int) -> str:
    raise ToolError("on purpose")


async def failing_resource(x: int) -> str:
    raise ResourceError("no such resource")


async def protocol_error(x: int) -> str:
    raise MCPError(-32099, "protocol", {"x": [x, None]})


async def protocol_error_without_data(x: int) -> str:
    raise MCPError(-32602, "protocol")


async def error_of_a_group(x: int) -> str:
    async with anyio.create_task_group() as group:
        group.start_soon(crashing, x)
    return "unreachable"


async def exiting(x: int) -> str:
    raise SystemExit(3)


async def with_context(x: int, ctx: Context) -> str:
    return f"{x} {ctx.request_context.method} {bool(ctx.request_id)}"


async def with_default_context(x: int, ctx: Context | None = None) -> str:
    return f"{x} {ctx is not None}"


class Bound:
    async def method(self, x: int) -> str:
        """Have a docstring."""
        return f"bound {x}"

    def plain(self, x: int) -> str:
        return f"plain {x}"

    @staticmethod
    async def static(x: int) -> str:
        return f"static {x}"

    @classmethod
    async def of_class(cls, x: int) -> str:
        return f"class {x}"


class Callable_:
    __name__ = "callable_object"

    async def __call__(self, x: int) -> str:
        return f"object {x}"


FUNCTIONS: list[Callable[..., Any]] = [
    text,
    plain_function,
    described,
    aliased,
    model,
    typed_dict,
    mapping,
    numbers,
    optional,
    nothing,
    untyped,
    picture,
    several,
    whole_result,
    checked_result,
    lying,
    crashing,
    failing_on_purpose,
    failing_resource,
    protocol_error,
    protocol_error_without_data,
    error_of_a_group,
    with_context,
    with_default_context,
    Bound().method,
    Bound().plain,
    Bound.static,
    Bound.of_class,
    Callable_(),
]
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"x": 1},
    {"x": 0},
    {"x": "no number"},
    {"x": -1, "unknown": True},
    {"a": 1},
    {"a": None, "b": []},
    {"value": "by name"},
    {"theValue": "by alias"},
    {"size": 1, "point": {"x": "1"}, "names": ["a"]},
    {"size": 10},
    {"size": "3", "kind": "blue"},
    {"size": 1, "point": '{"x": 5}', "names": '["a"]'},
]


def plain_server(function: Callable[..., Any], **options: Any) -> MCPServer[Any]:
    """Return a server with the function as a plain tool."""
    mcp: MCPServer[Any] = MCPServer("same")
    mcp.add_tool(function, **options)
    return mcp


def task_server(function: Callable[..., Any], **options: Any) -> MCPServer[Any]:
    """Return a server with the function as a tool that runs as a task."""
    mcp: MCPServer[Any] = MCPServer("same")
    tasks = Tasks()
    tasks.install(mcp)
    tasks.tool(**options)(function)
    return mcp


async def called(client: Client, name: str, arguments: dict[str, Any]) -> CallToolResult | ErrorData | str:
    try:
        result = await client.call_tool(name, arguments)
        meta = {key: value for key, value in (result.meta or {}).items() if key != SERVER_INFO_META_KEY}
        return result.model_copy(update={"meta": meta})
    except MCPError as error:
        return error.error
    except RuntimeError as error:  # the client's own check of the output schema
        return str(error)


def name_of(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", function))


@pytest.mark.parametrize("function", [crashing, error_of_a_group], ids=name_of)
async def test_the_text_of_an_unexpected_exception_stays_in_the_server_on_demand(
    function: Callable[..., Any],
) -> None:
    mcp: MCPServer[Any] = MCPServer("masked")
    tasks = Tasks(mask_errors=True)
    tasks.install(mcp)
    tasks.tool()(function)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[TasksClient()]) as client:
            result = await called(client, name_of(function), {"x": 1})
    assert isinstance(result, CallToolResult)
    assert result.is_error
    assert name_of(function) in str(result.content)
    assert "secret" not in str(result)
    assert "sub-exception" not in str(result)


@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
async def test_a_tool_that_runs_as_a_task_has_the_schemas_results_and_errors_of_a_plain_one(
    function: Callable[..., Any],
) -> None:
    plain, other = plain_server(function), task_server(function)
    name = name_of(function)
    with anyio.fail_after(PATIENCE):
        async with Client(plain) as expected, Client(other, extensions=[TasksClient()]) as client:
            assert (await client.list_tools()).tools == (await expected.list_tools()).tools
            for arguments in ARGUMENTS:
                assert await called(client, name, arguments) == await called(expected, name, arguments), arguments


@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
async def test_the_same_holds_for_a_client_that_takes_no_tasks(function: Callable[..., Any]) -> None:
    plain, other = plain_server(function), task_server(function)
    name = name_of(function)
    with anyio.fail_after(PATIENCE):
        async with Client(plain, mode="legacy") as expected, Client(other, mode="legacy") as client:
            shown = [tool.model_copy(update={"execution": None}) for tool in (await client.list_tools()).tools]
            assert shown == (await expected.list_tools()).tools  # but for the mode that such a client looks for
            for arguments in ARGUMENTS:
                assert await called(client, name, arguments) == await called(expected, name, arguments), arguments


async def test_options_of_the_sdk_reach_the_tool() -> None:
    options: dict[str, Any] = {
        "name": "other",
        "title": "Other",
        "description": "Described elsewhere.",
        "annotations": types.ToolAnnotations(read_only_hint=True),
        "icons": [types.Icon(src="data:,")],
        "meta": {"example.org/key": 1},
        "structured_output": False,
    }
    plain, other = plain_server(text, **options), task_server(text, **options)
    async with Client(plain) as expected, Client(other, extensions=[TasksClient()]) as client:
        assert (await client.list_tools()).tools == (await expected.list_tools()).tools
        assert await called(client, "other", {"a": 1}) == await called(expected, "other", {"a": 1})


async def with_task(
    task: ServerTaskContext, size: Annotated[int, Field(description="How large")], point: Point | None = None
) -> Point:
    """Return a point."""
    await task.update_status("working")
    return point or Point(x=size)


async def without_task(size: Annotated[int, Field(description="How large")], point: Point | None = None) -> Point:
    """Return a point."""
    return point or Point(x=size)


@pytest.mark.parametrize("arguments", [{"size": 1}, {"size": 1, "point": {"x": 2}}, {}, {"size": 1, "task": "x"}])
async def test_the_context_parameter_shows_in_no_schema_and_can_be_passed_by_no_client(
    arguments: dict[str, Any],
) -> None:
    plain, other = plain_server(without_task, name="tool"), task_server(with_task, name="tool")
    async with Client(plain) as expected, Client(other, extensions=[TasksClient()]) as client:
        wanted, shown = (await expected.list_tools()).tools[0], (await client.list_tools()).tools[0]
        assert {**wanted.input_schema, "title": ...} == {**shown.input_schema, "title": ...}  # the function's name
        assert wanted.output_schema == shown.output_schema
        expectation, result = await called(expected, "tool", arguments), await called(client, "tool", arguments)
        assert str(result).replace("with_task", "without_task") == str(expectation)


async def test_decorating_under_mcp_tool_makes_the_same_tool() -> None:
    tasks = Tasks()
    mcp = MCPServer("same", extensions=[tasks], lifespan=tasks.lifespan())
    mcp.tool(name="tool")(tasks.task()(with_task))
    other = task_server(with_task, name="tool")
    async with Client(mcp, extensions=[TasksClient()]) as client, Client(other, extensions=[TasksClient()]) as same:
        assert (await client.list_tools()).tools == (await same.list_tools()).tools
        assert await called(client, "tool", {"size": 1}) == await called(same, "tool", {"size": 1})


async def test_a_decorated_function_is_still_the_authors_function() -> None:
    tasks = Tasks()
    tasks.install(MCPServer("x"))
    assert tasks.tool()(text) is text
    assert await text(1) == "1x"


async def test_work_that_exits_ends_its_task_and_not_the_server() -> None:
    mcp: MCPServer[Any] = MCPServer("exits")
    tasks = Tasks()
    tasks.install(mcp)
    tasks.tool()(exiting)
    tasks.tool()(text)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[TasksClient()]) as client:
            error = await called(client, "exiting", {"x": 1})
            assert isinstance(error, ErrorData)
            assert error.code == -32603
            assert isinstance(await called(client, "text", {"a": 1}), CallToolResult)


# The same without an SDK: `tasks/get` returns exactly what the call would have returned


async def as_called(client: RawClient, name: str, arguments: dict[str, Any], *, as_task: bool) -> Wire:
    """Return the result or the error of a call as it came, directly or through its task."""
    reply = (await client.call(name, arguments, capabilities=DECLARED if as_task else {})).message
    if "error" in reply:
        return {"error": reply["error"]}
    result = reply["result"]
    if result["resultType"] == "task":
        task = await client.until(result["taskId"], "completed", "failed")
        assert ("error" in task) is (task["status"] == "failed"), "C10"
        result = task.get("result") or task
    if "error" in result:
        return {"error": result["error"]}
    meta = {key: value for key, value in result.get("_meta", {}).items() if key != SERVER_INFO_META_KEY}
    return {"result": {**result, "_meta": meta}}


@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
async def test_tasks_get_gives_back_exactly_what_the_call_would_have(function: Callable[..., Any]) -> None:
    """Structured content, `_meta`, `isError`, JSON-RPC errors with their data, and failures before the work starts."""
    name = name_of(function)
    with anyio.fail_after(PATIENCE):
        async with (
            memory_client(plain_server(function)) as plain,
            memory_client(task_server(function)) as client,
            memory_client(task_server(function, promote_after=0)) as promoted,
            memory_client(task_server(function, promote_after=600)) as at_once,
        ):
            for arguments in ARGUMENTS:
                expected = await as_called(plain, name, arguments, as_task=False)
                for other in (client, promoted, at_once):
                    assert await as_called(other, name, arguments, as_task=True) == expected, arguments
                    assert await as_called(other, name, arguments, as_task=False) == expected, arguments


async def test_a_call_that_fails_before_its_work_starts_makes_no_task() -> None:
    async with memory_client(task_server(described)) as client:
        for arguments in ({}, {"size": 10}, {"size": "three"}, {"size": 1, "kind": "blue"}, {"size": 1, "point": 7}):
            result = (await client.call("described", arguments)).result
            assert result["resultType"] == "complete"
            assert result["isError"] is True
        assert (await client.call("no such tool", {})).result["isError"] is True  # the SDK's own answer
        assert (await client.call("described", {"size": 1})).result["resultType"] == "task"
