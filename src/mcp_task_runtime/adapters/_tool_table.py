"""Which tools of a server run as tasks, and how (wire rule B2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from mcp_task_runtime.adapters._options import TaskOptions
from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.wire.v2025_11_25 import TaskSupport

__all__ = ["DeclaredTool", "ToolTable"]


@dataclass(frozen=True, slots=True)
class DeclaredTool:
    """A tool that runs as a task.

    Attributes:
        options: How its calls become tasks.
    """

    options: TaskOptions

    @property
    def support(self) -> TaskSupport:
        """The mode that clients of protocol 2025-11-25 call it in."""
        return "required" if self.options.required else "optional"


class ToolTable:
    """The tools that were declared here, by name."""

    def __init__(self) -> None:
        self._tools: dict[str, DeclaredTool] = {}

    def declare(self, name: str, tool: DeclaredTool) -> None:
        """Note that a tool runs as a task; a later declaration of the same name replaces an earlier one."""
        self._tools[name] = tool

    def get(self, name: str) -> DeclaredTool | None:
        """Return what was declared of a tool, or `None` for nothing."""
        return self._tools.get(name)

    def show(self, tools: list[JSONObject]) -> list[JSONObject]:
        """Return tools with `execution.taskSupport` where it was declared here; others stay as they are."""
        return [self._shown(tool) for tool in tools]

    def _shown(self, tool: JSONObject) -> JSONObject:
        declared = self._tools.get(str(tool.get("name")))
        if declared is None:
            return tool
        execution: JSONValue = tool.get("execution")
        return {**tool, "execution": {**(execution or {}), "taskSupport": declared.support}}

    async def support_of(self, name: str, list_page: Callable[[str | None], Awaitable[JSONObject]]) -> TaskSupport:
        """Return the mode of a tool: as declared here, or as the server's own list shows it.

        Args:
            name: The tool.
            list_page: Returns the page of the server's `tools/list` at a cursor.
        """
        declared = self._tools.get(name)
        if declared is not None:
            return declared.support
        cursor: str | None = None
        while True:
            page = await list_page(cursor)
            support = _listed(page.get("tools", []), name)
            cursor = page.get("nextCursor")
            if support is not None or cursor is None:
                return support or "forbidden"


def _listed(tools: list[JSONObject], name: str) -> TaskSupport | None:
    """Return the mode that a list of tools shows for one, `forbidden` if it shows none; `None` if it is not there."""
    for tool in tools:
        if tool.get("name") == name:
            execution: JSONValue = tool.get("execution")
            support = execution.get("taskSupport") if isinstance(execution, Mapping) else None
            return support if support in ("required", "optional") else "forbidden"
    return None
