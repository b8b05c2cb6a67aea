"""Tasks for clients on `mcp` 1.x, over the SDK's `ClientSession`, on servers of protocol 2025-11-25.

    tasks = TasksClient()
    async with ClientSession(read, write, elicitation_callback=ask_user) as session:
        await session.initialize()
        result = await tasks.call_tool(session, "build_report", {"topic": "bees"})

`mcp_task_runtime.client` exports the same for the installed line of the SDK.

| `session.experimental` (`ExperimentalClientFeatures`) | here |
| --- | --- |
| `call_tool_as_task(name, arguments, ttl=…)` | `tasks.start(session, …, ttl_ms=…)`; `call_tool` waits for the end |
| `get_task(task_id)`, `cancel_task(task_id)` | `tasks.resume(session, task_id)`, and `get()`, `cancel()` of that |
| `poll_task(task_id)`, `get_task_result(task_id, …)` | `snapshots()`; `wait()`, which polls, asks and returns |
| `list_tasks(cursor)` | `tasks.list_tasks(session)`, page after page |

`ExperimentalTaskHandlers`, for tasks on the client's own side, stay the SDK's.
"""

from importlib.util import find_spec

if find_spec("mcp") is None or find_spec("mcp_types") is not None:
    raise ImportError(
        "mcp_task_runtime.adapters.mcp_v1_client needs mcp 1.x: pip install 'mcp-task-runtime' 'mcp>=1.23,<2'"
    )

from mcp_task_runtime.adapters.mcp_v1_client._client import ClientTask, TasksClient
from mcp_task_runtime.adapters.mcp_v1_client._errors import (
    InvalidTaskResponseError,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    UnknownTaskError,
)
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot
from mcp_task_runtime.adapters.task_client.statistics import ClientStatistics

__all__ = [
    "ClientStatistics",
    "ClientTask",
    "InvalidTaskResponseError",
    "TaskCancelledError",
    "TaskError",
    "TaskFailedError",
    "TaskSnapshot",
    "TasksClient",
    "UnknownTaskError",
]
