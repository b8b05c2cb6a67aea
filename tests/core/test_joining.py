"""Joining: a repeated call gets the task of the first one, and its work is not done twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime import (
    Execution,
    InMemoryTaskStore,
    LimitExceededError,
    Outcome,
    TaskRecord,
    TaskRuntime,
    TaskSettings,
    TaskSpec,
    WorkQueue,
)
from mcp_task_runtime.adapters._options import TaskOptions
from mcp_task_runtime.adapters._task_call import with_options
from mcp_task_runtime.core.types import TaskRequest
from tests.core.leased_store import SETTINGS, open_cluster
from tests.core.worlds import NOTHING, open_world
from tests.support.event_loops import virtual_time

__all__ = ["virtual_time"]  # a fixture


def spec(key: str | None, **options: Any) -> TaskSpec:
    return TaskSpec(request=TaskRequest(name="tool"), join_key=key, **options)


class Work:
    """Work that waits to be let go, and how often it ran."""

    def __init__(self) -> None:
        self.runs = 0
        self.go_on = anyio.Event()

    async def __call__(self, execution: Execution[Outcome]) -> Outcome:
        self.runs += 1
        await self.go_on.wait()
        return Outcome.completed({"run": self.runs})


async def test_a_repeated_call_gets_the_task_whose_work_runs_and_runs_none() -> None:
    async with open_world() as world:
        work = Work()
        world.runtime.register("tool", work)
        first = await world.runtime.submit(spec("key"))
        second = await world.runtime.submit(spec("key"))
        other = await world.runtime.submit(spec("another"))
        plain = await world.runtime.submit(spec(None))
        assert first.task_id == second.task_id
        assert len({first.task_id, other.task_id, plain.task_id}) == 3
        await anyio.wait_all_tasks_blocked()
        assert work.runs == 3
        assert world.runtime.statistics().live_tasks == 3
        work.go_on.set()
        await world.runtime.result(second.task_id, owner=None)
        assert (await world.runtime.submit(spec("key"))).task_id == first.task_id, "it has just ended"
        world.clock.advance(61)
        assert (await world.runtime.submit(spec("key"))).task_id != first.task_id
        await world.until_idle()
        assert work.runs == 4


async def test_a_cancelled_task_is_not_joined() -> None:
    async with open_world() as world:
        work = Work()
        world.runtime.register("tool", work)
        first = await world.runtime.submit(spec("key"))
        await world.runtime.cancel(first.task_id, owner=None)
        assert (await world.runtime.submit(spec("key"))).task_id != first.task_id


async def test_a_call_that_would_become_a_task_joins_and_its_work_stops() -> None:
    async with open_world() as world:
        work, begun, cleaned = Work(), [], []
        world.runtime.register("tool", work)
        first = await world.runtime.submit(spec("key"))

        async def call(execution: Execution[Any]) -> dict[str, Any]:
            try:
                await execution.begin(spec("key"))
                begun.append(execution)
                return {}
            finally:
                cleaned.append(execution)

        joined = await world.runtime.run(call)
        assert isinstance(joined, TaskRecord)
        assert joined.task_id == first.task_id
        while world.runtime.statistics().calls > 1:
            await anyio.lowlevel.checkpoint()
        assert (len(begun), len(cleaned)) == (0, 1)
        assert (await world.runtime.get(first.task_id, owner=None)).record.status == "working"
        work.go_on.set()
        assert (await world.runtime.result(first.task_id, owner=None)).result == {"run": 1}


async def test_many_calls_at_once_make_one_task() -> None:
    async with open_cluster() as (cluster, (a, b)):
        work = Work()
        ids: list[str] = []

        async def submit(runtime: Any) -> None:
            ids.append((await runtime.submit(spec("key"))).task_id)

        for process in (a, b):
            process.runtime.register("tool", work)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                for process in (a, b):
                    group.start_soon(submit, process.runtime)
        await cluster.settle()
        assert len(set(ids)) == 1
        assert work.runs == 1
        work.go_on.set()
        assert (await cluster.until_ended(ids[0])).status == "completed"


async def test_a_joined_call_takes_no_place_in_a_queue() -> None:
    async with open_world() as world:
        work, queue = Work(), WorkQueue("reports", 1, max_queued=1)
        world.runtime.register("tool", work, queue=queue)
        await world.runtime.submit(spec("key", queue=queue))
        await anyio.wait_all_tasks_blocked()
        for _ in range(5):
            await world.runtime.submit(spec("key", queue=queue))
        await world.runtime.submit(spec("other", queue=queue))
        assert world.runtime.statistics().queued == 1
        with pytest.raises(LimitExceededError):
            await world.runtime.submit(spec("third", queue=queue))
        work.go_on.set()
        await world.until_idle()
        assert world.kept() == NOTHING


async def test_a_repeated_call_joins_where_the_queue_is_full() -> None:
    async with open_world() as world:
        work, queue = Work(), WorkQueue("reports", 1, max_queued=0)
        world.runtime.register("tool", work, queue=queue)
        first = await world.runtime.submit(spec("key", queue=queue))
        await anyio.wait_all_tasks_blocked()

        async def call(execution: Execution[Any]) -> None:
            await execution.begin(spec("key", queue=queue))

        assert (await world.runtime.submit(spec("key", queue=queue))).task_id == first.task_id
        joined = await world.runtime.run(call)
        assert isinstance(joined, TaskRecord)
        assert joined.task_id == first.task_id
        for key in ("other", None):
            with pytest.raises(LimitExceededError, match="tasks queued for 'reports'"):
                await world.runtime.submit(spec(key, queue=queue))
        assert world.runtime.statistics().queued == 0
        assert (world.live_tasks(), work.runs) == (1, 1)
        work.go_on.set()
        await world.until_idle()
        other = await world.runtime.submit(spec("other", queue=queue))
        assert other.task_id != first.task_id, "it was refused before, and nothing is left of that"
        await world.until_idle()
        assert work.runs == 2
        assert world.kept() == NOTHING


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"max_tasks_per_owner": 1}, "tasks at once"),
        ({"max_stored_tasks_per_owner": 1}, "stored tasks"),
        ({"max_stored_bytes_per_owner": 10}, "bytes of stored tasks"),
    ],
    ids=["live", "stored", "bytes"],
)
async def test_a_repeated_call_joins_at_its_owners_limit(limits: dict[str, Any], named: str) -> None:
    async with open_world(settings=TaskSettings(shutdown_grace=0, **limits)) as world:
        work = Work()
        request = TaskRequest(name="tool", arguments_json='{"a":1}')
        world.runtime.register("tool", work)
        first = await world.runtime.submit(TaskSpec(owner="ada", request=request, join_key="key"))
        again = await world.runtime.submit(TaskSpec(owner="ada", request=request, join_key="key"))
        assert again.task_id == first.task_id
        for key in ("other", None):
            with pytest.raises(LimitExceededError, match=named) as refused:
                await world.runtime.submit(TaskSpec(owner="ada", request=request, join_key=key))
            assert refused.value.maximum == next(iter(limits.values()))
        assert world.live_tasks() == 1
        bob = await world.runtime.submit(TaskSpec(owner="bob", request=request, join_key="key of bob"))
        assert bob.task_id != first.task_id
        work.go_on.set()
        await world.until_idle()
        assert work.runs == 2


async def test_a_repeated_call_joins_at_the_limit_of_all_processes() -> None:
    limited = replace(SETTINGS, max_tasks_per_owner=1)
    async with open_cluster(settings=limited) as (cluster, (a, b)):
        work = Work()
        for process in (a, b):
            process.runtime.register("tool", work)
        first = await a.runtime.submit(spec("key"))
        for process in (a, b):
            assert (await process.runtime.submit(spec("key"))).task_id == first.task_id
            with pytest.raises(LimitExceededError, match="tasks at once"):
                await process.runtime.submit(spec("other"))
        work.go_on.set()
        assert (await cluster.until_ended(first.task_id)).status == "completed"
        assert work.runs == 1


async def test_a_store_without_quotas_is_not_asked_at_a_limit() -> None:
    """It could only create the task."""
    store = _WithoutQuotas()
    runtime = TaskRuntime(store, settings=TaskSettings(shutdown_grace=0, max_tasks_per_owner=1))
    async with runtime:
        runtime.register("tool", Work())
        await runtime.submit(spec("key"))
        for key in ("key", "other"):
            with pytest.raises(LimitExceededError, match="tasks at once"):
                await runtime.submit(spec(key))
        assert store.statistics().live == 1


class _WithoutQuotas(InMemoryTaskStore):
    count_live_tasks: Any = None


async def test_how_long_an_ended_task_is_joined_is_a_setting() -> None:
    async with open_world(settings=TaskSettings(shutdown_grace=0, join_ended_ms=0)) as world:
        work = Work()
        work.go_on.set()
        world.runtime.register("tool", work)
        first = await world.runtime.submit(spec("key"))
        await world.runtime.result(first.task_id, owner=None)
        assert (await world.runtime.submit(spec("key"))).task_id != first.task_id
    with pytest.raises(ValueError, match="join_ended_ms"):
        TaskSettings(join_ended_ms=-1)


# --- keys ---------------------------------------------------------------------------------------------------------


def key_of(
    options: TaskOptions, owner: str | None = "ada", name: str = "tool", arguments: str = '{"a":1,"b":[2]}'
) -> Any:
    made = TaskSpec(owner=owner, request=TaskRequest(name=name, arguments_json=arguments))
    return with_options(made, options).join_key


def test_the_key_of_a_call_has_owner_tool_and_arguments_in_any_order() -> None:
    options = TaskOptions(join=True)
    key = key_of(options)
    assert key == key_of(options, arguments='{ "b": [2], "a": 1 }')
    others = [
        key_of(options, owner="eve"),
        key_of(options, name="other"),
        key_of(options, arguments='{"a":1,"b":[3]}'),
        key_of(TaskOptions(join=lambda arguments: '{"a": 1, "b": [2]}')),
    ]
    assert len({key, *others}) == 5
    assert key_of(TaskOptions()) is None


def test_without_a_principal_only_a_key_of_the_author_joins() -> None:
    assert key_of(TaskOptions(join=True), owner=None) is None
    by_key = TaskOptions(join=lambda arguments: arguments.get("key"))
    assert key_of(by_key, owner=None, arguments='{"key":"x"}') == key_of(
        by_key, owner=None, arguments='{"key":"x","more":1}'
    )
    assert key_of(by_key, owner=None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"join": "yes"}, "join must be True, False or a function"),
        ({"join": True, "promote_after": 1}, "without promote"),
    ],
)
def test_options_of_nonsense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskOptions(**options)
