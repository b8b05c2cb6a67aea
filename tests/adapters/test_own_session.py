"""A connection of one's own: four members, fifteen lines, no SDK."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_task_runtime import (
    Execution,
    InMemoryTaskStore,
    Outcome,
    ServerTaskContext,
    TaskResultHandler,
    TaskRuntime,
    TaskSession,
    TaskSpec,
)
from tests.adapters.scripted import ScriptedSession, answers
from tests.support.patience import PATIENCE

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_session.py"
JSON = dict[str, Any]


class MySession:
    """All that the library needs of a connection."""

    can_send_request = True

    def __init__(self) -> None:
        self.client_capabilities: JSON = {"elicitation": {}, "sampling": {}}
        self.told: list[Any] = []

    async def send_notification(self, method: str, params: JSON) -> None:
        self.told.append(params.get("statusMessage", params.get("status")))

    async def send_request(self, method: str, params: JSON) -> JSON:
        if method == "sampling/createMessage":
            return {"role": "assistant", "model": "m", "content": {"type": "text", "text": "a draft"}}
        return {"action": "accept", "content": {"publish": True}}


def test_four_members_are_a_session() -> None:
    assert isinstance(MySession(), TaskSession)
    assert isinstance(ScriptedSession(answers({})), TaskSession)
    assert not isinstance(object(), TaskSession)


async def test_work_asks_and_samples_over_a_session_of_ones_own_through_a_whole_life() -> None:
    """The function of the design's first page."""
    session = MySession()

    async with InMemoryTaskStore() as store, TaskRuntime(store) as runtime:
        handler = TaskResultHandler(store, runtime.queue)

        async def work(execution: Execution[JSON]) -> JSON:
            assert execution.record is not None
            task = ServerTaskContext(
                task=execution.record.task,
                store=store,
                session=session,
                queue=runtime.queue,
                handler=handler,
                execution=execution,
            )
            await task.update_status("Collecting sources")
            form = {"type": "object", "properties": {"publish": {"type": "boolean"}}}
            answer = await task.elicit("Publish it?", form)
            draft = await task.create_message(
                [{"role": "user", "content": {"type": "text", "text": "?"}}], max_tokens=8
            )
            return {"action": answer.action, "draft": draft.text}

        with anyio.fail_after(PATIENCE):
            record = await runtime.submit(TaskSpec(owner="me"), work)
            outcome = await handler.handle(record.task_id, session)
        assert outcome == Outcome.completed({"action": "accept", "draft": "a draft"})
        assert session.told == ["Collecting sources"]
    assert handler._streams == {}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_example_does_what_it_says_without_any_sdk(backend: str) -> None:
    """It asserts itself that none was imported."""
    code = f"import anyio, runpy; anyio.run(runpy.run_path({str(EXAMPLE)!r})['main'], backend={backend!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr == ""
    assert ended.returncode == 0
    assert "completed" in ended.stdout
