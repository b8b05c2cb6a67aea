"""Metrics of tasks for Prometheus, http://127.0.0.1:9464/metrics, of an MCP server on http://127.0.0.1:8000/mcp.

pip install opentelemetry-exporter-prometheus 'mcp-task-runtime[mcp,telemetry]'; python examples/telemetry_prometheus.py
"""

from __future__ import annotations

from mcp.server import MCPServer
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.operations.telemetry import Telemetry
from mcp_task_runtime.server import Tasks

metrics.set_meter_provider(MeterProvider(metric_readers=[PrometheusMetricReader()]))

mcp = MCPServer("reports")
tasks = Tasks(observer=Telemetry())
tasks.install(mcp)


@tasks.tool(required=True)
async def build_report(topic: str, task: ServerTaskContext) -> str:
    await task.update_status("Collecting sources")
    return f"All about {topic}"


if __name__ == "__main__":
    start_http_server(9464, addr="127.0.0.1")
    mcp.run(transport="streamable-http")
