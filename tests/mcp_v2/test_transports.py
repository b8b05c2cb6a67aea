"""The everything server and others over every transport, with the SDK's client; and how servers stop."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.server import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, CreateMessageResult, ElicitResult, TextContent
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import ClientTask, TaskFailedError, TasksClient
from tests.mcp_v2.conftest import ENTRY
from tests.mcp_v2.everything_entry import EXAMPLES
from tests.mcp_v2.in_process import served_over_http
from tests.mcp_v2.raw_client import RawClient, StdioServer, http_client
from tests.support.event_loops import on_one_loop
from tests.support.patience import PATIENCE
from tests.support.processes import HTTPServerProcess

pytestmark = [
    pytest.mark.anyio,
    # Where the SDK's client leaves a stream before its end, its HTTP library leaves generators to trio to close.
    pytest.mark.filterwarnings("ignore:Async generator '(httpx2|httpcore2|httpx_sse|mcp)[._]:ResourceWarning"),
]


async def fill_in(context: Any, params: Any) -> ElicitResult:
    """Answer every form of the example."""
    answers = {"What is your name?": "Ada", "Who is the author?": "Ann", "Who is the editor?": "Eve"}
    content: dict[str, Any] = {"name": answers[params.message]} if params.message in answers else {"confirm": True}
    return ElicitResult(action="accept", content=content)


async def write(context: Any, params: Any) -> CreateMessageResult:
    return CreateMessageResult(role="assistant", model="m", content=TextContent(text="a haiku"))


def text_of(result: CallToolResult | ClientTask) -> str:
    assert isinstance(result, CallToolResult)
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


# The everything server


OPTIONS: dict[str, dict[str, Any]] = {
    "http": {},
    "json": {"json_response": True},
    "stateless": {"stateless_http": True},
}


@pytest.fixture(params=["memory", "stdio", *OPTIONS])
def everything(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[Any, None, None]:
    """The everything server, as something to connect a client to."""
    monkeypatch.syspath_prepend(EXAMPLES)
    make_server = importlib.import_module("everything_server").make_server
    if request.param == "memory":
        yield make_server()
    elif request.param == "stdio":
        yield stdio_client(StdioServerParameters(command=sys.executable, args=[ENTRY, "stdio"]))
    else:
        with served_over_http(make_server, **OPTIONS[request.param]) as url:
            yield url


async def test_every_tool_of_the_everything_server_does_as_it_says(everything: Any) -> None:
    expected: dict[tuple[str, tuple[tuple[str, Any], ...]], str] = {
        ("greet", (("name", "Ada"),)): "Hello, Ada!",
        ("slow_compute", (("seconds", 0.02), ("label", "x"))): "computed x",
        ("confirm_delete", (("filename", "a.txt"),)): "Deleted a.txt",
        ("multi_input", ()): "Written by Ann, edited by Eve",
        ("write_haiku", (("topic", "bees"),)): "a haiku",
        ("test_tool_with_task", ()): "Done for Ada",
    }
    if not isinstance(everything, str):  # it takes a second, and over HTTP the wire rules prove it
        expected["external_job", (("job_id", "7"),)] = "job 7 done"
    texts: dict[Any, str] = {}
    with anyio.fail_after(PATIENCE):
        async with Client(
            everything, extensions=[TasksClient()], elicitation_callback=fill_in, sampling_callback=write
        ) as client:

            async def call(key: tuple[str, tuple[tuple[str, Any], ...]]) -> None:
                texts[key] = text_of(await client.call_tool(key[0], dict(key[1])))

            async with anyio.create_task_group() as group:
                for key in expected:
                    group.start_soon(call, key)
            assert (await client.call_tool("failing_job")).is_error
            with pytest.raises(TaskFailedError) as caught:
                await client.call_tool("protocol_error_job")
    assert texts == expected
    assert (caught.value.code, caught.value.data) == (-32050, {"retryAfterSeconds": 30})


async def test_a_client_that_takes_no_tasks_runs_what_it_can_of_the_everything_server(everything: Any) -> None:
    with anyio.fail_after(PATIENCE):
        async with Client(everything) as client:
            assert text_of(await client.call_tool("greet", {"name": "Ada"})) == "Hello, Ada!"
            assert text_of(await client.call_tool("slow_compute", {"seconds": 0.01, "label": "x"})) == "computed x"
            with pytest.raises(MCPError) as caught:
                await client.call_tool("confirm_delete", {"filename": "x"})
    assert caught.value.code == -32021


# Asking within the call of a legacy client


class Publish(BaseModel):
    ok: bool


def asking_server() -> MCPServer[Any]:
    mcp: MCPServer[Any] = MCPServer("asking")
    tasks = Tasks()
    tasks.install(mcp)

    @tasks.tool()
    async def ask(task: ServerTaskContext) -> str:
        answer = await task.elicit("Publish it?", Publish)
        return answer.action

    @tasks.tool()
    async def sample(task: ServerTaskContext) -> str:
        message = {"role": "user", "content": {"type": "text", "text": "Write."}}
        return (await task.create_message([message], max_tokens=9)).text

    return mcp


async def decline(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="decline")


async def test_a_legacy_client_over_sse_is_asked_on_the_stream_of_its_call() -> None:
    with served_over_http(asking_server) as url, anyio.fail_after(PATIENCE):
        async with Client(url, mode="legacy", elicitation_callback=decline, sampling_callback=write) as client:
            assert text_of(await client.call_tool("ask")) == "decline"
            assert text_of(await client.call_tool("sample")) == "a haiku"


@pytest.mark.parametrize("options", [{"json_response": True}, {"stateless_http": True}], ids=repr)
@pytest.mark.parametrize("tool", ["ask", "sample"])
async def test_a_legacy_client_without_a_stream_to_ask_on_gets_an_error_that_says_so(
    options: dict[str, Any], tool: str
) -> None:
    with served_over_http(asking_server, **options) as url, anyio.fail_after(PATIENCE):
        async with Client(url, mode="legacy", elicitation_callback=decline, sampling_callback=write) as client:
            with pytest.raises(MCPError, match=r"cannot be asked|does not support"):
                await client.call_tool(tool)


# Clients that leave


async def test_l13_a_client_that_disconnects_leaves_its_own_and_others_tasks_alone(everything_over_http: str) -> None:
    tasks = TasksClient()
    with anyio.fail_after(PATIENCE):
        async with Client(everything_over_http, extensions=[tasks], elicitation_callback=fill_in) as staying:
            async with Client(everything_over_http, extensions=[tasks], elicitation_callback=fill_in) as leaving:
                left = await tasks.start(leaving, "confirm_delete", {"filename": "x"})
                working = await tasks.start(leaving, "slow_compute", {"seconds": 0.2, "label": "y"})
                own = await tasks.start(staying, "slow_compute", {"seconds": 0.2, "label": "z"})
            assert isinstance(left, ClientTask)
            assert isinstance(working, ClientTask)
            assert isinstance(own, ClientTask)
            assert text_of(await own.wait()) == "computed z"
            assert text_of(await tasks.resume(staying, working.task_id).wait()) == "computed y"
            assert text_of(await tasks.resume(staying, left.task_id).wait()) == "Deleted x"


async def test_a_call_that_is_aborted_while_it_runs_within_its_request_harms_nobody(everything_over_http: str) -> None:
    async with http_client(everything_over_http) as client:
        with anyio.move_on_after(0.2):
            await client.call("slow_compute", {"seconds": 60}, capabilities={})
        assert (await client.call("greet", {"name": "Ada"})).result["resultType"] == "complete"


# Servers that stop: processes, to which it is all one what event loop this side runs


@asynccontextmanager
async def busy(client: RawClient) -> AsyncGenerator[None, None]:
    """Give a server tasks that work, that ask, and that are detached."""
    await client.start("slow_compute", {"seconds": 600})
    await client.asked(await client.start("multi_input"), 2)
    await client.start("external_job", {"job_id": "7"})
    yield


def assert_clean(errors: str) -> None:
    assert "Traceback" not in errors, errors
    assert "ERROR" not in errors, errors
    assert "never awaited" not in errors, errors


@on_one_loop
@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGTERM,
        pytest.param(
            signal.SIGINT,
            marks=pytest.mark.skipif(
                sys.version_info < (3, 11), reason="on Python 3.10 anyio makes a CancelledError of uvicorn's Ctrl-C"
            ),
        ),
    ],
    ids=lambda sent: sent.name,
)
async def test_an_http_server_stops_promptly_and_cleanly_in_the_middle_of_tasks(
    sent: signal.Signals, anyio_backend: str
) -> None:
    with HTTPServerProcess([str(EXAMPLES / "everything_server.py"), "--port", "0"]) as server:
        async with http_client(server.url) as client, busy(client):
            pass
        code = await anyio.to_thread.run_sync(server.stop, sent)
    assert_clean(server.errors)
    assert code in (0, -sent)  # uvicorn ends by the signal that it got


@on_one_loop
async def test_a_stdio_server_stops_promptly_and_cleanly_in_the_middle_of_tasks(anyio_backend: str) -> None:
    with StdioServer([ENTRY, "stdio"]) as server:
        async with busy(RawClient(server)):
            pass
        code, errors = await anyio.to_thread.run_sync(server.close)
    assert code == 0
    assert_clean(errors)


BLOCKING = """
import sys, time
from mcp.server import MCPServer
from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks

mcp = MCPServer("blocking")
tasks = Tasks()
tasks.install(mcp)

@tasks.tool()
def block(task: ServerTaskContext) -> str:
    time.sleep(600)
    return "never"

mcp.run(sys.argv[1], **({"port": 0} if sys.argv[1] != "stdio" else {}))
"""


@pytest.fixture
def blocking_program(tmp_path: Path) -> str:
    """A server with a plain function that never looks whether it is to stop."""
    program = tmp_path / "blocking.py"
    program.write_text(BLOCKING)
    return str(program)


@on_one_loop
async def test_an_http_server_stops_although_a_plain_function_does_not(
    blocking_program: str, anyio_backend: str
) -> None:
    with HTTPServerProcess([blocking_program, "streamable-http"]) as server:
        async with http_client(server.url) as client:
            await client.start("block")
        await anyio.to_thread.run_sync(server.stop)
    assert_clean(server.errors)


# Examples


@pytest.mark.parametrize("program", ["quickstart.py", "own_session.py"])
def test_an_example_runs_with_one_command_and_prints_how_it_goes(program: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout
    assert "Traceback" not in done.stderr
