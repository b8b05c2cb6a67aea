"""Runs `mcp-tasks` as a person or a script does: as a process, with pipes or on a terminal of its own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from dataclasses import dataclass

import anyio
import anyio.to_thread

from tests.support.patience import PATIENCE


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def _environment(url: str | None) -> dict[str, str]:
    names = {name: value for name, value in os.environ.items() if name not in ("MCP_TASKS_STORE", "NO_COLOR")}
    return names if url is None else {**names, "MCP_TASKS_STORE": url}


def _command(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "mcp_task_runtime", *arguments]


async def mcp_tasks(url: str | None, *arguments: str, stdin: str = "") -> Ended:
    """Run the command with pipes."""
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(
            _command(arguments), input=stdin.encode(), check=False, env=_environment(url), stderr=subprocess.PIPE
        )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


class Terminal:
    """The command on a terminal: what it shows, and keys to press."""

    def __init__(self, url: str, *arguments: str) -> None:
        self.shown = ""
        self._master, slave = pty.openpty()
        environment = {**_environment(url), "TERM": "xterm-256color", "COLUMNS": "120"}
        self._process = subprocess.Popen(
            _command(arguments), stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)

    async def until(self, text: str) -> None:
        """Wait until the terminal shows a text."""
        with anyio.fail_after(PATIENCE):
            while text not in self.shown:
                self.shown += await anyio.to_thread.run_sync(self._read, abandon_on_cancel=True)

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    async def end(self) -> int:
        """Wait until the command has ended; return its exit code."""
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    self.shown += await anyio.to_thread.run_sync(self._read, abandon_on_cancel=True)
                except OSError:  # Linux's way to say that nothing holds the other side any more
                    break
            code = await anyio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
        os.close(self._master)
        return code

    def _read(self) -> str:
        return os.read(self._master, 65_536).decode()
