"""Each schema of a tool is compiled once, and calls end as the SDK alone ends them (law L14)."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
from jsonschema import Draft202012Validator
from mcp import ClientSession, types
from mcp.server.fastmcp import FastMCP
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import McpError
from mcp.shared.memory import create_connected_server_and_client_session
from pydantic import BaseModel, Field

from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

NUMBER = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 5}}, "required": ["n"]}
PLAIN = {
    "type": "object",
    "title": "Plain",
    "properties": {"n": {"type": "integer", "title": "N"}},
    "required": ["n"],
}
OPTIONAL = {
    "type": "object",
    "title": "Optional",
    "properties": {"n": {"type": ["integer", "null"], "title": "N"}},
    "required": ["n"],
}
NO_SCHEMA = {"type": "object", "properties": {"n": {"type": "no such type"}}}
TEXT: list[types.ContentBlock] = [types.TextContent(type="text", text="done")]


class Level(BaseModel):
    """A level whose schema demands more than the model checks."""

    level: int = Field(json_schema_extra={"maximum": 2})


class Listed:
    """The tools of a low-level server, which a test changes while it serves."""

    def __init__(self, *, in_pages: bool = False) -> None:
        self.in_pages = in_pages
        self.tools: dict[str, types.Tool] = {}
        for name, takes, gives in (
            ("pair", NUMBER, NUMBER),
            ("plain", PLAIN, PLAIN),
            ("optional", OPTIONAL, OPTIONAL),
            ("object", NUMBER, NUMBER),
            ("content", NUMBER, None),
            ("nothing", NUMBER, NUMBER),
            ("no_schema", NO_SCHEMA, None),
            ("gives_no_schema", NUMBER, NO_SCHEMA),
            ("result", NUMBER, NUMBER),
            ("raises", NUMBER, None),
            ("no_content", NUMBER, NUMBER),
        ):
            self.show(name, takes, gives)

    def show(self, name: str, takes: dict[str, Any], gives: dict[str, Any] | None) -> None:
        self.tools[name] = types.Tool(name=name, inputSchema=takes, outputSchema=gives)

    def page(self, request: types.ListToolsRequest) -> types.ListToolsResult:
        tools = list(self.tools.values())
        if not self.in_pages:
            return types.ListToolsResult(tools=tools)
        cursor = None if request.params is None else request.params.cursor
        return types.ListToolsResult(tools=tools[4:] if cursor else tools[:4], nextCursor=None if cursor else "2")


def low_level(listed: Listed, *, validate_input: bool) -> Server[Any, Any]:
    server: Server[Any, Any] = Server("schemas")

    if listed.in_pages:

        @server.list_tools()  # type: ignore[no-untyped-call, untyped-decorator]
        async def pages(request: types.ListToolsRequest) -> types.ListToolsResult:
            return listed.page(request)
    else:

        @server.list_tools()  # type: ignore[no-untyped-call, untyped-decorator]
        async def tools() -> list[types.Tool]:
            return list(listed.tools.values())

    @server.call_tool(validate_input=validate_input)  # type: ignore[untyped-decorator]
    async def call(name: str, arguments: dict[str, Any]) -> Any:
        structured = {"n": arguments.get("gives", arguments.get("n"))}
        returned: dict[str, Any] = {
            "object": structured,
            "content": TEXT,
            "nothing": TEXT,
            "result": types.CallToolResult(content=TEXT, structuredContent=structured),
            "no_content": (7, structured),
        }
        if name == "raises":
            raise ValueError("The tool failed")
        return returned.get(name, (iter(TEXT), structured))

    return server


@asynccontextmanager
async def connected(server: Any, tasks: Tasks | None) -> AsyncGenerator[ClientSession, None]:
    if tasks is not None:
        tasks.install(server)
    with anyio.fail_after(PATIENCE):
        async with create_connected_server_and_client_session(server) as client:
            yield client


async def answer(client: ClientSession, name: str, arguments: dict[str, Any] | None) -> Any:
    request = types.CallToolRequest(params=types.CallToolRequestParams(name=name, arguments=arguments))
    try:
        result = await client.send_request(types.ClientRequest(request), types.CallToolResult)
    except McpError as error:
        return error.error
    return result.model_dump()


ARGUMENTS: list[dict[str, Any] | None] = [
    {"n": 1},
    {"n": 2},
    {"n": 9},
    {"n": "3"},
    {"n": True},
    {"n": None},
    {"n": 4, "gives": 9},
    {"n": 4, "gives": "4"},
    {},
    None,
]


async def answers(client: ClientSession, names: list[str]) -> list[Any]:
    return [await answer(client, name, each) for name in names for each in ARGUMENTS]


async def same(make: Callable[[Tasks | None], AbstractAsyncContextManager[ClientSession]], *names: str) -> list[Any]:
    """Return the answers of a server with tasks, which the same server without them gives, too."""
    async with make(None) as alone:
        expected = await answers(alone, list(names))
    async with make(Tasks()) as ours:
        got = await answers(ours, list(names))
    assert got == expected
    return got


@pytest.mark.parametrize("in_pages", [False, True])
@pytest.mark.parametrize("validate_input", [True, False])
async def test_each_call_of_a_low_level_tool_ends_as_the_sdk_ends_it(validate_input: bool, in_pages: bool) -> None:
    listed = Listed(in_pages=in_pages)

    @asynccontextmanager
    async def make(tasks: Tasks | None) -> AsyncGenerator[ClientSession, None]:
        async with connected(low_level(listed, validate_input=validate_input), tasks) as client:
            if in_pages:  # by itself the SDK looks at the first one
                page = await client.list_tools()
                await client.list_tools(params=types.PaginatedRequestParams(cursor=page.nextCursor))
            yield client

    got = await same(make, *listed.tools, "unknown")
    assert {each["isError"] for each in got} == {False, True}


async def test_what_is_listed_later_counts() -> None:
    listed = Listed()
    both: dict[str, list[Any]] = {}
    for tasks in (None, Tasks()):
        listed.show("pair", NUMBER, NUMBER)
        async with connected(low_level(listed, validate_input=True), tasks) as client:
            kept = both["alone" if tasks is None else "ours"] = await answers(client, ["pair"])
            listed.show("pair", {"type": "object"}, NO_SCHEMA)
            kept += await answers(client, ["pair"])  # the SDK has not heard of it
            await client.list_tools()
            kept += await answers(client, ["pair"])
            listed.show("pair", PLAIN, {"type": "object"})
            await client.list_tools()
            kept += await answers(client, ["pair"])
            pair = listed.tools.pop("pair")
            await client.list_tools()
            kept += await answers(client, ["pair"])  # no longer listed, and no longer checked
            listed.tools["pair"] = pair
    assert both["ours"] == both["alone"]


async def test_each_call_of_a_high_level_tool_ends_as_the_sdk_ends_it() -> None:
    def make(tasks: Tasks | None) -> AbstractAsyncContextManager[ClientSession]:
        mcp: FastMCP[Any] = FastMCP("schemas")

        @mcp.tool()
        async def level(n: int, gives: int | None = None) -> Level:
            return Level(level=n if gives is None else gives)

        @mcp.tool()
        async def words(n: int) -> str:
            return "word " * n

        @mcp.tool()
        async def listed(n: int) -> list[int]:
            return list(range(n))

        @mcp.tool(structured_output=False)
        async def text(n: int) -> str:
            return "word " * n

        @mcp.tool()
        async def own(n: int) -> types.CallToolResult:
            return types.CallToolResult(content=[], structuredContent={"n": n})

        return connected(mcp, tasks)

    got = await same(make, "level", "words", "listed", "text", "own", "unknown")
    assert {each["isError"] for each in got} == {False, True}


async def test_what_a_tracer_has_put_around_all_tools_runs_once_for_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[str] = []
    original = Server.call_tool

    @functools.wraps(original)
    def call_tool(self: Any, **kwargs: Any) -> Any:
        def register(function: Any) -> Any:
            async def trace(name: str, arguments: dict[str, Any]) -> Any:
                traced.append(name)
                return await function(name, arguments)

            return original(self, **kwargs)(trace)

        return register

    monkeypatch.setattr(Server, "call_tool", call_tool)
    async with connected(low_level(Listed(), validate_input=True), Tasks()) as client:
        for n in (1, 2):
            assert not (await answer(client, "pair", {"n": n}))["isError"]
    assert traced == ["pair", "pair"]


@pytest.mark.parametrize("kind", ["low-level", "FastMCP"])
async def test_no_call_of_a_known_tool_checks_a_schema_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[object] = []
    check = Draft202012Validator.check_schema

    def counted(schema: Any, *args: Any, **kwargs: Any) -> None:
        checked.append(schema)
        check(schema, *args, **kwargs)

    monkeypatch.setattr(Draft202012Validator, "check_schema", counted)
    server: Any = low_level(Listed(), validate_input=True)
    if kind == "FastMCP":
        mcp: FastMCP[Any] = FastMCP("schemas")
        server = mcp

        @mcp.tool()
        async def pair(n: int) -> Level:
            return Level(level=n)

    async with connected(server, Tasks()) as client:
        for n in (1, 2):
            assert not (await answer(client, "pair", {"n": n}))["isError"]
        assert checked
        checked.clear()
        for n in (1, 2, 1):
            assert not (await answer(client, "pair", {"n": n}))["isError"]
        assert not checked
        await client.list_tools()
        assert not (await answer(client, "pair", {"n": 1}))["isError"]
        assert not checked  # the schemas are the same
        assert (await answer(client, "pair", {"n": 9}))["isError"]
        assert checked  # the SDK says what is wrong
