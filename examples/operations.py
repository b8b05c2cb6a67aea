"""For operators: a server on SQLite with tasks of every kind, to look at with `mcp-tasks` and in a browser.

python examples/operations.py      needs: pip install 'mcp-task-runtime[mcp,cli,web]'

It prints two commands for another terminal, and runs until Enter is pressed. One of its tasks asks for an approval that
its client cannot give: answer it at the page, or with `mcp-tasks answer`.
"""
# ci: run

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import anyio
from mcp import Client, MCPError
from mcp.server import MCPServer
from mcp_types import INTERNAL_ERROR
from pydantic import BaseModel, Field

from mcp_task_runtime import ProtocolError, ServerTaskContext, TaskSettings
from mcp_task_runtime.client import ClientTask, TasksClient
from mcp_task_runtime.server import Tasks
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore

APPROVAL_SECONDS = 3600


class Approval(BaseModel):
    approve: bool = Field(title="Approve the release")
    reason: str = Field(default="", title="Reason", description="Shown in the release notes")


def make_server(store: SQLiteTaskStore) -> MCPServer:
    mcp = MCPServer("operations", log_level="ERROR")
    tasks = Tasks(store, settings=TaskSettings(shutdown_grace=0), inbox=APPROVAL_SECONDS)
    tasks.install(mcp)

    @tasks.tool()
    async def index_documents(count: int, task: ServerTaskContext) -> str:
        """Index documents, slowly."""
        for number in range(1, count + 1):
            await task.report_progress(number, count, f"Reading document {number}")
            await anyio.sleep(1)
        return f"{count} documents"

    @tasks.tool()
    async def release(version: str, task: ServerTaskContext) -> str:
        """Release a version when a person has approved it."""
        answer = await task.elicit(f"Release version {version}?", Approval)
        return "released" if answer.action == "accept" and answer.data.approve else "not released"

    @tasks.tool()
    async def send_mail(to: str, task: ServerTaskContext) -> str:
        """Send a mail, unless there is no way to it."""
        if to.endswith(".invalid"):
            raise ProtocolError(INTERNAL_ERROR, f"No route to {to}")
        return "sent"

    return mcp


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.db"
        async with SQLiteTaskStore(path) as store:
            tasks_client = TasksClient()
            # This client has no way to ask its user: what `release` asks goes to the inbox.
            async with Client(make_server(store), extensions=[tasks_client]) as client:

                async def start(tool: str, **arguments: object) -> ClientTask:
                    task = await tasks_client.start(client, tool, arguments)
                    assert isinstance(task, ClientTask)
                    return task

                await start("index_documents", count=600)
                await start("release", version="2.0")
                for address in ("ada@example.com", "bob@example.invalid"):
                    with suppress(MCPError):  # the second one fails
                        await (await start("send_mail", to=address)).wait()
                await (await start("index_documents", count=10)).cancel()

                print("In another terminal, list the tasks, or look at them in a browser:\n")
                print(f"  mcp-tasks --store sqlite:///{path} list")
                print(f"  mcp-tasks --store sqlite:///{path} web\n")
                print("Press Enter to end.")
                await anyio.to_thread.run_sync(wait_for_enter, abandon_on_cancel=True)


def wait_for_enter() -> None:
    try:
        input()
    except EOFError:  # no terminal, no Enter
        return


if __name__ == "__main__":
    anyio.run(main)
