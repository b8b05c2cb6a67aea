"""Counters, gauges and histograms of tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from opentelemetry import metrics
from opentelemetry.metrics import Histogram, MeterProvider

from mcp_task_runtime.core.observer import (
    LeaseLost,
    Observation,
    PollRefused,
    QuestionAsked,
    QuestionClosed,
    SlotAcquired,
    SlotAwaited,
    StoreCalled,
    TaskChange,
    WorkStarted,
    WorkStopped,
    WorkWaiting,
)
from mcp_task_runtime.core.transitions import is_terminal

__all__ = ["TaskMetrics"]

_SECONDS: Final = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1_800, 3_600, 21_600, 86_400)
_SHORT_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class TaskMetrics:
    """The instruments of this process."""

    def __init__(self, provider: MeterProvider | None) -> None:
        """Make the instruments."""
        meter = metrics.get_meter("mcp_task_runtime", meter_provider=provider)

        def seconds(name: str, description: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return meter.create_histogram(
                f"mcp_task_runtime.{name}", "s", description, explicit_bucket_boundaries_advisory=buckets
            )

        prefix = "mcp_task_runtime."
        self._created = meter.create_counter(f"{prefix}task.created", "{task}", "Tasks made")
        self._ended = meter.create_counter(f"{prefix}task.ended", "{task}", "Tasks ended")
        self._duration = seconds("task.duration", "From a task's making to its end")
        self._start_delay = seconds("task.start.delay", "From a task's making to its first run")
        self._running = meter.create_up_down_counter(f"{prefix}task.running", "{run}", "Runs of work now")
        self._questions = meter.create_up_down_counter(
            f"{prefix}question.open", "{question}", "Questions that wait for their answer now"
        )
        self._reruns = meter.create_counter(f"{prefix}task.rerun", "{run}", "Runs after the first of their task")
        self._slots = meter.create_up_down_counter(
            f"{prefix}slot.awaited", "{run}", "Work that waits for a slot of max_running now"
        )
        self._slot_delay = seconds("slot.delay", "Waits for a slot of max_running", _SHORT_SECONDS)
        self._waiting = meter.create_gauge(
            f"{prefix}worker.awaited", "{task}", "Tasks in the store that wait for a worker, the same in each process"
        )
        self._waiting_age = meter.create_gauge(
            f"{prefix}worker.awaited.age",
            "s",
            "Age of the oldest task in the store that waits for a worker",
        )
        self._waited_for: set[str] = set()
        self._answer = seconds("question.duration", "From a question to its answer")
        self._leases = meter.create_counter(
            f"{prefix}lease.lost", "{run}", "Runs stopped because another process may run the work"
        )
        self._polls = meter.create_counter(f"{prefix}poll.refused", "{request}", "Polls refused for coming too often")
        self._store = seconds("store.operation.duration", "Calls of the store", _SHORT_SECONDS)
        self._recorders: dict[type[Any], Callable[[Any], None]] = {
            TaskChange: self._record_change,
            WorkStarted: self._record_start,
            WorkStopped: self._record_stop,
            SlotAwaited: self._record_wait_for_slot,
            SlotAcquired: self._record_slot,
            WorkWaiting: self._record_waiting,
            QuestionAsked: self._record_question,
            QuestionClosed: self._record_answer,
            LeaseLost: self._record_lost_lease,
            PollRefused: self._record_refused_poll,
            StoreCalled: self._record_call,
        }

    def observe(self, observation: Observation) -> None:
        """Record an observation."""
        recorder = self._recorders.get(type(observation))
        if recorder is not None:
            recorder(observation)

    def _record_change(self, change: TaskChange) -> None:
        tool = _of_tool(change.name)
        if change.is_new:
            self._created.add(1, tool)
        if is_terminal(change.status):
            ended = {**tool, "mcp_task_runtime.task.status": change.status}
            self._duration.record((change.at - change.created_at).total_seconds(), ended)
            # A dictionary of its own: a provider may keep the one that it was given.
            self._ended.add(1, ended if change.error_type is None else {**ended, "error.type": change.error_type})

    def _record_start(self, started: WorkStarted) -> None:
        tool = _of_tool(started.record.request.name)
        self._running.add(1, tool)
        if started.record.lease is None or started.record.lease.attempt <= 1:
            self._start_delay.record(started.waited, tool)
        else:
            self._reruns.add(1, tool)

    def _record_stop(self, stopped: WorkStopped) -> None:
        self._running.add(-1, _of_tool(stopped.record.request.name))

    def _record_wait_for_slot(self, wait: SlotAwaited) -> None:
        self._slots.add(1, _of_tool(wait.record.request.name))

    def _record_slot(self, wait: SlotAcquired) -> None:
        tool = _of_tool(wait.record.request.name)
        self._slots.add(-1, tool)
        self._slot_delay.record(wait.waited, tool)

    def _record_waiting(self, waiting: WorkWaiting) -> None:
        self._waiting_age.set(waiting.oldest)
        for name in self._waited_for - waiting.by_name.keys():
            self._waiting.set(0, _of_tool(name))
        for name, number in waiting.by_name.items():
            self._waiting.set(number, _of_tool(name))
        self._waited_for = set(waiting.by_name)

    def _record_question(self, asked: QuestionAsked) -> None:
        self._questions.add(1, _of_tool(asked.name))

    def _record_answer(self, closed: QuestionClosed) -> None:
        self._questions.add(-1, _of_tool(closed.name))
        self._answer.record(
            closed.waited,
            {
                **_of_tool(closed.name),
                "rpc.method": closed.method,
                "mcp_task_runtime.question.result": closed.result,
            },
        )

    def _record_lost_lease(self, lost: LeaseLost) -> None:
        self._leases.add(1, _of_tool(lost.record.request.name))

    def _record_refused_poll(self, _: PollRefused) -> None:
        self._polls.add(1)

    def _record_call(self, call: StoreCalled) -> None:
        attributes = {"mcp_task_runtime.store.operation": call.operation}
        if call.error is not None:
            attributes["error.type"] = type(call.error).__qualname__
        self._store.record(call.seconds, attributes)


def _of_tool(name: str) -> dict[str, str]:
    return {"gen_ai.tool.name": name}
