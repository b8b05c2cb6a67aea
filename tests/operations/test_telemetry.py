"""`Telemetry`: what OpenTelemetry's SDK records of tasks (one event loop: nothing of it depends on which)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import anyio
import pytest

from mcp_task_runtime import Execution, InMemoryTaskStore, Outcome, TaskRequest, TaskRuntime, TaskSettings, TaskSpec
from mcp_task_runtime.core.observer import LeaseLost, TaskChange, WorkStarted, WorkStopped, WorkWaiting
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.errors import LimitExceededError
from mcp_task_runtime.testing.clock import FakeClock
from tests.core.leased_store import LeasedTaskStore
from tests.core.test_observer import answer_all, context_of
from tests.support.patience import PATIENCE

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mcp_task_runtime.operations import telemetry
from mcp_task_runtime.operations.telemetry import Telemetry

RESULT: dict[str, Any] = {"content": []}
FORM: dict[str, Any] = {"type": "object", "properties": {}}
PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
def anyio_backend() -> str:
    """Run on one event loop."""
    return "asyncio"


class Recorded:
    """Providers that keep what they get."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.telemetry = Telemetry(
            tracer_provider=self.tracers, meter_provider=MeterProvider(metric_readers=[self._reader])
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def metrics(self) -> dict[str, dict[tuple[tuple[str, Any], ...], Any]]:
        """Return the value of each counter, and the count of each histogram, by name and attributes."""
        found: dict[str, dict[tuple[tuple[str, Any], ...], Any]] = {}
        data = self._reader.get_metrics_data()
        for resource in [] if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    name = metric.name.removeprefix("mcp_task_runtime.")
                    found[name] = {
                        tuple(sorted((point.attributes or {}).items())): getattr(point, "value", None)
                        if hasattr(point, "value")
                        else point.count
                        for point in metric.data.data_points
                    }
        return found


def test_what_waits_for_a_worker_is_a_gauge_of_the_whole_store() -> None:
    recorded = Recorded()
    tools = {name: (("gen_ai.tool.name", name),) for name in ("build", "index")}
    recorded.telemetry.observe(WorkWaiting({"build": 3, "index": 1}, 12.5, is_complete=True))
    metrics = recorded.metrics()
    assert metrics["worker.awaited"] == {tools["build"]: 3, tools["index"]: 1}
    assert metrics["worker.awaited.age"] == {(): 12.5}
    recorded.telemetry.observe(WorkWaiting({"index": 2}, 1.0, is_complete=True))
    assert recorded.metrics()["worker.awaited"] == {tools["build"]: 0, tools["index"]: 2}


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


TOOL = ("gen_ai.tool.name", "tool")


async def test_a_run_is_one_span_with_its_questions_and_no_word_of_clients() -> None:
    recorded = Recorded()
    secret = "s3cret"
    request = TaskRequest(
        name="tool", arguments_json=f'{{"a":"{secret}"}}', caller_json=f'{{"traceparent":"{PARENT}"}}'
    )
    async with TaskRuntime(InMemoryTaskStore(), observer=recorded.telemetry) as runtime:

        async def work(execution: Execution[Any]) -> dict[str, Any]:
            with trace.get_tracer("tool", tracer_provider=recorded.tracers).start_as_current_span("inner"):
                await context_of(runtime, execution).elicit(secret, FORM)
            return {"content": [{"type": "text", "text": secret}]}

        with anyio.fail_after(PATIENCE):
            record = await runtime.submit(TaskSpec(owner=secret, request=request), work)
            view = None
            while view is None or not view.questions:
                await anyio.lowlevel.checkpoint()
                view = await runtime.get(record.task_id, owner=secret)
            answers = {question.key or "": {"action": "accept", "content": {}} for question in view.questions}
            await runtime.answer(record.task_id, answers, owner=secret)
            await runtime.result(record.task_id, owner=secret)
            while runtime.statistics().calls:
                await anyio.lowlevel.checkpoint()
    inner, span = recorded.spans
    assert (span.name, span.kind, span.parent) == ("execute_tool tool", trace.SpanKind.CONSUMER, None)
    assert attributes_of(span) == {
        "mcp.method.name": "tools/call",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "tool",
        "mcp_task_runtime.task.id": record.task_id,
        "mcp_task_runtime.task.attempt": 1,
        "mcp_task_runtime.task.status": "completed",
    }
    (link,) = span.links
    assert f"{link.context.trace_id:x}" == "ab" * 16
    assert [event.name for event in span.events] == [
        "mcp_task_runtime.question.asked",
        "mcp_task_runtime.question.closed",
    ]
    assert inner.parent is not None
    assert span.context is not None
    assert inner.parent.span_id == span.context.span_id
    assert secret not in span.to_json()


@pytest.mark.parametrize(
    ("end", "error", "status"),
    [
        (LookupError("x"), "LookupError", "failed"),
        ({"content": [], "isError": True}, "tool_error", "completed"),
        (RESULT, None, "completed"),
    ],
)
async def test_a_span_says_what_went_wrong(end: Any, error: str | None, status: str) -> None:
    recorded = Recorded()
    async with TaskRuntime(InMemoryTaskStore(), observer=recorded.telemetry) as runtime:

        async def work(_: Execution[Any]) -> dict[str, Any]:
            if isinstance(end, Exception):
                raise end
            result: dict[str, Any] = end
            return result

        record = await runtime.submit(TaskSpec(request=TaskRequest(name="tool")), work)
        await runtime.result(record.task_id, owner=None)
    (span,) = recorded.spans
    attributes = attributes_of(span)
    assert attributes.get("error.type") == error
    assert attributes["mcp_task_runtime.task.status"] == status
    assert attributes["mcp_task_runtime.task.id"] == record.task_id[:8], "without an owner the whole id is a secret"
    assert span.status.is_ok is (error is None)


async def test_the_span_that_is_current_when_a_task_is_made_is_linked_and_kept_with_the_task() -> None:
    recorded = Recorded()
    async with TaskRuntime(InMemoryTaskStore(), observer=recorded.telemetry) as runtime:

        async def work(execution: Execution[Any]) -> dict[str, Any]:
            await execution.begin(TaskSpec(request=TaskRequest(name="tool", caller_json='{"principal":"ada"}')))
            return RESULT

        tracer = trace.get_tracer("server", tracer_provider=recorded.tracers)
        with tracer.start_as_current_span("tools/call") as call:
            record: Any = await runtime.run(work)
            assert trace.get_current_span() is call, "the caller's own context stays as it is"
        await runtime.result(record.task_id, owner=None)
        while runtime.statistics().calls:
            await anyio.lowlevel.checkpoint()
    called, ran = sorted(recorded.spans, key=lambda span: span.name, reverse=True)
    assert called.context is not None
    assert [link.context.span_id for link in ran.links] == [called.context.span_id]
    assert ran.context is not None
    assert ran.context.trace_id != called.context.trace_id
    assert record.request.caller["principal"] == "ada"
    assert f"{called.context.span_id:016x}" in record.request.caller["traceparent"]


async def test_a_worker_in_another_process_and_a_rerun_are_linked_to_the_same_call() -> None:
    here, there = Recorded(), Recorded()
    clock = FakeClock()
    store = LeasedTaskStore(clock=clock)
    request = TaskRequest(name="tool", rerunnable=True, caller_json=f'{{"traceparent":"{PARENT}"}}')
    record = await store.create_task(NewTask(ttl_ms=None, request=request, worker="", lease_ms=1))

    async def hangs(_: Execution[Outcome]) -> Outcome:
        await anyio.sleep_forever()
        raise AssertionError

    async def returns(_: Execution[Outcome]) -> Outcome:
        return Outcome.completed(RESULT)

    settings = TaskSettings(shutdown_grace=0)
    with anyio.fail_after(PATIENCE):
        for recorded, work in ((here, hangs), (there, returns)):
            async with TaskRuntime(store, settings=settings, observer=recorded.telemetry) as runtime:
                runtime.register("tool", work)
                async with anyio.create_task_group() as group:
                    group.start_soon(runtime.execute, record.task_id)
                    await anyio.wait_all_tasks_blocked()
                    group.cancel_scope.cancel()
    spans = here.spans + there.spans
    assert [attributes_of(span)["mcp_task_runtime.task.attempt"] for span in spans] == [1, 2]
    assert [f"{link.context.span_id:x}" for span in spans for link in span.links] == ["cd" * 8] * 2
    assert len({attributes_of(span)["mcp_task_runtime.worker"] for span in spans}) == 2
    assert there.metrics()["task.rerun"] == {(TOOL,): 1}


async def test_a_run_that_ends_after_the_next_one_has_begun_here_has_a_span_all_the_same() -> None:
    recorded = Recorded()
    observe = recorded.telemetry.observe
    clock = FakeClock()
    store = LeasedTaskStore(clock=clock)
    lost = await store.create_task(NewTask(ttl_ms=None, worker="one", lease_ms=1_000))
    observe(WorkStarted(lost, 0.0))
    clock.advance(1)
    claimed = await store.claim_task(lost.task_id, worker="one", lease_ms=1_000)
    assert claimed is not None
    observe(WorkStarted(claimed, 1.0))
    observe(LeaseLost(lost))
    observe(WorkStopped(lost, None, None))
    ended = await store.finish_task(lost.task_id, Outcome.completed(RESULT))
    observe(TaskChange.of(ended))
    observe(WorkStopped(claimed, Outcome.completed(RESULT), None))
    observe(WorkStopped(claimed, Outcome.completed(RESULT), None))
    first, second = recorded.spans
    assert [attributes_of(span)["mcp_task_runtime.task.attempt"] for span in (first, second)] == [1, 2]
    assert [event.name for event in first.events] == ["mcp_task_runtime.lease.lost"]
    assert second.events == ()
    assert "mcp_task_runtime.task.status" not in attributes_of(first)
    assert attributes_of(second)["mcp_task_runtime.task.status"] == "completed"


async def test_metrics_count_what_happens() -> None:
    recorded = Recorded()
    settings = TaskSettings(max_running=1, max_polls_per_second=1)
    async with TaskRuntime(
        InMemoryTaskStore(clock=FakeClock()), settings=settings, observer=recorded.telemetry
    ) as runtime:
        spec = TaskSpec(request=TaskRequest(name="tool"))

        async def asks(execution: Execution[Any]) -> dict[str, Any]:
            await anyio.lowlevel.checkpoint()
            await context_of(runtime, execution).elicit("?", FORM)
            return RESULT

        async def fails(_: Execution[Any]) -> dict[str, Any]:
            raise LookupError

        with anyio.fail_after(PATIENCE):
            first, second = [await runtime.submit(spec, work) for work in (asks, fails)]
            await anyio.wait_all_tasks_blocked()
            during = recorded.metrics()
            await answer_all(runtime, first.task_id)
            for record in (first, second):
                await runtime.result(record.task_id, owner=None)
            with suppress(LimitExceededError):
                for _ in range(9):
                    await runtime.get(first.task_id, owner=None, rate_limited=True)
            while runtime.statistics().calls:
                await anyio.lowlevel.checkpoint()
    after = recorded.metrics()
    assert during["task.running"] == {(TOOL,): 1}
    assert during["question.open"] == {(TOOL,): 1}
    assert after["task.created"] == {(TOOL,): 2}
    assert after["task.start.delay"] == {(TOOL,): 2}
    completed, failed = (("mcp_task_runtime.task.status", status) for status in ("completed", "failed"))
    assert after["task.ended"] == {(TOOL, completed): 1, (("error.type", "-32603"), TOOL, failed): 1}
    assert after["task.duration"] == {(TOOL, completed): 1, (TOOL, failed): 1}
    assert after["slot.delay"] == {(TOOL,): 1}
    question = (TOOL, ("mcp_task_runtime.question.result", "result"), ("rpc.method", "elicitation/create"))
    assert after["question.duration"] == {question: 1}
    assert after["poll.refused"] == {(): 1}
    assert after["store.operation.duration"][(("mcp_task_runtime.store.operation", "create_task"),)] == 2
    for name in ("task.running", "question.open", "slot.awaited"):
        assert after[name] == {(TOOL,): 0}, name
    for name in after:
        assert f"`mcp_task_runtime.{name}`" in (telemetry.__doc__ or ""), "the guide shows every instrument"


async def test_without_a_provider_nothing_is_kept_with_a_task() -> None:
    async with TaskRuntime(InMemoryTaskStore(), observer=Telemetry()) as runtime:

        async def work(_: Execution[Any]) -> dict[str, Any]:
            return RESULT

        record = await runtime.submit(TaskSpec(), work)
        await runtime.result(record.task_id, owner=None)
    assert record.request.caller == {}


def test_nothing_of_opentelemetry_is_imported_unless_it_is_asked_for() -> None:
    program = "import sys, mcp_task_runtime, mcp_task_runtime.operations; print('opentelemetry' in str(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"
