"""Worker processes, and a place of each kind for their stores."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex

import pytest

from tests.stores import postgres_server, redis_server
from tests.stores.worker_program import Place
from tests.stores.workers import worker_program


@pytest.fixture(scope="session")
def program() -> Iterator[subprocess.Popen[str]]:
    with worker_program() as program:
        yield program


@pytest.fixture(scope="session", params=["sqlite", "redis", "postgres"])
def new_place(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Place]]:
    """Return a function that makes a place of one kind, gone when its server is."""
    with ExitStack() as stack:
        if request.param == "redis":
            url = stack.enter_context(redis_server.running_server()).url
        elif request.param == "postgres":
            url = stack.enter_context(postgres_server.running_server()).url
        yield (
            lambda folder: (
                Place("sqlite", str(folder / "tasks.db"))
                if request.param == "sqlite"
                else Place(request.param, url, f"test_{token_hex(6)}")
            )
        )


@pytest.fixture
def place(new_place: Callable[[Path], Place], tmp_path: Path) -> Place:
    return new_place(tmp_path)
