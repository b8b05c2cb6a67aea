"""The modes of tools: as declared, or as the server's own list has last shown them."""

from __future__ import annotations

import pytest

from mcp_task_runtime.adapters._options import TaskOptions
from mcp_task_runtime.adapters._tool_table import DeclaredTool, ToolTable
from mcp_task_runtime.core.json import JSONObject

pytestmark = pytest.mark.anyio


class Listing:
    """A server's list of two pages, which counts the pages that are asked for."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.pages: dict[str | None, JSONObject] = {
            None: {"tools": [tool("first", "optional"), tool("plain")], "nextCursor": "2"},
            "2": {"tools": [tool("second", "required")]},
        }

    async def page(self, cursor: str | None) -> JSONObject:
        self.asked.append(cursor)
        return self.pages[cursor]


def tool(name: str, mode: str | None = None) -> JSONObject:
    return {"name": name} if mode is None else {"name": name, "execution": {"taskSupport": mode}}


def table() -> ToolTable:
    return ToolTable(lambda name: None)


async def test_the_list_is_read_once_for_all_tools_in_it() -> None:
    tools, listing = table(), Listing()
    for _ in range(3):
        assert await tools.support_of("second", listing.page) == "required"
        assert await tools.support_of("first", listing.page) == "optional"
        assert await tools.support_of("plain", listing.page) == "forbidden"
    assert listing.asked == [None, "2"]


async def test_a_tool_that_is_not_listed_is_looked_for_each_time() -> None:
    tools, listing = table(), Listing()
    assert await tools.support_of("new", listing.page) == "forbidden"
    listing.pages["2"]["tools"].append(tool("new", "optional"))
    assert await tools.support_of("new", listing.page) == "optional"
    assert listing.asked == [None, "2"] * 2


async def test_of_tools_with_one_name_the_last_counts_whenever_it_is_asked_for() -> None:
    tools, listing = table(), Listing()
    listing.pages[None]["tools"].append(tool("first", "required"))
    assert [await tools.support_of("first", listing.page) for _ in range(2)] == ["required", "required"]


async def test_a_list_that_a_client_reads_replaces_what_was_known() -> None:
    tools, listing = table(), Listing()
    assert await tools.support_of("first", listing.page) == "optional"
    tools.show([tool("first", "required")])
    assert await tools.support_of("first", listing.page) == "required"
    tools.note_listed("first", None)
    assert await tools.support_of("first", listing.page) == "forbidden"
    assert listing.asked == [None]


async def test_a_declaration_comes_first() -> None:
    tools, listing = table(), Listing()
    tools.show([tool("first", "optional")])
    tools.declare("first", DeclaredTool(TaskOptions(required=True)))
    assert await tools.support_of("first", listing.page) == "required"
    assert listing.asked == []


async def test_a_proxy_with_any_number_of_names_is_served() -> None:
    tools = table()
    names = [f"tool-{number}" for number in range(3_000)]

    async def page(cursor: str | None) -> JSONObject:
        return {"tools": [tool(name, "optional") for name in names]}

    assert [await tools.support_of(name, page) for name in (names[0], names[-1])] == ["optional", "optional"]


def test_a_plain_tool_is_none_once_it_is_declared_or_has_run_a_task() -> None:
    tools = table()
    for name in ("declared", "runs", "other"):
        tools.note_success(name)
        assert tools.is_plain(name)
    tools.declare("declared", DeclaredTool(TaskOptions()))
    tools.note_run("runs")
    for name in ("declared", "runs"):
        tools.note_success(name)
        assert not tools.is_plain(name)
    assert tools.is_plain("other")
    tools.declare_rest(DeclaredTool(TaskOptions()))
    tools.note_success("other")
    assert not tools.is_plain("other")
