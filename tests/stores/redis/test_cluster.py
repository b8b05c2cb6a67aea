"""A cluster."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from functools import partial
from secrets import token_hex
from typing import Any, cast

import anyio
import coredis
import coredis.exceptions
import pytest

from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.sealed import SEALED_JSON
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import Fence, NewTask, TaskFilter, TaskRequest
from mcp_task_runtime.errors import LeaseLostError, StoreUnavailableError, TaskExistsError
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.stores.redis._work import WaitingWork
from mcp_task_runtime.testing.checks.bench import Check
from mcp_task_runtime.testing.checks.questions import QUESTION_CHECKS, TaskBackend
from mcp_task_runtime.testing.checks.quotas import QUOTA_CHECKS
from mcp_task_runtime.testing.checks.search import SEARCH_CHECKS
from mcp_task_runtime.testing.checks.store import ABILITY_CHECKS, STORE_CHECKS
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import DONE, QUESTION, YES, eventually, waiting
from tests.stores.redis_server import Nodes, RedisServer, running_cluster
from tests.support.patience import PATIENCE


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with running_cluster() as cluster:
        yield cluster


class ClusterOpener:
    """Opens at the kit's locations on a cluster."""

    def __init__(self, cluster: Nodes) -> None:
        self.cluster = cluster
        self.locations: set[str] = set()

    async def count_items(self, kept: object) -> int:
        return sum(self.cluster.count_items(location) for location in self.locations)

    @asynccontextmanager
    async def store(self, clock: FakeClock, location: str) -> AsyncIterator[TaskStore]:
        async with self.backend(clock, location) as backend:
            yield backend.store

    @asynccontextmanager
    async def queue(self, clock: FakeClock, location: str) -> AsyncIterator[TaskMessageQueue]:
        async with self.backend(clock, location) as backend:
            yield backend.queue

    @asynccontextmanager
    async def backend(self, clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
        self.locations.add(location)
        async with self.client() as client, RedisTaskStore(client, clock=clock, prefix=location) as store:
            yield TaskBackend(store, store.message_queue)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[coredis.RedisCluster[bytes]]:
        client = coredis.RedisCluster(self.cluster.nodes[0].host, self.cluster.nodes[0].port)
        errors = client.connection_pool.cluster_layout._error_stream  # coredis leaves it open
        async with errors[0], errors[1], client:
            yield client


@pytest.fixture
def on_cluster(cluster: Nodes) -> ClusterOpener:
    return ClusterOpener(cluster)


# There the search index and the counts of live tasks follow the tasks without being waited for, and entries of
# leases go when they are read.
LATER_ON_A_CLUSTER = {*(check.name for check in [*SEARCH_CHECKS, *QUOTA_CHECKS]), "steps_go_with_their_task"} - {
    "an_owner_has_no_more_live_tasks_than_it_may_have"
}
ON_A_CLUSTER = [check for check in (*STORE_CHECKS, *ABILITY_CHECKS) if check.name not in LATER_ON_A_CLUSTER]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # what the loop can change shows on a single server
@pytest.mark.parametrize("check", ON_A_CLUSTER, ids=str)
async def test_the_store_keeps_the_laws_on_a_cluster(check: Check[TaskStore], on_cluster: ClusterOpener) -> None:
    await check.run(on_cluster.store, footprint=on_cluster.count_items)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("check", QUESTION_CHECKS, ids=str)
async def test_store_and_queue_keep_the_laws_on_a_cluster(check: Check[TaskBackend], on_cluster: ClusterOpener) -> None:
    await check.run(on_cluster.backend, footprint=on_cluster.count_items)


async def test_leases_work_on_a_cluster(on_cluster: ClusterOpener, clock: FakeClock) -> None:
    async with on_cluster.backend(clock, f"leases_{token_hex(4)}") as backend:
        store = backend.store
        assert isinstance(store, RedisTaskStore)
        ids = [(await store.create_task(NewTask(ttl_ms=None, worker="a", lease_ms=1_000))).task_id for _ in range(3)]
        assert await store.renew_leases("a", ids[:2], lease_ms=5_000) == set(ids[:2])
        clock.advance(1)
        assert [record.task_id for record in await store.list_lapsed()] == [ids[2]]
        claimed = await store.claim_task(ids[2], worker="b", lease_ms=1_000)
        assert claimed is not None
        await store.finish_task(ids[1], DONE)
        await store.drop_leases("a", ids, lapse=True)
        with anyio.fail_after(PATIENCE):
            while [lapsed.task_id for lapsed in await store.list_lapsed()] != [ids[0]]:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.01)
        with pytest.raises(TaskExistsError):
            await store.create_task(NewTask(ttl_ms=None, task_id=ids[0], owner="eve"))
        assert (await store.list_tasks(owner="eve")).records == ()


async def test_a_task_is_lost_whose_worker_ended_before_it_moved_its_lease(
    on_cluster: ClusterOpener, clock: FakeClock
) -> None:
    """On a cluster a claim and the move are two steps; a worker that looks for work makes up for the second."""
    prefix = f"leases_{token_hex(4)}"
    async with on_cluster.client() as client, RedisTaskStore(client, clock=clock, prefix=prefix) as store:
        request = TaskRequest(name="tool")
        record = await store.create_task(NewTask(ttl_ms=None, request=request, worker="", lease_ms=0))
        await client.hset(f"{prefix}:{{{record.task_id}}}:task", {"worker": "lost"})
        waits = await store.create_task(NewTask(ttl_ms=None, request=request, worker="", lease_ms=0))
        assert await store.wait_for_work(["tool"], limit=10) == (waits,)
        (lost,) = await store.list_lost([], limit=10)
        assert lost.task_id == record.task_id


async def test_a_claim_whose_second_step_is_late_hides_no_task_that_was_put_back_meanwhile(
    on_cluster: ClusterOpener, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster a claim and the move are two steps: a worker may stand still in between, and lose its lease."""
    reached, go_on = anyio.Event(), anyio.Event()
    leave = WaitingWork.leave_to_worker

    async def late(work: WaitingWork, *args: Any) -> None:
        reached.set()
        await go_on.wait()
        await leave(work, *args)

    prefix = f"late_{token_hex(4)}"
    request = TaskRequest(name="tool", rerunnable=True)
    async with on_cluster.client() as client, RedisTaskStore(client, clock=clock, prefix=prefix) as slow:
        async with RedisTaskStore(client, clock=clock, prefix=prefix) as store:
            record = await store.create_task(NewTask(ttl_ms=None, request=request, worker="", lease_ms=0))
            clock.advance(1)
            assert await store.wait_for_work(["tool"], limit=10) == (record,), "it looks no more for older tasks"
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    with monkeypatch.context() as patch:
                        patch.setattr(WaitingWork, "leave_to_worker", late)
                        group.start_soon(partial(slow.claim_task, record.task_id, worker="slow", lease_ms=1_000))
                        await reached.wait()
                    clock.advance(2)
                    assert await store.claim_task(record.task_id, worker="", lease_ms=0) is not None
                    go_on.set()
                (waiting,) = await store.wait_for_work(["tool"], limit=10)
            assert waiting.task_id == record.task_id
            (listed,) = await store.list_lost(["tool"], limit=10)
            assert listed.task_id == record.task_id
            assert await store.list_lost([], limit=10) == ()


async def test_tasks_are_taken_and_their_ends_told_on_a_cluster(on_cluster: ClusterOpener, clock: FakeClock) -> None:
    """Tasks are in other slots than what says that they wait."""
    request = TaskRequest(name="tool")
    sealed = TaskRequest(name="tool", arguments_json=SEALED_JSON + 'x"}')
    async with on_cluster.store(clock, "taking") as first, on_cluster.store(clock, "taking") as second:
        home, worker = cast(RedisTaskStore, first), cast(RedisTaskStore, second)
        for each in (sealed, sealed, sealed, request, request):
            await home.create_task(NewTask(ttl_ms=None, request=each, worker="", lease_ms=0))
            clock.advance(1)
        heard: list[str] = []
        with anyio.fail_after(PATIENCE):
            taken = await worker.take_work(["tool"], worker="w", lease_ms=60_000, limit=2)
            assert [record.request for record in taken] == [request, request]
            for record in taken:
                home.watch_end(record.task_id, partial(heard.append, record.task_id))
                await worker.finish_task(record.task_id, DONE)
            await eventually(lambda: len(heard) == 2)
            carried = await home.create_task(NewTask(ttl_ms=None, request=request, worker="", lease_ms=60_000))
            assert await worker.take_task(carried.task_id, ["other"], worker="w", lease_ms=1) is None
            assert await worker.take_task(carried.task_id, ["other", "tool"], worker="w", lease_ms=1) is not None


async def test_questions_steps_and_the_history_work_on_a_cluster(on_cluster: ClusterOpener, clock: FakeClock) -> None:
    async with on_cluster.backend(clock, f"abilities_{token_hex(4)}") as backend:
        store = backend.store
        assert isinstance(store, RedisTaskStore)
        record = await store.create_task(NewTask(ttl_ms=60_000, worker="a", owner="ada"))
        assert record.lease is not None
        task_id, fence = record.task_id, record.lease.fence
        asked = await store.ask(task_id, QUESTION, fence=fence)
        assert asked is not None
        assert asked.status == "input_required"
        view = await store.get_view(task_id)
        assert view is not None
        assert view.questions == (QUESTION,)
        assert await store.answer_all(task_id, {"k": YES}) == {"k"}
        assert await store.message_queue.wait_for_answer(task_id, "k") == YES
        assert await store.record_step(task_id, "s", "1", fence=fence) == "1"
        assert await store.read_steps(task_id) == {"s": "1"}
        with pytest.raises(LeaseLostError):
            await store.update_task(task_id, status_message="late", fence=Fence("b", 1))
        longer = await store.update_task(task_id, ttl_ms=120_000, status_message="on", fence=fence)
        clock.advance(61)
        assert (await store.list_tasks(owner="ada")).records == (longer,)
        assert await store.list_lapsed() == (longer,)
        await store.finish_task(task_id, DONE, fence=fence)
        kinds = [event.kind for event in await store.get_history(task_id)]
        assert kinds == ["created", "asked", "answered", "status", "completed"]


async def test_searching_works_on_a_cluster(on_cluster: ClusterOpener, clock: FakeClock) -> None:
    """The index follows the tasks without being waited for."""
    async with on_cluster.backend(clock, f"search_{token_hex(4)}") as backend:
        store = backend.store
        assert isinstance(store, RedisTaskStore)
        for number in range(12):
            name, owner = ("a", "b c")[number % 2], ("ada", None, "eve")[number % 3]
            request = TaskRequest(name=name)
            await store.create_task(NewTask(ttl_ms=60_000, task_id=f"é{number:02}", owner=owner, request=request))
            clock.advance(1)
        await store.finish_task("é03", DONE)
        await store.ask("é04", QUESTION)
        await store.delete_task("é05")

        async def ids(**wanted: Any) -> list[str]:
            page = await store.search_tasks(TaskFilter(**wanted), limit=20)
            return [record.task_id for record in page.records]

        with anyio.fail_after(PATIENCE):
            while not (  # noqa: ASYNC110 - the index follows without telling
                await ids() == [f"é{number:02}" for number in range(11, -1, -1) if number != 5]
                and await ids(statuses=frozenset(["completed"])) == ["é03"]
                and await ids(statuses=frozenset(["input_required"]), names=frozenset(["a"])) == ["é04"]
                and await ids(owners=frozenset(["eve"])) == ["é11", "é08", "é02"]
                and await ids(id_prefix="é1") == ["é11", "é10"]
                and (await store.count_tasks()).by_status_and_name
                == {("working", "a"): 5, ("working", "b c"): 4, ("completed", "b c"): 1, ("input_required", "a"): 1}
            ):
                await anyio.sleep(0.01)
        assert (await store.count_tasks()).oldest_input_required == clock.now() - timedelta(seconds=8)


@asynccontextmanager
async def store_on(cluster: Nodes, prefix: str, **options: Any) -> AsyncIterator[RedisTaskStore]:
    """Open a store of the system's clock on a cluster."""
    opener = ClusterOpener(cluster)
    async with opener.client() as client, RedisTaskStore(client, prefix=prefix, **options) as store:
        yield store


async def task_at_each(store: RedisTaskStore, cluster: Nodes, prefix: str) -> list[str]:
    """Return a task for each node, which keeps it."""
    found: dict[RedisServer, str] = {}
    while len(found) < len(cluster.nodes):
        task_id = (await store.create_task(NewTask(ttl_ms=None))).task_id
        found[cluster.node_of(f"{prefix}:{{{task_id}}}:task")] = task_id
    return [found[node] for node in cluster.nodes]


async def test_who_waits_on_a_cluster_is_woken_whichever_node_has_the_task(cluster: Nodes, prefix: str) -> None:
    """L3: the message comes from the task's node, and the subscription is at any one."""
    async with store_on(cluster, prefix) as store, store_on(cluster, prefix) as other:
        tasks = await task_at_each(store, cluster, prefix)
        async with waiting(*(partial(store.wait_for_update, task_id, after=1) for task_id in tasks)) as waiters:
            await eventually(lambda: store.statistics().waiters == len(tasks))
            for task_id, waiter in zip(tasks, waiters, strict=True):
                assert not waiter.done()
                await other.finish_task(task_id, DONE)
                with anyio.fail_after(PATIENCE):
                    assert (await waiter.wait()).status == "completed"


async def test_each_node_is_asked_what_endangers_tasks(cluster: Nodes, prefix: str) -> None:
    async with store_on(cluster, prefix) as store:
        found = {finding.subject: finding.level for finding in await store.diagnose()}
    assert found == {"schema": "ok", "server": "ok", "eviction": "ok", "persistence": "warning"}


# Where coredis cannot connect to a node, it leaves streams open, for the garbage collector to find.
left_by_coredis = pytest.mark.filterwarnings("ignore:Exception ignored in. .function MemoryObject")


@left_by_coredis
async def test_a_node_that_is_away_takes_its_own_tasks_along_and_no_others(prefix: str) -> None:
    """L12, L13: what it had acknowledged is there when it is back, and who waited meanwhile is woken."""
    with running_cluster(keeps=True) as cluster:
        async with (
            store_on(cluster, prefix, timeout=PATIENCE) as store,
            store_on(cluster, prefix, timeout=PATIENCE) as other,
            ClusterOpener(cluster).client() as client,
            aclosing(RedisTaskStore(client, prefix=prefix, timeout=1.0)) as hasty,
        ):
            tasks = await task_at_each(store, cluster, prefix)
            async with waiting(*(partial(store.wait_for_update, task_id, after=1) for task_id in tasks)) as waiters:
                await eventually(lambda: store.statistics().waiters == len(tasks))
                cluster.nodes[1].kill()
                with pytest.raises(StoreUnavailableError):
                    await hasty.get_task(tasks[1])
                for number in (0, 2):
                    await other.finish_task(tasks[number], DONE)
                    with anyio.fail_after(PATIENCE):
                        assert (await waiters[number].wait()).status == "completed"
                assert not waiters[1].done()
                cluster.nodes[1].start()
                with anyio.fail_after(PATIENCE):
                    await other.finish_task(tasks[1], DONE)
                    assert (await waiters[1].wait()).status == "completed"
    gc.collect()


@left_by_coredis
async def test_a_task_goes_on_while_its_slot_moves_to_another_node(prefix: str) -> None:
    """What is asked of the old node meanwhile is sent on, and happens once."""
    with running_cluster() as cluster:
        async with store_on(cluster, prefix) as store, store_on(cluster, prefix) as other:
            task_id = (await task_at_each(store, cluster, prefix))[0]
            await store.message_queue.enqueue(task_id, QUESTION)
            async with waiting(partial(store.message_queue.wait_for_answer, task_id, "k")) as (asker,):
                await anyio.sleep(0.1)
                cluster.move_slot_of(f"{prefix}:{{{task_id}}}:task")
                assert (await other.update_task(task_id, status_message="moved")).revision == 2
                assert await other.message_queue.answer(task_id, "k", YES)
                with anyio.fail_after(PATIENCE):
                    assert await asker.wait() == YES
            assert (await store.finish_task(task_id, DONE)).revision == 3
    gc.collect()
