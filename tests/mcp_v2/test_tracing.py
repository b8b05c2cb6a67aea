"""The trace of a request and the span of its task on `mcp` 2.x, whose SDK makes a span for each request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from mcp.server import MCPServer
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.operations.telemetry import Telemetry
from tests.mcp_v2.in_process import memory_client

pytestmark = pytest.mark.anyio

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


class Switch(Sampler):
    """Records spans while it is on. A process has one global provider, and other tests pay nothing for it."""

    is_on = False

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE if self.is_on else Decision.DROP)

    def get_description(self) -> str:
        return "Switch"


switch, spans = Switch(), InMemorySpanExporter()


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """Set the global provider, which the SDK uses, and record in this test alone."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider(sampler=switch)
        provider.add_span_processor(SimpleSpanProcessor(spans))
        trace.set_tracer_provider(provider)
    spans.clear()
    switch.is_on = True
    yield spans
    switch.is_on = False


def of_kind(exporter: InMemorySpanExporter, kind: trace.SpanKind, name: str) -> ReadableSpan:
    (found,) = [span for span in exporter.get_finished_spans() if span.kind is kind and span.name.startswith(name)]
    return found


@pytest.mark.parametrize("adopted", [False, True])
async def test_a_run_is_linked_to_the_request_and_its_tool_runs_in_it(
    exporter: InMemorySpanExporter, adopted: bool
) -> None:
    mcp: MCPServer[None] = MCPServer("tracing")
    tasks = Tasks(observer=Telemetry())
    tasks.install(mcp)
    tracer = trace.get_tracer("tool")

    if adopted:
        tasks.adopt("tool")

        @mcp.tool(name="tool")
        async def plain() -> str:
            with tracer.start_as_current_span("inner"):
                return "done"
    else:

        @tasks.tool(name="tool", required=True)
        async def with_context(task: ServerTaskContext) -> str:
            with tracer.start_as_current_span("inner"):
                return "done"

    async with memory_client(mcp) as client:
        reply = await client.call("tool", meta={"traceparent": PARENT})
        task_id = reply.result["taskId"]
        await client.until(task_id, "completed")
    request, run, inner = (
        of_kind(exporter, kind, name)
        for kind, name in (
            (trace.SpanKind.SERVER, "tools/call"),
            (trace.SpanKind.CONSUMER, "execute_tool tool"),
            (trace.SpanKind.INTERNAL, "inner"),
        )
    )
    assert request.context is not None
    assert run.context is not None
    assert inner.parent is not None
    assert f"{request.context.trace_id:x}" == "ab" * 16, "the SDK takes the client's trace from `_meta`"
    assert [link.context.span_id for link in run.links] == [request.context.span_id]
    assert run.parent is None
    assert inner.parent.span_id == run.context.span_id


async def test_the_clients_trace_stays_with_a_task_without_telemetry() -> None:
    mcp: MCPServer[None] = MCPServer("tracing")
    tasks = Tasks()
    tasks.install(mcp)

    @tasks.tool(required=True)
    async def tool(task: ServerTaskContext) -> str:
        return "done"

    async with memory_client(mcp) as client:
        reply = await client.call("tool", meta={"traceparent": PARENT, "tracestate": "a=b"})
        record = await tasks.runtime.store.get_task(reply.result["taskId"])
    assert record is not None
    assert record.request.caller.items() >= {"traceparent": PARENT, "tracestate": "a=b"}.items()
