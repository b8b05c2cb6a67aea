"""Which tools of a server run as tasks, and how (wire rule B2)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mcp_task_runtime.adapters._options import TaskOptions
from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.wire.v2025_11_25 import TaskSupport

__all__ = ["DeclaredTool", "ToolTable"]

logger: logging.Logger = logging.getLogger(__name__)

_MOST_QUIET: Final = 1_000
"""Tools that are known to call no `Tasks.run`; a proxy may have any number of names."""

_MOST_LISTED: Final = 1_000
"""Tools whose own modes are known."""


@dataclass(frozen=True, slots=True)
class DeclaredTool:
    """A tool that runs as a task.

    Attributes:
        options: How its calls become tasks.
        is_adopted: Whether it knows nothing of tasks: its calls become tasks without it.
        advertise: Whether clients of protocol 2025-11-25 see its mode in `tools/list`.

    Raises:
        ValueError: It must be called as a task, and clients cannot see that; or an adopted tool is to run again when
            it raises.
    """

    options: TaskOptions
    is_adopted: bool = False
    advertise: bool = True

    def __post_init__(self) -> None:
        if self.options.required and not self.advertise:
            raise ValueError("required=True needs advertise=True: clients must see that they have to ask for a task")
        rerun = self.options.rerun
        if rerun is not None and rerun.on and self.is_adopted:
            raise ValueError(
                "Rerun(on=...) needs @tasks.tool(), @tasks.task() or tasks.run(): what an adopted tool raises becomes "
                "a result before it is seen"
            )

    @property
    def blocks(self) -> bool:
        """Whether the server's handler runs it in a thread; a tool that calls `Tasks.run` does so there itself."""
        return self.is_adopted and self.options.blocking

    @property
    def support(self) -> TaskSupport:
        """The mode that clients of protocol 2025-11-25 call it in."""
        return "required" if self.options.required else "optional"


class ToolTable:
    """The tools that were declared here, by name, and what holds for all others."""

    def __init__(self, on_rest: Callable[[str], None]) -> None:
        """Make an empty table.

        Args:
            on_rest: Called with the name of a tool that only `declare_rest` covers, when it is looked up.
        """
        self._on_rest = on_rest
        self._tools: dict[str, DeclaredTool] = {}
        self._rest: DeclaredTool | None = None
        self._missed: set[str] = set()
        self._quiet: set[str] = set()
        self._listed: dict[str, TaskSupport] = {}
        self._running: set[str] = set()

    def declare(self, name: str, tool: DeclaredTool) -> None:
        """Note that a tool runs as a task; a later declaration of the same name replaces an earlier one."""
        self._tools[name] = tool
        self._quiet.discard(name)

    def declare_rest(self, tool: DeclaredTool) -> None:
        """Note that all tools run as tasks that are not declared by their name."""
        self._rest = tool
        self._quiet.clear()

    def get(self, name: str) -> DeclaredTool | None:
        """Return what was declared of a tool, or `None` for nothing."""
        declared = self._tools.get(name)
        if declared is None and self._rest is not None:
            self._on_rest(name)
            return self._rest
        return declared

    def note_run(self, name: str) -> None:
        """Note that a call of a tool has called `Tasks.run`: from now on all its calls can become tasks."""
        if name not in self._tools:
            self._running.add(name)
            self._quiet.discard(name)

    def note_success(self, name: str) -> None:
        """Note that a call of a tool has ended with a result."""
        if len(self._quiet) < _MOST_QUIET and name not in self._running and self.get(name) is None:
            self._quiet.add(name)

    def is_plain(self, name: str) -> bool:
        """Return whether a tool was not declared, and its calls succeed without calling `Tasks.run`."""
        return name in self._quiet

    def has(self, name: str) -> bool:
        """Return whether a tool was declared by its name."""
        return name in self._tools

    def shown_support(self, name: str, own: object = None) -> TaskSupport | None:
        """Return the mode that `tools/list` shows of a tool because of its declaration; `None` to show its own.

        Args:
            name: The tool.
            own: The mode that the server itself shows.
        """
        declared = self._tools.get(name) or (self._rest if own is None else None)
        return declared.support if declared is not None and declared.advertise else None

    def show(self, tools: list[JSONObject]) -> list[JSONObject]:
        """Return tools with `execution.taskSupport` where it was declared here; others stay as they are."""
        for tool in tools:
            self.note_listed(str(tool.get("name")), _own_mode(tool))
        return [self._shown(tool) for tool in tools]

    def warn_of_missing(self, listed: Iterable[str]) -> None:
        """Log once which tools were declared that the server does not have.

        Args:
            listed: All tools of the server.
        """
        missing = self._tools.keys() - set(listed) - self._missed
        self._missed |= missing
        for name in sorted(missing):
            logger.warning(
                "The tool %r was declared to run as a task, and the server does not list it. Where the SDK's decorator "
                "gives it another name, write that name in tasks.task(name=...), too",
                name,
            )

    def _shown(self, tool: JSONObject) -> JSONObject:
        execution: JSONValue = tool.get("execution") or {}
        support = self.shown_support(str(tool.get("name")), execution.get("taskSupport"))
        return tool if support is None else {**tool, "execution": {**execution, "taskSupport": support}}

    def note_listed(self, name: str, mode: object) -> None:
        """Note the mode that the server's own list shows of a tool."""
        if name in self._listed or len(self._listed) < _MOST_LISTED:
            self._listed[name] = _support(mode)

    async def support_of(self, name: str, list_page: Callable[[str | None], Awaitable[JSONObject]]) -> TaskSupport:
        """Return the mode of a tool: as declared here, or as the server's own list has last shown it to any client.

        Of tools with one name the last counts.

        Args:
            name: The tool.
            list_page: Returns the page of the server's `tools/list` at a cursor; called for a tool that was not seen.
        """
        declared = self.get(name)
        if declared is not None:
            return declared.support
        if name in self._listed:
            return self._listed[name]
        cursor: str | None = None
        while True:
            page = await list_page(cursor)
            support: TaskSupport | None = None
            for tool in page.get("tools", []):
                self.note_listed(str(tool.get("name")), _own_mode(tool))
                if tool.get("name") == name:
                    support = _support(_own_mode(tool))
            cursor = page.get("nextCursor")
            if support is not None or cursor is None:
                return support or "forbidden"


def _own_mode(tool: JSONObject) -> object:
    execution: JSONValue = tool.get("execution")
    return execution.get("taskSupport") if isinstance(execution, Mapping) else None


def _support(mode: object) -> TaskSupport:
    """Return a mode as a list shows it; `forbidden` if it shows none."""
    return mode if mode in ("required", "optional") else "forbidden"
