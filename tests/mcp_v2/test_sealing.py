"""`Tasks(seal=...)`: a whole server on a sealed store, its reruns, and a process that has no keys."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from cryptography.fernet import Fernet
from mcp.server import MCPServer

from mcp_task_runtime import InMemoryTaskMessageQueue, InMemoryTaskStore, ServerTaskContext, TaskStore
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.store import TaskSealing
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from tests.core.leased_store import LEASE_SECONDS, SETTINGS, Cluster
from tests.mcp_v2.in_process import memory_client
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

KEY = Fernet.generate_key().decode()
SECRET = "a secret that no digest may give away"
FORM = {"type": "object", "properties": {"ok": {"type": "string"}}}


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def fetch(topic: str) -> str:
    return f"page of {topic}"


def install(tasks: Tasks) -> MCPServer[Any]:
    mcp: MCPServer[Any] = MCPServer("sealed")
    tasks.install(mcp)

    @tasks.tool(required=True, rerunnable=True, join=True)
    async def report(topic: str, task: ServerTaskContext) -> str:
        await task.update_status(f"about {topic}")
        page = await task.step("fetch", fetch, topic)
        answer = await task.elicit(f"Publish {topic}?", FORM)
        return f"{page}, {answer.content}"

    return mcp


async def test_a_server_leaves_nothing_to_read_in_its_file(tmp_path: Path) -> None:
    async with SQLiteTaskStore(tmp_path / "tasks.db") as store:
        tasks = Tasks(store, seal=[KEY], principal=lambda ctx: f"principal {SECRET}")
        assert isinstance(tasks.runtime.store, TaskSealing)
        with anyio.fail_after(PATIENCE):
            async with memory_client(install(tasks)) as client:
                task_id = await client.start("report", {"topic": SECRET})
                assert await client.start("report", {"topic": SECRET}) == task_id
                asking = await client.until(task_id, "input_required")
                ((key, question),) = asking["inputRequests"].items()
                assert question["params"]["message"] == f"Publish {SECRET}?"
                assert asking["statusMessage"] == f"about {SECRET}"
                steps = await store.read_steps(task_id)
                await client.update(task_id, {key: {"action": "accept", "content": {"ok": SECRET}}})
                task = await client.until(task_id, "completed")
                assert task["result"]["structuredContent"] == {"result": f"page of {SECRET}, {{'ok': '{SECRET}'}}"}
        stored = contents(tmp_path)
    assert task_id.encode() in stored
    assert key.encode() in stored
    assert next(iter(steps)).encode() in stored
    assert SECRET.encode() not in stored
    step = blake2b(dump_json([SECRET]).encode(), digest_size=9).hexdigest()
    asked = blake2b(f"elicitation/create\0{dump_json(question['params'])}".encode(), digest_size=12).hexdigest()
    assert step not in next(iter(steps))
    assert asked not in key


async def test_without_a_seal_those_digests_are_what_this_test_takes_them_for() -> None:
    tasks = Tasks(store := InMemoryTaskStore())
    with anyio.fail_after(PATIENCE):
        async with memory_client(install(tasks)) as client:
            task_id = await client.start("report", {"topic": SECRET})
            asking = await client.until(task_id, "input_required")
            ((key, question),) = asking["inputRequests"].items()
            asked = blake2b(f"elicitation/create\0{dump_json(question['params'])}".encode(), digest_size=12).hexdigest()
            step = blake2b(dump_json([SECRET]).encode(), digest_size=9).hexdigest()
            assert asked in key
            assert step in next(iter(await store.read_steps(task_id)))


async def test_a_rerun_opens_what_is_sealed_and_a_process_without_keys_leaves_it_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = Cluster()
    fetched: list[str] = []
    attempts: list[tuple[str, int]] = []

    def node(name: str, seal: Sequence[str] | None) -> tuple[MCPServer[Any], Tasks]:
        tasks = Tasks(cast(TaskStore, cluster.process().link), settings=SETTINGS, seal=seal)
        mcp: MCPServer[Any] = MCPServer(name)
        tasks.install(mcp)

        @tasks.tool(required=True, rerunnable=True)
        async def report(topic: str, task: ServerTaskContext) -> str:
            async def note() -> str:
                fetched.append(topic)
                return f"page of {topic}"

            attempts.append((name, task.attempt))
            page: str = await task.step("fetch", note, returns=str)
            if task.attempt == 1:
                await anyio.sleep_forever()
            return page

        return mcp, tasks

    lost, keyless, other = node("lost", [KEY]), node("keyless", None), node("other", [KEY])
    with anyio.fail_after(PATIENCE):
        async with AsyncExitStack() as stack:
            at_lost = await stack.enter_async_context(memory_client(lost[0]))
            at_keyless = await stack.enter_async_context(memory_client(keyless[0]))
            task_id = await at_lost.start("report", {"topic": SECRET})
            await cluster.cut(cluster.processes[0])
            await cluster.pass_time(3 * LEASE_SECONDS)
            assert attempts == [("lost", 1)]
            reply = await at_keyless.request("tasks/get", {"taskId": task_id})
            assert reply.error["message"] == "The task store failed"
            assert "this process has no seal keys" in caplog.text
            at_other = await stack.enter_async_context(memory_client(other[0]))
            await cluster.pass_time(3 * LEASE_SECONDS)
            task = await at_other.until(task_id, "completed", "failed")
            cluster.processes[0].link.is_cut = False
    assert task["result"]["structuredContent"] == {"result": f"page of {SECRET}"}
    assert attempts == [("lost", 1), ("other", 2)]
    assert fetched == [SECRET]


async def test_a_queue_apart_from_the_store_is_sealed_too() -> None:
    queue = InMemoryTaskMessageQueue()
    tasks = Tasks(InMemoryTaskStore(), queue, seal=[KEY])
    with anyio.fail_after(PATIENCE):
        async with memory_client(install(tasks)) as client:
            task_id = await client.start("report", {"topic": SECRET})
            asking = await client.until(task_id, "input_required")
            ((key, question),) = asking["inputRequests"].items()
            assert SECRET in question["params"]["message"]
            assert SECRET not in repr(await queue.outstanding(task_id))
            await client.update(task_id, {key: {"action": "decline"}})
            assert SECRET in repr((await client.until(task_id, "completed"))["result"])


@pytest.mark.parametrize("seal", [[], KEY, ["short"]], ids=["none", "no list", "short"])
def test_keys_are_checked_at_once(seal: Any) -> None:
    with pytest.raises(ValueError, match="seal must be"):
        Tasks(seal=seal)
