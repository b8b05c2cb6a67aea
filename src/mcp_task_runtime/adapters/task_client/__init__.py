"""The client's side of tasks without an SDK: what `mcp_v1_client` and `mcp_v2_client` share.

- `errors`: what following a task can raise. Each line of the SDK adds its own base class.
- `snapshots`: what a server said of a task, checked.
- `polling`: when to look at a task again, and what a push replaces.
- `remote_task`: a task on a server, and the one run in which any number of callers follow it.
- `client_task`: the public handle, over a `RemoteTask`.
- `task_2025`, `calls_2025`: the `tasks` capability of protocol revision 2025-11-25.
- `tasks_2026`: a task as a server of 2026-07-28 sends it.

A line of the SDK implements `TaskConnection` over its session. These modules are internal.
"""
