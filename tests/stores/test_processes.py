"""One store, three processes: a server that starts, shows, answers and cancels, and two workers."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

import anyio
import pytest

from mcp_task_runtime import Outcome, TaskNotFoundError, TaskRuntime, TaskSettings
from mcp_task_runtime.core.json import JSONObject
from tests.stores.worker_program import Place, Store, all_at_once, answer, finish
from tests.stores.workers import Worker, open_worker_pool
from tests.support.patience import PATIENCE

Processes: TypeAlias = AbstractAsyncContextManager["World"]

LEASE_MS = 20_000  # no worker counts as lost, even on a slow machine
SHORT_LEASE_MS = 3_000  # workers look for lapsed leases every third of it
RACES = 40


@dataclass
class World:
    """The server, which is this process, and the workers."""

    store: Store
    server: TaskRuntime
    first: Worker
    second: Worker

    async def until_asked(self, task_id: str) -> JSONObject:
        """Wait until the server sees questions; return an answer for each key."""
        while True:
            view = await self.server.get(task_id, owner=None)
            if view.questions:
                assert view.task.status == "input_required"
                return {
                    question.key or "": {"action": "accept", "content": {"to": question.params["message"]}}
                    for question in view.questions
                }
            await self.store.wait_for_update(task_id, after=view.record.revision)


@pytest.fixture
def processes(program: subprocess.Popen[str], place: Place) -> Processes:
    return open_world(program, place, lease_ms=LEASE_MS)


@asynccontextmanager
async def open_world(program: subprocess.Popen[str], place: Place, *, lease_ms: int) -> AsyncIterator[World]:
    settings = TaskSettings(lease_ms=lease_ms, shutdown_grace=0)
    with anyio.fail_after(PATIENCE):
        async with place.store() as store, TaskRuntime(store, settings=settings) as server:
            async with open_worker_pool(program, place, lease_ms=lease_ms) as pool:
                yield World(store, server, await pool.start(), await pool.start())


async def race(do: Any, world: World, command: str, task_ids: list[str], **more: str) -> dict[str, str]:
    """Run the same change of the same tasks in all three processes at once; return the winner of each task."""
    first = await world.first.send(command, task_ids=task_ids, name="first", **more)
    second = await world.second.send(command, task_ids=task_ids, name="second", **more)
    won = {"server": await all_at_once(partial(do, "server"), task_ids)}
    won |= {"first": await first.wait(), "second": await second.wait()}
    winners = {
        task_id: [name for name, results in won.items() if results[number]] for number, task_id in enumerate(task_ids)
    }
    assert all(len(names) == 1 for names in winners.values()), winners
    return {task_id: name for task_id, (name,) in winners.items()}


async def test_questions_answers_and_results_cross(processes: Processes) -> None:
    async with processes as world:
        task_id = await world.first.do("start", questions=2)
        here = await world.first.send("result", task_id=task_id)
        elsewhere = await world.second.send("result", task_id=task_id)
        for _ in range(2):
            await world.server.answer(task_id, await world.until_asked(task_id), owner=None)
        outcome = await world.server.result(task_id, owner=None)
        assert outcome.result == {"heard": [{"to": "question 0?"}, {"to": "question 1?"}]}
        assert await here.wait() == await elsewhere.wait() == asdict(outcome)
        assert (await world.server.get(task_id, owner=None)).questions == ()


async def test_each_worker_gets_the_answers_of_its_own_tasks(processes: Processes) -> None:
    async with processes as world:
        task_ids = [await worker.do("start", questions=1) for worker in (world.first, world.second) for _ in range(5)]
        for task_id in reversed(task_ids):
            (key,) = await world.until_asked(task_id)
            await world.server.answer(task_id, {key: {"action": "accept", "content": {"id": task_id}}}, owner=None)
        for task_id in task_ids:
            assert (await world.server.result(task_id, owner=None)).result == {"heard": [{"id": task_id}]}


async def test_a_cancel_in_one_process_stops_the_work_in_another(processes: Processes) -> None:
    async with processes as world:
        task_id = await world.first.do("start", forever=True)
        elsewhere = await world.second.send("result", task_id=task_id)
        assert (await world.server.cancel(task_id, owner=None)).status == "cancelled"
        await world.first.until_reported(cleaned=task_id)
        assert await elsewhere.wait() == asdict(Outcome.cancelled())


async def test_a_cancel_in_one_process_stops_work_in_another_that_waits_for_an_answer(processes: Processes) -> None:
    async with processes as world:
        task_id = await world.second.do("start", questions=1)
        await world.until_asked(task_id)
        await world.server.cancel(task_id, owner=None)
        await world.second.until_reported(cleaned=task_id)
        view = await world.server.get(task_id, owner=None)
        assert (view.task.status, view.questions) == ("cancelled", ())


async def test_a_task_that_is_deleted_elsewhere_stops_its_work(processes: Processes) -> None:
    async with processes as world:
        task_id = await world.first.do("start", forever=True)
        assert await world.store.delete_task(task_id)
        await world.first.until_reported(cleaned=task_id)
        with pytest.raises(TaskNotFoundError):
            await world.server.get(task_id, owner=None)


async def test_of_processes_that_race_to_end_a_task_exactly_one_wins(processes: Processes) -> None:
    async with processes as world:
        task_ids = [await world.first.do("start", forever=True) for _ in range(RACES)]
        winners = await race(partial(finish, world.server), world, "finish", task_ids)
        for task_id, winner in winners.items():
            outcome = await world.server.result(task_id, owner=None)
            assert outcome.result == {"by": winner}
            assert await world.second.do("result", task_id=task_id) == asdict(outcome)
            await world.first.until_reported(cleaned=task_id)


async def test_of_processes_that_race_to_answer_a_question_exactly_one_wins(processes: Processes) -> None:
    async with processes as world:
        task_ids = [await world.first.do("start", questions=1) for _ in range(RACES)]
        (key,) = {key for task_id in task_ids for key in await world.until_asked(task_id)}  # all ask the same
        winners = await race(partial(answer, world.store, key), world, "answer", task_ids, key=key)
        for task_id, winner in winners.items():
            assert (await world.server.result(task_id, owner=None)).result == {"heard": [{"by": winner}]}


async def test_a_worker_that_is_shut_down_leaves_its_work_to_the_other(
    program: subprocess.Popen[str], place: Place
) -> None:
    """Rerunnable work continues with its answers; other work has failed."""
    async with open_world(program, place, lease_ms=SHORT_LEASE_MS) as world:
        again = await world.first.do("start", questions=2, rerunnable=True)
        never = await world.first.do("start", forever=True)
        await world.server.answer(again, await world.until_asked(again), owner=None)
        await world.first.shut_down()
        await world.first.until_dead()
        outcome = await world.server.result(never, owner=None)
        assert outcome.status == "failed"
        await world.server.answer(again, await world.until_asked(again), owner=None)
        outcome = await world.server.result(again, owner=None)
        assert outcome.result == {"heard": [{"to": "question 0?"}, {"to": "question 1?"}]}
