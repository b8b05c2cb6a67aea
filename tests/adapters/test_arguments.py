"""What the constructors and methods of the seed refuse at once, instead of failing later (design section 6)."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import pytest

from mcp_task_runtime import (
    Answer,
    Execution,
    InMemoryTaskStore,
    LimitExceededError,
    QuestionTimeoutError,
    ServerTaskContext,
    TaskResultHandler,
    TaskRuntime,
    TaskSettings,
)
from mcp_task_runtime.core.types import NewTask, TaskSpec
from mcp_task_runtime.testing.clock import FakeClock
from tests.adapters.scripted import (
    ACCEPT,
    FORM,
    MESSAGE,
    Desk,
    ScriptedSession,
    answers,
    open_desk,
)
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

NAME = "report-\udcff.txt"
"""An undecodable file name, as Python has it."""
TEXT = {"role": "user", "content": {"type": "text", "text": "hi"}}


async def arguments() -> dict[str, Any]:
    store = InMemoryTaskStore()
    record = await store.create_task(NewTask(ttl_ms=None))
    handler = TaskResultHandler(store, store.message_queue)
    return {
        "task": record.task,
        "store": store,
        "session": ScriptedSession(),
        "queue": store.message_queue,
        "handler": handler,
    }


@pytest.mark.parametrize("name", ["task", "store", "session", "queue", "handler"])
@pytest.mark.parametrize("wrong", [object(), "text", 5, ServerTaskContext], ids=["object", "text", "number", "class"])
async def test_a_context_refuses_an_argument_of_another_kind_and_names_it(name: str, wrong: object) -> None:
    with pytest.raises(ValueError, match=name):
        ServerTaskContext(**{**await arguments(), name: wrong})


@pytest.mark.parametrize("name", ["task", "store", "session", "queue", "handler"])
async def test_a_class_is_not_taken_for_its_instance(name: str) -> None:
    given = await arguments()
    with pytest.raises(ValueError, match=name):
        ServerTaskContext(**{**given, name: type(given[name])})


@pytest.mark.parametrize("name", ["store", "queue", "settings"])
async def test_a_handler_refuses_an_argument_of_another_kind_and_names_it(name: str) -> None:
    given = await arguments()
    wanted = {"store": given["store"], "queue": given["queue"], "settings": TaskSettings()}
    with pytest.raises(ValueError, match=name):
        TaskResultHandler(**{**wanted, name: object()})


async def test_a_handler_refuses_what_is_not_a_session() -> None:
    async with open_desk(delivering=False) as desk:
        with pytest.raises(ValueError, match="session"):
            await desk.handler.handle(desk.task_id, object())


# --- text that is not Unicode ----------------------------------------------------------------------------------

SAYINGS: dict[str, Callable[[ServerTaskContext], Awaitable[object]]] = {
    "complete": lambda task: task.complete({"content": [{"type": "text", "text": NAME}]}),
    "complete, in a key": lambda task: task.complete({NAME: 1}),
    "elicit": lambda task: task.elicit(f"Delete {NAME}?", FORM),
    "elicit, in the form": lambda task: task.elicit("?", {**FORM, "title": NAME}),
    "elicit_url": lambda task: task.elicit_url("?", f"https://x/{NAME}", "1"),
    "elicit_as_task": lambda task: task.elicit_as_task(f"Delete {NAME}?", FORM),
    "create_message": lambda task: task.create_message(
        [{"role": "user", "content": {"type": "text", "text": NAME}}], max_tokens=5
    ),
    "create_message, in the system prompt": lambda task: task.create_message([TEXT], max_tokens=5, system_prompt=NAME),
    "create_message_as_task": lambda task: task.create_message_as_task([TEXT], max_tokens=5, system_prompt=NAME),
    "ask": lambda task: task.ask("roots/list", {"x": [NAME]}),
    "ask, in the method": lambda task: task.ask(NAME, {}),
}


@pytest.mark.parametrize("saying", SAYINGS)
async def test_a_lone_surrogate_is_refused_and_the_task_goes_on(saying: str) -> None:
    """Design section 6: nothing is written, nothing is sent, and the task can still be ended."""
    async with open_desk() as desk:
        with pytest.raises(ValueError, match="surrogate"):
            await SAYINGS[saying](desk.context)
        assert desk.session.notifications == []
        assert desk.session.requests == []
        record = await desk.memory.get_task(desk.task_id)
        assert record is not None
        assert (record.status, record.revision, record.task.status_message) == ("working", 1, None)
        await desk.context.complete({"content": []})


async def test_a_lone_surrogate_in_text_for_people_is_replaced() -> None:
    """The name of a file must not end the work that reads it."""
    async with open_desk(progress_token="t") as desk:
        await desk.context.update_status(f"Reading {NAME}")
        await desk.context.report_progress(1, 2, NAME)
        await desk.context.fail(f"No {NAME}")
        said = [params.get("statusMessage", params.get("message")) for _, params in desk.session.notifications]
        name = "report-\ufffd.txt"
        assert said == [f"Reading {name}", f"{name} (1/2)", name, f"No {name}"]
        record = await desk.memory.get_task(desk.task_id)
        assert record is not None
        assert record.task.status_message == f"No {name}"
        assert record.progress is not None
        assert record.progress.message == name


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["progress", "total"])
async def test_progress_that_is_not_a_number_is_refused(name: str, number: float) -> None:
    given: dict[str, Any] = {"progress": 1, name: number}
    async with open_desk(progress_token="t") as desk:
        with pytest.raises(ValueError, match=name):
            await desk.context.report_progress(**given)
        assert desk.session.notifications == []


# --- messages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["create_message", "create_message_as_task"])
@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "hi"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": ["hi"]},
        {"role": "user", "content": {"text": "hi"}},
        {"role": "system", "content": {"type": "text", "text": "hi"}},
        {"content": {"type": "text", "text": "hi"}},
    ],
)
async def test_a_malformed_message_is_refused_with_its_place(method: str, message: Any) -> None:
    async with open_desk(answers(MESSAGE)) as desk:
        with pytest.raises(ValueError, match=r"messages\[1\]"):
            await getattr(desk.context, method)([TEXT, message], max_tokens=5)
        assert desk.session.requests == []


# --- limits ----------------------------------------------------------------------------------------------------


async def test_open_questions_of_a_task_are_bounded() -> None:
    """L16: one more is refused, and when one is answered there is room again."""
    desk = Desk(ScriptedSession())
    desk.handler = TaskResultHandler(desk.store, desk.queue, settings=TaskSettings(max_open_questions=3))
    await desk.open()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(desk.context.elicit, f"{number}?", FORM)
            await desk.until_asked(3)
            with pytest.raises(LimitExceededError, match="open questions") as caught:
                await desk.context.elicit("one more?", FORM)
            assert caught.value.maximum == 3
            assert len(await desk.open_keys()) == 3
            desk.session.answers = answers(ACCEPT)
            async with desk.handler.delivering(desk.task_id, desk.session):
                while await desk.open_keys():
                    await anyio.wait_all_tasks_blocked()
        async with desk.handler.delivering(desk.task_id, desk.session):
            await desk.context.elicit("and now?", FORM)


ASKING: dict[str, Callable[[ServerTaskContext, float], Awaitable[object]]] = {
    "elicit": lambda task, timeout: task.elicit("?", FORM, timeout=timeout),
    "elicit_url": lambda task, timeout: task.elicit_url("?", "https://x", "1", timeout=timeout),
    "elicit_as_task": lambda task, timeout: task.elicit_as_task("?", FORM, timeout=timeout),
    "create_message": lambda task, timeout: task.create_message([TEXT], max_tokens=5, timeout=timeout),
    "create_message_as_task": lambda task, timeout: task.create_message_as_task([TEXT], max_tokens=5, timeout=timeout),
    "ask": lambda task, timeout: task.ask("roots/list", {}, timeout=timeout),
}


@pytest.mark.parametrize("method", ASKING)
async def test_a_question_that_is_not_answered_in_time_raises_and_is_withdrawn(method: str) -> None:
    async with open_desk() as desk:
        raised: list[QuestionTimeoutError] = []

        async def ask() -> None:
            with pytest.raises(QuestionTimeoutError) as caught:
                await ASKING[method](desk.context, 30)
            raised.append(caught.value)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await desk.until_asked()
            await desk.session.until_requested()
            await anyio.wait_all_tasks_blocked()
            desk.clock.advance(29.9)
            await anyio.wait_all_tasks_blocked()
            assert not raised
            desk.clock.advance(0.2)
        assert isinstance(raised[0], TimeoutError)
        assert raised[0].timeout == 30
        assert await desk.state() == ("working", [])


async def test_an_answer_in_time_is_an_answer() -> None:
    async with open_desk(answers(ACCEPT)) as desk:
        assert (await desk.context.elicit("?", FORM, timeout=30)).action == "accept"


@pytest.mark.parametrize("seconds", [-1, math.nan])
async def test_a_timeout_that_is_not_a_time_is_refused(seconds: float) -> None:
    async with open_desk() as desk:
        with pytest.raises(ValueError, match="timeout"):
            await desk.context.elicit("?", FORM, timeout=seconds)
        assert await desk.state() == ("working", [])


# --- time to live ----------------------------------------------------------------------------------------------


async def test_extending_lets_a_task_live_longer_within_the_bounds() -> None:
    desk = Desk(ScriptedSession())
    desk.handler = TaskResultHandler(desk.store, desk.queue, settings=TaskSettings(max_ttl_ms=100_000))
    await desk.open(ttl_ms=60_000)
    desk.clock.advance(10)
    assert (await desk.context.extend(20_000)).ttl_ms == 60_000, "never shorter"
    assert (await desk.context.extend(70_000)).ttl_ms == 80_000, "from now on"
    assert (await desk.context.extend(10**9)).ttl_ms == 100_000, "within the bounds"
    assert desk.context.task.ttl_ms == 100_000
    record = await desk.memory.get_task(desk.task_id)
    await desk.context.extend(10**9)
    assert await desk.memory.get_task(desk.task_id) == record, "nothing is written where nothing changes"
    desk.clock.advance(89.9)
    assert await desk.status() == "working"
    desk.clock.advance(0.2)
    assert await desk.status() == "gone"


async def test_a_task_without_a_limit_of_time_stays_so() -> None:
    async with open_desk(ttl_ms=None) as desk:
        assert (await desk.context.extend(20_000)).ttl_ms is None


@pytest.mark.parametrize("ttl_ms", [0, -1, True, 1.5, "5"])
async def test_a_time_to_live_that_is_none_is_refused(ttl_ms: Any) -> None:
    async with open_desk() as desk:
        with pytest.raises(ValueError, match="ttl_ms"):
            await desk.context.extend(ttl_ms)


# --- many questions --------------------------------------------------------------------------------------------


class CountingStore(InMemoryTaskStore):
    """Counts what writes answers."""

    answered = 0

    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        self.answered += 1
        return await super().answer_all(task_id, answers)


async def test_three_hundred_answers_at_once_are_one_call_of_the_store_and_one_revision() -> None:
    store = CountingStore()
    record = await store.create_task(NewTask(ttl_ms=None))
    queue = store.message_queue
    context = ServerTaskContext(
        task=record.task,
        store=store,
        session=ScriptedSession(),
        queue=queue,
        handler=TaskResultHandler(store, queue),
    )
    runtime = TaskRuntime(store)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for number in range(300):
                group.start_soon(context.elicit, f"{number}?", FORM)
            while len((view := await runtime.get(record.task_id, owner=None)).questions) < 300:
                await store.wait_for_update(record.task_id, after=view.record.revision)
            await anyio.wait_all_tasks_blocked()
            before = (await runtime.get(record.task_id, owner=None)).record.revision
            answers_by_key = {question.key or "": ACCEPT for question in view.questions}
            await runtime.answer(record.task_id, answers_by_key, owner=None)
        assert store.answered == 1
        after = (await runtime.get(record.task_id, owner=None)).record
        assert (after.status, after.revision) == ("working", before + 1)


async def test_work_that_extended_its_task_is_not_stopped_at_the_old_deadline() -> None:
    """Law L7: the new time counts for the runtime, too."""
    clock = FakeClock()
    store = InMemoryTaskStore(clock=clock)
    extended, ended = anyio.Event(), anyio.Event()

    async def work(execution: Execution[dict[str, Any]]) -> dict[str, Any]:
        assert execution.record is not None
        context = ServerTaskContext(
            task=execution.record.task,
            store=store,
            session=ScriptedSession(),
            queue=store.message_queue,
            handler=TaskResultHandler(store, store.message_queue),
            execution=execution,
        )
        await context.extend(120_000)
        extended.set()
        await ended.wait()
        return {"content": []}

    with anyio.fail_after(PATIENCE):
        async with TaskRuntime(store, settings=TaskSettings(shutdown_grace=0)) as runtime:
            record = await runtime.submit(TaskSpec(ttl_ms=60_000), work)
            await extended.wait()
            await anyio.wait_all_tasks_blocked()
            clock.advance(100)
            await anyio.wait_all_tasks_blocked()
            assert (await runtime.get(record.task_id, owner=None)).record.status == "working"
            ended.set()
            assert (await runtime.result(record.task_id, owner=None)).result == {"content": []}
