"""A program that imports what servers need once, and then starts each of them as a fork of itself.

    python -m tests.support.warm_start FD

`FD` is a socket on which `tests.support.processes` asks for processes. A server takes a second to import what it
needs, and forks in milliseconds. It runs as `python FILE ARGUMENTS...` would: as `__main__`, with its own streams,
environment and folder, and ends as any interpreter does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass

__all__ = ["HEADER", "Program"]

HEADER = struct.Struct("!I")
"""Precedes a program on the socket: its length. The streams of the process come with it."""

IMPORTED = (
    "mcp.server",
    "mcp.server.mcpserver",
    "mcp.server.fastmcp",
    "starlette.routing",
    "uvicorn",
    "mcp_task_runtime.server",
    "mcp_task_runtime.stores.postgres",
    "mcp_task_runtime.stores.redis",
    "mcp_task_runtime.stores.sqlite",
)
"""What servers import, as far as it is installed."""


@dataclass(frozen=True)
class Program:
    """A program to run.

    Attributes:
        arguments: Its file, and its arguments.
        environment: Its environment variables.
        folder: Where it runs.
    """

    arguments: list[str]
    environment: dict[str, str]
    folder: str

    def to_bytes(self) -> bytes:
        """Return the program as it is sent."""
        return json.dumps(asdict(self)).encode()

    def run(self) -> None:
        """Run it in this process."""
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv = self.arguments
        sys.path[0] = os.path.dirname(self.arguments[0])
        runpy.run_path(self.arguments[0], run_name="__main__")


def main() -> None:
    """Start processes until the other side is gone."""
    asked = socket.socket(fileno=int(sys.argv[1]))
    for module in IMPORTED:
        with suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    program = serve(asked)
    if program is not None:  # this is the new process
        program.run()


def serve(asked: socket.socket) -> Program | None:
    """Fork for each request and report who has ended; return the program in each fork, in the end nothing."""
    woken, wakes = socket.socketpair()
    woken.setblocking(False)
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes `select`
    while True:
        ready, _, _ = select.select([asked, woken], [], [])
        if woken in ready:
            with suppress(BlockingIOError):
                woken.recv(4096)
            report_ended(asked)
        if asked not in ready:
            continue
        header, streams, _, _ = socket.recv_fds(asked, HEADER.size, 3)
        if not header:
            return None
        program = Program(**json.loads(receive(asked, HEADER.unpack(header)[0])))
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (asked, woken, wakes):
                each.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            return program
        for stream in streams:
            os.close(stream)
        report(asked, pid=pid)


def receive(asked: socket.socket, size: int) -> bytes:
    """Return exactly so many bytes."""
    received = b""
    while len(received) < size:
        received += asked.recv(size - len(received))
    return received


def report_ended(asked: socket.socket) -> None:
    """Report each process that has ended, and its exit code."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        report(asked, pid=pid, code=os.waitstatus_to_exitcode(status))


def report(asked: socket.socket, **message: int) -> None:
    """Send one line."""
    with suppress(BrokenPipeError):  # the other side is gone
        asked.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
