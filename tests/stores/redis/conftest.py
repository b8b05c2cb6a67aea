"""A Redis, a cluster, and names of a test's own in them."""

from __future__ import annotations

from collections.abc import Iterator
from secrets import token_hex

import pytest

from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import Opener
from tests.stores.redis_server import RedisServer, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def prefix(server: RedisServer) -> Iterator[str]:
    """Names of one test, all gone afterwards."""
    prefix = f"test_{token_hex(6)}"
    yield prefix
    server.forget(prefix)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def opener(server: RedisServer) -> Iterator[Opener]:
    opener = Opener(server)
    yield opener
    for location in opener.locations:
        server.forget(location)
