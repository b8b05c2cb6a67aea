"""Spans of tasks on the console, by OpenTelemetry: a run of work is linked to the call that it came from.

pip install opentelemetry-sdk 'mcp-task-runtime[mcp,telemetry]'; python examples/telemetry_console.py
"""
# ci: run

from __future__ import annotations

import anyio
from mcp import Client
from mcp.server import MCPServer
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.client import TasksClient
from mcp_task_runtime.operations.telemetry import Telemetry
from mcp_task_runtime.server import Tasks


def line(span: ReadableSpan) -> str:
    links = [f"linked to {link.context.span_id:016x}" for link in span.links]
    return " ".join([f"{span.get_span_context().span_id:016x}", span.kind.name, span.name, *links]) + "\n"


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=line)))
trace.set_tracer_provider(provider)

mcp = MCPServer("reports")
tasks = Tasks(observer=Telemetry())
tasks.install(mcp)


@tasks.tool(required=True)
async def build_report(topic: str, task: ServerTaskContext) -> str:
    with trace.get_tracer("reports").start_as_current_span("collect sources"):
        await task.update_status("Collecting sources")
    return f"All about {topic}"


async def main() -> None:
    async with Client(mcp, extensions=[TasksClient()]) as client:
        result = await client.call_tool("build_report", {"topic": "rain"})
        print(result.structured_content)


if __name__ == "__main__":
    anyio.run(main)
