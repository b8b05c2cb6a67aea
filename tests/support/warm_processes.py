"""Processes of Python programs that have imported already what servers need; see `warm_start`."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from tests.support.patience import PATIENCE
from tests.support.warm_start import HEADER, Program

__all__ = ["WarmProcess", "start_program"]

ROOT = Path(__file__).resolve().parents[2]


def start_program(arguments: Sequence[str], *, speaks: bool = False) -> WarmProcess | subprocess.Popen[bytes]:
    """Start a Python program in a process that is warm, where processes can fork and a file is the program.

    Args:
        arguments: Those of Python.
        speaks: Whether it is spoken to by its standard input and output.
    """
    if hasattr(os, "fork") and arguments[0].endswith(".py"):
        return WarmProcess(arguments, speaks=speaks)
    stream = subprocess.PIPE if speaks else subprocess.DEVNULL
    return subprocess.Popen([sys.executable, *arguments], stdin=stream, stdout=stream, stderr=subprocess.PIPE)


class WarmProcess:
    """A Python program in a process that has imported already what servers need; see `warm_start`.

    Attributes:
        pid: Its id.
        stdin: What it reads, if it is spoken to.
        stdout: What it prints, if it is spoken to.
        stderr: What it prints of errors.
    """

    def __init__(self, arguments: Sequence[str], *, speaks: bool = False) -> None:
        """Start a program.

        Args:
            arguments: Its file, and its arguments.
            speaks: Whether it is spoken to by its standard input and output, which are empty otherwise.
        """
        self._code: int | None = None
        self._ended = threading.Event()
        self.pid = 0
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        errors, theirs = os.pipe()
        self.stderr: IO[bytes] = os.fdopen(errors, "rb")
        if speaks:
            input_, ours = os.pipe()
            self.stdin = os.fdopen(ours, "wb")
            ours, output = os.pipe()
            self.stdout = os.fdopen(ours, "rb")
        else:
            input_, output = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
        streams = [input_, output, theirs]
        try:
            _warm_starter().start(self, list(arguments), streams)
        finally:
            for stream in streams:
                os.close(stream)

    def wait(self, timeout: float) -> int:
        """Wait until it has ended; return its exit code, which is negative where a signal ended it."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("a warm process", timeout)
        assert self._code is not None, "what started it is gone"
        return self._code

    def send_signal(self, sent: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if not self._ended.is_set():
            os.kill(self.pid, sent)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def end(self, code: int | None) -> None:
        """Note how it has ended."""
        self._code = code
        self._ended.set()


class _WarmStarter:
    """Starts warm processes, and notes which of them have ended."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.support.warm_start", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        self._starting = threading.Lock()
        self._started = threading.Event()
        self._next: WarmProcess | None = None
        self._running: dict[int, WarmProcess] = {}
        threading.Thread(target=self._listen, name="warm start", daemon=True).start()
        atexit.register(self._close)

    def start(self, process: WarmProcess, arguments: list[str], streams: list[int]) -> None:
        """Start a process, and set its id."""
        program = Program(arguments, dict(os.environ), os.getcwd()).to_bytes()
        with self._starting:
            self._next = process
            self._started.clear()
            socket.send_fds(self._socket, [HEADER.pack(len(program))], streams)
            self._socket.sendall(program)
            assert self._started.wait(PATIENCE)

    def _listen(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                message: dict[str, Any] = json.loads(line)
                pid = message["pid"]
                if "code" in message:
                    self._running.pop(pid).end(message["code"])
                else:
                    process, self._next = self._next, None
                    assert process is not None
                    process.pid = pid
                    self._running[pid] = process
                    self._started.set()
        for process in self._running.values():
            process.end(None)

    def _close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._process.wait(PATIENCE)
        self._socket.close()


@lru_cache
def _warm_starter() -> _WarmStarter:
    return _WarmStarter()
