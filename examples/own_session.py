"""Tasks over a connection of your own making: no MCP SDK is imported here.

All a `ServerTaskContext` needs of a connection is a `TaskSession`: four members. This one talks to a
scripted client in the same process.
"""
# ci: run

from __future__ import annotations

import sys
from typing import Any

import anyio

from mcp_task_runtime import Execution, InMemoryTaskStore, ServerTaskContext, TaskResultHandler, TaskRuntime, TaskSpec


class ConsoleSession:
    """A connection to a client that confirms everything."""

    def __init__(self) -> None:
        self.client_capabilities: dict[str, Any] = {"elicitation": {}}
        self.can_send_request = True

    async def send_notification(self, method: str, params: dict[str, Any]) -> None:
        print(f"  {method}: {params['status']} {params.get('statusMessage', '')}")

    async def send_request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        print(f"  {method}: {params['message']}")
        return {"action": "accept", "content": {"confirm": True}}


async def main() -> None:
    session = ConsoleSession()
    async with InMemoryTaskStore() as store, TaskRuntime(store) as runtime:
        handler = TaskResultHandler(store, runtime.queue)

        async def work(execution: Execution[dict[str, Any]]) -> dict[str, Any]:
            assert execution.record is not None
            task = ServerTaskContext(
                task=execution.record.task, store=store, session=session, queue=runtime.queue, handler=handler
            )
            await task.update_status("Looking for old files")
            form = {"type": "object", "properties": {"confirm": {"type": "boolean"}}, "required": ["confirm"]}
            answer = await task.elicit("Delete 3 files?", form)
            return {"content": [{"type": "text", "text": f"confirmed: {answer.content}"}]}

        record = await runtime.submit(TaskSpec(), work)
        outcome = await handler.handle(record.task_id, session)
        print(f"{outcome.status}: {outcome.result}")
    assert not {"mcp", "mcp_types"} & set(sys.modules)


if __name__ == "__main__":
    anyio.run(main)
