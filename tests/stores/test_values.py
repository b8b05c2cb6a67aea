"""Any value through any door of any store: it is refused, or every reader gets it as it was (laws L4 and L13).

The limits one by one are checks of the kit (`STORE_VALUE_CHECKS`). Here Hypothesis draws doors and values, and the
four stores must agree on what they refuse. A second task lives all the while.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_task_runtime.core.json import MAX_DEPTH, load_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import Fence, NewTask, Outcome, Progress, TaskFilter, TaskRecord, TaskRequest
from mcp_task_runtime.stores.memory import InMemoryTaskStore

if TYPE_CHECKING:
    from tests.stores.postgres_server import PostgresServer
    from tests.stores.redis_server import RedisServer

EXAMPLES = 2_000 if os.environ.get("MCP_TASK_RUNTIME_PROFILE") == "long" else 150
FENCE = Fence("one", 1)
PLAIN = NewTask(ttl_ms=None, worker="one", request=TaskRequest(name="tool"))

# --- values -------------------------------------------------------------------------------------------


def texts() -> st.SearchStrategy[str]:
    """Return any text, lone surrogates and NUL included."""
    odd = st.sampled_from(
        ["", "\0", "a\0b", "\ud800", "\udcff.txt", "\x1a0000", "\x1a", "\\u0000", "\uffff", "e\u0301"]
    )
    return odd | st.text(st.characters(exclude_categories=()), max_size=12)


def values() -> st.SearchStrategy[Any]:
    """Return what `json.dumps` takes, JSON or not: NaN, huge integers, keys and strings of any text."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts()
    huge = st.sampled_from([2**53 + 1, -(2**63) - 1, 10**400, 5e-324, -0.0])
    return st.recursive(
        scalars | huge,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3),
        max_leaves=6,
    )


def json_texts() -> st.SearchStrategy[str]:
    """Return the text of JSON objects, and of what is none: raw and escaped, near the limits of depth and length."""
    objects = st.dictionaries(texts(), values(), max_size=3)
    deep = st.integers(MAX_DEPTH - 2, MAX_DEPTH + 2).map(lambda n: '{"a":' + "[" * (n - 1) + "]" * (n - 1) + "}")
    long = st.integers(4_298, 4_302).map(lambda n: '{"a":' + "9" * n + "}")
    return st.one_of(
        objects.map(lambda value: json.dumps(value, ensure_ascii=False)),
        objects.map(json.dumps),
        deep,
        long,
        st.sampled_from(["", "{", "null", "[]", "5", '"x"', '{"a":1,"a":2}', ' {"a" : 1} ', '{"a":1e400}', "\ufeff{}"]),
        texts(),
    )


def numbers() -> st.SearchStrategy[Any]:
    """Return any number."""
    edges = st.sampled_from(
        [2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, float("nan"), float("inf"), 0.1]
    )
    return edges | st.integers() | st.floats()


# --- doors --------------------------------------------------------------------------------------------


async def read(store: Any, task_id: str) -> TaskRecord:
    """Return a task, the same by every reader."""
    record: TaskRecord | None = await store.get_task(task_id)
    assert record is not None
    assert await store.wait_for_update(task_id, after=record.revision - 1) == record
    assert await store.get_result(task_id) == record.outcome
    view = await store.get_view(task_id)
    assert view is not None
    assert view.record == record
    assert record in (await store.list_tasks(owner=record.owner, limit=20)).records
    names = frozenset({record.request.name})
    assert record in (await store.search_tasks(TaskFilter(names=names), limit=20)).records
    assert (record.status, record.request.name) in (await store.count_tasks()).by_status_and_name
    for text in (record.request.arguments_json, record.request.caller_json, record.client_capabilities_json):
        load_json(text)
    return record


def created(name: str) -> Callable[[Any, Any], Awaitable[object]]:
    async def create(store: Any, value: Any) -> object:
        in_request = hasattr(PLAIN.request, name)
        new = (
            replace(PLAIN, request=replace(PLAIN.request, **{name: value}))
            if in_request
            else replace(PLAIN, **{name: value})
        )
        made = await store.create_task(new)
        record = await read(store, made.task_id)
        assert record == made
        if name == "worker":
            return record.lease and record.lease.worker
        return getattr(record.request if in_request else record.task if name == "task_id" else record, name)

    return create


async def update_message(store: Any, value: Any) -> object:
    made = await store.create_task(PLAIN)
    await store.update_task(made.task_id, status_message=value, fence=FENCE)
    history = await store.get_history(made.task_id)
    assert history[-1].text == value[:120]
    return (await read(store, made.task_id)).task.status_message


async def update_progress(store: Any, value: Any) -> object:
    made = await store.create_task(PLAIN)
    await store.update_task(made.task_id, progress=value)
    return (await read(store, made.task_id)).progress


async def finish(store: Any, value: Any) -> object:
    made = await store.create_task(PLAIN)
    await store.finish_task(made.task_id, value)
    return (await read(store, made.task_id)).outcome


async def ask(store: Any, value: Any) -> object:
    made = await store.create_task(PLAIN)
    await store.ask(made.task_id, value)
    await read(store, made.task_id)
    (question,) = await store.message_queue.outstanding(made.task_id)
    assert await store.message_queue.peek(made.task_id) == question
    assert (await store.get_view(made.task_id)).questions == (question,)
    assert await store.answer_all(made.task_id, {question.key: Answer.result({})}) == {question.key}
    return question


async def answer(store: Any, value: Any) -> object:
    made = await store.create_task(PLAIN)
    await store.ask(made.task_id, QueuedMessage.request("k", "m", {}))
    await store.answer_all(made.task_id, {"k": value})
    await read(store, made.task_id)
    return await store.message_queue.wait_for_answer(made.task_id, "k")


async def record_step(store: Any, value: Any) -> object:
    key, text = value
    made = await store.create_task(PLAIN)
    await store.record_step(made.task_id, key, text, fence=FENCE)
    return next(iter((await store.read_steps(made.task_id)).items()))


def drawn(door: Callable[[Any, Any], Awaitable[object]], *strategies: Any) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(door), st.one_of(*strategies))


DOORS = st.one_of(
    *[drawn(created(name), texts()) for name in ("task_id", "owner", "worker", "method", "name", "sealed_credentials")],
    *[drawn(created(name), json_texts()) for name in ("arguments_json", "caller_json", "client_capabilities_json")],
    drawn(created("progress_token"), texts(), st.integers(), st.sampled_from([2**63, 10**400])),
    drawn(created("max_attempts"), st.integers(), st.sampled_from([2**31, 2**63 - 1, 2**63])),
    drawn(update_message, texts()),
    drawn(update_progress, st.builds(Progress, numbers(), st.none() | numbers(), st.none() | texts())),
    drawn(
        finish,
        st.builds(Outcome, st.sampled_from(["completed", "failed"]), json_texts(), st.none() | texts()),
        st.builds(Outcome, st.just("cancelled"), st.none(), texts()),
    ),
    drawn(ask, st.builds(QueuedMessage, st.just("request"), texts(), json_texts(), texts())),
    drawn(answer, st.builds(Answer, st.sampled_from(["result", "error"]), json_texts())),
    drawn(record_step, st.tuples(texts(), json_texts())),
)
"""A door with a value for it."""


# --- four stores --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal("asyncio") as portal:
        yield portal


@pytest.fixture(scope="module")
def stores(
    portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory, redis: RedisServer, postgres: PostgresServer
) -> Iterator[dict[str, Any]]:
    """All four stores, open."""
    from tests.stores.worker_program import Place

    folder: Path = tmp_path_factory.mktemp("values")
    name = f"test_{token_hex(6)}"
    with ExitStack() as stack:
        stack.callback(redis.forget, name)
        stack.callback(postgres.drop_schema, name)
        opened: dict[str, Any] = {"memory": InMemoryTaskStore()}
        for place in (
            Place("sqlite", str(folder / "tasks.db")),
            Place("redis", redis.url, name),
            Place("postgres", postgres.url, name),
        ):
            opened[place.kind] = place.store()
        for store in opened.values():
            stack.enter_context(portal.wrap_async_context_manager(store))
        yield opened


async def through(store: Any, door: Callable[[Any, Any], Awaitable[object]], value: Any) -> bool:
    """Put a value through a door of a store; return whether it was accepted."""
    other = await store.create_task(replace(PLAIN, task_id="other"))
    try:
        got = await door(store, value)
    except ValueError:  # of the library's own or of Unicode; anything else fails the test
        return False
    else:
        assert got == value
        return True
    finally:
        assert await store.get_task("other") == other
        while (page := await store.search_tasks(TaskFilter(), limit=20)).records:
            for record in page.records:
                await store.delete_task(record.task_id)


@given(DOORS)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 150,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_value_is_refused_by_all_stores_or_given_back_by_every_reader_of_all(
    stores: dict[str, Any], portal: BlockingPortal, chosen: tuple[Any, Any]
) -> None:
    door, value = chosen
    taken = {name: portal.call(through, store, door, value) for name, store in stores.items()}
    assert len(set(taken.values())) == 1, taken
