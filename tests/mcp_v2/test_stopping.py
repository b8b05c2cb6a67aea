"""Servers that stop while clients listen to them: promptly, and their listeners are told how it ended.

Servers are processes of their own: what event loop this side runs is all one to them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_task_runtime import Execution, InMemoryTaskStore, TaskRuntime, TaskSettings, TaskSpec
from mcp_task_runtime.adapters.host import RuntimeHost
from tests.mcp_v2.everything_entry import EXAMPLES
from tests.mcp_v2.listeners import http_connection
from tests.support.event_loops import on_one_loop
from tests.support.patience import PATIENCE
from tests.support.processes import HTTPServerProcess

pytestmark = pytest.mark.anyio
PROMPTLY = 30
"""Seconds: far less than the uvicorn's own patience, which has no end."""

HANDING_OUT = """
import sys
from mcp.server import MCPServer
from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks

mcp = MCPServer("handing out")
tasks = Tasks()
tasks.install(mcp)

@tasks.tool()
async def hand_out(task: ServerTaskContext) -> None:
    task.detach()

mcp.run("streamable-http", port=0)
"""


@asynccontextmanager
async def stopping(server: HTTPServerProcess) -> AsyncGenerator[None, None]:
    """Ask a server to stop, and check after the block that it does."""
    async with anyio.create_task_group() as group:
        began = time.monotonic()
        codes: list[int] = []

        async def stop() -> None:
            codes.append(await anyio.to_thread.run_sync(server.stop))

        group.start_soon(stop)
        yield
    assert time.monotonic() - began < PROMPTLY
    assert codes in ([0], [-signal.SIGTERM])  # uvicorn ends by the signal that it got
    assert "Traceback" not in server.errors, server.errors
    assert "ERROR" not in server.errors, server.errors


@pytest.fixture
def everything() -> Generator[HTTPServerProcess, None, None]:
    """The everything server, for one test alone."""
    with HTTPServerProcess([str(EXAMPLES / "everything_server.py"), "--port", "0"]) as server:
        yield server


@on_one_loop
async def test_who_listens_to_a_task_sees_how_the_shutdown_ended_it_and_the_stream_ends(
    everything: HTTPServerProcess, anyio_backend: str
) -> None:
    async with http_connection(everything.url) as connection:
        task_id = await connection.client.start("slow_compute", {"seconds": 600})
        async with connection.listen(task_id) as alone, connection.listen(task_id, toolsListChanged=True) as both:
            for stream in (alone, both):
                assert await stream.acknowledged() == [task_id]
            async with stopping(everything):
                for stream in (alone, both):
                    await stream.ended()
            for stream in (alone, both):
                assert stream.seen[task_id][-1]["status"] == "failed"
                assert "shut down" in stream.seen[task_id][-1]["statusMessage"]


@on_one_loop
async def test_who_listens_to_no_task_does_not_keep_the_server_from_stopping(
    everything: HTTPServerProcess, anyio_backend: str
) -> None:
    async with http_connection(everything.url) as connection:
        async with connection.listen_raw({"toolsListChanged": True}) as core:
            await core.next()
            async with stopping(everything):
                await core.ended()


@on_one_loop
async def test_a_task_that_ends_elsewhere_does_not_keep_the_server_from_stopping(
    tmp_path: Path, anyio_backend: str
) -> None:
    program = tmp_path / "handing_out.py"
    program.write_text(HANDING_OUT)
    with HTTPServerProcess([str(program)]) as server:
        async with http_connection(server.url) as connection:
            task_id = await connection.client.start("hand_out")
            async with connection.listen(task_id) as stream:
                await stream.acknowledged()
                async with stopping(server):
                    await stream.ended()
            assert [task["status"] for task in stream.seen[task_id]] == ["working"]


# The host, without a web server


class _Uvicorn:
    """What is found of uvicorn's server: the owner of the handler of a signal."""

    should_exit = False

    def handle_exit(self, *_: Any) -> None:
        self.should_exit = True


@pytest.fixture
def uvicorn() -> Generator[_Uvicorn, None, None]:
    """Stand in for a uvicorn server that runs this process."""
    server = _Uvicorn()
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    yield server
    signal.signal(signal.SIGTERM, before)


async def forever(execution: Execution[dict[str, Any]]) -> dict[str, Any]:
    await anyio.sleep_forever()
    return {}


async def test_streams_end_when_the_work_has_been_wound_down(uvicorn: _Uvicorn) -> None:
    runtime = TaskRuntime(InMemoryTaskStore(), settings=TaskSettings(shutdown_grace=0))
    host = RuntimeHost(runtime)
    seen: list[str] = []
    with anyio.fail_after(PATIENCE):
        async with host:
            record = await runtime.submit(TaskSpec(), forever)

            async def stream() -> None:
                with host.until_stopped():
                    await anyio.sleep_forever()
                seen.append((await runtime.get(record.task_id, owner=None)).task.status)

            async with anyio.create_task_group() as group:
                group.start_soon(stream)
                group.start_soon(stream)
                await anyio.wait_all_tasks_blocked()
                uvicorn.handle_exit()
            assert seen == ["failed", "failed"]
            with host.until_stopped():  # one that comes too late
                await anyio.sleep_forever()
            with pytest.raises(RuntimeError, match="not open"):
                await runtime.submit(TaskSpec(), forever)


async def test_streams_end_although_the_work_could_not_be_wound_down(
    uvicorn: _Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(TaskRuntime):
        async def drain(self, **options: Any) -> None:
            if uvicorn.should_exit:
                uvicorn.should_exit = False
                raise LookupError("stuck")
            await super().drain(**options)

    runtime = Stuck(InMemoryTaskStore(), settings=TaskSettings(shutdown_grace=0))
    with anyio.fail_after(PATIENCE):
        async with RuntimeHost(runtime) as host:
            uvicorn.handle_exit()
            with host.until_stopped():
                await anyio.sleep_forever()
            await runtime.submit(TaskSpec(), forever)
    assert "could not be wound down" in caplog.text


async def test_a_stream_that_is_cancelled_stays_cancelled_and_is_forgotten(uvicorn: _Uvicorn) -> None:
    """Law L6."""
    host = RuntimeHost(TaskRuntime(InMemoryTaskStore()))
    async with host:
        with anyio.CancelScope() as outer:
            with host.until_stopped():
                outer.cancel()
                await anyio.sleep_forever()
            raise AssertionError
        assert outer.cancelled_caught
        opening = host._opening
        assert opening is not None
        assert opening.streams == set()


async def test_without_a_web_server_streams_are_left_to_their_transport() -> None:
    host = RuntimeHost(TaskRuntime(InMemoryTaskStore()))
    with host.until_stopped() as unheld:  # nor is the runtime open
        await anyio.lowlevel.checkpoint()
    assert not unheld.cancel_called
    async with host:
        with host.until_stopped() as scope:
            await anyio.wait_all_tasks_blocked()
        assert not scope.cancel_called
