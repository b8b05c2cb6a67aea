"""Work in steps: a run that fails is repeated, and goes on behind the last step that ended.

python examples/steps.py
"""
# ci: run

from __future__ import annotations

import tempfile
from pathlib import Path

import anyio
from mcp import Client
from mcp.server import MCPServer
from pydantic import BaseModel

from mcp_task_runtime import Rerun, ServerTaskContext, WorkQueue
from mcp_task_runtime.client import ClientTask, TasksClient
from mcp_task_runtime.server import Tasks
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore

effects: list[str] = []


class Page(BaseModel):
    title: str
    words: int


async def fetch(topic: str) -> Page:
    effects.append(f"fetched {topic}")
    return Page(title=topic.title(), words=700)


async def publish(title: str, attempt: int) -> str:
    if attempt == 1:
        raise ConnectionError("the publisher is down")
    effects.append(f"published {title}")
    return f"https://example.com/{title.lower()}"


def make_server(store: SQLiteTaskStore) -> MCPServer:
    mcp = MCPServer("reports", log_level="CRITICAL")  # the failure below is on purpose
    tasks = Tasks(store, principal=lambda request: "ada")
    tasks.install(mcp)

    @tasks.tool(
        rerunnable=Rerun(max_attempts=5, backoff=0.2, on=[ConnectionError]),  # and when the process is lost
        queue=WorkQueue("reports", concurrency=2, max_queued=100),
        join=True,  # the same call again gets the same task
    )
    async def build_report(topic: str, task: ServerTaskContext) -> str:
        page = await task.step("fetch", fetch, topic, attempts=3)
        return await task.step("publish", publish, page.title, task.attempt)

    return mcp


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tasks_client = TasksClient()
        store = SQLiteTaskStore(Path(folder) / "tasks.db")
        async with store, Client(make_server(store), extensions=[tasks_client]) as client:
            first = await tasks_client.start(client, "build_report", {"topic": "bees"})
            again = await tasks_client.start(client, "build_report", {"topic": "bees"})
            assert isinstance(first, ClientTask)
            assert isinstance(again, ClientTask)
            assert again.task_id == first.task_id
            result = await first.wait()
    print(result.structured_content)
    print(effects)
    assert effects == ["fetched bees", "published Bees"]


if __name__ == "__main__":
    anyio.run(main)
