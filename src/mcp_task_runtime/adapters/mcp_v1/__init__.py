"""Tasks for servers on `mcp` 1.x (1.23 to 1.30): `FastMCP` and the low-level `Server`, clients of 2025-11-25.

Coming from the SDK's own experiment:

| `mcp.server.experimental` | here |
| --- | --- |
| `server.experimental.enable_tasks()` | `tasks = Tasks(); tasks.install(server)`, after the tool handlers |
| `TaskSupport`, `TaskSupport.in_memory()` | `Tasks(store, queue)`, `Tasks()` |
| `TaskSupport.run`, `task_group`, `configure_session` | `async with tasks:`; `install` sees to each connection |
| `ctx.experimental.run_task(work)` in `call_tool` | `await tasks.run(work)`; what it returns is the call's result |
| `run_task(work, task_id=…)` | ids are made here: they are secrets where there is no authentication |
| `Experimental.is_task`, `task_metadata`, `client_supports_tasks` | `tasks.run` decides; `task.caller` has the rest |
| `ctx.experimental.validate_task_mode(TASK_REQUIRED)` | `tasks.run(work, required=True)` |
| `Experimental.validate_for_tool`, `can_use_tool` | done before a handler is called, by what `list_tools` shows |
| `model_immediate_response=` of `run_task` | `model_immediate_response=` of `run`, `tool` and `task` |
| `ServerTaskContext(task=, store=, session=, queue=, handler=)` | the same; `session` may be a `ServerSession` |
| `elicit(message=, requestedSchema=…)` | `elicit(message, requested_schema)`: a JSON Schema or a pydantic model class |
| `elicit_url` where the client declares `elicitation: {}` | `CapabilityError`: that declaration means forms alone |
| `create_message(…).content`: `mcp.types.TextContent` | `adapters.answers.TextContent`; the same fields |
| `mcp.types.ElicitResult`, `CreateMessageResult` | the same names in `mcp_task_runtime`; the same fields |
| `except McpError` around a question | `except ProtocolError`; `CapabilityError` where the client lacks the ability |
| `task.fail(str(error))` | raise: the client gets what a plain call would have given |
| `ExperimentalServerSessionFeatures.elicit_as_task`, `create_message_as_task` | the same of the context |
| its `get_task`, `get_task_result`, `poll_task` | done by them: they return the result of the client's task |
| `TaskResultHandler.handle(request, session, id)` | `handle(task_id, session)`, `delivering(task_id, session)` |
| `TaskResultHandler.send_message`, `route_response`, `route_error` | `session.send_request` returns the answer |
| `new_session_scope`, `scoped_task_id`, `session_scope_of` | a task has an `owner`: its principal or session |
| `task_in_session_scope`, `task_listable_in_session_scope` | `runtime.get(task_id, owner=…)`, `runtime.list(owner=…)` |

| `mcp.shared.experimental.tasks` | here |
| --- | --- |
| `InMemoryTaskStore()`, one task group for all connections | `Tasks(store)`; a connection's end touches no task |
| `TaskStore.create_task(metadata, task_id)` | `create_task(ttl_ms=…, owner=…)`, which returns a `TaskRecord` |
| `TaskStore.store_result`, then `update_task` | `finish_task(task_id, outcome)`, in one step |
| `TaskStore.notify_update`, `TaskMessageQueue.notify_message_available` | each write wakes who waits |
| `InMemoryTaskStore.cleanup`, `get_all_tasks` | `aclose`, `search_tasks` |
| `StoredTask.result`, `expires_at` | `TaskRecord.outcome`, `TaskRecord.task.expires_at` |
| `InMemoryTaskMessageQueue.cleanup` | `aclose` |
| `QueuedMessage(type, message, resolver, original_request_id)` | `QueuedMessage.request(key, method, params)` |
| `TaskMessageQueue.dequeue` of a request | `outstanding`, `answer`, `wait_for_answer` |
| `cancel_task(store, task_id)` | `runtime.cancel(task_id, owner=…)`, which stops the work, too |
| `generate_task_id`, `create_task_state` | `create_task` |
| `is_terminal(status)` | `core.is_terminal(status)` |
| `poll_until_terminal` | `runtime.result(task_id, owner=…)`; of a client: `ClientTask.snapshots()` |
| `check_tasks_capability`, `has_task_augmented_…`, `require_task_augmented_…` | asking raises `CapabilityError` |

On this line a lifespan belongs to one connection. The first connection opens the runtime, and no connection's
end closes it, so work must not use what a lifespan made for another connection. `async with tasks:` around the
server's run gives work its grace period at the end. Where a transport carries no requests to the client
(stateless HTTP, JSON responses), asking raises `CapabilityError` at once.
"""

from mcp_task_runtime.adapters.mcp_v1._tasks import Tasks

__all__ = ["Tasks"]
