"""Values sealed at rest: who reads the file learns no argument and no result; a key is rotated while tasks live.

python examples/sealed.py (needs pip install '.[mcp,credentials]')

Keys belong into the environment or a vault, the same for all processes that use the store:

    python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"
    MCP_TASKS_SEAL_KEYS=... mcp-tasks --store sqlite:///tasks.db list
"""
# ci: run

from __future__ import annotations

import tempfile
from pathlib import Path

import anyio
from cryptography.fernet import Fernet
from mcp import Client
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.client import ClientTask, TasksClient
from mcp_task_runtime.server import Tasks
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def make_server(store: SQLiteTaskStore, keys: list[str]) -> MCPServer:
    mcp = MCPServer("clinic")
    tasks = Tasks(store, seal=keys)
    tasks.install(mcp)

    @tasks.tool(required=True)
    async def diagnose(patient: str, task: ServerTaskContext) -> str:
        await task.update_status(f"Reading the file of {patient}")
        return f"{patient} is well"

    return mcp


async def main() -> None:
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    tasks_client = TasksClient()
    with tempfile.TemporaryDirectory() as folder:
        async with SQLiteTaskStore(Path(folder) / "tasks.db") as store:
            async with Client(make_server(store, [old]), extensions=[tasks_client]) as client:
                task = await tasks_client.start(client, "diagnose", {"patient": "Ada Lovelace"})
                assert isinstance(task, ClientTask)
                await task.wait()
            stored = contents(Path(folder))
            assert b"Lovelace" not in stored
            assert task.task_id.encode() in stored
            # The new key seals, the old one still opens what it sealed.
            async with Client(make_server(store, [new, old]), extensions=[tasks_client]) as client:
                result = await tasks_client.resume(client, task.task_id).wait()
                print(result.structured_content)


if __name__ == "__main__":
    anyio.run(main)
