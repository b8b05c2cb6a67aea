"""Leases: a task outlives the process that ran it, and nothing runs where it should not (law L12)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime import Answer, Execution, Outcome, TaskNotFoundError, TaskSettings, TaskSpec
from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.types import NewTask, TaskRequest
from mcp_task_runtime.errors import InvalidTransitionError, LimitExceededError, ProtocolError
from tests.core.leased_store import (
    LEASE_SECONDS,
    SETTINGS,
    TURN_SECONDS,
    Cluster,
    Process,
    open_cluster,
)
from tests.core.test_dispatch import Broker

pytestmark = pytest.mark.anyio

Result = dict[str, Any]
Work = Callable[[Execution[Any]], Awaitable[Any]]
FORM = {"type": "object", "properties": {}}
PLAIN = TaskSpec()
RERUNNABLE = TaskSpec(request=TaskRequest(name="tool", arguments_json=dump_json({"n": 7}), rerunnable=True))
"""A task whose work may run again in any process that calls `register("tool", …)`."""


async def forever(execution: Execution[Any]) -> Any:
    await anyio.sleep_forever()


def accepted(**content: Any) -> Answer:
    return Answer.result({"action": "accept", "content": content})


class Questions:
    """Work that asks one question after the other, and returns what was answered.

    Attributes:
        runs: The processes it ran in, and the attempts.
        stopped: Those whose run was cancelled.
        heard: The answers each run got so far.
    """

    def __init__(self, *messages: str) -> None:
        self.messages = messages
        self.runs: list[tuple[Process, int]] = []
        self.stopped: list[Process] = []
        self.heard: list[list[Any]] = []

    def of(self, process: Process) -> Work:
        async def work(execution: Execution[Any]) -> Outcome:
            context = process.context(execution)
            assert execution.record is not None
            assert execution.record.lease is not None
            self.runs.append((process, execution.record.lease.attempt))
            heard: list[Any] = []
            self.heard.append(heard)
            try:
                for message in self.messages:
                    heard += [(await context.elicit(message, FORM)).content]
            except (anyio.get_cancelled_exc_class(), InvalidTransitionError):  # whichever reaches the asker first
                self.stopped.append(process)
                raise
            return Outcome.completed({"heard": heard, **execution.record.request.arguments})

        return work

    def offer(self, *processes: Process) -> None:
        for process in processes:
            process.runtime.register("tool", self.of(process))

    async def start(self, process: Process) -> str:
        record = await process.runtime.submit(RERUNNABLE, self.of(process), outcome_of=lambda outcome: outcome)
        return record.task_id


async def lost_task(cluster: Cluster, new: TaskSpec = PLAIN, *, ttl_ms: int | None = None) -> str:
    """Return a task whose process was killed: its lease is not renewed."""
    record = await cluster.store.create_task(
        NewTask(ttl_ms=ttl_ms, request=new.request, owner=new.owner, worker="killed", lease_ms=LEASE_SECONDS * 1000)
    )
    return record.task_id


async def started(process: Process, new: TaskSpec = PLAIN) -> str:
    return (await process.runtime.submit(new, forever)).task_id


# --- heartbeat -------------------------------------------------------------------------------------------------


async def test_renewals_keep_a_task_for_as_long_as_its_process_lives() -> None:
    async with open_cluster() as (cluster, (a, b)):
        task_id = await started(a)
        await cluster.pass_time(5 * LEASE_SECONDS)
        record = cluster.store.record(task_id)
        assert (record.status, record.revision) == ("working", 1), "a renewal changes nothing that a client sees"
        assert record.lease is not None
        assert (record.lease.worker, record.lease.attempt) == (a.worker, 1)
        assert "claim_task" not in b.link.calls


async def test_a_task_that_ends_has_no_lease_and_is_renewed_no_more() -> None:
    async with open_cluster() as (cluster, (a, _)):
        task_id = await started(a)
        await a.runtime.cancel(task_id, owner=None)
        assert cluster.store.record(task_id).lease is None
        await cluster.settle()
        a.link.calls.clear()
        await cluster.pass_time(LEASE_SECONDS)
        assert "renew_leases" not in a.link.calls


async def test_a_process_renews_its_leases_while_the_store_answers_again_before_they_lapse() -> None:
    async with open_cluster() as (cluster, (a, b)):
        task_id = await started(a)
        await cluster.cut(a)
        await cluster.pass_time(2 * TURN_SECONDS)
        a.link.is_cut = False
        await cluster.pass_time(5 * LEASE_SECONDS)
        record = cluster.store.record(task_id)
        assert record.status == "working"
        assert record.lease is not None
        assert (record.lease.worker, record.lease.attempt) == (a.worker, 1)
        assert a.running == {task_id}
        assert b.running == set()


async def test_a_lease_that_lapsed_while_the_store_was_away_for_everybody_is_still_the_workers() -> None:
    async with open_cluster() as (cluster, (a, b)):
        task_id = await started(a)
        a.link.is_cut = b.link.is_cut = True
        await cluster.pass_time(3 * LEASE_SECONDS)
        a.link.is_cut = False
        await cluster.pass_time(TURN_SECONDS)
        b.link.is_cut = False
        await cluster.pass_time(LEASE_SECONDS)
        record = cluster.store.record(task_id)
        assert (record.status, record.lease and record.lease.attempt) == ("working", 1)
        assert a.running == {task_id}


@pytest.mark.parametrize("rerunnable", [False, True])
async def test_a_process_never_takes_its_own_running_work_for_lost(rerunnable: bool) -> None:
    """An event loop that stood still, or a store that was away: the lease lapsed, but the work runs."""
    async with open_cluster(1) as (cluster, (a,)):
        a.runtime.register("tool", forever)
        await cluster.pass_time(1)  # out of step with the heartbeat
        task_id = await started(a, RERUNNABLE if rerunnable else PLAIN)
        a.link.fails = {"renew_leases"}
        await cluster.pass_time(LEASE_SECONDS + 2)
        a.link.fails = set()
        view = await a.runtime.get(task_id, owner=None)
        assert view.task.status == "working", view.record.outcome
        await cluster.pass_time(LEASE_SECONDS)
        record = cluster.store.record(task_id)
        assert (record.status, record.lease and record.lease.attempt) == ("working", 1)
        assert a.runtime.statistics().calls == 1


async def test_get_reads_a_live_task_with_its_questions_in_one_call_to_the_store() -> None:
    async with open_cluster() as (cluster, (a, b)):

        async def asks(execution: Execution[Any]) -> Any:
            await a.context(execution).elicit("?", FORM)

        asking, working = (await a.runtime.submit(PLAIN, asks)).task_id, await started(a)
        await cluster.until_asked(asking, "?")
        await cluster.settle()
        for task_id, status, questions in ((asking, "input_required", 1), (working, "working", 0)):
            b.link.calls.clear()
            view = await b.runtime.get(task_id, owner=None)
            assert (view.task.status, len(view.questions)) == (status, questions)
            assert b.link.calls == ["get_owned"]


# --- lost work that may not run again ------------------------------------------------------------------------------


async def test_the_task_of_a_silent_process_ends_failed_and_says_that_its_worker_was_lost() -> None:
    async with open_cluster() as (cluster, _):
        task_id = await lost_task(cluster)
        await cluster.pass_time(LEASE_SECONDS - 1)
        assert cluster.store.record(task_id).status == "working"
        await cluster.pass_time(TURN_SECONDS)
        record = cluster.store.record(task_id)
        assert record.status == "failed"
        assert record.outcome is not None
        assert record.outcome.error is not None
        assert "worker" in record.outcome.error["message"]
        assert "lost" in record.outcome.error["message"]
        assert record.task.status_message is not None
        assert "lost" in record.task.status_message


async def test_get_notices_a_lost_worker_before_the_next_turn_of_any_reaper() -> None:
    async with open_cluster() as (cluster, (_, b)):
        await cluster.pass_time(1)
        task_id = await lost_task(cluster, TaskSpec(owner="me"))
        await cluster.pass_time(LEASE_SECONDS)
        assert cluster.store.record(task_id).status == "working", "no reaper had its turn yet"
        with pytest.raises(TaskNotFoundError):
            await b.runtime.get(task_id, owner="another owner")
        assert cluster.store.record(task_id).status == "working"
        view = await b.runtime.get(task_id, owner="me")
        assert view.task.status == "failed"
        assert view.questions == ()


async def test_get_shows_the_end_of_a_lost_task_also_where_the_store_takes_its_time_to_write_it() -> None:
    async with open_cluster() as (cluster, (_, b)):
        await cluster.pass_time(1)
        task_id = await lost_task(cluster, TaskSpec())
        await cluster.pass_time(LEASE_SECONDS)

        async def slow(name: str) -> None:
            if name == "finish_task":
                await anyio.wait_all_tasks_blocked()

        b.link.before = slow
        assert (await b.runtime.get(task_id, owner=None)).task.status == "failed"


@pytest.mark.parametrize("is_dispatched", [False, True])
async def test_a_client_that_leaves_while_its_poll_claims_a_lost_task_does_not_lose_the_task(
    is_dispatched: bool,
) -> None:
    """L6: the claim uses up an attempt, and nothing would run it until the new lease lapses, too."""
    broker = Broker()
    async with open_cluster(dispatcher=broker) as (cluster, (a, b)):
        questions = Questions("?")
        for process in (a, b):
            process.runtime.register("tool", questions.of(process), is_dispatched=is_dispatched)
        task_id = await lost_task(cluster, RERUNNABLE)
        await cluster.pass_time(LEASE_SECONDS - 1)
        assert questions.runs == []
        cluster.clock.advance(2)  # the lease lapses, and no sweep has a turn before the poll
        with anyio.CancelScope() as client:

            async def leave(name: str) -> None:
                if name == "claim_task":
                    client.cancel()
                    await anyio.lowlevel.checkpoint()  # the store has written, and has not returned

            b.link.after = leave
            await b.runtime.get(task_id, owner=None)
        assert client.cancel_called
        b.link.after = None
        await cluster.settle()
        if is_dispatched:
            assert [dispatch.task_id for dispatch in broker.submitted] == [task_id]
        else:
            assert questions.runs == [(b, 2)]
            await cluster.until_asked(task_id, "?")


async def test_exactly_one_of_many_processes_takes_a_lost_task_over() -> None:
    async with open_cluster(5) as (cluster, processes):
        questions = Questions("?")
        questions.offer(*processes)
        failed = [await lost_task(cluster) for _ in range(3)]
        rerun = [await lost_task(cluster, RERUNNABLE) for _ in range(3)]
        await cluster.pass_time(LEASE_SECONDS)
        for task_id in failed:
            assert (cluster.store.record(task_id).status, cluster.store.record(task_id).revision) == ("failed", 3)
        assert len(questions.runs) == 3
        for task_id in rerun:
            lease = cluster.store.record(task_id).lease
            assert lease is not None
            assert lease.attempt == 2
            assert [process.worker for process in processes if task_id in process.running] == [lease.worker]
            await processes[0].runtime.cancel(task_id, owner=None)


async def test_questions_of_lost_work_are_released_when_it_fails() -> None:
    """Laws L5 and L8."""
    async with open_cluster() as (cluster, (a, _)):

        async def asks(execution: Execution[Any]) -> Any:
            await a.context(execution).elicit("?", FORM)

        task_id = (await a.runtime.submit(PLAIN, asks)).task_id
        await cluster.until_asked(task_id, "?")
        await cluster.cut(a)
        await cluster.pass_time(LEASE_SECONDS + TURN_SECONDS)
        assert cluster.store.record(task_id).status == "failed"
        assert await cluster.questions(task_id) == []
        assert cluster.store.statistics().mailboxes == 0


# --- lost work that runs again --------------------------------------------------------------------------------------


async def test_rerunnable_work_runs_again_in_the_other_process_with_the_arguments_of_the_record() -> None:
    async with open_cluster() as (cluster, (_, b)):
        questions = Questions()
        questions.offer(b)
        task_id = await lost_task(cluster, RERUNNABLE)
        await cluster.pass_time(LEASE_SECONDS)
        record = await cluster.until_ended(task_id)
        assert questions.runs == [(b, 2)]
        assert record.outcome is not None
        assert record.outcome.result == {"heard": [], "n": 7}


async def test_get_starts_the_rerun_at_once_and_shows_the_task_as_live() -> None:
    async with open_cluster() as (cluster, (_, b)):
        questions = Questions("?")
        questions.offer(b)
        await cluster.pass_time(1)
        task_id = await lost_task(cluster, RERUNNABLE)
        await cluster.pass_time(LEASE_SECONDS)
        assert questions.runs == []
        view = await b.runtime.get(task_id, owner=None)
        assert view.task.status in ("working", "input_required")
        await cluster.until_asked(task_id, "?")
        assert questions.runs == [(b, 2)]
        await cluster.answer(b, task_id, "?", {})
        assert (await b.runtime.result(task_id, owner=None)).status == "completed"


async def test_work_is_left_to_a_process_that_knows_how_to_run_it() -> None:
    async with open_cluster() as (cluster, (a, b)):
        task_id = await lost_task(cluster, RERUNNABLE)
        await cluster.pass_time(3 * LEASE_SECONDS)
        record = cluster.store.record(task_id)
        assert (record.status, record.lease and record.lease.attempt) == ("working", 1)
        assert "claim_task" not in a.link.calls + b.link.calls
        questions = Questions()
        questions.offer(b)
        await cluster.pass_time(TURN_SECONDS)
        assert (await cluster.until_ended(task_id)).status == "completed"


async def test_a_reaper_looks_behind_lost_tasks_whose_tools_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_task_runtime.core.lease_keeper._FEWEST_LAPSED", 2)
    async with open_cluster() as (cluster, (a, b)):
        b.runtime.register("tool", forever)
        for task_id in "123":
            await started(a, replace(RERUNNABLE, request=replace(RERUNNABLE.request, name="other"), task_id=task_id))
        await started(a, replace(RERUNNABLE, task_id="4"))
        await cluster.cut(a)
        await cluster.pass_time(3 * LEASE_SECONDS)
        assert b.running == {"4"}


async def test_a_reaper_moves_lost_tasks_of_others_out_of_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """L8: it looks through no more of them than it must, and those that have their tools find them where they wait."""
    monkeypatch.setattr("mcp_task_runtime.core.lease_keeper._FEWEST_LAPSED", 2)
    monkeypatch.setattr("mcp_task_runtime.core.lease_keeper._MOST_LAPSED", 20)
    monkeypatch.setattr("mcp_task_runtime.core.lease_keeper._MOST_MOVED", 10)
    async with open_cluster(3) as (cluster, (a, b, c)):
        b.runtime.register("tool", forever)
        others = [f"other {number}" for number in range(30)]
        request = replace(RERUNNABLE.request, name="other")
        for task_id in others:
            await started(a, replace(RERUNNABLE, request=request, task_id=task_id))
        await started(a, replace(RERUNNABLE, task_id="wanted"))
        await cluster.cut(a)
        await cluster.pass_time(4 * LEASE_SECONDS)
        assert b.running == {"wanted"}
        attempts = {record.lease and record.lease.attempt for record in map(cluster.store.record, others)}
        assert attempts == {1}, "no attempt is counted"
        c.runtime.register("other", forever)
        await cluster.pass_time(6 * LEASE_SECONDS)  # some a turn
        assert c.running == set(others)


async def test_a_lost_task_that_a_process_moves_stays_with_the_one_that_claims_it_before_an_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """L12: a call that waits for the store's return would be made before that process can renew its lease."""
    monkeypatch.setattr("mcp_task_runtime.core.lease_keeper._FEWEST_LAPSED", 1)
    monkeypatch.setattr("mcp_task_runtime.core.lease_keeper._MOST_LAPSED", 1)
    async with open_cluster() as (cluster, (mover, claimant)):
        claimant.runtime.register("tool", forever)
        await cluster.pass_time(1)
        task_id = await lost_task(cluster, RERUNNABLE)
        is_moving, is_back = anyio.Event(), anyio.Event()

        async def hold(call: str) -> None:
            if call == "claim_task":
                is_moving.set()
                await is_back.wait()

        async def wait(call: str) -> None:
            if call == "list_lost" and cluster.clock.now() >= lapses_at:
                await is_moving.wait()

        lease = cluster.store.record(task_id).lease
        assert lease is not None
        lapses_at = lease.expires_at
        mover.link.before = hold
        claimant.link.before = wait
        await cluster.pass_time_until_taken(task_id, claimant)
        for process in (mover, claimant):
            process.link.is_cut = True
        await cluster.pass_time(2 * LEASE_SECONDS)
        for process in (mover, claimant):
            process.link.is_cut = False
        is_back.set()
        await cluster.settle()
        await cluster.pass_time(LEASE_SECONDS)
        lease = cluster.store.record(task_id).lease
        assert lease is not None
        assert (lease.worker, lease.attempt) == (claimant.worker, 2)
        assert claimant.running == {task_id}


async def test_lost_tasks_are_moved_for_no_longer_than_leases_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """L12: a slow store needs more time for all of them than the lease of what runs here lasts."""
    monkeypatch.setattr("mcp_task_runtime.core.lease_keeper._FEWEST_LAPSED", 40)
    monkeypatch.setattr("mcp_task_runtime.core.lease_keeper._MOST_LAPSED", 40)
    async with open_cluster() as (cluster, (a, b)):
        b.runtime.register("tool", forever)
        others = [f"other {number}" for number in range(40)]
        for task_id in others:
            await started(a, replace(RERUNNABLE, request=replace(RERUNNABLE.request, name="other"), task_id=task_id))
        await started(b, replace(RERUNNABLE, task_id="mine"))
        await cluster.cut(a)
        leases: list[Any] = []

        async def slow(call: str) -> None:
            if call == "claim_task":
                cluster.clock.advance(1)
                lease = cluster.store.record("mine").lease
                assert lease is not None
                leases.append(lease.expires_at > cluster.clock.now())

        b.link.before = slow
        await cluster.pass_time(4 * LEASE_SECONDS)
        assert leases
        assert all(leases)


async def test_a_question_that_a_rerun_asks_again_gets_its_answer_and_an_open_one_stays_open() -> None:
    """The client is asked each question once, also when its process is lost."""
    async with open_cluster() as (cluster, (a, b)):
        questions = Questions("first?", "second?", "third?")
        questions.offer(a, b)
        task_id = await questions.start(a)
        await cluster.until_asked(task_id, "first?")
        await cluster.answer(b, task_id, "first?", {"n": 1})
        await cluster.until_asked(task_id, "second?")
        asked_before = await cluster.questions(task_id)

        await cluster.cut(a)
        await cluster.pass_time(LEASE_SECONDS)
        assert questions.runs == [(a, 1), (b, 2)]
        assert questions.heard[1] == [{"n": 1}]
        assert await cluster.questions(task_id) == asked_before, "the same question, under the same key"
        assert cluster.store.record(task_id).status == "input_required"

        await cluster.answer(b, task_id, "second?", {"n": 2})
        await cluster.until_asked(task_id, "third?")
        await cluster.answer(b, task_id, "third?", {"n": 3})
        record = await cluster.until_ended(task_id)
        assert record.outcome is not None
        assert record.outcome.result == {"heard": [{"n": 1}, {"n": 2}, {"n": 3}], "n": 7}


async def test_answers_are_those_to_the_same_questions_in_whatever_order_a_rerun_asks() -> None:
    """An answer to one question is never taken for one to another: several are asked at once, in no certain order."""
    async with open_cluster() as (cluster, (a, b)):
        heard: list[dict[str, Any]] = []

        def of(process: Process, *messages: str) -> Work:
            async def work(execution: Execution[Any]) -> Outcome:
                context = process.context(execution)
                mine: dict[str, Any] = {}
                heard.append(mine)

                async def ask(message: str) -> None:
                    mine[message] = (await context.elicit(message, FORM)).content

                async with anyio.create_task_group() as group:
                    for number, message in enumerate(messages, 1):
                        group.start_soon(ask, message)
                        while len(await cluster.asks(context.task_id)) + len(mine) < number:
                            await anyio.lowlevel.checkpoint()
                return Outcome.completed(mine)

            return work

        b.runtime.register("tool", of(b, "Keep the files?", "Send it to Bob?", "Send it to Ann?"))
        first = of(a, "Send it to Ann?", "Send it to Bob?")
        task_id = (await a.runtime.submit(RERUNNABLE, first, outcome_of=lambda outcome: outcome)).task_id
        await cluster.until_asked(task_id, "Send it to Ann?", "Send it to Bob?")
        await cluster.answer(b, task_id, "Send it to Ann?", {"sure": True})
        await cluster.until_asked(task_id, "Send it to Bob?")
        await cluster.cut(a)
        await cluster.pass_time_until_taken(task_id, b)
        await cluster.settle()
        assert heard[1] == {"Send it to Ann?": {"sure": True}}
        assert set(await cluster.asks(task_id)) == {"Send it to Bob?", "Keep the files?"}
        await cluster.answer(b, task_id, "Send it to Bob?", {"sure": False})
        await cluster.answer(b, task_id, "Keep the files?", {"keep": 3})
        record = await cluster.until_ended(task_id)
        assert record.outcome is not None
        assert record.outcome.result == {
            "Send it to Ann?": {"sure": True},
            "Send it to Bob?": {"sure": False},
            "Keep the files?": {"keep": 3},
        }


async def test_the_same_question_asked_twice_has_an_answer_for_each_time() -> None:
    async with open_cluster() as (cluster, (a, b)):
        questions = Questions("again?", "again?", "again?")
        questions.offer(a, b)
        task_id = await questions.start(a)
        keys: list[str] = []
        for number in range(2):
            while keys == list((await cluster.asks(task_id)).values()):
                await anyio.lowlevel.checkpoint()
            await cluster.until_asked(task_id, "again?")
            keys = list((await cluster.asks(task_id)).values())
            await cluster.answer(b, task_id, "again?", {"n": number})
        await cluster.settle()
        await cluster.cut(a)
        await cluster.pass_time(LEASE_SECONDS)
        assert questions.heard[1] == [{"n": 0}, {"n": 1}]
        await cluster.answer(b, task_id, "again?", {"n": 2})
        record = await cluster.until_ended(task_id)
        assert record.outcome is not None
        assert record.outcome.result == {"heard": [{"n": 0}, {"n": 1}, {"n": 2}], "n": 7}


async def test_an_error_answer_is_replayed_as_the_same_error() -> None:
    async with open_cluster() as (cluster, (a, b)):
        errors: list[tuple[Process, int]] = []

        def of(process: Process) -> Work:
            async def work(execution: Execution[Any]) -> Outcome:
                context = process.context(execution)
                with pytest.raises(ProtocolError, match="no") as caught:
                    await context.elicit("?", FORM)
                errors.append((process, caught.value.code))
                await anyio.sleep_forever()
                raise AssertionError

            return work

        b.runtime.register("tool", of(b))
        task_id = (await a.runtime.submit(RERUNNABLE, of(a), outcome_of=lambda outcome: outcome)).task_id
        await cluster.until_asked(task_id, "?")
        await cluster.store.message_queue.answer(
            task_id, (await cluster.asks(task_id))["?"], Answer.error(-32042, "no")
        )
        await cluster.settle()
        await cluster.cut(a)
        await cluster.pass_time(LEASE_SECONDS)
        assert errors == [(a, -32042), (b, -32042)]


def impatient(process: Process, asked: list[str]) -> Work:
    """Return work that gives its first question up after a second, and then asks another."""

    async def work(execution: Execution[Any]) -> Outcome:
        context = process.context(execution)
        clock = process.link.clock
        with clock.move_on_at(clock.now() + timedelta(seconds=1)):
            asked.append("first")
            answer = await context.elicit("first?", FORM)
            asked.append(f"first answered {answer.content}")
        answer = await context.elicit("second?", FORM)
        return Outcome.completed({"second": answer.content})

    return work


async def test_a_question_that_was_withdrawn_is_asked_anew_under_a_new_key() -> None:
    """Wire rule C7: the old key is never used again."""
    async with open_cluster() as (cluster, (a, b)):
        asked: list[str] = []
        b.runtime.register("tool", impatient(b, asked))
        new = RERUNNABLE
        task_id = (await a.runtime.submit(new, impatient(a, asked), outcome_of=lambda outcome: outcome)).task_id
        await cluster.until_asked(task_id, "first?")
        withdrawn = (await cluster.asks(task_id))["first?"]
        await cluster.pass_time(1)
        await cluster.until_asked(task_id, "second?")
        key_of_second = (await cluster.asks(task_id))["second?"]
        await cluster.cut(a)
        await cluster.pass_time_until_taken(task_id, b)
        asks = await cluster.asks(task_id)
        assert asks["first?"] != withdrawn
        assert asks["second?"] == key_of_second
        await cluster.answer(b, task_id, "first?", {"late": 1})
        await cluster.settle()
        assert asked == ["first", "first", "first answered {'late': 1}"]
        await cluster.answer(b, task_id, "second?", {"x": 2})
        record = await cluster.until_ended(task_id)
        assert record.outcome is not None
        assert record.outcome.result == {"second": {"x": 2}}


async def test_a_third_run_gets_the_answer_to_what_the_second_had_to_ask_anew() -> None:
    """Laws L5 and L12: no question is asked twice, and none stays open without a waiter."""
    async with open_cluster(3) as (cluster, (a, b, c)):
        asked: list[str] = []
        b.runtime.register("tool", impatient(b, asked))
        task_id = (await a.runtime.submit(RERUNNABLE, impatient(a, asked), outcome_of=lambda outcome: outcome)).task_id
        await cluster.until_asked(task_id, "first?")
        await cluster.pass_time(1)
        await cluster.until_asked(task_id, "second?")
        await cluster.cut(a)
        await cluster.pass_time_until_taken(task_id, b)
        open_before = await cluster.questions(task_id)
        assert len(open_before) == 2
        c.runtime.register("tool", impatient(c, asked))
        await cluster.cut(b)  # it cannot withdraw its question any more
        await cluster.pass_time_until_taken(task_id, c)
        lease = cluster.store.record(task_id).lease
        assert lease is not None
        assert (lease.worker, lease.attempt) == (c.worker, 3)
        assert await cluster.questions(task_id) == open_before, "the third run asks what the second asked"


# --- giving up, and losing -------------------------------------------------------------------------------------------


async def test_a_graceful_shutdown_releases_rerunnable_work_at_once_and_leaves_its_question_open() -> None:
    async with open_cluster(1) as (cluster, (b,)):
        questions = Questions("first?", "second?")
        a = cluster.process()
        questions.offer(a, b)
        async with a.runtime:
            task_id = await questions.start(a)
            await cluster.until_asked(task_id, "first?")
            await cluster.answer(b, task_id, "first?", {"n": 1})
            await cluster.until_asked(task_id, "second?")
            revision = cluster.store.record(task_id).revision
        record = cluster.store.record(task_id)
        assert (record.status, record.revision) == ("input_required", revision + 1)
        assert (record.lease and record.lease.worker, record.lease and record.lease.attempt) == ("", 1)
        assert list(await cluster.asks(task_id)) == ["second?"]
        assert questions.stopped == [a]
        await b.runtime.get(task_id, owner=None)  # the next poll of any client is enough
        await cluster.settle()
        assert questions.runs == [(a, 1), (b, 2)]
        assert list(await cluster.asks(task_id)) == ["second?"]
        await cluster.answer(b, task_id, "second?", {"n": 2})
        record = await cluster.until_ended(task_id)
        assert record.outcome is not None
        assert record.outcome.result == {"heard": [{"n": 1}, {"n": 2}], "n": 7}


async def test_a_shutdown_fails_the_work_that_may_not_run_again() -> None:
    async with open_cluster(1) as (cluster, _):
        a = cluster.process()
        async with a.runtime:
            task_id = await started(a)
        outcome = cluster.store.record(task_id).outcome
        assert outcome is not None
        assert outcome.status == "failed"
        assert "shut down" in str(outcome.error)


async def test_a_process_that_is_closing_takes_over_nothing_that_it_cannot_run() -> None:
    """Otherwise what it has just released would wait a whole lease for its next runner."""
    async with open_cluster(1) as (cluster, (b,)):
        a = cluster.process(TaskSettings(lease_ms=LEASE_SECONDS * 1000, shutdown_grace=2 * LEASE_SECONDS))
        a.runtime.register("tool", forever)
        async with anyio.create_task_group() as group:
            release, closing = anyio.Event(), anyio.Event()

            async def work(execution: Execution[Any]) -> Result:
                await release.wait()
                return {}

            async def live() -> None:
                async with a.runtime:
                    await a.runtime.submit(TaskSpec(), work)
                    await cluster.settle()
                closing.set()

            group.start_soon(live)
            try:
                await cluster.settle()
                task_id = await lost_task(cluster, RERUNNABLE)
                await cluster.pass_time(LEASE_SECONDS + TURN_SECONDS)
                assert not closing.is_set(), "its grace period is not over"
                record = cluster.store.record(task_id)
                assert (record.lease and record.lease.worker, record.lease and record.lease.attempt) == ("killed", 1)
            finally:
                release.set()
            await closing.wait()
        b.runtime.register("tool", Questions().of(b))
        await b.runtime.get(task_id, owner=None)
        assert (await cluster.until_ended(task_id)).status == "completed"


async def test_a_lease_that_cannot_be_released_at_a_shutdown_keeps_nobody_else_from_ending() -> None:
    async with open_cluster(1) as (cluster, _):
        a = cluster.process()
        async with a.runtime:
            rerunnable = await started(a, RERUNNABLE)
            plain = [await started(a) for _ in range(3)]
            a.link.fails = {"drop_leases"}
        assert [cluster.store.record(task_id).status for task_id in plain] == ["failed"] * 3
        assert cluster.store.record(rerunnable).status == "working", "it lapses"
        assert a.runtime.statistics().calls == 0


async def test_work_that_a_shutdown_stops_runs_again_elsewhere_only_when_it_has_ended_here() -> None:
    """Never two runs at once: the old one keeps its lease for as long as it cleans up."""
    async with open_cluster(1) as (cluster, (b,)):
        a = cluster.process()
        tidying, tidy = anyio.Event(), anyio.Event()
        questions = Questions()
        questions.offer(b)

        async def work(execution: Execution[Any]) -> Result:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    tidying.set()
                    await tidy.wait()
            raise AssertionError

        async with anyio.create_task_group() as group:
            task_ids: list[str] = []

            async def live() -> None:
                async with a.runtime:
                    task_ids.append((await a.runtime.submit(RERUNNABLE, work)).task_id)
                    await cluster.settle()

            group.start_soon(live)
            try:
                await tidying.wait()
                (task_id,) = task_ids
                await cluster.pass_time(LEASE_SECONDS + TURN_SECONDS)
                assert await cluster.store.list_lapsed() == ()
                assert questions.runs == []
            finally:
                tidy.set()
        await b.runtime.get(task_id, owner=None)
        record = await cluster.until_ended(task_id)
        assert questions.runs == [(b, 2)]
        assert record.status == "completed", "the end of the old run says nothing of the new one"


async def test_work_that_ends_its_own_task_is_neither_stopped_by_that_nor_by_its_heartbeat() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        ended, go_on, done = anyio.Event(), anyio.Event(), anyio.Event()

        async def work(execution: Execution[Any]) -> Result:
            context = a.context(execution)
            await context.complete({"n": 1})
            ended.set()
            await go_on.wait()
            assert not context.is_cancelled
            done.set()
            return {"n": 2}

        task_id = (await a.runtime.submit(TaskSpec(), work)).task_id
        await ended.wait()
        await cluster.pass_time(LEASE_SECONDS + TURN_SECONDS)
        go_on.set()
        await done.wait()
        record = await cluster.until_ended(task_id)
        assert record.outcome is not None
        assert record.outcome.result == {"n": 1}


async def test_work_that_would_end_a_task_that_another_process_has_ended_is_told_so_and_stopped() -> None:
    """Law L9."""
    async with open_cluster() as (cluster, (a, b)):
        heard: list[type[BaseException]] = []
        go_on, stopped = anyio.Event(), anyio.Event()

        async def before(name: str) -> None:
            if name == "finish_task":  # the other one is faster
                a.link.before = None
                await b.runtime.cancel(task_id, owner=None)

        async def work(execution: Execution[Any]) -> Result:
            context = a.context(execution)
            await go_on.wait()
            try:
                await context.complete({})
            except InvalidTransitionError as error:
                heard.append(type(error))
            try:
                await anyio.sleep_forever()
            finally:
                stopped.set()
            return {}

        task_id = (await a.runtime.submit(TaskSpec(), work)).task_id
        a.link.before = before
        go_on.set()
        await stopped.wait()
        assert heard == [InvalidTransitionError]
        assert (await cluster.until_ended(task_id)).status == "cancelled"


async def test_work_is_stopped_by_another_process_also_after_the_store_was_away() -> None:
    """Law L9: it does not have to wait for the next renewal of its lease."""
    async with open_cluster() as (_, (a, b)):
        a.link.fails = {"wait_for_update"}
        stopped = anyio.Event()

        async def work(execution: Execution[Any]) -> Result:
            try:
                await anyio.sleep_forever()
            finally:
                stopped.set()
            return {}

        task_id = (await a.runtime.submit(TaskSpec(), work)).task_id
        while "wait_for_update" not in a.link.calls:
            await anyio.lowlevel.checkpoint()
        await b.runtime.cancel(task_id, owner=None)
        a.link.fails = set()
        await stopped.wait()
        assert "renew_leases" not in a.link.calls


async def test_the_loser_of_a_lease_stops_its_work_and_leaves_the_task_to_the_winner() -> None:
    """Laws L2 and L5: it neither fails the task nor withdraws the question that the rerun waits for."""
    async with open_cluster() as (cluster, (a, b)):
        questions = Questions("first?", "second?")
        questions.offer(a, b)
        task_id = await questions.start(a)
        await cluster.until_asked(task_id, "first?")
        await cluster.answer(b, task_id, "first?", {"n": 1})
        await cluster.until_asked(task_id, "second?")
        await cluster.cut(a)
        await cluster.pass_time(LEASE_SECONDS)
        assert questions.runs == [(a, 1), (b, 2)]
        a.link.is_cut = False
        await cluster.pass_time(TURN_SECONDS)
        assert questions.stopped == [a]
        assert (a.running, b.running) == (set(), {task_id})
        record = cluster.store.record(task_id)
        assert record.status == "input_required", record.outcome
        assert list(await cluster.asks(task_id)) == ["second?"]
        await cluster.answer(b, task_id, "second?", {"n": 2})
        record = await cluster.until_ended(task_id)
        assert record.outcome is not None
        assert record.outcome.result == {"heard": [{"n": 1}, {"n": 2}], "n": 7}


async def test_a_loser_that_returns_after_the_winner_has_ended_changes_nothing() -> None:
    """Law L2."""
    async with open_cluster() as (cluster, (a, b)):
        release = anyio.Event()

        async def slow(execution: Execution[Any]) -> Outcome:
            await release.wait()
            return Outcome.completed({"by": "a"})

        async def quick(execution: Execution[Any]) -> Outcome:
            return Outcome.completed({"by": "b"})

        b.runtime.register("tool", quick)
        task_id = (await a.runtime.submit(RERUNNABLE, slow, outcome_of=lambda outcome: outcome)).task_id
        await cluster.cut(a)
        await cluster.pass_time(LEASE_SECONDS)
        assert cluster.store.record(task_id).status == "completed"
        a.link.is_cut = False
        release.set()
        await cluster.settle()
        outcome = cluster.store.record(task_id).outcome
        assert outcome is not None
        assert outcome.result == {"by": "b"}
        assert a.running == set()


async def test_a_runtime_that_is_cancelled_from_outside_leaves_rerunnable_work_for_others() -> None:
    async with open_cluster(1) as (cluster, (b,)):
        a = cluster.process()
        task_ids: list[str] = []

        async def live() -> None:
            async with a.runtime:
                task_ids.append(await started(a, RERUNNABLE))
                await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(live)
            await cluster.settle()
            group.cancel_scope.cancel()
        (task_id,) = task_ids
        assert cluster.store.record(task_id).status == "working", cluster.store.record(task_id).outcome
        Questions().offer(b)
        await cluster.pass_time(LEASE_SECONDS)
        assert cluster.store.record(task_id).status == "completed"


# --- what another process does to a task ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "finish", "delete", "expire"])
async def test_what_ends_a_task_elsewhere_stops_its_work_here(how: str) -> None:
    """Law L9: on whichever process it runs."""
    async with open_cluster() as (cluster, (a, b)):
        stopped: list[bool] = []

        async def work(execution: Execution[Any]) -> Result:
            context = a.context(execution)
            try:
                await anyio.sleep_forever()
            finally:
                stopped.append(context.is_cancelled)
            raise AssertionError

        record = await a.runtime.submit(TaskSpec(ttl_ms=60_000), work)
        task_id = record.task_id
        await cluster.settle()
        if how == "cancel":
            await b.runtime.cancel(task_id, owner=None)
        elif how == "finish":
            await b.runtime.finish(task_id, Outcome.completed({"by": "b"}))
        elif how == "delete":
            await b.link._call(cluster.store, "delete_task", task_id)
        else:
            await cluster.store.update_task(task_id, ttl_ms=30_000)  # sooner than this process knows
            await cluster.pass_time(30)
        await cluster.settle()
        assert stopped == [True]
        assert a.running == set()
        if how in ("cancel", "finish"):
            assert cluster.store.record(task_id).status == {"cancel": "cancelled", "finish": "completed"}[how]


async def test_a_rerun_is_cancelled_like_any_other_work() -> None:
    async with open_cluster(3) as (cluster, (a, b, _)):
        questions = Questions("?")
        questions.offer(b)
        task_id = await lost_task(cluster, RERUNNABLE)
        await cluster.pass_time(LEASE_SECONDS)
        await cluster.until_asked(task_id, "?")
        record = await a.runtime.cancel(task_id, owner=None)
        assert record.status == "cancelled"
        await cluster.settle()
        assert questions.stopped == [b]
        assert await cluster.questions(task_id) == []


async def test_a_rerun_is_stopped_at_the_deadline_of_its_task() -> None:
    """Law L7: the time of the first run counts."""
    async with open_cluster() as (cluster, (_, b)):
        questions = Questions("?")
        questions.offer(b)
        task_id = await lost_task(cluster, RERUNNABLE, ttl_ms=60_000)
        await cluster.pass_time(LEASE_SECONDS)
        await cluster.until_asked(task_id, "?")
        await cluster.pass_time(60 - LEASE_SECONDS - 0.5)
        record = await cluster.until_ended(task_id)
        assert record.outcome is not None
        assert "time to live" in str(record.outcome.error)
        assert questions.stopped == [b]


async def test_a_rerun_that_raises_fails_its_task_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """Law L11."""
    async with open_cluster() as (cluster, (_, b)):

        async def work(execution: Execution[Outcome]) -> Outcome:
            raise RuntimeError("a secret")

        b.runtime.register("tool", work)
        task_id = await lost_task(cluster, RERUNNABLE)
        with caplog.at_level(logging.ERROR):
            await cluster.pass_time(LEASE_SECONDS)
        record = await cluster.until_ended(task_id)
        assert record.outcome is not None
        assert record.outcome.error == {"code": -32603, "message": "Internal error"}
        assert "a secret" in caplog.text


async def test_a_rerun_is_renewed_too_and_lost_in_its_turn() -> None:
    async with open_cluster(3) as (cluster, (_, b, c)):
        questions = Questions("?")
        questions.offer(b)
        task_id = await lost_task(cluster, RERUNNABLE)
        await cluster.pass_time(5 * LEASE_SECONDS)
        assert questions.runs == [(b, 2)]
        questions.offer(c)
        await cluster.cut(b)
        await cluster.pass_time(LEASE_SECONDS + TURN_SECONDS)
        assert questions.runs == [(b, 2), (c, 3)]
        assert list(await cluster.asks(task_id)) == ["?"]


# --- detached work -------------------------------------------------------------------------------------------------


async def test_a_detached_task_has_no_lease_and_is_nobodys_to_take_over() -> None:
    async with open_cluster() as (cluster, (a, b)):

        async def work(execution: Execution[Any]) -> Result:
            execution.detach()
            return {}

        task_id = (await a.runtime.submit(TaskSpec(), work)).task_id
        await cluster.settle()
        assert cluster.store.record(task_id).lease is None
        await cluster.pass_time(5 * LEASE_SECONDS)
        assert cluster.store.record(task_id).status == "working"
        await b.runtime.finish(task_id, Outcome.completed({"by": "b"}))
        assert cluster.store.record(task_id).status == "completed"


async def test_a_detached_task_that_another_process_ends_makes_room_for_its_owner() -> None:
    """A6, across processes."""
    async with open_cluster(settings=replace(SETTINGS, max_tasks_per_owner=1)) as (cluster, (a, b)):

        async def work(execution: Execution[Any]) -> Result:
            execution.detach()
            return {}

        task_id = (await a.runtime.submit(TaskSpec(), work)).task_id
        await cluster.settle()
        with pytest.raises(LimitExceededError):
            await a.runtime.submit(TaskSpec(), work)
        await b.runtime.finish(task_id, Outcome.completed({}))
        await cluster.settle()
        await a.runtime.submit(TaskSpec(), work)
        await cluster.settle()
        assert a.runtime.statistics().detached == 1
    assert a.runtime.statistics().detached == 0


async def test_work_that_runs_on_after_it_detached_is_not_taken_for_lost() -> None:
    async with open_cluster() as (cluster, (a, _)):
        release = anyio.Event()

        async def work(execution: Execution[Any]) -> Result:
            execution.detach()
            await release.wait()  # hands the job over, which takes its time
            return {}

        task_id = (await a.runtime.submit(TaskSpec(), work)).task_id
        await cluster.pass_time(3 * LEASE_SECONDS)
        record = cluster.store.record(task_id)
        assert record.status == "working", record.outcome
        release.set()
        await cluster.settle()
        assert cluster.store.record(task_id).lease is None
        await cluster.pass_time(3 * LEASE_SECONDS)
        assert cluster.store.record(task_id).status == "working"


async def test_a_shutdown_leaves_a_detached_task_alone_even_while_its_work_still_runs() -> None:
    async with open_cluster(1) as (cluster, _):
        a = cluster.process()

        async def work(execution: Execution[Any]) -> Result:
            execution.detach()
            await anyio.sleep_forever()
            raise AssertionError

        async with a.runtime:
            task_id = (await a.runtime.submit(TaskSpec(), work)).task_id
            await cluster.settle()
        await cluster.pass_time(3 * LEASE_SECONDS)
        record = cluster.store.record(task_id)
        assert (record.status, record.lease) == ("working", None), record.outcome


# --- a store that is unavailable -----------------------------------------------------------------------------------


async def test_the_reaper_goes_on_after_a_store_was_away() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        task_id = await lost_task(cluster)
        await cluster.cut(a)
        await cluster.pass_time(4 * LEASE_SECONDS)
        assert cluster.store.record(task_id).status == "working"
        a.link.is_cut = False
        await cluster.pass_time(LEASE_SECONDS - 1)
        assert cluster.store.record(task_id).status == "working", "its process may only not have renewed it yet"
        await cluster.pass_time(TURN_SECONDS)
        assert (await cluster.until_ended(task_id)).status == "failed"


async def test_a_reaper_whose_store_waited_out_an_outage_claims_nothing_for_a_full_lease() -> None:
    """The call that renews succeeds, late: the other processes may not have renewed theirs yet."""
    async with open_cluster(1) as (cluster, (a,)):
        await started(a)
        task_id = await lost_task(cluster)
        available = anyio.Event()

        async def outwait(method: str) -> None:
            if method == "renew_leases":
                await available.wait()

        a.link.before = outwait
        await cluster.pass_time(2 * LEASE_SECONDS)
        available.set()
        await cluster.settle()
        await cluster.pass_time(LEASE_SECONDS - 1)
        assert cluster.store.record(task_id).status == "working"
        await cluster.pass_time(TURN_SECONDS + 1)
        assert (await cluster.until_ended(task_id)).status == "failed"


async def test_a_lost_task_whose_failure_cannot_be_written_is_written_later() -> None:
    """Law L12: each `working` task ends in time."""
    async with open_cluster() as (cluster, (a, b)):
        task_id = await lost_task(cluster)
        a.link.fails = {"finish_task"}
        b.link.fails = {"claim_task"}
        await cluster.pass_time(LEASE_SECONDS)
        assert cluster.store.record(task_id).status == "working"
        assert a.runtime.statistics().waiting_outcomes == 1
        b.link.fails = set()
        await cluster.pass_time(2 * LEASE_SECONDS)
        lease = cluster.store.record(task_id).lease
        assert lease is not None
        assert lease.worker == a.worker, "its lease is renewed as long as it waits"
        a.link.fails = set()
        assert (await cluster.until_ended(task_id)).status == "failed"


async def test_a_runtime_can_be_opened_again_and_keeps_leases_then_as_well() -> None:
    async with open_cluster(1) as (cluster, _):
        a = cluster.process()
        for _ in range(2):
            async with a.runtime:
                task_id = await started(a)
                await cluster.pass_time(3 * LEASE_SECONDS)
                assert cluster.store.record(task_id).status == "working"
            assert cluster.store.record(task_id).status == "failed"


async def test_a_thousand_leases_are_renewed_in_batches() -> None:
    """Law L8: one call for many."""
    async with open_cluster(1) as (cluster, (a,)):
        task_ids = [await started(a) for _ in range(1000)]
        a.link.calls.clear()
        cluster.clock.advance(TURN_SECONDS)
        await cluster.settle()
        assert a.link.calls.count("renew_leases") == 2
        leases = [cluster.store.record(task_id).lease for task_id in task_ids]
        until = cluster.clock.now() + timedelta(seconds=LEASE_SECONDS)
        assert all(lease is not None and lease.expires_at == until for lease in leases)
