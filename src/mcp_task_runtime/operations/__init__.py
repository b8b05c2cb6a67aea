"""What the people who operate a server need: to find tasks, see them and act on them.

- `inspect`: `TaskInspector`, over any store with `TaskSearch`. No owner is asked for: it shows and ends the
  tasks of all owners, so it belongs behind the operators' own authentication.
- `cli`: the command `mcp-tasks` (also `python -m mcp_task_runtime`), over `TaskInspector`; needs the extra `cli`.
- `web`: the same in a browser, as `mcp-tasks web` or mounted in an application; needs the extra `web`.
- `telemetry`: spans and metrics by OpenTelemetry; needs the extra `telemetry`.
- `worker`: the command `mcp-tasks worker`, a process that runs the tasks of a server.

An ability for operators is added to `TaskInspector` first; a command then only reads options and prints.
"""

from mcp_task_runtime.operations.inspect import (
    AmbiguousTaskError,
    Finding,
    RetryError,
    TaskDetails,
    TaskInspector,
    WorkerSummary,
    WorkerSurvey,
)

__all__ = [
    "AmbiguousTaskError",
    "Finding",
    "RetryError",
    "TaskDetails",
    "TaskInspector",
    "WorkerSummary",
    "WorkerSurvey",
]
