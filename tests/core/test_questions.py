"""Questions: a task is `input_required` exactly while one is open (law L5)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any

import anyio
import pytest

from mcp_task_runtime import (
    Answer,
    Execution,
    InMemoryTaskMessageQueue,
    InMemoryTaskStore,
    InvalidTransitionError,
    Outcome,
    ProtocolError,
    QueuedMessage,
    TaskNotFoundError,
    TaskSettings,
    TaskSpec,
)
from mcp_task_runtime.core.questions import answer_questions, ask_question, sync_status
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.interleaving import Race, explore_interleavings
from mcp_task_runtime.testing.yielding import YieldingTaskMessageQueue, YieldingTaskStore
from mcp_task_runtime.wire.answers import check_answer
from tests.core.worlds import ACCEPT, NOTHING, World, ask, open_world
from tests.support.event_loops import virtual_time
from tests.support.patience import PATIENCE

__all__ = ["virtual_time"]  # a fixture

Result = dict[str, Any]
YES = Answer.result(ACCEPT)


class Backend:
    """A yielding store and queue with one task."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.memory = InMemoryTaskStore(clock=self.clock)
        self.store = YieldingTaskStore(self.memory)
        self.queue = YieldingTaskMessageQueue(self.memory.message_queue)
        self.task_id = ""

    @classmethod
    async def make(cls, ttl_ms: int | None = None) -> Backend:
        self = cls()
        self.task_id = (await self.memory.create_task(NewTask(ttl_ms=ttl_ms))).task_id
        return self

    async def ask(self, key: str = "1") -> Answer:
        return await ask(self.store, self.queue, self.task_id, key)

    async def answer(self, answers: Mapping[str, Answer]) -> frozenset[str]:
        return await answer_questions(self.store, self.queue, self.task_id, answers)

    async def status(self) -> str:
        record = await self.memory.get_task(self.task_id)
        return "gone" if record is None else record.status

    async def open_keys(self) -> list[str | None]:
        return [question.key for question in await self.memory.message_queue.outstanding(self.task_id)]

    async def state(self) -> tuple[str, list[str | None]]:
        return await self.status(), await self.open_keys()

    async def until_asked(self, *keys: str) -> None:
        while True:
            record = await self.memory.get_task(self.task_id)
            assert record is not None
            if set(keys) <= set(await self.open_keys()) and record.status == "input_required":
                return
            await self.memory.wait_for_update(self.task_id, after=record.revision)

    def waiters(self) -> int:
        return self.memory.message_queue.waiting + self.clock.waiting


@asynccontextmanager
async def asking(
    *asks: Callable[[], Awaitable[Answer]],
) -> AsyncIterator[tuple[list[Answer | Exception], anyio.CancelScope]]:
    """Run askers concurrently with a block, and wait for them to end; yields what they got, and their scope."""
    got: list[Answer | Exception] = []

    async def run(one: Callable[[], Awaitable[Answer]]) -> None:
        try:
            got.append(await one())
        except Exception as error:
            got.append(error)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for one in asks:  # one after the other: trio starts tasks in any order
                group.start_soon(run, one)
                await anyio.wait_all_tasks_blocked()
            yield got, group.cancel_scope


async def test_a_task_is_input_required_while_its_question_is_open_and_works_when_the_asker_goes_on() -> None:
    """L5."""
    backend = await Backend.make()
    seen: list[str] = []

    async def asker() -> Answer:
        answer = await backend.ask()
        seen.append(await backend.status())
        return answer

    async with asking(asker) as (got, _):
        assert await backend.state() == ("input_required", ["1"])
        assert await backend.answer({"1": YES}) == {"1"}
    assert got == [YES]
    assert seen == ["working"]


async def test_two_questions_at_once_keep_the_task_input_required_until_both_are_answered() -> None:
    """L5, F4, F2."""
    backend = await Backend.make()
    async with asking(partial(backend.ask, "a"), partial(backend.ask, "b")) as (got, _):
        assert await backend.state() == ("input_required", ["a", "b"])
        await backend.answer({"b": YES})
        await anyio.wait_all_tasks_blocked()
        assert got == [YES]
        assert await backend.state() == ("input_required", ["a"])
        await backend.answer({"a": YES})
        await anyio.wait_all_tasks_blocked()
        assert await backend.state() == ("working", [])
    assert got == [YES, YES]


async def test_an_error_answer_raises_in_the_asker_and_the_task_works_again() -> None:
    """L5, F3."""
    backend = await Backend.make()
    async with asking(backend.ask) as (got, _):
        await backend.answer({"1": Answer.error(-5, "user said no", {"d": 1})})
    assert isinstance(got[0], Answer)
    with pytest.raises(ProtocolError, match="user said no"):
        got[0].unwrap()
    assert await backend.state() == ("working", [])


async def test_the_first_answer_wins_and_late_ones_are_ignored() -> None:
    """L5."""
    backend = await Backend.make()
    async with asking(backend.ask) as (got, _):
        assert await backend.answer({"unknown": YES}) == frozenset()
        assert await backend.answer({"1": YES}) == {"1"}
        assert await backend.answer({"1": Answer.error(1, "late")}) == frozenset()
    assert got == [YES]
    before = await backend.memory.get_task(backend.task_id)
    assert await backend.answer({"1": Answer.error(1, "late")}) == frozenset()
    assert await backend.memory.get_task(backend.task_id) == before


async def test_a_key_is_never_used_twice_in_a_tasks_life() -> None:
    """L5, F15, wire rule C7."""
    backend = await Backend.make()
    question = QueuedMessage.request("1", "m", {})
    async with asking(backend.ask):
        assert await ask_question(backend.store, backend.queue, backend.task_id, question) is None
        assert await backend.state() == ("input_required", ["1"])
        await backend.answer({"1": YES})
    with anyio.fail_after(PATIENCE):
        assert await ask_question(backend.store, backend.queue, backend.task_id, question) is None
    assert await backend.state() == ("working", [])


async def test_work_that_runs_again_takes_up_its_question_and_gets_the_answer_it_had() -> None:
    """L5, L12."""
    backend = await Backend.make()
    question = QueuedMessage.request("1", "m", {})

    async def again() -> Answer:
        answer = await ask_question(backend.store, backend.queue, backend.task_id, question, replays=True)
        assert answer is not None
        return answer

    async with asking(backend.ask) as (first, _):
        async with asking(again) as (second, _):
            await backend.answer({"1": YES})
    assert first == second == [YES]
    with anyio.fail_after(PATIENCE):
        assert await again() == YES
    assert await backend.state() == ("working", [])


async def test_a_notification_is_no_question() -> None:
    backend = await Backend.make()
    with pytest.raises(ValueError, match="request"):
        await ask_question(backend.store, backend.queue, backend.task_id, QueuedMessage.notification("m", {}))


@pytest.mark.parametrize("others", [0, 1])
async def test_an_asker_cancelled_at_any_await_leaves_no_status_wrong_and_no_question(others: int) -> None:
    """L5, L6, F7: with a store that yields at each await, with and without another question open."""

    async def setup() -> Trial:
        backend = await Backend.make()
        if others:
            await backend.memory.message_queue.enqueue(backend.task_id, QueuedMessage.request("other", "m", {}))
            await sync_status(backend.memory, backend.memory.message_queue, backend.task_id)

        async def meanwhile() -> None:
            await backend.until_asked("1")
            await anyio.wait_all_tasks_blocked()
            await backend.answer({"1": YES})

        return Trial(backend.ask, backend.state, meanwhile=meanwhile, leftovers=backend.waiters)

    with anyio.fail_after(2 * PATIENCE):
        assert await check_cancellation(setup) > 8


async def test_an_asker_that_is_cancelled_again_and_again_still_withdraws_its_question() -> None:
    """L6: clean-up is shielded."""
    backend = await Backend.make()
    async with asking(backend.ask) as (_, scope):
        scope.cancel()
    assert await backend.state() == ("working", [])


async def test_an_asker_told_to_leave_its_question_open_does_so_when_it_is_cancelled() -> None:
    """L12: a shutdown hands the question to the process that runs the work again."""
    backend = await Backend.make()

    async def asker() -> Answer:
        question = QueuedMessage.request("1", "m", {})
        answer = await ask_question(backend.store, backend.queue, backend.task_id, question, stays_open=lambda: True)
        assert answer is not None
        return answer

    async with asking(asker) as (_, scope):
        scope.cancel()
    assert await backend.state() == ("input_required", ["1"])


async def test_an_answer_cancelled_at_any_await_is_given_or_not_and_the_status_agrees() -> None:
    """L5, L6."""

    async def setup() -> Trial:
        backend = await Backend.make()
        for key in ("a", "b"):
            await backend.memory.message_queue.enqueue(backend.task_id, QueuedMessage.request(key, "m", {}))
        await sync_status(backend.memory, backend.memory.message_queue, backend.task_id)
        return Trial(partial(backend.answer, {"a": YES, "b": YES}), backend.state)

    with anyio.fail_after(PATIENCE):
        assert await check_cancellation(setup) > 4


@pytest.mark.parametrize("how", ["finish", "delete", "clear after an end elsewhere"])
async def test_ending_the_task_releases_every_asker(how: str) -> None:
    """L5, F6."""
    backend = await Backend.make()
    async with asking(partial(backend.ask, "a"), partial(backend.ask, "b")) as (got, _):
        if how == "delete":
            await backend.memory.delete_task(backend.task_id)
        else:
            await backend.memory.finish_task(backend.task_id, Outcome.completed({}))
            await backend.queue.clear(backend.task_id)
    expected = TaskNotFoundError if how == "delete" else InvalidTransitionError
    assert [type(error) for error in got] == [expected, expected]
    assert backend.memory.message_queue.mailboxes == 0


async def test_an_asker_is_released_when_its_task_expires_though_nobody_touches_the_store() -> None:
    """L5, L7, F18: the client has left, and no runtime watches the deadline."""
    backend = await Backend.make(ttl_ms=10_000)
    async with asking(backend.ask) as (got, _):
        backend.clock.advance(10)
    assert [type(error) for error in got] == [TaskNotFoundError]
    assert backend.memory.message_queue.mailboxes == 0
    assert backend.clock.waiting == 0


@pytest.mark.parametrize("ended", [True, False])
async def test_asking_for_a_task_that_is_over_raises_and_leaves_nothing(ended: bool) -> None:
    """L8."""
    backend = await Backend.make()
    if ended:
        await backend.memory.finish_task(backend.task_id, Outcome.completed({}))
    else:
        await backend.memory.delete_task(backend.task_id)
    with anyio.fail_after(PATIENCE):
        with pytest.raises(InvalidTransitionError if ended else TaskNotFoundError):
            await backend.ask()
    assert backend.memory.message_queue.mailboxes == 0


async def test_askers_answerers_and_the_end_in_every_order_leave_status_and_questions_in_agreement() -> None:
    """L2, L5: two questions, their answers, and a status message, overlapping."""

    async def setup() -> Race:
        backend = await Backend.make()

        async def asker(key: str) -> str:
            return (await backend.ask(key)).type

        async def answerer(key: str) -> bool:
            while not await backend.answer({key: YES}):
                await backend.until_asked(key)
            return True

        async def observe() -> Any:
            return await backend.state()

        return Race([partial(asker, "a"), partial(asker, "b"), partial(answerer, "a"), partial(answerer, "b")], observe)

    with anyio.fail_after(4 * PATIENCE):
        for found in await explore_interleavings(setup, limit=40):
            assert found.state == ("working", [])
            assert [how for how, _ in found.endings] == ["returned"] * 4


async def test_an_answer_that_overlaps_with_a_new_question_never_hides_it() -> None:
    """L5, F2, F4: in every order of their awaits the status is that of the question still open."""

    async def setup() -> Race:
        backend = await Backend.make()
        mailboxes = backend.memory.message_queue
        await mailboxes.enqueue(backend.task_id, QueuedMessage.request("a", "m", {}))
        await sync_status(backend.memory, mailboxes, backend.task_id)

        async def put() -> None:
            await backend.queue.enqueue(backend.task_id, QueuedMessage.request("b", "m", {}))
            await sync_status(backend.store, backend.queue, backend.task_id)

        return Race([partial(backend.answer, {"a": YES}), put], backend.state)

    with anyio.fail_after(4 * PATIENCE):
        for found in await explore_interleavings(setup, limit=200):
            assert found.state == ("input_required", ["b"]), found.steps


async def test_an_asker_racing_with_the_end_of_its_task_is_always_released_and_nothing_is_kept() -> None:
    """L5, L8, F6: the end clears the mailbox before, between, or after the asker's steps."""

    async def setup() -> Race:
        backend = await Backend.make()

        async def end() -> None:
            await backend.store.finish_task(backend.task_id, Outcome.cancelled())
            await backend.queue.clear(backend.task_id)

        async def observe() -> Any:
            return await backend.status(), backend.memory.message_queue.mailboxes

        return Race([backend.ask, end], observe)

    with anyio.fail_after(4 * PATIENCE):
        for found in await explore_interleavings(setup, limit=60):
            assert found.endings == (("raised", "InvalidTransitionError"), ("returned", None))
            assert found.state == ("cancelled", 0)


# --- through the runtime ---------------------------------------------------------------------------------------


async def asks_once(world: World, execution: Execution[Result]) -> Result:
    return (await world.ask(execution)).unwrap()


async def test_answering_through_the_runtime_gives_the_asker_its_result() -> None:
    async with open_world(yielding=True) as world:
        record = await world.runtime.submit(TaskSpec(owner="me"), partial(asks_once, world))
        assert await world.until_asked(record.task_id) == ["1"]
        view = await world.runtime.get(record.task_id, owner="me")
        assert view.task.status == "input_required"
        assert [question.key for question in view.questions] == ["1"]
        await world.runtime.answer(record.task_id, {"1": ACCEPT}, owner="me")
        assert (await world.runtime.result(record.task_id, owner="me")).result == ACCEPT
        assert (await world.runtime.get(record.task_id, owner="me")).questions == ()


async def test_answers_that_are_late_unknown_or_for_another_task_change_nothing() -> None:
    """L5, L10, F15, wire rule C8."""
    async with open_world(yielding=True) as world:
        one = await world.runtime.submit(TaskSpec(owner="me"), partial(asks_once, world))
        two = await world.runtime.submit(TaskSpec(owner="me"), partial(asks_once, world))
        for record in (one, two):
            await world.until_asked(record.task_id)
        await world.runtime.answer(one.task_id, {"unknown": ACCEPT, "": {"bad": 1}}, owner="me")
        with pytest.raises(TaskNotFoundError):
            await world.runtime.answer(one.task_id, {"1": ACCEPT}, owner="you")
        await world.runtime.answer(one.task_id, {"1": {"action": "decline"}}, owner="me")
        assert (await world.runtime.result(one.task_id, owner="me")).result == {"action": "decline"}
        await world.runtime.answer(one.task_id, {"1": ACCEPT}, owner="me")  # late: the task has ended
        assert (await world.runtime.get(two.task_id, owner="me")).task.status == "input_required"
        await world.runtime.answer(two.task_id, {"1": ACCEPT}, owner="me")
        assert (await world.runtime.result(two.task_id, owner="me")).result == ACCEPT
        assert (await world.runtime.get(one.task_id, owner="me")).record.revision < 20


@pytest.mark.parametrize(
    "bad",
    [None, {"action": "maybe"}, {"action": "accept", "content": {"x": "y" * 5000}}, {"action": "accept", "content": 5}],
    ids=["no object", "malformed", "oversized", "content"],
)
async def test_one_bad_answer_refuses_them_all_and_every_question_stays_open(bad: Any) -> None:
    """Design section 5: the error names the question, and nothing was taken."""
    settings = TaskSettings(shutdown_grace=0)
    async with open_world(yielding=True, settings=settings) as world:
        results: list[Result] = []

        async def work(execution: Execution[Result]) -> Result:
            async def one(key: str) -> None:
                results.append((await world.ask(execution, key)).unwrap())

            async with anyio.create_task_group() as group:
                for key in ("a", "b"):
                    group.start_soon(one, key)
            return {}

        record = await world.runtime.submit(TaskSpec(), work)
        await world.until_asked(record.task_id, 2)
        for answers in ({"a": ACCEPT, "b": bad}, {"b": bad, "a": ACCEPT}):
            with pytest.raises(ProtocolError, match="'b'") as caught:
                await world.runtime.answer(
                    record.task_id, answers, owner=None, check=partial(check_answer, max_bytes=1000)
                )
            assert caught.value.code == -32602
            await anyio.wait_all_tasks_blocked()
            view = await world.runtime.get(record.task_id, owner=None)
            assert (view.record.status, len(view.questions)) == ("input_required", 2)
            assert results == []
        await world.runtime.answer(record.task_id, {"b": ACCEPT}, owner=None)  # a subset is taken
        await anyio.wait_all_tasks_blocked()
        assert [question.key for question in (await world.runtime.get(record.task_id, owner=None)).questions] == ["a"]
        await world.runtime.answer(record.task_id, {"a": ACCEPT}, owner=None)
        await world.runtime.result(record.task_id, owner=None)
        assert results == [ACCEPT, ACCEPT]


@pytest.mark.parametrize("shielded", [False, True])
async def test_cancelling_a_task_releases_its_pending_question(shielded: bool) -> None:
    """L5, L9, F6: even if the work shields the wait from its cancellation."""
    async with open_world(yielding=True) as world:
        ended: list[str] = []

        async def work(execution: Execution[Result]) -> Result:
            try:
                with anyio.CancelScope(shield=shielded):
                    await world.ask(execution)
            except BaseException as error:
                ended.append(type(error).__name__)
                raise
            return {}

        record = await world.runtime.submit(TaskSpec(), work)
        await world.until_asked(record.task_id)
        await world.runtime.cancel(record.task_id, owner=None)
        await world.until_idle()
        assert ended == (["InvalidTransitionError"] if shielded else ended)
        assert len(ended) == 1
        assert (await world.runtime.get(record.task_id, owner=None)).record.outcome == Outcome.cancelled()
        assert world.kept() == NOTHING


async def test_a_question_open_at_the_deadline_is_released_and_the_task_fails() -> None:
    """L5, L7, F18: the client left and never came back."""
    async with open_world(yielding=True) as world:
        record = await world.runtime.submit(TaskSpec(ttl_ms=10_000), partial(asks_once, world))
        await world.until_asked(record.task_id)
        world.clock.advance(9.5)
        assert await world.until(record.task_id, "failed", "cancelled", "completed") == "failed"
        await world.until_idle()
        assert world.kept() == NOTHING


async def test_a_shutdown_that_meets_open_questions_raises_nothing_and_logs_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_world(yielding=True) as world:
        record = await world.runtime.submit(TaskSpec(), partial(asks_once, world))
        await world.until_asked(record.task_id)
    assert await world.until(record.task_id, "failed") == "failed"
    assert [entry for entry in caplog.records if entry.levelname == "ERROR"] == []


# --- the queue on its own --------------------------------------------------------------------------------------


async def test_an_answer_reaches_its_asker_though_its_task_is_gone_from_the_store() -> None:
    """L5: a queue that is not the store's own may have it; the task has nothing left to set."""
    store, queue = InMemoryTaskStore(), InMemoryTaskMessageQueue()
    task_id = (await store.create_task(NewTask(ttl_ms=None))).task_id
    got: list[Answer | None] = []

    async def asking() -> None:
        got.append(await ask_question(store, queue, task_id, QueuedMessage.request("1", "m", {})))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(asking)
            await anyio.wait_all_tasks_blocked()
            await store.delete_task(task_id)
            await queue.answer(task_id, "1", Answer.result(ACCEPT))
    assert got == [Answer.result(ACCEPT)]


async def test_a_queue_without_its_store_releases_waiters_when_cleared_or_closed() -> None:
    """L5."""
    queue = InMemoryTaskMessageQueue()
    ended: list[str] = []
    numbers = count()

    async def wait(operation: Callable[[], Awaitable[Any]]) -> None:
        number = next(numbers)
        try:
            await operation()
        except Exception as error:
            ended.append(f"{number} {type(error).__name__}")

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            await queue.enqueue("t", QueuedMessage.request("k", "m", {}))
            await queue.dequeue("t")
            group.start_soon(wait, partial(queue.wait_for_answer, "t", "k"))
            await anyio.wait_all_tasks_blocked()
            group.start_soon(wait, partial(queue.wait_for_message, "t"))
            await anyio.wait_all_tasks_blocked()
            await queue.clear("t")
            await anyio.wait_all_tasks_blocked()
            assert sorted(ended) == ["0 TaskNotFoundError", "1 TaskNotFoundError"]
            group.start_soon(wait, partial(queue.wait_for_message, "u"))
            await anyio.wait_all_tasks_blocked()
            await queue.aclose()
    assert ended[2] == "2 StoreClosedError"
