"""`BaseClientTask`: the public handle of a task, for either line of the SDK."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Generic, TypeVar

from mcp_task_runtime.adapters.task_client.remote_task import RemoteTask
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot
from mcp_task_runtime.core.json import dump_json, load_json, to_json_value
from mcp_task_runtime.core.transitions import is_terminal

__all__ = ["BaseClientTask"]

ResultT = TypeVar("ResultT")


class BaseClientTask(Generic[ResultT]):
    """A task on a server, held by its id. `TasksClient.start` and `TasksClient.resume` return it.

    It is usable as long as the connection it was made on; afterwards, resume the task by its id. Every
    method raises `UnknownTaskError` when the server has no task with this id, `InvalidTaskResponseError` when
    what it sends breaks the rules, and `TaskError` with the server's code, message and data when a
    request fails in another way. A request that is cancelled may or may not have reached the server.

    All objects of one `TasksClient` for one task on one connection share what the user was asked.
    """

    def __init__(self, remote: RemoteTask[ResultT], *, tool_name: str | None = None) -> None:
        self._remote = remote
        self._tool_name = tool_name

    @property
    def task_id(self) -> str:
        """The task's identifier. Where clients are not authenticated it is also the key to the task."""
        return self._remote.task_id

    async def get(self) -> TaskSnapshot:
        """Ask the server how the task stands."""
        return await self._remote.get()

    async def update(self, responses: Mapping[str, Any]) -> None:
        """Answer some or all of the task's open questions.

        The first answer to a question counts; the server ignores one to a question that is not open (C8).
        2025-11-25 has no request for it: a `TaskError` says so, and `wait` answers.

        Args:
            responses: The answers by the keys of `TaskSnapshot.input_requests`: results of the SDK, or JSON
                objects.

        Raises:
            ValueError: An answer or a key has no JSON form.
        """
        answers = {key: to_json_value(response) for key, response in responses.items()}
        await self._remote.update(load_json(dump_json(answers)))

    async def cancel(self) -> None:
        """Ask the server to cancel the task.

        It has agreed when this returns, also for a task that had ended; the status may follow later (C9).
        """
        await self._remote.cancel()

    async def snapshots(self) -> AsyncGenerator[TaskSnapshot, None]:
        """Yield how the task stands, and again with each change, up to its end.

        Changes between two polls are seen as one. Answers no question: `update` and `wait` do.
        """
        watch = self._remote.watch()
        seen: TaskSnapshot | None = None
        try:
            while seen is None or not is_terminal(seen.status):
                snapshot = await watch.next()
                if snapshot != seen:
                    seen = snapshot
                    yield snapshot
        finally:
            watch.close()
