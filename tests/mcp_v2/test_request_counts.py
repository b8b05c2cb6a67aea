"""How many requests a call of `TasksClient` makes: exactly, for each is what a user waits for."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp_types import ElicitResult

from mcp_task_runtime.client import TasksClient
from tests.mcp_v2.script import Received, Wire
from tests.mcp_v2.scripted_server import ScriptedServer, asking, completed, elicit, task, working
from tests.support.event_loops import virtual_time
from tests.support.patience import PATIENCE

__all__ = ["virtual_time"]  # a fixture: a callback that a slow machine keeps waiting would cost a stream

pytestmark = pytest.mark.anyio

AN_HOUR_MS = 3_600_000
LATER = "2026-07-28T12:00:01Z"
LATEST = "2026-07-28T12:00:02Z"
CALL, GET, UPDATE, LISTEN = "tools/call", "tasks/get", "tasks/update", "subscriptions/listen"


async def accept(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={})


def seldom_polled(**look: Any) -> Wire:
    return working(pollIntervalMs=AN_HOUR_MS, **look)


def client_of(scripted: ScriptedServer, tasks_client: TasksClient) -> Client:
    scripted.serve_listen()
    return Client(scripted.server, extensions=[tasks_client], elicitation_callback=accept)


def patient_client() -> TasksClient:
    """A client that makes no request only because time has passed."""
    return TasksClient(poll_bounds_ms=(1, AN_HOUR_MS), pushed_poll_interval_ms=100 * AN_HOUR_MS)


def requests(scripted: ScriptedServer) -> dict[str, int]:
    counted = Counter(request.method for request in scripted.received)
    counted[LISTEN] = len(scripted.listened)
    return dict(+counted)


async def test_a_quick_call_makes_two_requests() -> None:
    scripted = ScriptedServer(completed())
    async with client_of(scripted, patient_client()) as client:
        with anyio.fail_after(PATIENCE):
            await client.call_tool("work")
    assert requests(scripted) == {CALL: 1, GET: 1}


async def test_a_call_that_asks_at_once_makes_four_requests() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))

    async def reply(request: Received) -> None:
        if request.method == UPDATE:
            scripted.show(completed())

    scripted.reply = reply
    async with client_of(scripted, patient_client()) as client:
        with anyio.fail_after(PATIENCE):
            await client.call_tool("work")
    assert requests(scripted) == {CALL: 1, GET: 2, UPDATE: 1}


async def test_a_call_that_takes_a_while_makes_three_requests() -> None:
    scripted = ScriptedServer(seldom_polled())
    async with client_of(scripted, patient_client()) as client:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "work")
                await scripted.listens()
                await scripted.push(completed() | {"lastUpdatedAt": LATER})
    assert requests(scripted) == {CALL: 1, GET: 1, LISTEN: 1}


async def test_each_question_of_a_call_that_takes_a_while_is_one_more_request() -> None:
    scripted = ScriptedServer(seldom_polled())
    answered = anyio.Event()

    async def reply(request: Received) -> None:
        if request.method == UPDATE:
            answered.set()

    scripted.reply = reply
    async with client_of(scripted, patient_client()) as client:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "work")
                await scripted.listens()
                await scripted.push(asking(consent=elicit()) | {"lastUpdatedAt": LATER})
                await answered.wait()
                await scripted.push(completed() | {"lastUpdatedAt": LATEST})
    assert requests(scripted) == {CALL: 1, GET: 1, LISTEN: 1, UPDATE: 1}


async def test_calls_that_come_together_share_one_stream_and_need_no_look() -> None:
    """The first ones look: whether the server shows tasks at the start of a stream is not known before."""
    scripted = ScriptedServer()
    number = count(1)
    together = 50
    handles = anyio.Event()

    async def reply(request: Received) -> Wire | None:
        if request.method == CALL:
            task_id = f"task-{next(number)}"
            if task_id == f"task-{2 * together}":
                handles.set()
            if int(task_id[5:]) > together:
                await handles.wait()
            return {"resultType": "task", **task(taskId=task_id)}
        return seldom_polled(taskId=request.params["taskId"]) if request.method == GET else None

    scripted.reply = reply
    async with client_of(scripted, patient_client()) as client:
        with anyio.fail_after(PATIENCE):
            for _ in range(2):
                opened = len(scripted.listened)
                async with anyio.create_task_group() as group:
                    for _ in range(together):
                        group.start_soon(client.call_tool, "work")
                    await scripted.until(lambda before=opened: sum(map(len, scripted.listened[before:])) >= together)  # type: ignore[misc]
                    await scripted.until_quiet()
                    looks = len(scripted.of(GET))
                    for task_id in [each for ids in scripted.listened[opened:] for each in ids]:
                        await scripted.push(seldom_polled(taskId=task_id))
                        await scripted.push(completed() | {"taskId": task_id, "lastUpdatedAt": LATEST})
                assert len(scripted.of(GET)) == looks
                assert looks == together
