"""A published server of others gets tasks: `published_server.py serve NAME`; `call NAME` calls one of its tools.

Runs in the environment of that server. Where a server makes its `Server` inside a function, `install` has to stand
there; here the one place is patched that such a server passes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mcp_task_runtime.client import ClientTask, TasksClient
from mcp_task_runtime.server import Tasks

HERE = Path(tempfile.gettempdir())
tasks = Tasks()


def time() -> None:
    asyncio.run(with_tasks("mcp_server_time.server").serve("UTC"))


def git() -> None:
    asyncio.run(with_tasks("mcp_server_git.server").serve(None))


def with_tasks(module: str) -> Any:
    """Import a module whose low-level servers get tasks just before they say what they can do."""
    from mcp.server.lowlevel import Server

    original = Server.create_initialization_options

    def install_first(self: Any, *args: Any, **options: Any) -> Any:
        tasks.install(self, tools="all")
        return original(self, *args, **options)

    Server.create_initialization_options = install_first  # type: ignore[method-assign]
    return __import__(module, fromlist=["serve"])


def arxiv() -> None:
    from arxiv_mcp_server import server

    tasks.install(server.server, tools=["list_papers"])
    asyncio.run(server.main())


def cli() -> None:
    from cli_mcp_server import server

    tasks.install(server.server, tools=["run_command"])
    asyncio.run(server.main())


def fetch() -> None:
    from mcp_server_fetch import server

    mcp = server.create_server(ignore_robots_txt=True, allow_private_ips=True)
    tasks.install(mcp, tools=["fetch"])
    mcp.run("stdio")


def excel() -> None:
    from excel_mcp.config import Settings
    from excel_mcp.server import create_server

    mcp = create_server(Settings(allowed_dirs=(HERE,)))
    tasks.install(mcp, tools="all")
    mcp.run("stdio")


def markitdown() -> None:
    from markitdown_mcp.__main__ import mcp

    tasks.install(mcp, tools=["convert_to_markdown"])
    mcp.run("stdio")


def motherduck() -> None:
    from mcp_server_motherduck.server import create_mcp_server

    mcp = create_mcp_server(db_path=":memory:")
    tasks.install(mcp, tools=["execute_query"])
    mcp.run("stdio")


SERVERS: dict[str, tuple[Callable[[], None], str, dict[str, Any], str]] = {
    "time": (time, "get_current_time", {"timezone": "Europe/Paris"}, "Europe/Paris"),
    "git": (git, "git_status", {"repo_path": "."}, "branch"),
    "arxiv": (arxiv, "list_papers", {}, "papers"),
    "cli": (cli, "run_command", {"command": "pwd"}, str(HERE)),
    "fetch": (fetch, "fetch", {"url": "http://127.0.0.1:PORT/", "raw": True}, "Bees"),
    "excel": (excel, "describe_workbook", {"path": "none.xlsx"}, "none.xlsx"),
    "markitdown": (markitdown, "convert_to_markdown", {"uri": "data:text/html,<h1>Bees</h1>"}, "# Bees"),
    "motherduck": (motherduck, "execute_query", {"sql": "select 6 * 7 as answer"}, "42"),
}


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<h1>Bees</h1>")


async def call_v1(command: list[str], tool: str, arguments: dict[str, Any]) -> Any:
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    client = TasksClient()
    async with stdio_client(StdioServerParameters(command=command[0], args=command[1:])) as (read, write):
        async with ClientSession(read, write) as session:
            await session.initialize()
            return await result_of(await client.start(session, tool, arguments))


async def call_v2(command: list[str], tool: str, arguments: dict[str, Any]) -> Any:
    from mcp import Client, StdioServerParameters

    tasks_client = TasksClient()
    server = StdioServerParameters(command=command[0], args=command[1:])
    async with Client(server, extensions=[tasks_client]) as client:
        return await result_of(await tasks_client.start(client, tool, arguments))


async def result_of(started: Any) -> Any:
    assert isinstance(started, ClientTask), f"no task: {started}"
    return await started.wait()


def main() -> None:
    what, name = sys.argv[1:]
    serve, tool, arguments, wanted = SERVERS[name]
    os.environ.setdefault("ALLOWED_DIR", str(HERE))
    if what == "serve":
        serve()
        return
    from importlib.metadata import version

    page = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    if "url" in arguments:
        arguments["url"] = arguments["url"].replace("PORT", str(page.server_port))
    call = call_v1 if version("mcp").startswith("1.") else call_v2
    result = asyncio.run(call([sys.executable, __file__, "serve", name], tool, arguments))
    text = "".join(getattr(part, "text", "") for part in result.content)
    assert wanted in text, text
    print(f"works: {name}")


main()
