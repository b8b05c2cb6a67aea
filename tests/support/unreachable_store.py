"""Servers whose store cannot be reached, as processes: what they print, and that they end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LINE = "The server has no tasks"

PROGRAM = """
import sys
from mcp_task_runtime import open_store
from mcp_task_runtime.server import Tasks

try:
    from mcp.server.fastmcp import FastMCP as Server
    server, options = Server("away", port=0), {}
except ModuleNotFoundError:
    from mcp.server import MCPServer as Server
    server, options = Server("away"), {"port": 0}
tasks = Tasks(open_store(sys.argv[2]))
tasks.install(server)

@tasks.tool()
async def work() -> str:
    return ""

server.run(sys.argv[1], **({} if sys.argv[1] == "stdio" else options))
"""


def errors_of_start(folder: Path, transport: str, url: str) -> str:
    """Start a server, and return what it printed to standard error; it must end, and not well.

    Args:
        folder: Where its program is written.
        transport: `stdio` or `streamable-http`.
        url: Of the store.
    """
    program = folder / "away.py"
    program.write_text(PROGRAM)
    errors: list[str] = []
    with subprocess.Popen(
        [sys.executable, str(program), transport, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={"COLUMNS": "1000", "PYTHONPATH": ":".join(sys.path)},
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        for line in process.stderr:
            errors.append(line)
            if LINE in line:
                process.stdin.close()  # the SDK reads it to its end, even after a failure
    assert process.returncode, errors
    return "".join(errors)


def check_errors(errors: str, address: str, secret: str) -> None:
    """One line of the log names the address, and nothing a password."""
    lines = [line for line in errors.splitlines() if LINE in line]
    assert len(lines) == 1, errors
    assert address in lines[0], errors
    assert secret not in errors
