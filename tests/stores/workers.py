"""The test's side of worker processes; see `worker_program`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import sniffio
from anyio.abc import SocketAttribute, SocketListener, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from mcp_task_runtime import Resolver
from tests.stores.worker_program import LONGEST_LINE, Place, WorkerOptions

ROOT = Path(__file__).resolve().parent.parent.parent


class Worker:
    """A worker process.

    Attributes:
        reports: What it has reported of its work.
        is_dead: Whether its process has ended.
    """

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._replies: dict[int, Resolver[Any]] = {}
        self._numbers = count()
        self._changed = anyio.Event()
        self.pid = 0
        self.reports: list[dict[str, Any]] = []
        self.is_dead = False

    async def listen(self) -> None:
        """Receive its messages until it is dead."""
        lines = BufferedByteReceiveStream(self._stream)
        try:
            while True:
                message = json.loads(await lines.receive_until(b"\n", LONGEST_LINE))
                if "pid" in message:
                    self.pid = message["pid"]
                elif "number" in message:
                    self._replies.pop(message["number"]).set_result(message["reply"])
                else:
                    self.reports.append(message)
                self._wake()
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self.is_dead = True
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def until_ready(self) -> None:
        """Wait until its runtime is open."""
        while not self.pid:
            assert not self.is_dead, "the worker did not start: see its errors"
            await self._changed.wait()

    async def send(self, do: str, **arguments: Any) -> Resolver[Any]:
        """Send a command; return the future reply."""
        number = next(self._numbers)
        reply = self._replies[number] = Resolver[Any]()
        await self._stream.send(json.dumps({"number": number, "do": do, **arguments}).encode() + b"\n")
        return reply

    async def do(self, do: str, **arguments: Any) -> Any:
        """Send a command; return the reply."""
        return await (await self.send(do, **arguments)).wait()

    async def until_reported(self, **message: Any) -> None:
        """Wait until it has reported this."""
        while message not in self.reports:
            assert not self.is_dead
            await self._changed.wait()

    async def until_dead(self) -> None:
        """Wait until its process has ended."""
        while not self.is_dead:
            await self._changed.wait()

    async def until_reports(self, number: int) -> None:
        """Wait until it has sent this many reports, or is dead."""
        while len(self.reports) < number and not self.is_dead:
            await self._changed.wait()

    async def shut_down(self) -> None:
        """Let it close its runtime and end."""
        await self._stream.send_eof()

    def kill(self) -> None:
        """Kill it at once."""
        if not self.is_dead:
            os.kill(self.pid, signal.SIGKILL)


class WorkerPool:
    """Starts workers for one test."""

    def __init__(
        self, program: subprocess.Popen[str], listener: SocketListener, place: Place, lease_ms: int, group: Any
    ) -> None:
        self._program = program
        self._listener = listener
        self._port: int = listener.extra(SocketAttribute.local_port)
        self._place = place
        self._lease_ms = lease_ms
        self._group = group
        self._starting = anyio.Lock()
        self._streams: list[SocketStream] = []

    async def start(self) -> Worker:
        """Start a worker."""
        options = WorkerOptions(self._place, self._port, sniffio.current_async_library(), self._lease_ms)
        async with self._starting:
            assert self._program.stdin is not None
            self._program.stdin.write(f"{options.to_json()}\n")
            self._program.stdin.flush()
            stream = await self._listener.accept()
        self._streams.append(stream)
        worker = Worker(stream)
        self._group.start_soon(worker.listen)
        await worker.until_ready()
        return worker

    async def close(self) -> None:
        """Disconnect all workers, which ends them."""
        with anyio.CancelScope(shield=True):
            for stream in self._streams:
                await anyio.aclose_forcefully(stream)


@contextmanager
def worker_program() -> Iterator[subprocess.Popen[str]]:
    """Run the program that forks workers."""
    command = [sys.executable, "-m", "tests.stores.worker_program"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True) as program:
        yield program


@asynccontextmanager
async def open_worker_pool(program: subprocess.Popen[str], place: Place, *, lease_ms: int) -> AsyncIterator[WorkerPool]:
    """Start workers at a place during a block; afterwards all have ended."""
    multi = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with multi, anyio.create_task_group() as group:
        (listener,) = multi.listeners
        assert isinstance(listener, SocketListener)
        pool = WorkerPool(program, listener, place, lease_ms, group)
        try:
            yield pool
        finally:
            await pool.close()
            group.cancel_scope.cancel()
