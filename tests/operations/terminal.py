"""Runs `mcp-tasks` as a script does, in a thread with pipes, or as a person does, as a process on a terminal."""

from __future__ import annotations

import codecs
import os
import pty
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
from click.testing import CliRunner

from mcp_task_runtime.operations.cli import main
from tests.support.patience import PATIENCE

LOOKS: dict[str, str | None] = dict.fromkeys(("COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "TTY_COMPATIBLE"))
"""Variables that change how the command prints, unset."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def _environment(url: str | None) -> dict[str, str]:
    names = {name: value for name, value in os.environ.items() if name not in ("MCP_TASKS_STORE", *LOOKS)}
    return names if url is None else {**names, "MCP_TASKS_STORE": url}


def _command(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "mcp_task_runtime", *arguments]


async def mcp_tasks(url: str | None, *arguments: str, stdin: str = "") -> Ended:
    """Run the command with pipes, on an event loop of its own.

    It runs in a thread: a process takes longer to start than the command takes.
    """
    invoke = partial(CliRunner().invoke, main, arguments, input=stdin, env={"MCP_TASKS_STORE": url, **LOOKS})
    with anyio.fail_after(PATIENCE):
        done = await anyio.to_thread.run_sync(invoke, abandon_on_cancel=True)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Ended(done.exit_code, done.stdout, done.stderr)


def open_command(url: str, *arguments: str) -> subprocess.Popen[str]:
    """Start the command in a process with pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen(_command(arguments), stdout=pipe, stderr=pipe, text=True, env=_environment(url))


class Terminal:
    """The command on a terminal: what it shows, and keys to press."""

    def __init__(self, url: str, *arguments: str, columns: int = 120) -> None:
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._master, slave = pty.openpty()
        environment = {**_environment(url), "TERM": "xterm-256color", "COLUMNS": str(columns)}
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so a shell runs what is in the background, tests too
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the process would inherit it
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

    def interrupt(self) -> None:
        """Interrupt the command, as Ctrl+C does."""
        self._process.send_signal(signal.SIGINT)

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
        return self._decoder.decode(os.read(self._master, 65_536))
