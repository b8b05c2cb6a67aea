"""Questions that wait for a person: their task's client neither sees nor answers them."""

from __future__ import annotations

import anyio
import pytest

from mcp_task_runtime import InMemoryTaskStore, QueuedMessage, TaskRuntime, TaskSpec
from mcp_task_runtime.core.message_queue import Answer
from mcp_task_runtime.core.questions import answer_questions, ask_question
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue
from tests.support.patience import PATIENCE

FORM = {"message": "Publish it?", "requestedSchema": {"type": "object", "properties": {}}}


@pytest.mark.parametrize("has_own_queue", [True, False])
async def test_a_client_sees_and_answers_its_own_questions_alone(has_own_queue: bool) -> None:
    store = InMemoryTaskStore()
    queue = store.message_queue if has_own_queue else InMemoryTaskMessageQueue()
    for_person = QueuedMessage.request(QueuedMessage.key_for_person("q"), "elicitation/create", FORM)
    for_client = QueuedMessage.request("q", "elicitation/create", FORM)
    assert for_person.is_for_person
    assert not for_client.is_for_person
    assert not QueuedMessage.notification("notifications/message", {}).is_for_person
    answers: dict[str, Answer | None] = {}
    with anyio.fail_after(PATIENCE):
        async with TaskRuntime(store, queue) as runtime, anyio.create_task_group() as group:
            record = await runtime.submit(TaskSpec(), _forever)
            task_id = record.task_id

            async def ask(question: QueuedMessage) -> None:
                answers[question.key or ""] = await ask_question(store, queue, task_id, question)

            async def asked(count: int) -> None:
                while len(await queue.outstanding(task_id)) < count:
                    await anyio.lowlevel.checkpoint()

            group.start_soon(ask, for_person)
            await asked(1)
            view = await runtime.get(task_id, owner=None)
            assert (view.task.status, view.questions) == ("working", ())
            assert view.task.status_message == "Waiting for a person to answer"
            group.start_soon(ask, for_client)
            await asked(2)
            view = await runtime.get(task_id, owner=None)
            assert (view.task.status, view.questions) == ("input_required", (for_client,))
            both = {"q": {"action": "accept"}, for_person.key or "": {"action": "accept"}}
            await runtime.answer(task_id, both, owner=None)
            assert await queue.outstanding(task_id) == (for_person,)
            await answer_questions(store, queue, task_id, {for_person.key or "": Answer.result({"action": "decline"})})
            await _until_answered(answers, 2)
            await runtime.cancel(task_id, owner=None)
    assert answers == {
        "q": Answer.result({"action": "accept"}),
        for_person.key: Answer.result({"action": "decline"}),
    }


async def _until_answered(answers: dict[str, Answer | None], count: int) -> None:
    while len(answers) < count:
        await anyio.lowlevel.checkpoint()


async def _forever(_: object) -> object:
    await anyio.sleep_forever()
    raise AssertionError
