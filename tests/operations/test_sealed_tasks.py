"""`mcp-tasks` on a sealed store: with the keys it shows and does all, without them it shows what is plain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
from cryptography.fernet import Fernet

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRequest
from mcp_task_runtime.stores.sealed import seal_store
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from mcp_task_runtime.testing.checks.abilities import AbleStore
from tests.operations.terminal import mcp_tasks

pytest.importorskip("click", reason="the extra `cli` is not installed")

KEY, OLD = (Fernet.generate_key().decode() for _ in range(2))
QUESTION = QueuedMessage.request("q", "elicitation/create", {"message": "s3cret?", "requestedSchema": {}})


@pytest.fixture
def anyio_backend() -> str:
    """Run on one event loop: the command has one of its own."""
    return "asyncio"


async def test_operators_read_with_the_keys_and_see_what_is_plain_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MCP_TASKS_SEAL_KEYS", raising=False)
    url = f"sqlite:///{tmp_path / 'tasks.db'}"
    async with SQLiteTaskStore(tmp_path / "tasks.db") as plain:
        store = cast(AbleStore, seal_store(plain, [OLD]))
        request = TaskRequest(name="build", arguments_json=json.dumps({"a": "s3cret"}))
        for task_id in ("asks", "ended"):
            await store.create_task(NewTask(ttl_ms=None, task_id=task_id, owner="ada", request=request))
        await store.update_task("asks", status_message="s3cret status")
        await store.ask("asks", QUESTION)
        await store.finish_task("ended", Outcome.failed("s3cret failure"))

        for command in (["list", "--json", "--values"], ["show", "asks", "--values"], ["list", "--text", "s3cret"]):
            hidden = await mcp_tasks(url, *command)
            assert (hidden.code, "s3cret" in hidden.out) == (0, False)
        for code, command in ((1, ["retry", "ended"]), (3, ["answer", "asks", "--json", '{"action":"decline"}'])):
            refused = await mcp_tasks(url, *command)
            assert refused.code == code
            assert "give the keys of its servers with MCP_TASKS_SEAL_KEYS" in refused.err
        wrong = await mcp_tasks(url, "--seal-key", KEY, "show", "asks")
        assert (wrong.code, wrong.err) == (3, "Error: The task is sealed with a key that is not here\n")
        doctor = await mcp_tasks(url, "--seal-key", KEY, "doctor")
        assert (doctor.code, "2 of the newest 2 tasks are sealed with a key" in doctor.out) == (4, True)
        malformed = await mcp_tasks(url, "--seal-key", "short", "list")
        assert (malformed.code, "seal must be keys made by" in malformed.err) == (2, True)

        monkeypatch.setenv("MCP_TASKS_SEAL_KEYS", f"{KEY},{OLD}")
        listed = await mcp_tasks(url, "list", "--owner", "ada", "--text", "S3CRET", "--json", "--values")
        rows = [json.loads(line) for line in listed.out.splitlines()]
        seen = {"a": "s3cret"}
        assert [(row["taskId"], row["arguments"]) for row in rows] == [("ended", seen), ("asks", seen)]
        shown = json.loads((await mcp_tasks(url, "show", "asks", "--json", "--values")).out)
        assert (shown["statusMessage"], shown["history"][1]["text"]) == ("s3cret status", "s3cret status")
        assert shown["questions"][0]["params"]["message"] == "s3cret?"
        answered = await mcp_tasks(url, "answer", "asks", "--json", '{"action":"decline"}')
        assert (answered.code, answered.out) == (0, "answered\n")
        again = seal_store(plain, [KEY, OLD])
        queue = cast(AbleStore, again).message_queue
        assert await queue.wait_for_answer("asks", "q") == Answer.result({"action": "decline"})
        retried = await mcp_tasks(url, "retry", "ended", "--json")
        record = await again.get_task(json.loads(retried.out)["taskId"])
        assert record is not None
        assert (record.owner, record.request.arguments) == ("ada", {"a": "s3cret"})
        stored = await plain.get_task(record.task_id)
        assert "s3cret" not in repr(stored)
