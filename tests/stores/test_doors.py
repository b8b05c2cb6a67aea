"""Law L13 at every door of a task's life: what work says, asks, returns or raises, and what a client answers.

Each value is taken and given back, or refused by an error; its task ends, and a second task that runs all the while is
never touched. `test_values` has the doors of the stores themselves, on all four.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_task_runtime import (
    Execution,
    InMemoryTaskStore,
    Outcome,
    ProtocolError,
    ServerTaskContext,
    TaskResultHandler,
    TaskRuntime,
    TaskRuntimeError,
    TaskSettings,
    TaskSpec,
)
from mcp_task_runtime.core.json import JSONObject, dump_json
from mcp_task_runtime.core.types import TaskRequest
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from mcp_task_runtime.wire.answers import check_answer
from tests.support.patience import PATIENCE

EXAMPLES = 1_000 if os.environ.get("MCP_TASK_RUNTIME_PROFILE") == "long" else 150
FORM: JSONObject = {"type": "object", "properties": {"a": {"type": "string"}}}
CHECK = partial(check_answer, max_bytes=1_000_000)
SETTINGS = TaskSettings(shutdown_grace=0, max_polls_per_second=None, max_stored_tasks_per_owner=None, retention_ms=0)


class Client:
    """A client that is reached by the task's questions only."""

    client_capabilities: JSONObject = {"elicitation": {"form": {}, "url": {}}, "sampling": {}}  # noqa: RUF012
    can_send_request = False

    async def send_notification(self, method: str, params: JSONObject) -> None:
        dump_json(params)

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        raise AssertionError


def texts() -> st.SearchStrategy[str]:
    odd = st.sampled_from(["", "\0", "\ud800", "\udcff.txt", "a" * 2_000, "\uffff", "{}", "\\u0000"])
    return odd | st.text(st.characters(exclude_categories=()), max_size=12)


def deep(levels: int) -> Any:
    value: Any = "leaf"
    for _ in range(levels):
        value = {"a": value}
    return value


def values() -> st.SearchStrategy[Any]:
    """Return what work may return in an object: JSON, what only looks like it, and what is none."""
    odd = st.sampled_from([2**53 + 1, 10**400, float("nan"), float("-inf"), -0.0, b"\xff", {1, 2}, object()])
    nested = st.sampled_from([190, 194, 199, 200, 210, 300, 2_000]).map(deep)
    huge = st.integers(4_298, 4_302).map(lambda digits: 10**digits)
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | texts() | odd | nested | huge,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3),
        max_leaves=5,
    )


DOORS = st.one_of(
    st.tuples(
        st.sampled_from(["status", "progress", "message", "question", "error", "protocol error", "fail"]), texts()
    ),
    st.tuples(st.sampled_from(["name", "owner", "id"]), texts()),
    st.tuples(st.sampled_from(["result", "complete", "answer", "data", "arguments", "schema"]), values()),
)


@dataclass
class World:
    """A runtime over one store, with a task that runs as long as it."""

    runtime: TaskRuntime
    handler: TaskResultHandler
    bystander: str = ""

    def context(self, execution: Execution[Any]) -> ServerTaskContext:
        assert execution.record is not None
        return ServerTaskContext(
            task=execution.record.task,
            store=self.runtime.store,
            session=Client(),
            queue=self.runtime.queue,
            handler=self.handler,
            execution=execution,
        )

    async def stand_by(self, execution: Execution[JSONObject]) -> JSONObject:
        answer = await self.context(execution).elicit("still there?", FORM)
        return {"content": answer.content}

    async def work(self, door: str, value: Any, execution: Execution[Any]) -> Any:
        context = self.context(execution)
        match door:
            case "status":
                await context.update_status(value)
            case "progress":
                await context.report_progress(0.5, 1.0, value)
            case "question" | "schema" | "answer":
                schema = {"type": "object", "properties": {"a": value}} if door == "schema" else FORM
                answer = await context.elicit(value if door == "question" else "?", schema)
                return {"action": answer.action}
            case "error":
                raise RuntimeError(value)
            case "protocol error":
                raise ProtocolError(-32050, value)
            case "data":
                raise ProtocolError(-32050, "no", {"value": value})
            case "fail":
                await context.fail(value)
            case "complete":
                await context.complete({"value": value})
            case "result":
                return {"value": value}
            case "message":
                await context.update_status("x", notify=True)
                await context.create_message(
                    [{"role": "user", "content": {"type": "text", "text": value}}], max_tokens=1
                )
        return {}

    async def put(self, door: str, value: Any) -> None:
        """Put a value through a door; its task ends, or is never made."""
        if door == "id":
            with pytest.raises(TaskRuntimeError):
                await self.runtime.get(value, owner=None)
            return
        owner = value if door == "owner" else None
        try:
            request = TaskRequest(
                name=value if door == "name" else "tool",
                arguments_json=dump_json({"value": value}) if door == "arguments" else "{}",
            )
            work = partial(self.work, door, value)
            record = await self.runtime.submit(TaskSpec(owner=owner, ttl_ms=60_000, request=request), work)
        except (ValueError, TaskRuntimeError):
            return
        async with anyio.create_task_group() as group:
            group.start_soon(self.answer, record.task_id, owner, value if door == "answer" else "yes")
            outcome = await self.runtime.result(record.task_id, owner=owner)
            group.cancel_scope.cancel()
        assert outcome.status in ("completed", "failed")
        view = await self.runtime.get(record.task_id, owner=owner)
        assert view.record.outcome == outcome
        if door == "result" and outcome.status == "completed":
            assert outcome.payload_json == dump_json({"value": value})
        await self.runtime.store.delete_task(record.task_id)

    async def answer(self, task_id: str, owner: str | None, value: Any) -> None:
        """Answer what a task asks: with the value, and where that is refused, with what is an answer."""
        with self.runtime.followers.follow(task_id, after=0) as follower:
            while True:
                record = await follower.changed()
                view = await self.runtime.get(task_id, owner=owner)
                for question in view.questions:
                    answers: list[Any] = [value, {"action": "accept", "content": {"a": value}}, {"action": "decline"}]
                    if question.method == "sampling/createMessage":
                        answers = [{"role": "assistant", "content": {"type": "text", "text": "x"}, "model": "m"}]
                    for given_answer in answers:
                        try:
                            await self.runtime.answer(
                                task_id, {question.key or "": given_answer}, owner=owner, check=CHECK
                            )
                            break
                        except (ValueError, TaskRuntimeError):
                            continue
                if record.outcome is not None:
                    return

    async def check_bystander(self) -> None:
        view = await self.runtime.get(self.bystander, owner="bystander")
        assert (view.record.status, len(view.questions)) == ("input_required", 1)


@asynccontextmanager
async def open_world(path: Path | None) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        store: Any = InMemoryTaskStore() if path is None else SQLiteTaskStore(path, synchronous="normal")
        await stack.enter_async_context(store)
        runtime = await stack.enter_async_context(TaskRuntime(store, settings=SETTINGS))
        world = World(runtime, TaskResultHandler(store, store.message_queue, settings=SETTINGS))
        spec = TaskSpec(owner="bystander")
        world.bystander = (await runtime.submit(spec, world.stand_by)).task_id
        with anyio.fail_after(PATIENCE):
            while not (await runtime.get(world.bystander, owner="bystander")).questions:
                await anyio.lowlevel.checkpoint()
        yield world
        view = await runtime.get(world.bystander, owner="bystander")
        accept = {"action": "accept", "content": {"a": "yes"}}
        await runtime.answer(world.bystander, {view.questions[0].key or "": accept}, owner="bystander")
        assert await runtime.result(world.bystander, owner="bystander") == Outcome.completed({"content": {"a": "yes"}})


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[BlockingPortal, World]]:
    path = None if request.param == "memory" else tmp_path_factory.mktemp("doors") / "tasks.db"
    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(open_world(path)) as world:
        yield portal, world


@given(st.lists(DOORS, min_size=1, max_size=4))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_value_at_any_door_touches_another_task(
    world: tuple[BlockingPortal, World], chosen: list[tuple[str, Any]]
) -> None:
    portal, open_one = world

    async def put_all() -> None:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for door, value in chosen:
                    group.start_soon(open_one.put, door, value)
            await open_one.check_bystander()

    portal.call(put_all)
