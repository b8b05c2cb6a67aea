"""The trace of a request and the span of its task on `mcp` 1.x, whose SDK makes no spans."""

from __future__ import annotations

import pytest

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mcp_task_runtime import TaskChange
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from mcp_task_runtime.operations.telemetry import Telemetry
from tests.mcp_v1.worlds import make_world

pytestmark = pytest.mark.anyio

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


async def test_a_run_is_linked_to_the_clients_trace_and_its_changes_reach_a_callback() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    seen: list[str] = []

    async def note(change: TaskChange) -> None:
        seen.append(change.status)

    tasks = Tasks(observer=Telemetry(tracer_provider=provider), on_change=note)
    world = make_world(tasks)

    @tasks.tool(name="quick")
    async def quick() -> str:
        return "done"

    async with tasks:
        async with world.connect() as client:
            params = {"name": "quick", "arguments": {}, "task": {}, "_meta": {"traceparent": PARENT}}
            created = await client.request("tools/call", params)
            await client.request("tasks/result", {"taskId": created["result"]["task"]["taskId"]})
    (run,) = exporter.get_finished_spans()
    assert run.name == "execute_tool quick"
    assert [f"{link.context.span_id:x}" for link in run.links] == ["cd" * 8]
    assert seen == ["working", "completed"]
