"""`blocking=True`: work in a thread with an event loop of its own."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from mcp_task_runtime import Execution, Outcome, ProtocolError, ServerTaskContext, TaskRequest, TaskSpec
from mcp_task_runtime.adapters._own_loop import in_own_loop
from tests.adapters.scripted import ACCEPT, FORM, Desk, ScriptedSession, answers, open_desk
from tests.core.leased_store import open_cluster
from tests.support.patience import PATIENCE


async def new_desk() -> Desk:
    desk = Desk(ScriptedSession())
    await desk.open()
    return desk


async def test_work_that_blocks_holds_up_only_itself() -> None:
    desk = await new_desk()
    entered, release = threading.Event(), threading.Event()
    threads: list[int] = []

    async def work(task: ServerTaskContext) -> str:
        threads.append(threading.get_ident())
        entered.set()
        release.wait(PATIENCE)
        await anyio.lowlevel.checkpoint()
        return task.task_id

    results: list[str] = []

    async def run() -> None:
        results.append(await in_own_loop(work, desk.context))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await anyio.to_thread.run_sync(entered.wait)
            for _ in range(3):
                await anyio.lowlevel.checkpoint()  # this loop goes on
            assert results == []
            release.set()
    assert results == [desk.context.task_id]
    assert threads != [threading.get_ident()]


async def test_its_context_works_from_there() -> None:
    async def work(task: ServerTaskContext) -> str:
        time.sleep(0.01)  # noqa: ASYNC251  # which it may
        await task.update_status("working")
        given = []

        async def ask(message: str) -> None:
            given.append((await task.elicit(message, FORM)).action)

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "first?")
            group.start_soon(ask, "second?")
        return f"{sorted(given)} {task.is_cancelled} {isinstance(task, ServerTaskContext)}"

    async with open_desk(answers(ACCEPT)) as desk:
        assert await in_own_loop(work, desk.context) == "['accept', 'accept'] False True"
        assert desk.context.task.status_message == "working"


async def test_a_step_runs_in_the_thread_and_is_recorded_where_the_store_is() -> None:
    threads: list[int] = []

    async def blocks(number: int) -> int:
        threads.append(threading.get_ident())
        if len(threads) < 3:
            raise ConnectionError
        return number

    async def work(task: ServerTaskContext) -> int:
        threads.append(threading.get_ident())
        return await task.step("blocks", blocks, 7, attempts=2, backoff=0)

    async with open_cluster(1) as (cluster, (a,)):
        results: list[int] = []

        async def run(execution: Execution[Any]) -> Outcome:
            results.append(await in_own_loop(work, a.context(execution)))
            return Outcome.completed({"steps": await cluster.store.read_steps(task_of(execution))})

        a.runtime.register("tool", run)
        record = await a.runtime.submit(TaskSpec(request=TaskRequest(name="tool", rerunnable=True)))
        outcome = await a.runtime.result(record.task_id, owner=None)
    assert results == [7]
    assert outcome.result is not None
    assert list(outcome.result["steps"].values()) == ["[null,7]"]
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


def task_of(execution: Execution[Any]) -> str:
    assert execution.record is not None
    return execution.record.task_id


@pytest.mark.parametrize("error", [ProtocolError(-32050, "no luck"), ValueError("wrong"), KeyError("key")])
async def test_what_it_raises_comes_back_as_it_is(error: Exception) -> None:
    desk = await new_desk()

    async def work(task: ServerTaskContext) -> str:
        raise error

    with anyio.fail_after(PATIENCE):
        with pytest.raises(type(error)) as caught:
            await in_own_loop(work, desk.context)
    assert caught.value is error


async def test_cancelled_it_cancels_the_work_at_its_next_await_and_does_not_wait() -> None:
    desk = await new_desk()
    entered, release, ended = threading.Event(), threading.Event(), threading.Event()
    seen: list[str] = []

    async def work(task: ServerTaskContext) -> None:
        entered.set()
        release.wait(PATIENCE)
        seen.append(f"blocked, {task.is_cancelled}")
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            seen.append("cancelled")
            raise
        finally:
            ended.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(in_own_loop, work, desk.context)
            await anyio.to_thread.run_sync(entered.wait)
            desk.context.request_cancellation()
            group.cancel_scope.cancel()
        assert seen == []
        release.set()
        await anyio.to_thread.run_sync(ended.wait)
    assert seen == ["blocked, True", "cancelled"]


async def test_cancelled_before_its_loop_runs_it_cancels_the_work_at_its_first_await(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = await new_desk()
    entered, release, ended = threading.Event(), threading.Event(), threading.Event()
    seen: list[str] = []
    run = anyio.run

    def run_late(*args: Any, **kwargs: Any) -> Any:
        entered.set()
        release.wait(PATIENCE)
        return run(*args, **kwargs)

    async def work(task: ServerTaskContext) -> None:
        seen.append("began")
        try:
            await anyio.lowlevel.checkpoint()
            seen.append("went on")
        finally:
            ended.set()

    monkeypatch.setattr(anyio, "run", run_late)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(in_own_loop, work, desk.context)
            await anyio.to_thread.run_sync(entered.wait)
            group.cancel_scope.cancel()
        release.set()
        await anyio.to_thread.run_sync(ended.wait)
    assert seen == ["began"]


async def test_a_question_that_it_waits_for_is_withdrawn_with_it() -> None:
    desk = await new_desk()
    ended = threading.Event()

    async def work(task: ServerTaskContext) -> None:
        try:
            await task.elicit("?", FORM)
        finally:
            ended.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(in_own_loop, work, desk.context)
            await desk.until_asked()
            group.cancel_scope.cancel()
        await anyio.to_thread.run_sync(ended.wait)
        assert await desk.open_keys() == []


async def test_a_question_that_the_work_gives_up_is_withdrawn() -> None:
    async def work(task: ServerTaskContext) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(task.elicit, "?", FORM)
            await anyio.to_thread.run_sync(asked.wait)
            group.cancel_scope.cancel()
        given_up.set()
        await anyio.to_thread.run_sync(seen.wait)

    desk = await new_desk()
    asked, given_up, seen = threading.Event(), threading.Event(), threading.Event()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(in_own_loop, work, desk.context)
            await desk.until_asked()
            asked.set()
            await anyio.to_thread.run_sync(given_up.wait)
            while await desk.open_keys():
                await anyio.lowlevel.checkpoint()
            seen.set()


async def test_what_it_calls_without_waiting_happens_in_the_loop_of_the_task() -> None:
    async def work(task: ServerTaskContext) -> bool:
        task.request_cancellation()
        await task.update_status("after it")
        return task.is_cancelled

    desk = await new_desk()
    with anyio.fail_after(PATIENCE):
        assert await in_own_loop(work, desk.context)


async def test_what_it_asks_after_it_was_abandoned_is_an_error_and_breaks_nothing() -> None:
    desk = await new_desk()
    entered, release, ended = threading.Event(), threading.Event(), threading.Event()
    seen: list[str] = []

    async def work(task: ServerTaskContext) -> None:
        entered.set()
        release.wait(PATIENCE)
        task.request_cancellation()
        with anyio.CancelScope(shield=True):
            try:
                await task.update_status("too late")
            except RuntimeError as error:
                seen.append(str(error))
        ended.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(in_own_loop, work, desk.context)
            await anyio.to_thread.run_sync(entered.wait)
            group.cancel_scope.cancel()
        release.set()
        await anyio.to_thread.run_sync(ended.wait)
    assert seen == ["The task's work is over"]
