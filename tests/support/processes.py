"""Servers as processes of their own, over Streamable HTTP."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Sequence
from types import TracebackType

from tests.support.patience import PATIENCE
from tests.support.warm_processes import start_program


class HTTPServerProcess:
    """A Python program that serves MCP at a path of a free port, which uvicorn prints when it was asked for port 0."""

    def __init__(self, arguments: Sequence[str], path: str = "/mcp") -> None:
        self._path = path
        self._process = start_program(arguments)
        self._lines: list[str] = []
        self._listens = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._listens.wait(PATIENCE) or not self.url:
            self.stop()
            raise RuntimeError(f"The server did not start: {self.errors}")

    address = ""
    url = ""

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def errors(self) -> str:
        """What the server has written to stderr."""
        return "".join(self._lines)

    def __enter__(self) -> HTTPServerProcess:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, sent: signal.Signals = signal.SIGTERM) -> int:
        """Ask the server to stop, and wait until it has; return its exit code."""
        assert self._process.stderr is not None
        self._process.send_signal(sent)
        try:
            return self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._reader.join(PATIENCE)
            self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for encoded in self._process.stderr:
            line = encoded.decode()
            self._lines.append(line)
            found = re.search(r"running on (http://\S+)", line)
            if found:
                self.address = found[1]
                self.url = f"{found[1]}{self._path}"
                self._listens.set()
        self._listens.set()
