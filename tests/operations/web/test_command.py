"""`mcp-tasks web`, as an operator starts and ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from datetime import timedelta

import httpx
import pytest

from mcp_task_runtime import Inbox
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.types import NewTask, TaskRequest
from mcp_task_runtime.stores.url import BundledTaskStore
from tests.operations.web.visitor import some_tasks
from tests.support.patience import PATIENCE

pytest.importorskip("click", reason="the extra `cli` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")


def start(url: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mcp_task_runtime", "web", *arguments],
        env={**os.environ, "PYTHONUNBUFFERED": "1", "MCP_TASKS_STORE": url, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


async def test_the_command_serves_the_page_until_it_is_interrupted(url: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    process = start(url, "--port", "0")
    killer = threading.Timer(PATIENCE, process.kill)  # or reading might wait without end
    killer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "The tasks are at http://127.0.0.1:" in line
        address = line.split("are at ")[1].split(" ")[0]
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=PATIENCE) as browser:
            assert "ddd-broken" in (await browser.get("/")).text
            async with browser.stream("GET", "/events/task?id=aaa") as live:
                lines = live.aiter_lines()
                while "event: regions" not in await anext(lines):
                    pass
                process.send_signal(signal.SIGINT)
                async for _ in lines:  # the stream ends, and the command does not wait for it
                    pass
        assert process.stdout.read() == ""
        assert process.wait() == 0
    finally:
        killer.cancel()
        process.kill()
        process.communicate()


async def test_wrong_usage_is_refused_before_anything_is_served(url: str, store: BundledTaskStore) -> None:
    for host, options, environment, message in (
        ("0.0.0.0", [], {}, "set MCP_TASKS_WEB_TOKEN"),
        ("127.0.0.1", [], {"MCP_TASKS_WEB_TOKEN": "short"}, "at least 16 characters"),
        ("127.0.0.1", [], {"MCP_TASKS_INBOX_SECRET": "short"}, "at least 16 characters"),
        ("127.0.0.1", ["--origin", "ops.example"], {}, "an origin is like https://ops.example"),
    ):
        process = start(url, "--host", host, "--port", "0", *options, **environment)
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert message in out
        assert "The tasks are at" not in out
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(url, "--port", str(taken.getsockname()[1]))
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert "cannot listen at 127.0.0.1" in out


@pytest.mark.parametrize("is_known", [True, False])
async def test_the_command_serves_the_pages_of_an_inbox(url: str, store: BundledTaskStore, is_known: bool) -> None:
    secret = "a secret that is long enough"
    request = TaskRequest(name="publish")
    await store.create_task(NewTask(ttl_ms=600_000, task_id="task", request=request))
    form = {"message": "Publish it?", "requestedSchema": {"type": "object", "properties": {}}}
    question = QueuedMessage.request(QueuedMessage.key_for_person("q.1"), "elicitation/create", form)
    await store.message_queue.enqueue("task", question)
    until = store.clock.now() + timedelta(hours=1)
    page = Inbox(3600, url="http://127.0.0.1", secret=secret).address_of("task", "q", until)
    assert page is not None
    process = start(url, "--port", "0", **({"MCP_TASKS_INBOX_SECRET": secret} if is_known else {}))
    killer = threading.Timer(PATIENCE, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split("are at ")[1].split("/ ")[0]
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as browser:
            answer = await browser.get(page.replace("http://127.0.0.1", address), follow_redirects=True)
            assert (answer.status_code, "Publish it?" in answer.text) == ((200, True) if is_known else (404, False))
    finally:
        killer.cancel()
        process.kill()
        process.communicate()
