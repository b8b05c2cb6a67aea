"""Push: the `taskIds` of `subscriptions/listen` (wire rule C11), for clients without an SDK and for `TasksClient`."""

from __future__ import annotations

import json
import logging
import random
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.server import MCPServer
from mcp.shared.exceptions import MCPError
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage
from mcp_types import (
    ElicitResult,
    EmptyResult,
    SubscriptionFilter,
    SubscriptionsListenRequest,
    SubscriptionsListenRequestParams,
    jsonrpc_message_adapter,
)
from typing_extensions import Unpack

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.adapters.mcp_v2 import _listen as mcp_v2_listen
from mcp_task_runtime.adapters.mcp_v2._listen import MAX_TASKS_PER_STREAM
from mcp_task_runtime.adapters.mcp_v2._requests import RawMessage
from mcp_task_runtime.client import ClientStatistics, ClientTask, TasksClient, TaskSnapshot
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.types import Fence, NewTask, NewTaskFields, Outcome, TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import StoreError, StoreUnavailableError
from mcp_task_runtime.testing.clock import FakeClock
from tests.mcp_v2 import push_server
from tests.mcp_v2.guarded import Guarded
from tests.mcp_v2.in_process import served_over_http
from tests.mcp_v2.listeners import (
    ENDED,
    SUBSCRIPTION_ID,
    Connection,
    EventReader,
    ListeningStdioServer,
    Stream,
    http_connection,
    listen_request,
    memory_connection,
    post,
)
from tests.mcp_v2.push_server import FORM, make_server
from tests.mcp_v2.raw_client import DECLARED, EXTENSION_ID, accept
from tests.mcp_v2.schemas import Wire
from tests.mcp_v2.script import TASK_ID, Received
from tests.mcp_v2.scripted_server import (
    ScriptedServer,
    asking,
    asks_once,
    completed,
    elicit,
    quick_client,
    task,
    working,
)
from tests.support.event_loops import in_virtual_time
from tests.support.low_level import low_level
from tests.support.patience import PATIENCE

pytestmark = [
    pytest.mark.anyio,
    # Where the SDK's client leaves a stream before its end, its HTTP library leaves generators to trio to close.
    pytest.mark.filterwarnings("ignore:Async generator '(httpx2|httpcore2|httpx_sse|mcp)[._]:ResourceWarning"),
]

UNDECLARED: Wire = {"elicitation": {"form": {}}, "sampling": {}}
CORE_FILTERS: list[Wire] = [{}, {"toolsListChanged": True}]
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
        self.calls = {"get_task": 0, "get_owned": 0, "get_view": 0, "wait_for_update": 0}
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

    async def get_view(self, task_id: str) -> TaskView | None:
        if self.unavailable:
            raise StoreUnavailableError("gone")
        self.calls["get_view"] += 1
        self._change()
        return await super().get_view(task_id)

    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        if self.unavailable:
            raise StoreUnavailableError("gone")
        self.calls["get_owned"] += 1
        self._change()
        return await super().get_owned(task_id, owner=owner)

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        return self._note(await super().create_task(new))

    async def update_task(self, task_id: str, **options: Any) -> TaskRecord:
        return self._note(await super().update_task(task_id, **options))

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        return self._note(await super().finish_task(task_id, outcome, fence=fence))

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
    server = ListeningStdioServer([push_server.__file__])
    with server:
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


def shown(task: Wire) -> Wire:
    """Return what is the same in a look and a push: the poll interval goes by the time of each."""
    return {name: value for name, value in task.items() if name not in ("resultType", "_meta", "pollIntervalMs")}


async def as_get_shows_it(connection: Connection, task_id: str) -> Wire:
    task = await connection.client.get(task_id)
    return shown(task)


async def test_c11_a_listener_gets_acknowledgement_snapshot_every_change_and_the_end(connection: Connection) -> None:
    task_id = await connection.client.start("work")
    async with connection.listen(task_id) as stream:
        assert await stream.acknowledged() == [task_id]
        assert shown(await stream.task()) == await as_get_shows_it(connection, task_id), "a snapshot right after"
        for message in ("one", "two"):
            await say(connection, task_id, message)
            assert shown(await stream.task()) == await as_get_shows_it(connection, task_id)
        await complete(connection, task_id, "the result")
        last = await stream.task()
        assert shown(last) == await as_get_shows_it(connection, task_id)
        assert last["result"]["content"][0]["text"] == "the result"
        assert (await stream.next())["result"] == {
            "resultType": "complete",
            "_meta": {**stream.response["result"]["_meta"], SUBSCRIPTION_ID: stream.subscription_id},  # type: ignore[index]
        }
    assert states_of(stream, task_id) == [
        ("working", None),
        ("working", "one"),
        ("working", "two"),
        ("completed", None),
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
    assert shown(last) == await as_get_shows_it(connection, task_id)
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


@pytest.mark.parametrize("core", CORE_FILTERS)
async def test_c11_who_did_not_declare_the_extension_is_told_what_is_missing(
    connection: Connection, core: Wire
) -> None:
    task_id = await connection.client.start("work")
    async with connection.listen(task_id, capabilities=UNDECLARED, **core) as stream:
        error = await stream.refused()
    assert error["code"] == -32021
    assert error["data"] == {"requiredCapabilities": {"extensions": {EXTENSION_ID: {}}}}


async def test_c11_null_is_as_good_as_nothing(connection: Connection) -> None:
    """Serialisers that do not drop nulls send it: then the SDK alone serves the request."""
    core = {"toolsListChanged": True, "promptsListChanged": None, "taskIds": None}
    async with connection.listen_raw(core, capabilities=UNDECLARED) as stream:
        await stream.next()
        assert stream.agreed == {"toolsListChanged": True}


@pytest.mark.parametrize("core", CORE_FILTERS)
async def test_c11_malformed_task_ids_are_refused(connection: Connection, core: Wire) -> None:
    wrong: list[Any] = ["x", "", 0, 5, True, False, {}, {"a": 1}, [1], ["x", None], [["x"]], [{}]]
    for malformed in wrong:
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


@pytest.mark.filterwarnings("ignore:`AuthSettings.validate_token_resource` is not set")
async def test_c11_nobody_listens_to_the_task_of_another_principal(anyio_backend: str) -> None:
    """Law L10: not even who knows its id, and the owner does from any of his sessions."""
    guarded = Guarded()  # not in the server's thread: it makes an event of this loop, which no tool used here needs
    with served_over_http(lambda: guarded.mcp) as url:
        async with AsyncExitStack() as stack:
            alice, again, bob, other_app = [
                await stack.enter_async_context(http_connection(url, authorization=f"Bearer {token}"))
                for token in ("alice", "alice-again", "bob", "alice-in-other-app")
            ]
            task_id = await alice.client.start("ask")
            for stranger in (bob, other_app):
                async with stranger.listen(task_id, NO_SUCH_TASK) as stream:
                    assert await stream.acknowledged() == []
                    await stream.ended()
                    assert stream.seen == {}
            for owner in (alice, again):
                async with owner.listen(task_id) as stream:
                    assert await stream.acknowledged() == [task_id]
                    assert (await stream.task())["taskId"] == task_id
            await alice.client.cancel(task_id)


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
            assert states_of(stream, task_id)[-1] == ("completed", None)


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
    wanted = SubscriptionFilter.model_validate(notifications)
    request = SubscriptionsListenRequest(params=SubscriptionsListenRequestParams(notifications=wanted))
    with anyio.fail_after(PATIENCE), pytest.raises(MCPError) as caught:
        await client.session.send_request(request, EmptyResult)
    return caught.value.code, caught.value.message


# --- order, cost, time, and bad listeners -------------------------------------------------------------------------


@asynccontextmanager
async def watched(store: WatchedStore | None = None) -> AsyncGenerator[tuple[WatchedStore, Tasks, Connection], None]:
    store = store or WatchedStore()
    mcp, tasks = make_server(store)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_connection(mcp) as connection:
            yield store, tasks, connection


def is_subsequence(few: list[Any], many: list[Any]) -> bool:
    rest = iter(many)
    return all(one in rest for one in few)


@pytest.mark.parametrize("seed", range(3))
async def test_c11_states_come_in_order_and_the_last_one_always_comes(seed: int) -> None:
    chance = random.Random(seed)
    async with watched() as (store, tasks, connection):
        task_ids = [await connection.client.start("work") for _ in range(5)]

        async def change(task_id: str, streams: int) -> None:
            for n in range(chance.randrange(5, 60)):
                await store.update_task(task_id, status_message=str(n))
                if chance.random() < 0.5:
                    await anyio.lowlevel.checkpoint()
            if chance.random() < 0.5:
                await tasks.complete(task_id, "end")
            else:
                await tasks.fail(task_id, "end")

        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(connection.listen(*chance.sample(task_ids, chance.randrange(1, 6))))
                for _ in range(10)
            ]
            async with anyio.create_task_group() as group:
                for task_id in task_ids:
                    group.start_soon(change, task_id, 10)
                for stream in streams:
                    group.start_soon(stream.ended)
        pushed = 0
        for stream in streams:
            for task_id, states in stream.seen.items():
                history = [(record.status, record.task.status_message) for record in store.history[task_id]]
                assert is_subsequence(states_of(stream, task_id), history)
                assert states_of(stream, task_id)[-1] == history[-1]
                assert [state["lastUpdatedAt"] for state in states] == sorted(s["lastUpdatedAt"] for s in states)
                pushed += len(states)
        assert pushed > 2 * sum(len(stream.seen) for stream in streams), "not only the first and the last"


async def test_c11_hundreds_of_listeners_of_as_many_tasks_see_every_change_in_order_and_the_end_last() -> None:
    """Each task goes on when its change was seen, so that no state may be skipped."""
    store = WatchedStore()
    mcp, tasks = make_server(store)
    expected = [("working", None), ("working", "one"), ("working", "two"), ("input_required", "two")]
    endings: dict[str, Callable[[str], Any]] = {
        "completed": lambda task_id: tasks.complete(task_id, task_id),
        "failed": lambda task_id: tasks.fail(task_id, task_id),
        "cancelled": lambda task_id: tasks.runtime.cancel(task_id, owner=None),
    }
    listening, all_listen = 0, anyio.Event()

    async def live(connection: Connection, ending: str) -> None:
        nonlocal listening
        task_id = (await store.create_task(NewTask(ttl_ms=None))).task_id
        async with connection.listen(task_id) as stream:
            assert await stream.acknowledged() == [task_id]
            await stream.task()
            listening += 1
            if listening == 300:
                all_listen.set()
            await all_listen.wait()
            for message in ("one", "two"):
                await store.update_task(task_id, status_message=message)
                await stream.task()
            question = QueuedMessage.request("1", "elicitation/create", {"message": task_id, "requestedSchema": FORM})
            await store.message_queue.enqueue(task_id, question)
            await store.update_task(task_id, status="input_required")
            assert (await stream.task())["inputRequests"]["1"]["params"]["message"] == task_id
            await endings[ending](task_id)
            await stream.ended()
        assert [state[0] for state in states_of(stream, task_id)] == [*(state[0] for state in expected), ending]
        assert states_of(stream, task_id)[:4] == expected

    with anyio.fail_after(3 * PATIENCE):
        async with tasks, memory_connection(mcp) as connection, anyio.create_task_group() as group:
            for n in range(300):
                group.start_soon(live, connection, list(endings)[n % 3])
    assert store.waiting == 0


async def test_c11_tasks_without_a_listener_cost_no_push_work() -> None:
    """Law L8: a change costs one wait where a stream listens to that task, and nothing elsewhere."""
    async with watched() as (store, tasks, connection):
        quiet = [await connection.client.start("work") for _ in range(200)]
        assert store.calls == {"get_task": 0, "get_owned": 0, "get_view": 0, "wait_for_update": 0}
        heard = await connection.client.start("work")
        async with connection.listen(heard) as stream:
            await stream.acknowledged()
            await stream.task()
            await store.until(lambda: store.waiting == 1)
            before = dict(store.calls)
            for task_id in quiet:
                await store.update_task(task_id, status_message="changed")
                await tasks.complete(task_id, "end")
            await anyio.wait_all_tasks_blocked()
            assert store.calls == before
            await store.update_task(heard, status_message="changed")
            await stream.task()
            await store.until(lambda: store.waiting == 1)
            assert store.calls == {**before, "wait_for_update": before["wait_for_update"] + 1}
            await tasks.complete(heard, "end")
            await stream.ended()
        assert store.waiting == 0


async def test_c11_nothing_is_left_of_listeners_that_went_or_were_cancelled() -> None:
    """Laws L6 and L8."""
    async with watched() as (store, _, connection):
        task_ids = [await connection.client.start("work") for _ in range(10)]
        for core in CORE_FILTERS:
            async with connection.listen(*task_ids, **core) as stream:
                await stream.acknowledged()
                await store.until(lambda: store.waiting == 10)
            await store.until(lambda: store.waiting == 0)


async def test_c11_one_stream_listens_to_as_many_tasks_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 50
    monkeypatch.setattr(mcp_v2_listen, "MAX_TASKS_PER_STREAM", most)
    async with watched() as (store, tasks, connection):
        task_ids = [(await store.create_task(NewTask(ttl_ms=None))).task_id for _ in range(most)]
        async with connection.listen(*task_ids) as stream:
            assert len(await stream.acknowledged()) == most
            for task_id in task_ids:
                await tasks.complete(task_id, "end")
            await stream.ended()
        assert all(stream.seen[task_id][-1]["status"] == "completed" for task_id in task_ids)


@pytest.mark.parametrize("core", CORE_FILTERS)
async def test_c11_a_task_that_expires_ends_its_push(core: Wire) -> None:
    """Law L7: gone for every caller at once."""
    clock = FakeClock()
    store = WatchedStore(clock=clock)
    mcp, tasks = make_server(store, retention_ms=0)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_connection(mcp) as connection:
            short = (await store.create_task(NewTask(ttl_ms=60_000))).task_id
            long = (await store.create_task(NewTask(ttl_ms=600_000))).task_id
            async with connection.listen(short, long, **core) as stream:
                await stream.acknowledged()
                await stream.task()
                await stream.task()
                await store.until(lambda: store.waiting == 2)
                clock.advance(60)
                await store.until(lambda: store.waiting == 1)
                await store.update_task(long, status_message="still here")
                assert (await stream.task())["statusMessage"] == "still here"
                clock.advance(540)
                if core:
                    await connection.client.call("announce")
                    assert (await stream.next())["method"] == "notifications/tools/list_changed"
                else:
                    await stream.ended()
            assert [task["status"] for task in stream.seen[short]] == ["working"]


async def test_c11_a_stream_outlasts_an_outage_of_the_store() -> None:
    """Law L12: what changed meanwhile is pushed when the store is back."""
    async with watched() as (store, _, connection):
        for core in CORE_FILTERS:
            task_id = await connection.client.start("work")
            async with connection.listen(task_id, **core) as stream:
                await stream.acknowledged()
                await stream.task()
                await store.until(lambda: store.waiting == 1)
                store.unavailable = True
                await store.update_task(task_id, status_message="x")
                await store.until(lambda: store.waiting == 0)
                store.unavailable = False
                assert (await stream.task())["statusMessage"] == "x"


class PartlyDamagedStore(WatchedStore):
    """A store in which some tasks cannot be read.

    Attributes:
        errors: What a read of a task raises.
        failures: How many reads failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, StoreError] = {}
        self.failures = 0

    def _read(self, task_id: str) -> None:
        if task_id in self.errors:
            self.failures += 1
            self._change()
            raise self.errors[task_id]

    async def get_view(self, task_id: str) -> TaskView | None:
        self._read(task_id)
        return await super().get_view(task_id)

    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        self._read(task_id)
        return await super().get_owned(task_id, owner=owner)


@pytest.mark.parametrize("error", [StoreUnavailableError("gone"), StoreError("damaged")], ids=["outage", "damage"])
async def test_c11_a_question_that_cannot_be_read_comes_later_and_delays_no_other_task(error: StoreError) -> None:
    """Laws L12, L13: whatever the store says of one task, the stream goes on."""
    store = PartlyDamagedStore()
    async with watched(store) as (_, _, connection):
        asks, works = [await connection.client.start("work") for _ in range(2)]
        async with connection.listen(asks, works) as stream:
            await stream.acknowledged()
            for _ in range(2):
                await stream.task()
            store.errors[asks] = error
            await store.ask(asks, QueuedMessage.request("k", "elicitation/create", elicit()["params"]))
            await store.until(lambda: store.failures > 0)
            await store.update_task(works, status_message="on")
            assert (await stream.task())["taskId"] == works
            store.errors.clear()
            seen = await stream.task()
            assert (seen["taskId"], list(seen["inputRequests"])) == (asks, ["k"])


async def test_c11_a_task_that_cannot_be_read_is_left_out_of_the_acknowledgement() -> None:
    store = PartlyDamagedStore()
    async with watched(store) as (_, _, connection):
        damaged, intact = [await connection.client.start("work") for _ in range(2)]
        store.errors[damaged] = StoreError("damaged")
        async with connection.listen(damaged, intact) as stream:
            assert await stream.acknowledged() == [intact]
            assert (await stream.task())["taskId"] == intact
        store.errors[damaged] = StoreUnavailableError("gone")
        async with connection.listen(damaged, intact) as stream:
            assert (await stream.next())["error"]["message"] == "The task store failed"


async def test_c11_many_listeners_of_one_task_share_one_wait_and_no_reads() -> None:
    """Law L8: a change costs the store one wait, not one for each stream."""
    async with watched() as (store, tasks, connection), AsyncExitStack() as stack:
        task_id = await connection.client.start("work")
        streams = [await stack.enter_async_context(connection.listen(task_id)) for _ in range(100)]
        for stream in streams:
            await stream.acknowledged()
            await stream.task()
        await store.until(lambda: store.waiting == 1)
        before = dict(store.calls)
        await store.update_task(task_id, status_message="half")
        for stream in streams:
            assert (await stream.task())["statusMessage"] == "half"
        await tasks.complete(task_id, "end")
        for stream in streams:
            await stream.ended()
        assert store.calls["get_task"] == before["get_task"]
        assert store.calls["wait_for_update"] <= before["wait_for_update"] + 2


async def test_c11_what_the_streams_of_an_owner_listen_to_is_bounded() -> None:
    """Law L16: a stream past the bound is refused, whether its tasks exist or not, and the others go on."""
    mcp, tasks = make_server(max_listened_tasks_per_owner=3)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_connection(mcp) as connection:
            one, two = [await connection.client.start("work") for _ in range(2)]
            async with connection.listen(one, two) as stream:
                await stream.acknowledged()
                for task_ids in ((one, two), (NO_SUCH_TASK, "unknown"), ("1", "2", "3")):
                    async with connection.listen(*task_ids) as refused:
                        error = await refused.refused()
                    assert error["code"] == -32600
                    assert "listened to (at most 3)" in error["message"]
                async with connection.listen(one) as third:
                    assert await third.acknowledged() == [one]
                    async with connection.listen(two) as fourth:
                        await fourth.refused()
                await tasks.complete(one, "end")
                await tasks.complete(two, "end")
                await stream.ended()
            other = await connection.client.start("work")
            async with connection.listen(other, NO_SUCH_TASK, "unknown") as again:
                assert await again.acknowledged() == [other], "there is room again"
                async with connection.listen(other, NO_SUCH_TASK) as second:
                    assert await second.acknowledged() == [other], "unknown ones count only until they are looked up"


async def test_c11_a_listener_in_memory_that_reads_nothing_harms_nobody() -> None:
    """Law L13."""
    async with watched() as (store, tasks, connection):
        task_id = await connection.client.start("work")
        server = low_level(tasks._mcp)
        async with create_client_server_memory_streams() as ((_, write), streams), anyio.create_task_group() as group:
            group.start_soon(server.run, *streams, server.create_initialization_options())
            request = jsonrpc_message_adapter.validate_json(
                json.dumps(listen_request({"taskIds": [task_id]}, DECLARED)), by_name=False
            )
            await write.send(SessionMessage(request))
            async with connection.listen(task_id) as stream:
                await stream.acknowledged()
                await stream.task()
                for n in range(500):
                    await store.update_task(task_id, status_message=str(n))
                    await anyio.lowlevel.checkpoint()
                await tasks.complete(task_id, "end")
                await stream.ended()
                assert states_of(stream, task_id)[-1] == ("completed", None)
            group.cancel_scope.cancel()


async def test_c11_a_listener_over_http_that_reads_late_sees_fewer_states_in_order_and_the_last(
    over_http: str, anyio_backend: str
) -> None:
    """Law L13: its buffers are full, while another listener and the work go on."""
    async with http_connection(over_http) as connection:
        task_id = await connection.client.start("work")
        message = listen_request({"taskIds": [task_id]}, DECLARED)
        async with await post(over_http, message) as socket, connection.listen(task_id) as reads:
            await reads.acknowledged()
            await reads.task()
            for n in range(40):
                text = f"{n:03} " + "x" * 250_000
                await say(connection, task_id, text)
                await reads.until(lambda task, text=text: task.get("statusMessage") == text)  # type: ignore[misc]
            await complete(connection, task_id)
            await reads.ended()
            late = Stream(message["id"], EventReader(socket).next)
            await late.acknowledged()
            await late.ended()
        messages = [task.get("statusMessage") for task in late.seen[task_id][:-1]]
        numbers = ["-1" if message is None else message[:3] for message in messages]
        assert numbers == sorted(numbers, key=int)
        assert len(numbers) < 40, "it missed some, because it did not read"
        assert states_of(late, task_id)[-1] == states_of(reads, task_id)[-1]


async def test_c11_a_stdio_server_stops_promptly_although_somebody_listens(anyio_backend: str) -> None:
    server = ListeningStdioServer([push_server.__file__])
    with server:
        connection = server.connection()
        task_id = await connection.client.start("work")
        async with connection.listen(task_id, toolsListChanged=True) as stream, connection.listen(task_id) as other:
            await stream.acknowledged()
            await other.acknowledged()
            with anyio.fail_after(PATIENCE):
                code, errors = await anyio.to_thread.run_sync(server.close)
            assert code == 0, errors
            assert "Traceback" not in errors
            for each in (stream, other):
                each.response = {}  # no client is there to learn that it was cancelled


# --- TasksClient -------------------------------------------------------------------------------------------------


AN_HOUR_MS = 3_600_000
"""From one poll to the next, where `patient_client` lets a server have it: nothing here waits so long."""


def patient_client(**options: Any) -> TasksClient:
    """A client that polls as rarely as the server likes."""
    return TasksClient(poll_bounds_ms=(50, AN_HOUR_MS), **options)


def nothing_left(tasks_client: TasksClient) -> bool:
    return tasks_client.statistics() == ClientStatistics(followed=0, pushed=0, listen_streams=0)


def text_of(result: Any) -> str:
    text: str = result.content[0].text
    return text


class Gate:
    """A server in memory with a tool that waits until the test lets it go on; clients poll it once an hour."""

    def __init__(self) -> None:
        self.store = WatchedStore()
        self.mcp: MCPServer[Any] = MCPServer("gate")
        self.tasks = Tasks(self.store, settings=TaskSettings(poll_interval_ms=AN_HOUR_MS))
        self.tasks.install(self.mcp)
        self.go = anyio.Event()
        self.received: list[str] = []

        @self.tasks.tool(required=True)
        async def wait(task: ServerTaskContext) -> str:
            await self.go.wait()
            return "done"

        @self.tasks.tool(required=True)
        async def ask(task: ServerTaskContext) -> str:
            await self.go.wait()
            answer = await task.elicit("sure?", push_server.FORM)
            return answer.action

        async def note(ctx: Any, call_next: Any) -> Any:
            self.received.append(ctx.method)
            return await call_next(ctx)

        low_level(self.mcp).middleware.insert(0, note)

    def polls(self) -> int:
        return self.received.count("tasks/get")

    async def is_only_listened_to(self, clients: int = 1) -> None:
        """Wait until the client has looked at the task for the last time before its next poll."""
        await self.store.until(lambda: self.store.waiting == clients)
        await anyio.wait_all_tasks_blocked()


@asynccontextmanager
async def gate(tasks_client: TasksClient, **options: Any) -> AsyncGenerator[tuple[Gate, Client], None]:
    made = Gate()
    async with Client(made.mcp, extensions=[tasks_client], **options) as client:
        with anyio.fail_after(PATIENCE):
            yield made, client
    assert nothing_left(tasks_client)
    assert made.store.waiting == 0


async def test_c11_a_client_hears_at_once_that_its_task_has_ended() -> None:
    """The next poll would be an hour away."""
    tasks_client = patient_client()
    async with gate(tasks_client) as (server, client):
        results: list[Any] = []

        async def call() -> None:
            results.append(await client.call_tool("wait"))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await server.is_only_listened_to()
            polls = server.polls()
            server.go.set()
        assert text_of(results[0]) == "done"
        assert server.polls() == polls, "what was pushed is the result"
        assert nothing_left(tasks_client)
        await server.store.until(lambda: server.store.waiting == 0)
        assert server.received.count("tasks/cancel") == 0


async def test_c11_a_task_that_comes_after_all_others_have_ended_is_pushed_too() -> None:
    tasks_client = patient_client()
    async with gate(tasks_client) as (server, client):
        for _ in range(2):
            server.go = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "wait")
                await server.is_only_listened_to()
                server.go.set()  # the next poll would be an hour away
            assert nothing_left(tasks_client)
            await server.store.until(lambda: server.store.waiting == 0)


async def test_c11_the_read_time_out_of_a_client_does_not_end_what_it_listens_to() -> None:
    read_timeout = 0.5
    async with gate(patient_client(), read_timeout_seconds=read_timeout) as (server, client):
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "wait")
            await server.is_only_listened_to()
            await anyio.sleep(2 * read_timeout)
            server.go.set()  # the next poll would be an hour away


async def test_c11_a_client_hears_at_once_that_it_is_asked() -> None:
    async def accept_it(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={})

    tasks_client = patient_client()
    async with gate(tasks_client, elicitation_callback=accept_it) as (server, client):
        async with anyio.create_task_group() as group:

            async def call() -> None:
                assert text_of(await client.call_tool("ask")) == "accept"

            group.start_soon(call)
            await server.is_only_listened_to()
            server.go.set()


async def test_c11_all_who_wait_for_a_task_share_what_is_pushed() -> None:
    tasks_client = patient_client()
    results: list[Any] = []
    async with gate(tasks_client) as (server, client):
        started = await tasks_client.start(client, "wait")
        assert isinstance(started, ClientTask)

        async def wait() -> None:
            results.append(await tasks_client.resume(client, started.task_id).wait())

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(wait)
            await server.is_only_listened_to()
            assert tasks_client.statistics() == ClientStatistics(followed=1, pushed=1, listen_streams=1)
            server.go.set()
        assert [text_of(result) for result in results] == ["done"] * 3
        assert nothing_left(tasks_client)


async def test_c11_whoever_reads_the_snapshots_of_a_task_has_them_pushed_too() -> None:
    tasks_client = patient_client()
    async with gate(tasks_client) as (server, client):
        started = await tasks_client.start(client, "wait")
        assert isinstance(started, ClientTask)
        statuses = []
        async for snapshot in started.snapshots():
            statuses.append(snapshot.status)
            server.go.set()
        assert statuses == ["working", "completed"]
        assert nothing_left(tasks_client)


async def test_c11_a_client_shows_each_change_as_it_comes() -> None:
    shown: list[TaskSnapshot] = []

    async def on_update(snapshot: TaskSnapshot) -> None:
        shown.append(snapshot)

    tasks_client = patient_client(on_update=on_update)
    async with gate(tasks_client) as (server, client):
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "wait")
            for n in range(5):
                await server.is_only_listened_to()
                await server.store.update_task(shown[0].task_id, status_message=str(n))
                await anyio.wait_all_tasks_blocked()
            await server.is_only_listened_to()
            server.go.set()
    assert [snapshot.status_message for snapshot in shown[-6:-1]] == ["0", "1", "2", "3", "4"]
    assert shown[-1].status == "completed"


async def test_c11_a_client_that_gives_up_leaves_no_listener_behind() -> None:
    """Laws L6 and L9."""
    tasks_client = patient_client()
    async with gate(tasks_client) as (server, client):
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "wait")
            await server.is_only_listened_to()
            group.cancel_scope.cancel()
        assert nothing_left(tasks_client)
        await server.store.until(lambda: server.store.waiting == 0)
        assert server.received.count("tasks/cancel") == 1


async def test_c11_any_number_of_tasks_is_pushed_over_few_streams() -> None:
    """No poll comes within an hour."""
    tasks_client = patient_client(max_listen_streams=2)
    tasks, most = 40, 0
    async with gate(tasks_client) as (server, client):
        async with anyio.create_task_group() as group:
            for number in range(tasks):
                group.start_soon(client.call_tool, "wait")
                if number % 10 == 0:
                    await server.store.until(lambda count=number + 1: server.store.waiting >= count)  # type: ignore[misc]
                most = max(most, tasks_client.statistics().listen_streams)
            await server.store.until(lambda: server.store.waiting >= tasks)
            assert tasks_client.statistics().followed == tasks
            most = max(most, tasks_client.statistics().listen_streams)
            server.go.set()
        assert most <= 3, "two, and one that is about to replace another"


async def test_c11_a_client_without_push_sends_no_listen() -> None:
    async with gate(TasksClient(push=False, poll_bounds_ms=(5, 10))) as (server, client):
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "wait")
            await server.store.until(lambda: server.polls() > 3)
            server.go.set()
        assert "subscriptions/listen" not in server.received


@pytest.mark.parametrize("how", ["refuses", "breaks", "ends after its acknowledgement", "says nothing"])
async def test_c11_a_client_polls_on_where_the_server_does_not_push(how: str) -> None:
    scripted = ScriptedServer(*[working(str(n)) for n in range(5)], completed("in the end"))
    listens = 0

    async def misbehave(ctx: Any, call_next: Any) -> Any:
        nonlocal listens
        if ctx.method != "subscriptions/listen":
            return await call_next(ctx)
        listens += 1
        if how == "refuses":
            return await call_next(ctx)  # there is no handler
        if how == "breaks":
            raise RuntimeError("a secret")
        if how == "says nothing":
            await anyio.sleep_forever()
        meta = {SUBSCRIPTION_ID: ctx.request_id}
        if how == "ends after its acknowledgement":
            params = {"notifications": {"taskIds": []}, "_meta": meta}
            await ctx.session.send_notification(
                RawMessage("notifications/subscriptions/acknowledged", params), ctx.request_id
            )
        return {"resultType": "complete", "_meta": meta}

    scripted.server.middleware.append(misbehave)
    tasks_client = quick_client()
    async with Client(scripted.server, extensions=[tasks_client]) as client:
        with anyio.fail_after(PATIENCE):
            assert text_of(await client.call_tool("work")) == "in the end"
        assert listens == 1, "it does not insist"
        assert nothing_left(tasks_client)


async def test_c11_pushes_of_nonsense_and_of_other_tasks_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Wire rule C14: what is malformed says only that there is something to see; what is so, `tasks/get` says."""
    scripted = ScriptedServer(*[working(str(n)) for n in range(5)], completed("in the end"))

    async def push(ctx: Any, call_next: Any) -> Any:
        if ctx.method != "subscriptions/listen":
            return await call_next(ctx)
        nonsense: list[Wire] = [
            {},
            {"taskId": 5},
            {"taskId": "another", "status": "completed"},
            {"taskId": "task-1"},
            {"taskId": "task-1", "status": "completed", "result": {"content": [{"type": "text", "text": "a lie"}]}},
        ]
        for params in nonsense:
            message = RawMessage("notifications/tasks", {**params, "_meta": {SUBSCRIPTION_ID: ctx.request_id}})
            await ctx.session.send_notification(message, ctx.request_id)
        await anyio.sleep_forever()

    scripted.server.middleware.append(push)
    tasks_client = quick_client()
    async with Client(scripted.server, extensions=[tasks_client]) as client:
        with anyio.fail_after(PATIENCE):
            assert text_of(await client.call_tool("work")) == "in the end"
    assert nothing_left(tasks_client)
    assert {"A server pushed a change that names no task"} == {
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    }


async def test_c11_a_push_during_a_look_makes_the_client_look_again() -> None:
    """Law L3: a change between the server's answer and the client's waiting is not lost."""
    scripted = ScriptedServer(working(pollIntervalMs=AN_HOUR_MS))
    scripted.serve_listen()

    async def reply(request: Received) -> Wire | None:
        if request.method != "tasks/get" or len(scripted.of("tasks/get")) != 2:
            return None
        scripted.show(completed("in the end"))
        await scripted.push({"taskId": TASK_ID})
        await anyio.wait_all_tasks_blocked()
        return working(pollIntervalMs=AN_HOUR_MS)  # from before the end

    async def push() -> None:
        await scripted.listens()
        await scripted.push({"taskId": TASK_ID})

    scripted.reply = reply
    async with Client(scripted.server, extensions=[patient_client()]) as client:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(push)
                assert text_of(await client.call_tool("work")) == "in the end"


LATER = "2026-07-28T12:00:01Z"
LATEST = "2026-07-28T12:00:02Z"
EARLIER = "2026-07-28T11:59:59Z"


@asynccontextmanager
async def pushed_to(
    scripted: ScriptedServer, tasks_client: TasksClient | None = None, **options: Any
) -> AsyncGenerator[list[Any], None]:
    """A call that was looked at once and is pushed to; yields a list that its result or error is put into."""
    scripted.serve_listen()
    tasks_client = tasks_client or patient_client()
    ended: list[Any] = []

    async def call(client: Client) -> None:
        try:
            ended.append(await client.call_tool("work"))
        except MCPError as error:
            ended.append(error)

    async with Client(scripted.server, extensions=[tasks_client], **options) as client:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(call, client)
                await scripted.listens()
                yield ended
        assert nothing_left(tasks_client)
        await scripted.until(lambda: scripted.streams == 0)


async def test_c11_what_is_pushed_needs_no_look() -> None:
    shown: list[str | None] = []

    async def on_update(snapshot: TaskSnapshot) -> None:
        shown.append(snapshot.status_message)

    scripted = ScriptedServer(working(pollIntervalMs=AN_HOUR_MS))
    async with pushed_to(scripted, patient_client(on_update=on_update)) as ended:
        await scripted.push(working("half way", lastUpdatedAt=LATER, novelty={"of": "a later revision"}))
        await scripted.until_quiet()
        await scripted.push(completed("pushed", futureHint=1) | {"lastUpdatedAt": LATEST, "more": [1]})
    assert text_of(ended[0]) == "pushed"
    assert shown[-2:] == ["half way", None]
    assert len(scripted.of("tasks/get")) == 1


@in_virtual_time
async def test_c11_a_question_that_is_pushed_is_asked_and_what_it_leads_to_is_looked_at_if_it_is_not_pushed() -> None:
    async def answer(context: Any, params: Any) -> ElicitResult:
        scripted.show(completed("answered"))
        return ElicitResult(action="accept", content={})

    scripted = ScriptedServer(working(pollIntervalMs=AN_HOUR_MS))
    async with pushed_to(scripted, elicitation_callback=answer) as ended:
        await scripted.push(asking(consent=elicit()) | {"lastUpdatedAt": LATER})
    assert text_of(ended[0]) == "answered"
    assert scripted.answers.keys() == {"consent"}
    assert len(scripted.of("tasks/get")) == 2


async def test_c11_a_question_and_a_result_that_are_pushed_need_no_look() -> None:
    scripted = ScriptedServer(working(pollIntervalMs=AN_HOUR_MS))

    async def reply(request: Received) -> None:
        if request.method == "tasks/update":
            await scripted.push(completed("pushed") | {"lastUpdatedAt": LATEST})

    scripted.reply = reply
    client = patient_client(pushed_poll_interval_ms=10 * AN_HOUR_MS)
    async with pushed_to(scripted, client, elicitation_callback=accept_all) as ended:
        await scripted.push(asking(consent=elicit()) | {"lastUpdatedAt": LATER})
    assert text_of(ended[0]) == "pushed"
    assert len(scripted.of("tasks/get")) == 1


async def test_c11_the_end_of_a_task_is_taken_from_a_push_whatever_its_time() -> None:
    """Clocks jump, and nothing follows an end."""
    scripted = ScriptedServer(working(pollIntervalMs=AN_HOUR_MS, lastUpdatedAt=LATER))
    async with pushed_to(scripted) as ended:
        await scripted.push(completed("in the end") | {"lastUpdatedAt": EARLIER})
    assert text_of(ended[0]) == "in the end"


async def test_c11_a_pushed_state_that_is_older_than_the_last_look_is_ignored() -> None:
    scripted = ScriptedServer(working("second", pollIntervalMs=AN_HOUR_MS, lastUpdatedAt=LATER))
    shown: list[str | None] = []

    async def on_update(snapshot: TaskSnapshot) -> None:
        shown.append(snapshot.status_message)

    async with pushed_to(scripted, patient_client(on_update=on_update)):
        await scripted.push(working("first", lastUpdatedAt=EARLIER))
        await scripted.push(asking(consent=elicit()) | {"lastUpdatedAt": EARLIER})
        await scripted.until_quiet()
        await scripted.push(completed() | {"lastUpdatedAt": LATEST})
    assert shown == [None, "second", None]
    assert len(scripted.of("tasks/get")) == 1


async def test_c11_a_pushed_state_of_the_same_time_as_the_last_look_makes_the_client_look() -> None:
    scripted = ScriptedServer(working("one", pollIntervalMs=AN_HOUR_MS))
    async with pushed_to(scripted) as ended:
        scripted.show(completed("two"))
        await scripted.push(working("two"))
    assert text_of(ended[0]) == "two"
    assert len(scripted.of("tasks/get")) == 2


@pytest.mark.parametrize(
    "nonsense",
    [
        {"taskId": TASK_ID},
        task("resting"),
        task("completed"),
        task("completed", result=7),
        task("failed", error={"code": "x"}),
        task(createdAt="yesterday"),
        task(lastUpdatedAt="9999-12-31T23:59:59-05:00"),
        task("input_required", inputRequests=[1]),
        task(pollIntervalMs="often"),
    ],
    ids=str,
)
async def test_c11_a_malformed_push_makes_the_client_look_and_raises_nothing(nonsense: Wire) -> None:
    scripted = ScriptedServer(working(pollIntervalMs=AN_HOUR_MS))
    async with pushed_to(scripted) as ended:
        scripted.show(completed("looked at"))
        await scripted.push(nonsense)
    assert text_of(ended[0]) == "looked at"
    assert scripted.methods == ["tools/call"]


@pytest.mark.parametrize("pushed", [{"taskId": TASK_ID}, working("same time")], ids=["nonsense", "of the same time"])
async def test_c11_a_server_that_pushes_at_each_look_is_not_looked_at_without_rest(pushed: Wire) -> None:
    scripted = ScriptedServer(working(pollIntervalMs=AN_HOUR_MS))

    async def reply(request: Received) -> None:
        if request.method == "tasks/get" and scripted.streams:
            await scripted.push(pushed)

    scripted.reply = reply
    async with pushed_to(scripted, TasksClient(poll_bounds_ms=(AN_HOUR_MS, AN_HOUR_MS))):
        await scripted.push(pushed)
        await scripted.until_quiet()
        looks = len(scripted.of("tasks/get"))
        assert 2 <= looks <= 12, "some may come early"
        await scripted.push(pushed)
        await scripted.until_quiet()
        assert len(scripted.of("tasks/get")) == looks
        await scripted.push(completed() | {"lastUpdatedAt": LATEST})


async def test_c11_no_other_server_can_push_the_result_of_a_task() -> None:
    """One that knows the id can make the client look, and no more."""
    tasks_client = patient_client()
    good, bad = ScriptedServer(working(pollIntervalMs=AN_HOUR_MS)), ScriptedServer(task(taskId="bad"))
    bad.handle = {"resultType": "task", **task(taskId="bad")}
    for scripted in (good, bad):
        scripted.serve_listen()
    results: list[Any] = []

    async def call(client: Client) -> None:
        results.append(await client.call_tool("work"))

    async with Client(good.server, extensions=[tasks_client]) as one:
        async with Client(bad.server, extensions=[tasks_client]) as two:
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    group.start_soon(call, one)
                    group.start_soon(call, two)
                    await good.listens()
                    await bad.listens()
                    await bad.push(completed("a lie") | {"lastUpdatedAt": LATEST})
                    await good.until_quiet()
                    assert results == []
                    await good.push(completed("the truth") | {"lastUpdatedAt": LATEST})
                    await good.until_quiet()
                    assert [text_of(result) for result in results] == ["the truth"]
                    group.cancel_scope.cancel()


@in_virtual_time
async def test_c11_a_question_that_is_answered_at_once_opens_no_stream() -> None:
    scripted = asks_once()
    scripted.show(*scripted.looks[1:])
    scripted.serve_listen()
    async with Client(
        scripted.server,
        extensions=[TasksClient(poll_bounds_ms=(AN_HOUR_MS, AN_HOUR_MS))],
        elicitation_callback=accept_all,
    ) as client:
        with anyio.fail_after(PATIENCE):
            assert text_of(await client.call_tool("work")) == "accept"
    assert scripted.listened == []


async def accept_all(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={})


def many_tasks(scripted: ScriptedServer) -> None:
    """Have each call become a task of its own, which works and is polled once an hour."""
    number = count(1)

    async def reply(request: Received) -> Wire | None:
        if request.method == "tools/call":
            return {"resultType": "task", **task(taskId=f"task-{next(number)}")}
        if request.method == "tasks/get":
            return working(taskId=request.params["taskId"], pollIntervalMs=AN_HOUR_MS)
        return None

    scripted.reply = reply
    scripted.serve_listen()


async def test_c11_tasks_that_come_together_share_a_stream_and_the_smallest_makes_room_for_more() -> None:
    scripted = ScriptedServer()
    many_tasks(scripted)
    tasks_client = patient_client(max_listen_streams=2)
    ended: list[str] = []

    async def call(client: Client) -> None:
        ended.append(text_of(await client.call_tool("work")))

    async with Client(scripted.server, extensions=[tasks_client]) as client:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for calls in (3, 2, 4):
                    opened = len(scripted.listened)
                    for _ in range(calls):
                        group.start_soon(call, client)
                    await scripted.listens(opened + 1)
                    await scripted.until_quiet()
                assert scripted.streams == 2
                assert [len(ids) for ids in scripted.listened] == [3, 2, 6]
                assert set(scripted.listened[1]) < set(scripted.listened[2])
                for task_id in {each for ids in scripted.listened for each in ids}:
                    await scripted.push(completed() | {"taskId": task_id, "lastUpdatedAt": LATEST})
        assert ended == ["done"] * 9
        assert nothing_left(tasks_client)
        await scripted.until(lambda: scripted.streams == 0)


async def test_c11_a_hundred_tasks_that_end_at_once_are_seen_without_another_look() -> None:
    """The SDK would hand over one pushed change in each turn of the event loop, and drop more than 256."""
    tasks_client = patient_client()
    async with gate(tasks_client) as (server, client):
        async with anyio.create_task_group() as group:
            for _ in range(150):
                group.start_soon(client.call_tool, "wait")
            await server.store.until(lambda: server.store.waiting >= 150)
            await anyio.wait_all_tasks_blocked()
            assert server.polls() == 150
            server.go.set()
        assert server.polls() == 150


async def test_c11_a_stream_outlives_the_call_that_opened_it_and_ends_with_its_last_follower() -> None:
    scripted = ScriptedServer()
    many_tasks(scripted)
    tasks_client = patient_client(max_listen_streams=1)
    async with Client(scripted.server, extensions=[tasks_client]) as client:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as second:
                async with anyio.create_task_group() as first:
                    first.start_soon(client.call_tool, "work")
                    second.start_soon(client.call_tool, "work")
                    await scripted.until(lambda: any(len(ids) == 2 for ids in scripted.listened))
                    await scripted.until_quiet()
                    first.cancel_scope.cancel()
                await scripted.until_quiet()
                assert scripted.streams == 1
                assert tasks_client.statistics() == ClientStatistics(followed=1, pushed=1, listen_streams=1)
                second.cancel_scope.cancel()
            assert nothing_left(tasks_client)
            await scripted.until(lambda: scripted.streams == 0)


async def test_c11_a_stream_that_pushed_and_then_dropped_is_opened_again_after_a_look() -> None:
    scripted = ScriptedServer(working(pollIntervalMs=AN_HOUR_MS))
    async with pushed_to(scripted) as ended:
        await scripted.push(working("one", pollIntervalMs=AN_HOUR_MS, lastUpdatedAt=LATER))
        await scripted.until_quiet()
        scripted.show(working("one", pollIntervalMs=AN_HOUR_MS, lastUpdatedAt=LATER))
        scripted.drop_streams()
        await scripted.listens(2)
        await scripted.push(completed("again") | {"lastUpdatedAt": LATEST})
    assert text_of(ended[0]) == "again"


async def test_c11_the_end_of_a_stream_makes_the_client_look_once_more() -> None:
    """Law L3: the SDK delivers notifications and responses concurrently, so the last push may come after the end."""
    scripted = ScriptedServer(working(pollIntervalMs=AN_HOUR_MS))
    looked = anyio.Event()

    async def reply(request: Received) -> None:
        if request.method == "tasks/get":
            looked.set()

    async def push(ctx: Any, call_next: Any) -> Any:
        if ctx.method != "subscriptions/listen":
            return await call_next(ctx)
        await looked.wait()
        await anyio.wait_all_tasks_blocked()
        scripted.show(completed("in the end"))
        return {"resultType": "complete", "_meta": {SUBSCRIPTION_ID: ctx.request_id}}

    scripted.reply = reply
    scripted.server.middleware.append(push)
    tasks_client = patient_client()
    async with Client(scripted.server, extensions=[tasks_client]) as client:
        with anyio.fail_after(PATIENCE):
            assert text_of(await client.call_tool("work")) == "in the end"
    assert nothing_left(tasks_client)


@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_c11_clients_of_other_processes_hear_at_once_too(
    transport: str, over_http: str, anyio_backend: str
) -> None:
    """A task that ends while it is listened to, with a poll interval of an hour."""
    parameters = StdioServerParameters(command=sys.executable, args=[push_server.__file__, "slowly"])
    server: Any = slow_polls_over_http() if transport == "http" else stdio_client(parameters)
    async with AsyncExitStack() as stack:
        if transport == "http":
            server = stack.enter_context(server)
        tasks_client = patient_client()
        client = await stack.enter_async_context(Client(server, extensions=[tasks_client]))
        with anyio.fail_after(PATIENCE):
            task = await tasks_client.start(client, "work")
            assert isinstance(task, ClientTask)
            async with anyio.create_task_group() as group:

                async def follow() -> None:
                    assert text_of(await task.wait()) == "done"

                group.start_soon(follow)
                while not tasks_client.statistics().listen_streams:
                    await anyio.lowlevel.checkpoint()
                for seen in range(3):
                    await client.call_tool("say", {"task_id": task.task_id, "message": str(seen)})
                await client.call_tool("complete", {"task_id": task.task_id, "text": "done"})
        assert nothing_left(tasks_client)


def slow_polls_over_http() -> Any:
    return served_over_http(lambda: make_server(poll_interval_ms=AN_HOUR_MS)[0])
