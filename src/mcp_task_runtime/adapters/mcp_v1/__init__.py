"""Tasks for servers on `mcp` 1.x (1.23 to 1.30): `FastMCP` and the low-level `Server`, clients of 2025-11-25.

Coming from the SDK's own experiment:

| `mcp.server.experimental` | here |
| --- | --- |
| `server.experimental.enable_tasks()` | `tasks = Tasks(); tasks.install(server)`, after the tool handlers |
| `ctx.experimental.run_task(work)` in `call_tool` | `await tasks.run(work)`; what it returns is the call's result |
| `run_task(work, task_id=…)` | ids are made here: they are secrets where there is no authentication |
| `ctx.experimental.validate_task_mode(TASK_REQUIRED)` | `tasks.run(work, required=True)` |
| `model_immediate_response=` of `run_task` | `model_immediate_response=` of `run`, `tool` and `task` |
| `ServerTaskContext(task=, store=, session=, queue=, handler=)` | the same; `session` may be a `ServerSession` |
| `elicit(message=, requestedSchema=…)` | `elicit(message, requested_schema)`: a JSON Schema or a pydantic model class |
| `elicit_url` where the client declares `elicitation: {}` | `CapabilityError`: that declaration means forms alone |
| `create_message(…).content`: `mcp.types.TextContent` | `adapters.answers.TextContent`; the same fields |
| `mcp.types.ElicitResult`, `CreateMessageResult` | the same names in `mcp_task_runtime`; the same fields |
| `except McpError` around a question | `except ProtocolError`; `CapabilityError` where the client lacks the ability |
| `task.fail(str(error))` | raise: the client gets what a plain call would have given |
| `TaskStore.store_result`, then `update_task` | `finish_task(task_id, outcome)`, in one step |
| `InMemoryTaskStore()`, one task group for all connections | `Tasks(store)`; a connection's end touches no task |

On this line a lifespan belongs to one connection. The first connection opens the runtime, and no connection's
end closes it, so work must not use what a lifespan made for another connection. `async with tasks:` around the
server's run gives work its grace period at the end. Where a transport carries no requests to the client
(stateless HTTP, JSON responses), asking raises `CapabilityError` at once.
"""

from mcp_task_runtime.adapters.mcp_v1._tasks import Tasks

__all__ = ["Tasks"]
