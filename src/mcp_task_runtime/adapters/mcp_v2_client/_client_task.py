"""`ClientTask`: the handle of a task for clients on `mcp` 2.x."""

from __future__ import annotations

from mcp.client import ClientSession
from mcp_types import CallToolResult

from mcp_task_runtime.adapters.task_client.client_task import BaseClientTask
from mcp_task_runtime.adapters.task_client.remote_task import RemoteTask

__all__ = ["ClientTask"]


class ClientTask(BaseClientTask[CallToolResult]):
    __doc__ = BaseClientTask.__doc__

    def __init__(
        self, remote: RemoteTask[CallToolResult], session: ClientSession, *, tool_name: str | None = None
    ) -> None:
        super().__init__(remote)
        self._session = session
        self._tool_name = tool_name

    async def wait(self) -> CallToolResult:
        """Follow the task to its end, as `Client.call_tool` does, and return its result.

        Answers the task's questions with the client's callbacks; a refusal cancels the task. Cancelling
        this method does not: wait again at any time. A question that was being asked is then asked
        again, one that was answered is not. A result is checked against the tool's output schema when the
        task was made by `start`.

        Any number of callers may wait, on this object or on others for the same task: the user is asked once,
        and all get the same result or error.

        Under 2025-11-25 the questions come on the stream of `tasks/result`, and the SDK answers them: a
        refusal is for the server to judge, and raises nothing here.

        Raises:
            TaskFailedError: The task failed; this is its error.
            TaskCancelledError: The task was cancelled.
            MCPError: A callback refused; this is its error, and the task was cancelled.
            RuntimeError: The result does not match the tool's output schema, as with `Client.call_tool`.
        """
        result = await self._remote.result()
        if self._tool_name is not None and not result.is_error:
            await self._session.validate_tool_result(self._tool_name, result)
        return result
