"""The connections that a `ClusterLink` makes of its own, over a cluster that is made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.abc
import pytest

pytest.importorskip("coredis", reason="the extra `redis` is not installed")

from mcp_task_runtime.stores.redis._connections import ClusterLink, script_call
from mcp_task_runtime.stores.redis._watch import ServerWatch
from tests.support.patience import PATIENCE


class _Node:
    """A connection to a node that takes requests and does not answer them as it should."""

    def __init__(self, *, fails: bool) -> None:
        self.usable = True
        self.stream = None
        self.asked = anyio.Event()
        self.fails = fails

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        task_status.started()
        await anyio.sleep_forever()

    async def create_request(self, command: bytes, *_: object, **__: object) -> None:
        self.asked.set()
        if self.fails:
            raise OSError("cut")
        await anyio.sleep_forever()

    def invalidate(self, reason: str) -> None:
        self.usable = False


class _Cluster:
    """A client of a cluster of one node, which answers each call with 1."""

    def __init__(self, node: _Node) -> None:
        self.connection_pool = SimpleNamespace(
            cluster_layout=SimpleNamespace(primaries=[SimpleNamespace(host="node", port=1)]),
            connection_class=lambda location, **_: node,
            connection_kwargs={},
        )

    def decoding(self, _: bool) -> anyio.CancelScope:
        return anyio.CancelScope()

    async def create_request(self, *_: object, **__: object) -> int:
        return 1


async def test_a_connection_that_fails_while_a_node_is_asked_is_not_kept() -> None:
    node = _Node(fails=True)
    async with anyio.create_task_group() as group:
        link = ClusterLink(cast(Any, _Cluster(node)), group, timeout=PATIENCE, watch=ServerWatch("node:1"))
        with anyio.fail_after(PATIENCE):
            assert await link.send([script_call("now", ())], seconds=PATIENCE) == [1]
        assert node.asked.is_set()
        assert not node.usable
        group.cancel_scope.cancel()


async def test_a_connection_is_not_kept_when_the_first_caller_is_cancelled() -> None:
    node = _Node(fails=False)
    async with anyio.create_task_group() as group:
        link = ClusterLink(cast(Any, _Cluster(node)), group, timeout=PATIENCE, watch=ServerWatch("node:1"))
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as callers:
                callers.start_soon(lambda: link.send([script_call("now", ())], seconds=PATIENCE))
                await node.asked.wait()
                callers.cancel_scope.cancel()
        assert not node.usable
        with anyio.fail_after(PATIENCE):
            assert await link.send([script_call("now", ())], seconds=PATIENCE) == [1]
        group.cancel_scope.cancel()
