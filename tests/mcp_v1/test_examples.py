"""The examples for `mcp` 1.x."""

from __future__ import annotations

import inspect
import runpy
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import anyio.from_thread
import pytest

from tests.mcp_v1.in_memory import connect
from tests.mcp_v1.raw_client import RawClient, http_client
from tests.mcp_v1.schemas import Wire
from tests.support.patience import PATIENCE
from tests.support.processes import HTTPServerProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def url() -> Generator[str, None, None]:
    with HTTPServerProcess([str(EXAMPLES / "everything_server_v1.py"), "--port", "0"]) as server:
        yield server.url


async def answer(question: Wire) -> Wire | None:
    if question["method"] == "sampling/createMessage":
        content = {"type": "text", "text": "an old silent pond"}
        return {"result": {"role": "assistant", "model": "m", "content": content}}
    (name,) = question["params"]["requestedSchema"]["properties"]
    value = True if name == "confirm" else "Grace"
    return {"result": {"action": "accept", "content": {name: value}}}


async def text_of(client: RawClient, tool: str, arguments: Wire | None = None) -> str:
    return await client.text(await client.start(tool, arguments))


async def test_every_tool_of_the_everything_server_does_what_it_is_for(url: str) -> None:
    async with http_client(url, answer=answer) as client:
        shown = {tool["name"]: tool for tool in (await client.result("tools/list"))["tools"]}
        modes = {name: tool.get("execution", {}).get("taskSupport", "forbidden") for name, tool in shown.items()}
        assert modes.pop("greet") == "forbidden"
        assert modes.pop("slow_compute") == "optional"
        assert set(modes.values()) == {"required"}
        plain = await client.result("tools/call", {"name": "greet", "arguments": {"name": "Ada"}})
        assert plain["content"][0]["text"] == "Hello, Ada!"
        assert "computed x" in await text_of(client, "slow_compute", {"seconds": 0.05, "label": "x"})
        plain = await client.result("tools/call", {"name": "slow_compute", "arguments": {"seconds": 0.01}})
        assert "computed" in plain["content"][0]["text"]
        assert await text_of(client, "confirm_delete", {"filename": "a.txt"}) == "Deleted a.txt"
        assert (await text_of(client, "multi_input")).count("Grace") == 2
        assert await text_of(client, "write_haiku", {"topic": "ponds"}) == "an old silent pond"
        if "token" in inspect.signature(anyio.from_thread.run).parameters:  # since anyio 4.11
            assert "done" in await text_of(client, "external_job", {"job_id": "7"})
        assert "Grace" in await text_of(client, "test_tool_with_task")
        failing = await client.start("failing_job")
        assert (await client.until(failing, "failed"))["statusMessage"]
        assert (await client.result("tasks/result", {"taskId": failing}))["isError"] is True
        refused = await client.outcome(await client.start("protocol_error_job"))
        assert refused["error"]["code"] == -32050


def test_the_quickstart_runs_by_itself() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "quickstart_v1.py")], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "Bees: published" in done.stdout


async def test_the_low_level_example_runs_its_work_as_a_task() -> None:
    example = runpy.run_path(str(EXAMPLES / "low_level_server_v1.py"))
    async with example["tasks"], connect(example["server"]) as client:
        assert await client.text(await client.start("work")) == "done"
