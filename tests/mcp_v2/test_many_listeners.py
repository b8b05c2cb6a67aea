"""Many streams that listen to one task (laws L8, L13, L16)."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import anyio
import anyio.lowlevel

from mcp_task_runtime import Execution, InMemoryTaskStore, TaskRuntime, TaskSettings, TaskSpec
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.mcp_v2._listen import Listeners
from mcp_task_runtime.wire.v2026_07_28 import EXTENSION_ID
from tests.support.patience import PATIENCE

STREAMS = 2_000


@dataclass
class Stream:
    """The session of one listen request, as far as it is used: notes the statuses that it is sent."""

    client_capabilities: ClassVar[Any] = SimpleNamespace(extensions={EXTENSION_ID: {}})
    sent: list[str]
    statuses: list[str] = field(default_factory=list)

    async def send_notification(self, message: Any, related_request_id: Any = None) -> None:
        status = message.model_dump()["params"].get("status")
        if status is not None:  # not the acknowledgement
            self.statuses.append(status)
            self.sent.append(status)
        await anyio.lowlevel.checkpoint()


def listen_request(stream: Stream, number: int, task_id: str) -> Any:
    return SimpleNamespace(
        method="subscriptions/listen",
        request_id=f"listen {number}",
        protocol_version="2026-07-28",
        params={"notifications": {"taskIds": [task_id]}},
        session=stream,
    )


async def forever(execution: Execution[dict[str, Any]]) -> dict[str, Any]:
    await anyio.sleep_forever()
    raise AssertionError


async def test_a_cancel_that_two_thousand_streams_hear_of_keeps_nobody_waiting() -> None:
    settings = TaskSettings(max_listened_tasks_per_owner=None, max_polls_per_second=None, shutdown_grace=0)
    runtime = TaskRuntime(InMemoryTaskStore(), settings=settings)
    host = RuntimeHost(runtime)
    listeners = Listeners(runtime, host)
    sent: list[str] = []
    streams = [Stream(sent) for _ in range(STREAMS)]

    async def call_next(ctx: Any) -> Any:
        raise AssertionError("these streams listen to tasks alone")

    with anyio.fail_after(PATIENCE):
        async with host, anyio.create_task_group() as group:
            task_id = (await runtime.submit(TaskSpec(), forever)).task_id
            other_id = (await runtime.submit(TaskSpec(), forever)).task_id
            for number, stream in enumerate(streams):
                request = cast(Any, listen_request(stream, number, task_id))
                group.start_soon(listeners.serve, None, request, call_next)
            await anyio.wait_all_tasks_blocked()
            assert (len(sent), listeners.listened) == (STREAMS, STREAMS)
            sent.clear()
            await runtime.cancel(task_id, owner=None)
            assert len(sent) < STREAMS / 10, "the one who cancels does not wait for those who listen"
            for _ in range(10):
                assert (await runtime.get(other_id, owner=None)).task.status == "working"
                await anyio.lowlevel.checkpoint()
            assert len(sent) < STREAMS / 2, "nor do the requests of others"
    assert all(stream.statuses == ["working", "cancelled"] for stream in streams)
    assert listeners.listened == 0
