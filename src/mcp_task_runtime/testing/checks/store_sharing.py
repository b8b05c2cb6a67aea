"""The laws of a `TaskStore` that is reopened, or shared by processes, as named checks."""

from __future__ import annotations

from functools import partial
from typing import Final

from mcp_task_runtime.core.store import TaskSharing, TaskStore
from mcp_task_runtime.core.types import NewTask, TaskRecord, TaskRequest
from mcp_task_runtime.errors import InvalidTransitionError, TaskNotFoundError
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench, ended_task, read_task, require_gone

__all__ = ["STORE_SHARING_CHECKS"]

STORE_SHARING_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(STORE_SHARING_CHECKS)


@_check("L12", needs=["durable"])
async def a_reopened_store_has_every_task_as_it_was(bench: StoreBench) -> None:
    request = TaskRequest("tools/call", "report", '{"topic":"rain"}', "token")
    async with bench.open_again() as first:
        live = await first.create_task(
            NewTask(ttl_ms=100_000, owner="ada", request=request, client_capabilities_json='{"sampling":{}}')
        )
        live = await first.update_task(live.task_id, status="input_required", status_message="asked")
        ended = [await ended_task(first, outcome, owner="ada", retention_ms=5_000) for outcome in OUTCOMES]
        dying = await first.create_task(NewTask(ttl_ms=1_000, owner="ada"))
        deleted = await first.create_task(NewTask(ttl_ms=None, owner="ada"))
        await first.delete_task(deleted.task_id)
    bench.clock.advance(1)
    async with bench.open_again() as second:
        for record in (live, *ended):
            require(await second.get_task(record.task_id) == record, f"{record} is not what it was after reopening")
            require(await second.get_result(record.task_id) == record.outcome, "an outcome is lost after reopening")
        await require_gone(second, dying.task_id, "expired while the store was closed")
        await require_gone(second, deleted.task_id, "was deleted before the store was closed")
        changed = await second.update_task(live.task_id, status="working")
        require(changed.revision == live.revision + 1, "the revision does not go on after reopening")
        late = second.finish_task(ended[0].task_id, OUTCOMES[2])
        await require_raises(InvalidTransitionError, late, "finishing an ended task after reopening")


@_check("L12", needs=["durable", "listing"])
async def a_cursor_outlives_the_store_that_made_it(bench: StoreBench) -> None:
    async with bench.open_again() as first:
        ids = [(await first.create_task(NewTask(ttl_ms=None, owner="ada"))).task_id for _ in range(4)]
        cursor = (await first.list_tasks(owner="ada", limit=2)).next_cursor
    async with bench.open_again() as second:
        page = await second.list_tasks(owner="ada", cursor=cursor, limit=2)
        require([r.task_id for r in page.records] == ids[2:], "a cursor leads elsewhere after reopening")


@_check("L12", needs=["shared"])
async def a_store_that_processes_share_does_not_say_otherwise(bench: StoreBench) -> None:
    async with bench.open_again() as other:
        for store in (bench.subject, other):
            require(
                not isinstance(store, TaskSharing) or store.is_shared,
                "a store that processes share says with `is_shared` that one runtime alone uses it:"
                " that runtime would not notice lost processes, nor what others change",
            )


@_check("L3", needs=["shared"])
async def a_waiter_is_woken_by_another_process(bench: StoreBench) -> None:
    store = bench.subject
    async with bench.open_again() as other:
        created = await store.create_task(NewTask(ttl_ms=60_000))
        require(await other.get_task(created.task_id) == created, "another process does not find a new task")
        for what, change in (
            ("an update", partial(other.update_task, created.task_id, status_message="from afar")),
            ("the end", partial(other.finish_task, created.task_id, OUTCOMES[0])),
        ):
            before = await read_task(other, created.task_id)
            wait = partial(store.wait_for_update, created.task_id, after=before.revision)
            async with bench.waiting(wait, wait) as waiters:
                changed = await change()
                for waiter in waiters:
                    woken = await bench.within(waiter.wait(), f"a waiter was not woken by {what} in another process")
                    require(woken == changed, "a waiter woke with another state than the one stored")
        ended = await read_task(store, created.task_id)
        wait = partial(store.wait_for_update, created.task_id, after=ended.revision)
        async with bench.waiting(wait, wait) as waiters:
            await other.delete_task(created.task_id)
            for waiter in waiters:
                gone = bench.within(waiter.wait(), "a waiter was not woken by a deletion in another process")
                await require_raises(TaskNotFoundError, gone, "waiting for a task that another process deletes")


@_check("L2", "L1", needs=["shared"])
async def of_many_processes_that_finish_a_task_exactly_one_wins(bench: StoreBench) -> None:
    store = bench.subject
    async with bench.open_again() as other:
        for _ in range(5):
            task_id = (await store.create_task(NewTask(ttl_ms=None))).task_id
            racers = [
                partial(side.finish_task, task_id, OUTCOMES[number]) for number in range(3) for side in (store, other)
            ]
            won = [ending for ending in await bench.race(*racers) if isinstance(ending, TaskRecord)]
            require(len(won) == 1, f"{len(won)} of 6 callers in two processes won, not one")
            for side in (store, other):
                require(await side.get_task(task_id) == won[0], "a process does not see what the winner stored")
            task_id = (await store.create_task(NewTask(ttl_ms=None))).task_id
            updates = [
                partial(side.update_task, task_id, status_message=f"{number}", if_revision=1)
                for number in range(3)
                for side in (store, other)
            ]
            won = [ending for ending in await bench.race(*updates) if isinstance(ending, TaskRecord)]
            require(len(won) == 1, f"{len(won)} of 6 updates at one revision in two processes were accepted, not one")
