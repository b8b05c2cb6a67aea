"""Spans and metrics of tasks by OpenTelemetry; needs the extra `telemetry`.

    from mcp_task_runtime.operations.telemetry import Telemetry

    tasks = Tasks(store, observer=Telemetry())

Where they go, the application says: it sets the providers of OpenTelemetry's SDK, or runs under
`opentelemetry-instrument`. Without a provider nothing is recorded.

**Spans.** Each run of a task's work is one span, `execute_tool {tool}` of kind CONSUMER: a trace of its own, linked to
the span of the `tools/call`, since a task may outlive the trace of its caller. The trace context of the call is kept
with the task, so a rerun and a worker on another machine are linked, too. Spans that the work makes are children of
its run's. Attributes are those of the semantic conventions for generative AI and MCP (`mcp.method.name`,
`gen_ai.operation.name`, `gen_ai.tool.name`, `error.type`), and `mcp_task_runtime.task.id`, `.task.status`,
`.task.attempt` and `.worker`. Events: `mcp_task_runtime.question.asked`, `mcp_task_runtime.question.closed`,
`mcp_task_runtime.lease.lost`. Arguments, results, questions, answers and owners are never recorded. Of a task without
an owner, whose identifier is its secret, the first characters are: `mcp-tasks show` takes them.

**Metrics**, in seconds where they are durations; attributes that begin with a dot do so after `mcp_task_runtime`:

| instrument | what | attributes in addition to `gen_ai.tool.name` |
| --- | --- | --- |
| `mcp_task_runtime.task.created` | tasks made | |
| `mcp_task_runtime.task.ended` | tasks ended | `.task.status`, `error.type` |
| `mcp_task_runtime.task.duration` | from a task's making to its end | `.task.status` |
| `mcp_task_runtime.task.start.delay` | from a task's making to its first run | |
| `mcp_task_runtime.task.running` | runs now | |
| `mcp_task_runtime.question.open` | questions that wait for their answer now | |
| `mcp_task_runtime.task.rerun` | runs after the first of their task | |
| `mcp_task_runtime.slot.awaited` | work that waits for a slot of `max_running` now | |
| `mcp_task_runtime.slot.delay` | waits for a slot | |
| `mcp_task_runtime.worker.awaited` | tasks in the store that wait for a worker, up to 500 | |
| `mcp_task_runtime.worker.awaited.age` | age of the oldest of them | no tool |
| `mcp_task_runtime.question.duration` | from a question to its answer | `rpc.method`, `.question.result` |
| `mcp_task_runtime.lease.lost` | runs stopped because another process may run the work | |
| `mcp_task_runtime.poll.refused` | polls refused for coming too often | no tool |
| `mcp_task_runtime.store.operation.duration` | calls of the store | `.store.operation`, `error.type`; no tool |

Each process reports what it does itself; add them up. `worker.awaited` alone is of the whole store, and the same in
each process that has a dispatcher; take the largest. How many tasks a whole store has, by status and tool, say
`mcp-tasks stats` and `TaskInspector.counts`.

The SDK makes a span for each request on `mcp` 2.x. Clients that poll make many of `tasks/get`: drop them with a sampler
that returns `Decision.DROP` for that span name.
"""

from __future__ import annotations

from collections.abc import Mapping

try:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
except ImportError as _missing:
    raise ImportError(
        "mcp_task_runtime.operations.telemetry needs: pip install 'mcp-task-runtime[telemetry]'"
    ) from _missing

from mcp_task_runtime.core.observer import Observation
from mcp_task_runtime.operations.telemetry._metrics import TaskMetrics
from mcp_task_runtime.operations.telemetry._spans import TaskSpans, current_trace_context

__all__ = ["Telemetry"]


class Telemetry:
    """A `TaskObserver` that records spans and metrics."""

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        """Make the observer.

        Args:
            tracer_provider: Records the spans; the global one when `None`, also if it is set later.
            meter_provider: Records the metrics; the global one when `None`, also if it is set later.
        """
        self._spans = TaskSpans(tracer_provider)
        self._metrics = TaskMetrics(meter_provider)

    def trace_context(self) -> Mapping[str, str]:
        """Return the trace context of the span that is current; see `TaskObserver`."""
        return current_trace_context()

    def observe(self, observation: Observation) -> None:
        """Record an observation; see `TaskObserver`."""
        self._spans.observe(observation)
        self._metrics.observe(observation)
