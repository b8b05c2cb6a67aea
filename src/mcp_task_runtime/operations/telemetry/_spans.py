"""A span for each run of a task's work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mcp_task_runtime.core.observer import (
    LeaseLost,
    Observation,
    QuestionAsked,
    QuestionClosed,
    TaskChange,
    WorkStarted,
    WorkStopped,
    error_type_of,
)
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import TaskRecord

__all__ = ["TaskSpans", "current_trace_context"]

_ID_PREFIX: Final = 8
_PROPAGATOR: Final = TraceContextTextMapPropagator()


def current_trace_context() -> Mapping[str, str]:
    """Return the trace context of the span that is current, as the fields of W3C Trace Context; empty for none."""
    fields: dict[str, str] = {}
    _PROPAGATOR.inject(fields)
    return fields


class TaskSpans:
    """The spans of the runs of this process."""

    def __init__(self, provider: TracerProvider | None) -> None:
        """Make a recorder without spans."""
        self._tracer = trace.get_tracer("mcp_task_runtime", tracer_provider=provider)
        self._spans: dict[str, dict[int, Span]] = {}
        """By task and attempt, the latest last: a run that lost its lease may end after the next has begun here."""
        self._recorders: dict[type[Any], Callable[[Any], None]] = {
            WorkStarted: self._started,
            WorkStopped: self._stopped,
            QuestionAsked: self._asked,
            QuestionClosed: self._closed,
            TaskChange: self._changed,
            LeaseLost: self._lost,
        }

    def observe(self, observation: Observation) -> None:
        """Record an observation in the span of its run."""
        recorder = self._recorders.get(type(observation))
        if recorder is not None:
            recorder(observation)

    def _started(self, started: WorkStarted) -> None:
        record = started.record
        caller = trace.get_current_span(_PROPAGATOR.extract(_text_fields(record))).get_span_context()
        span = self._tracer.start_span(
            f"execute_tool {record.request.name}",
            context=context.Context(),  # a root: the task may outlive its caller's trace
            kind=SpanKind.CONSUMER,
            attributes=_attributes(record),
            links=[Link(caller)] if caller.is_valid else [],
        )
        self._spans.setdefault(record.task_id, {})[_attempt(record)] = span
        # For the rest of the work, which runs in a context of its own: nothing has to be reset.
        context.attach(trace.set_span_in_context(span))

    def _stopped(self, stopped: WorkStopped) -> None:
        task_id = stopped.record.task_id
        runs = self._spans.get(task_id, {})
        span = runs.pop(_attempt(stopped.record), trace.INVALID_SPAN)
        if not runs:
            self._spans.pop(task_id, None)
        raised = stopped.error
        error = error_type_of(stopped.outcome) if raised is None else type(raised).__qualname__
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR)
        span.end()

    def _changed(self, change: TaskChange) -> None:
        span = self._span(change.task_id)
        if is_terminal(change.status):
            span.set_attribute("mcp_task_runtime.task.status", change.status)

    def _asked(self, asked: QuestionAsked) -> None:
        self._span(asked.task_id).add_event("mcp_task_runtime.question.asked", {"rpc.method": asked.method})

    def _closed(self, closed: QuestionClosed) -> None:
        self._span(closed.task_id).add_event(
            "mcp_task_runtime.question.closed",
            {"rpc.method": closed.method, "mcp_task_runtime.question.result": closed.result},
        )

    def _lost(self, lost: LeaseLost) -> None:
        span = self._spans.get(lost.record.task_id, {}).get(_attempt(lost.record), trace.INVALID_SPAN)
        span.add_event("mcp_task_runtime.lease.lost")

    def _span(self, task_id: str) -> Span:
        """Return the span of a task's latest run here, or one that records nothing."""
        runs = self._spans.get(task_id)
        return next(reversed(runs.values())) if runs else trace.INVALID_SPAN


def _text_fields(record: TaskRecord) -> dict[str, str]:
    return {name: value for name, value in record.request.caller.items() if isinstance(value, str)}


def _attempt(record: TaskRecord) -> int:
    return 1 if record.lease is None else record.lease.attempt


def _attributes(record: TaskRecord) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "mcp.method.name": record.request.method,
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": record.request.name,
        # Where no principal is known, the whole identifier admits to the task (law L10).
        "mcp_task_runtime.task.id": record.task_id if record.owner is not None else record.task_id[:_ID_PREFIX],
        "mcp_task_runtime.task.attempt": _attempt(record),
    }
    if record.lease is not None:
        attributes["mcp_task_runtime.worker"] = record.lease.worker
    return attributes
