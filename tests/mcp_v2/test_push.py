"""Push: the `taskIds` of `subscriptions/listen` (wire rule C11), for clients without an SDK and for `TasksClient`."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.server import MCPServer, Server
from mcp.shared.exceptions import MCPError
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage
from mcp_types import CallToolRequestParams, ElicitResult, jsonrpc_message_adapter

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext, TaskNotFoundError, TaskSettings
from mcp_task_runtime.adapters import mcp_v2_client
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.adapters.mcp_v2_client import ClientTask, TaskCancelledError, TasksClient, TaskSnapshot
from mcp_task_runtime.adapters.mcp_v2_listen import MAX_TASKS_PER_STREAM
from mcp_task_runtime.core.types import Outcome, TaskRecord
from mcp_task_runtime.errors import StoreUnavailableError
from mcp_task_runtime.testing.clock import FakeClock
from tests.mcp_v2 import push_server
from tests.mcp_v2.in_process import served_over_http
from tests.mcp_v2.listeners import (
    ENDED,
    HTTP_HEADERS,
    SUBSCRIPTION_ID,
    Connection,
    ListeningStdioServer,
    Stream,
    http_connection,
    listen_request,
    memory_connection,
)
from tests.mcp_v2.push_server import make_server
from tests.mcp_v2.raw_client import DECLARED, EXTENSION_ID, PATIENCE, accept
from tests.mcp_v2.schemas import Wire, needs_schemas
from tests.mcp_v2.scripted_server import Received, ScriptedServer, completed, working

pytestmark = [
    pytest.mark.anyio,
    needs_schemas,
    # Where the SDK's client leaves a stream before its end, its HTTP library leaves generators to trio to close.
    pytest.mark.filterwarnings("ignore:Async generator '(httpx2|httpcore2|httpx_sse|mcp)[._]:ResourceWarning"),
]

UNDECLARED: Wire = {"elicitation": {"form": {}}, "sampling": {}}
NO_SUCH_TASK = "0123456789abcdefghijkl"


class WatchedStore(InMemoryTaskStore):
    """A store that counts what is asked of it, and notes what becomes of each task.

    Attributes:
        waiting: How many wait for a task's next change.
        calls: How often each method was called.
        history: Every state of each task.
        unavailable: Whether waiting and reading fail.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.waiting = 0
        self.calls = {"get_task": 0, "wait_for_update": 0}
        self.history: dict[str, list[TaskRecord]] = {}
        self.unavailable = False
        self._changed = anyio.Event()

    def _change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something about the attributes is true."""
        while not true():
            await self._changed.wait()

    async def get_task(self, task_id: str) -> TaskRecord | None:
        if self.unavailable:
            raise StoreUnavailableError("gone")
        self.calls["get_task"] += 1
        self._change()
        return await super().get_task(task_id)

    async def create_task(self, **options: Any) -> TaskRecord:
        return self._note(await super().create_task(**options))

    async def update_task(self, task_id: str, **options: Any) -> TaskRecord:
        return self._note(await super().update_task(task_id, **options))

    async def finish_task(self, task_id: str, outcome: Outcome) -> TaskRecord:
        return self._note(await super().finish_task(task_id, outcome))

    def _note(self, record: TaskRecord) -> TaskRecord:
        self.history.setdefault(record.task_id, []).append(record)
        return record

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        self.calls["wait_for_update"] += 1
        self.waiting += 1
        self._change()
        try:
            record = await super().wait_for_update(task_id, after=after)
            if self.unavailable:
                raise StoreUnavailableError("gone")
            return record
        finally:
            self.waiting -= 1
            self._change()


# --- every transport ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def over_http() -> Generator[str, None, None]:
    with served_over_http(lambda: make_server()[0]) as url:
        yield url


@pytest.fixture(scope="module")
def over_stdio() -> Generator[ListeningStdioServer, None, None]:
    with ListeningStdioServer([push_server.__file__]) as server:
        yield server


@pytest.fixture(params=["memory", "http", "stdio"])
async def connection(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncGenerator[Connection, None]:
    """A client of the server, over each transport."""
    if request.param == "memory":
        async with memory_connection(make_server()[0]) as connected:
            yield connected
    elif request.param == "http":
        async with http_connection(request.getfixturevalue("over_http")) as connected:
            yield connected
    else:
        server: ListeningStdioServer = request.getfixturevalue("over_stdio")
        yield server.connection()


def states_of(stream: Stream, task_id: str) -> list[tuple[str, str | None]]:
    return [(task["status"], task.get("statusMessage")) for task in stream.seen[task_id]]


async def say(connection: Connection, task_id: str, message: str) -> None:
    reply = await connection.client.call("say", {"task_id": task_id, "message": message})
    assert not reply.result.get("isError"), reply


async def complete(connection: Connection, task_id: str, text: str = "done") -> None:
    await connection.client.call("complete", {"task_id": task_id, "text": text})


async def as_get_shows_it(connection: Connection, task_id: str) -> Wire:
    task = await connection.client.get(task_id)
    return {name: value for name, value in task.items() if name not in ("resultType", "_meta")}


async def test_c11_a_listener_gets_acknowledgement_snapshot_every_change_and_the_end(connection: Connection) -> None:
    task_id = await connection.client.start("work")
    async with connection.listen(task_id) as stream:
        assert await stream.acknowledged() == [task_id]
        assert await stream.task() == await as_get_shows_it(connection, task_id), "a snapshot right after"
        for message in ("one", "two"):
            await say(connection, task_id, message)
            assert await stream.task() == await as_get_shows_it(connection, task_id)
        await complete(connection, task_id, "the result")
        last = await stream.task()
        assert last == await as_get_shows_it(connection, task_id)
        assert last["result"]["content"][0]["text"] == "the result"
        assert (await stream.next())["result"] == {
            "resultType": "complete",
            "_meta": {**stream.response["result"]["_meta"], SUBSCRIPTION_ID: stream.subscription_id},  # type: ignore[index]
        }
    assert states_of(stream, task_id) == [
        ("working", None),
        ("working", "one"),
        ("working", "two"),
        ("completed", "two"),
    ]


async def test_c11_questions_and_answers_are_pushed_with_their_keys(connection: Connection) -> None:
    task_id = await connection.client.start("ask")
    async with connection.listen(task_id) as stream:
        await stream.acknowledged()
        for message in ("first?", "second?"):
            asking = await stream.until(
                lambda task, text=message: any(  # type: ignore[misc]  # mypy knows no defaults of lambdas
                    request["params"]["message"] == text for request in task.get("inputRequests", {}).values()
                )
            )
            assert asking["status"] == "input_required"
            (key,) = asking["inputRequests"]
            await connection.client.update(task_id, {key: accept()})
        last = await stream.until(lambda task: task["status"] in ENDED)
        assert last["result"]["content"][0]["text"] == "accept, accept"
        await stream.ended()


@pytest.mark.parametrize("how", ["fail", "cancel"])
async def test_c11_every_end_is_pushed_with_what_belongs_to_it(connection: Connection, how: str) -> None:
    task_id = await connection.client.start("work")
    async with connection.listen(task_id) as stream:
        await stream.acknowledged()
        if how == "fail":
            await connection.client.call("fail", {"task_id": task_id, "text": "no luck"})
        else:
            await connection.client.cancel(task_id)
        await stream.ended()
    last = stream.seen[task_id][-1]
    assert last == await as_get_shows_it(connection, task_id)
    assert last["status"] == {"fail": "failed", "cancel": "cancelled"}[how]
    if how == "fail":
        assert last["error"]["message"] == "no luck"


async def test_c11_a_task_that_had_ended_before_is_shown_once_and_the_stream_ends(connection: Connection) -> None:
    task_id = await connection.client.start("work")
    await complete(connection, task_id)
    async with connection.listen(task_id) as stream:
        assert await stream.acknowledged() == [task_id]
        await stream.ended()
    assert [task["status"] for task in stream.seen[task_id]] == ["completed"]


async def test_c11_a_stream_of_tasks_alone_ends_when_all_of_them_have_ended(connection: Connection) -> None:
    task_ids = [await connection.client.start("work") for _ in range(3)]
    async with connection.listen(*task_ids) as stream:
        assert sorted(await stream.acknowledged()) == sorted(task_ids)
        for task_id in task_ids[1:]:
            await complete(connection, task_id)
        ended = 0
        while ended < 2:
            ended += (await stream.task())["status"] == "completed"
        await say(connection, task_ids[0], "still here")
        await stream.until(lambda task: task.get("statusMessage") == "still here")
        await connection.client.cancel(task_ids[0])
        await stream.ended()
    assert {task_id: states[-1]["status"] for task_id, states in stream.seen.items()} == {
        task_ids[0]: "cancelled",
        task_ids[1]: "completed",
        task_ids[2]: "completed",
    }


async def test_c11_core_events_and_tasks_share_a_stream_that_outlives_the_tasks(connection: Connection) -> None:
    task_id = await connection.client.start("work")
    async with connection.listen(task_id, toolsListChanged=True) as stream:
        assert await stream.acknowledged() == [task_id]
        assert stream.agreed == {"taskIds": [task_id], "toolsListChanged": True}
        assert (await stream.task())["status"] == "working"
        await connection.client.call("announce")
        assert (await stream.next())["method"] == "notifications/tools/list_changed"
        await complete(connection, task_id)
        assert (await stream.task())["status"] == "completed"
        await connection.client.call("announce")
        assert (await stream.next())["method"] == "notifications/tools/list_changed"


async def test_c11_core_filters_alone_work_as_without_tasks(connection: Connection) -> None:
    async with connection.listen_raw({"toolsListChanged": True}, capabilities=UNDECLARED) as stream:
        await stream.next()
        assert stream.agreed == {"toolsListChanged": True}
        await connection.client.call("announce")
        assert (await stream.next())["method"] == "notifications/tools/list_changed"


@pytest.mark.parametrize("core", [{}, {"toolsListChanged": True}])
async def test_c11_who_did_not_declare_the_extension_is_told_what_is_missing(
    connection: Connection, core: Wire
) -> None:
    task_id = await connection.client.start("work")
    async with connection.listen(task_id, capabilities=UNDECLARED, **core) as stream:
        error = await stream.refused()
    assert error["code"] == -32021
    assert error["data"] == {"requiredCapabilities": {"extensions": {EXTENSION_ID: {}}}}


@pytest.mark.parametrize("core", [{}, {"toolsListChanged": True}])
async def test_c11_malformed_task_ids_are_refused(connection: Connection, core: Wire) -> None:
    for malformed in ("x", "", 0, 5, True, False, None, {}, {"a": 1}, [1], ["x", None], [["x"]], [{}]):
        async with connection.listen_raw({"taskIds": malformed, **core}) as stream:
            error = await stream.refused()
        assert error["code"] == -32602
        assert "taskIds" in error["message"]


async def test_c11_a_malformed_core_filter_beside_task_ids_is_refused_as_without_them(connection: Connection) -> None:
    task_id = await connection.client.start("work")
    core = {"resourceSubscriptions": {"not": "a list"}}
    async with connection.listen_raw(core) as stream:
        expected = await stream.refused()
    async with connection.listen(task_id, **core) as stream:
        assert await stream.refused() == expected
    assert expected["code"] == -32602


async def test_c11_too_many_task_ids_are_refused_with_the_limit(connection: Connection) -> None:
    async with connection.listen(*[f"task-{n}" for n in range(MAX_TASKS_PER_STREAM + 1)]) as stream:
        error = await stream.refused()
    assert str(MAX_TASKS_PER_STREAM) in error["message"]
    assert error["code"] != -32603


async def test_c11_unknown_and_foreign_tasks_are_left_out_without_a_word(connection: Connection) -> None:
    """Law L10."""
    foreign = (await connection.client.call("belongs_to", {"owner": "x"})).result["structuredContent"]["result"]
    mine = await connection.client.start("work")
    async with connection.listen(NO_SUCH_TASK, foreign, mine, "", "ä☃", mine, "x" * 10_000) as stream:
        assert await stream.acknowledged() == [mine], "and each once"
        await say(connection, foreign, "a secret")
        await complete(connection, mine)
        await stream.ended()
    assert set(stream.seen) == {mine}


@pytest.mark.parametrize("task_ids", [[], [NO_SUCH_TASK]])
async def test_c11_a_stream_with_nothing_to_listen_to_ends_after_its_acknowledgement(
    connection: Connection, task_ids: list[str]
) -> None:
    async with connection.listen(*task_ids) as stream:
        assert await stream.acknowledged() == []
        await stream.ended()
    assert stream.seen == {}


async def test_c11_a_task_that_is_deleted_ends_its_push_and_nothing_else(connection: Connection) -> None:
    """Law L13."""
    gone, stays = [await connection.client.start("work") for _ in range(2)]
    async with connection.listen(gone) as alone, connection.listen(gone, stays, toolsListChanged=True) as mixed:
        for stream in (alone, mixed):
            await stream.acknowledged()
            await stream.task()
        await mixed.task()
        await connection.client.call("delete", {"task_id": gone})
        await alone.ended()
        await complete(connection, stays)
        assert (await mixed.task())["taskId"] == stays
        await connection.client.call("announce")
        assert (await mixed.next())["method"] == "notifications/tools/list_changed"
    assert [task["status"] for task in alone.seen[gone]] == ["working"]


async def test_c11_many_listeners_of_one_task_all_see_its_end(connection: Connection) -> None:
    task_id = await connection.client.start("work")
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(connection.listen(task_id)) for _ in range(20)]
        for stream in streams:
            await stream.acknowledged()
            await stream.task()
        await say(connection, task_id, "half")
        await complete(connection, task_id)
        for stream in streams:
            await stream.ended()
            assert states_of(stream, task_id)[-1] == ("completed", "half")


async def test_c11_who_leaves_takes_nobody_along(connection: Connection) -> None:
    """Law L13."""
    task_id = await connection.client.start("work")
    async with connection.listen(task_id) as stays:
        await stays.acknowledged()
        await stays.task()
        for _ in range(3):
            async with connection.listen(task_id) as leaves:
                await leaves.acknowledged()
        await say(connection, task_id, "still here")
        await stays.until(lambda task: task.get("statusMessage") == "still here")
        await complete(connection, task_id)
        await stays.ended()


async def test_c11_a_client_of_an_older_revision_has_no_such_method() -> None:
    """Wire rule C1: there the extension cannot be declared, so there is nothing to be missing."""
    mcp, _ = make_server()
    async with Client(mcp, mode="legacy") as client:
        plain = await refusal_of_listen(client, {"toolsListChanged": True})
        assert await refusal_of_listen(client, {"taskIds": [NO_SUCH_TASK]}) == plain


async def refusal_of_listen(client: Client, notifications: Wire) -> tuple[int, str]:
    from mcp_types import SubscriptionFilter, SubscriptionsListenRequest, SubscriptionsListenRequestParams

    wanted = SubscriptionFilter.model_validate(notifications)
    request = SubscriptionsListenRequest(params=SubscriptionsListenRequestParams(notifications=wanted))
    with anyio.fail_after(PATIENCE), pytest.raises(MCPError) as caught:
        await client.session.send_request(request, mcp_v2_client._RawResult)  # type: ignore[arg-type]
    return caught.value.code, caught.value.message
