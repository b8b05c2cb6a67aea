"""What connects the runtime to the SDK: `Tasks` for servers, `TasksClient` for clients, for each line of the SDK.

`mcp_v1` and `mcp_v2` have the `Tasks` of their line, `mcp_v1_client` and `mcp_v2_client` its `TasksClient`; no other
module here imports an SDK. How a `tools/call` of a client that takes tasks travels:

1. The SDK calls `Tasks.intercept_tool_call` (`mcp` 2.x, protocol 2026-07-28), `Tasks.middleware` (`mcp` 2.x, protocol
   2025-11-25) or a handler that `Tasks.install` has replaced (`mcp` 1.x). `ToolTable` has how the tool was declared.
2. `Methods2026.call`, or `TaskMethods.call` for 2025-11-25 on both lines, chooses the way. A tool for workers is
   dispatched. One of `Tasks.tool` unwinds: the SDK checks the arguments, `UnwindingCall` takes the work out of the
   call, and `TaskRuntime.submit` runs it as a task that keeps nothing of the request. Any other tool runs in
   `TaskRuntime.run` as a `TaskCall`, which becomes a task at once or, with `promote_after`, in time or when it asks.
   The client gets the handle.
3. The work has a `ServerTaskContext`. `ClientQuestions` puts what it asks into the task's mailbox: under 2026-07-28
   `tasks/get` shows it, under 2025-11-25 `TaskResultHandler` sends it over a stream that the client has open. A
   `TaskNotifier` tells the client of status and progress.
4. What the work returns or raises becomes the tool's result as the SDK makes it (`Convert`), and the outcome of the
   task, which `core.endings` writes. Those who wait for the task learn of it from `core.followers`.

Workers and reruns begin in `BaseTasks`, which runs a tool by its name. A client that takes no task has a `PlainCall`
with a private task; under 2026-07-28 it is asked by the rounds of its call (`AskingCall`).
"""
