"""`Sessions`: the tasks that one `TasksClient` follows, by the connection that they belong to."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary, WeakValueDictionary

from mcp.client import ClientSession
from mcp_types import CallToolResult

from mcp_task_runtime.adapters.mcp_v2_client._connection import Connection, listen
from mcp_task_runtime.adapters.mcp_v2_client._listening import ListenHub
from mcp_task_runtime.adapters.mcp_v2_client._task_2026 import Task2026
from mcp_task_runtime.adapters.task_client.calls_2025 import ListedTools
from mcp_task_runtime.adapters.task_client.errors import MalformedError
from mcp_task_runtime.adapters.task_client.remote_task import Limits, OnUpdate, RemoteTask
from mcp_task_runtime.adapters.task_client.statistics import ClientStatistics
from mcp_task_runtime.adapters.task_client.task_2025 import Task2025
from mcp_task_runtime.adapters.task_client.tasks_2026 import parse_task
from mcp_task_runtime.adapters.task_client.time_limit import TimeLimit
from mcp_task_runtime.adapters.task_client.unfinished import UnfinishedTasks
from mcp_task_runtime.core.json import JSONObject

__all__ = ["Sessions"]


@dataclass(slots=True, eq=False)
class _Kept:
    """What is kept of one session; it must not hold the session."""

    request_limit: TimeLimit
    tools: ListedTools
    hub: ListenHub | None = None


class Sessions:
    """What is kept of each connection: its tasks, its streams, and its list of tools.

    A task is kept while a handle of it or a caller exists, a stream while one of its tasks is followed, and the rest
    as long as the SDK's session.
    """

    def __init__(self, limits: Limits, *, on_update: OnUpdate | None, max_streams: int) -> None:
        self.limits = limits
        self._on_update = on_update
        self._max_streams = max_streams
        self._kept: WeakKeyDictionary[ClientSession, _Kept] = WeakKeyDictionary()
        self._tasks: WeakValueDictionary[tuple[ClientSession, str], RemoteTask[CallToolResult]] = WeakValueDictionary()
        self.unfinished = UnfinishedTasks()

    def statistics(self) -> ClientStatistics:
        """Return what is held now."""
        hubs = self._hubs()
        return ClientStatistics(
            followed=sum(task.is_followed for task in self._tasks.values()),
            pushed=sum(hub.followed for hub in hubs),
            listen_streams=sum(hub.open_streams for hub in hubs),
        )

    def connection(self, session: ClientSession) -> Connection:
        """Return the connection of a session."""
        return Connection(session, self.limits, self._of(session).request_limit)

    def tools(self, session: ClientSession) -> ListedTools:
        """Return the list of tools of a session."""
        return self._of(session).tools

    def task_2026(self, session: ClientSession, task_id: str, *, read_timeout_seconds: float | None = None) -> Task2026:
        """Return a task of a server of 2026-07-28."""
        task = self._tasks.get((session, task_id))
        if task is None or not isinstance(task, Task2026):
            task = Task2026(
                self.connection(session),
                task_id,
                pushes=self._hub(session, self._max_streams),
                on_update=self._on_update,
                read_timeout_seconds=read_timeout_seconds,
            )
            self._tasks[session, task_id] = task
        return task

    def task_2025(
        self, session: ClientSession, task_id: str, *, read_timeout_seconds: float | None = None
    ) -> Task2025[CallToolResult]:
        """Return a task of a server of 2025-11-25."""
        task = self._tasks.get((session, task_id))
        if task is None or not isinstance(task, Task2025):
            task = Task2025(
                self.connection(session),
                task_id,
                pushes=self._hub(session, 0),  # changes come unasked, or not at all
                on_update=self._on_update,
                read_timeout_seconds=read_timeout_seconds,
            )
            self._tasks[session, task_id] = task
        return task

    def _hub(self, session: ClientSession, max_streams: int) -> ListenHub | None:
        """Return what has changes pushed over a session, if changes are wanted."""
        if not self._max_streams:
            return None
        kept = self._of(session)
        if kept.hub is None:
            kept.hub = ListenHub(partial(_listen, weakref.ref(session)), max_streams=max_streams)
        return kept.hub

    def _hubs(self) -> list[ListenHub]:
        return [kept.hub for kept in self._kept.values() if kept.hub is not None]

    def _of(self, session: ClientSession) -> _Kept:
        kept = self._kept.get(session)
        if kept is None:
            kept = self._kept[session] = _Kept(TimeLimit(self.limits.request), ListedTools())
        return kept

    def push(self, session: ClientSession | None, task_id: str, raw: JSONObject) -> None:
        """Take what was pushed of a task.

        Args:
            session: The session that it came over; `None` if that is not known, so that it may be of another
                server than the task's.
            task_id: The task.
            raw: What came.
        """
        if session is None:
            for each in self._hubs():
                each.wake(task_id)
            return
        hub = self._of(session).hub
        if hub is None:
            return
        try:
            hub.push(parse_task(raw, task_id))
        except MalformedError:
            hub.wake(task_id)


async def _listen(session: weakref.ref[ClientSession], task_ids: list[str]) -> None:
    """Listen to tasks over a session, which those who follow them hold."""
    known = session()
    if known is not None:
        await listen(known, task_ids)
