"""The PostgreSQL store and queue on a real server: the shipped kit, and what is PostgreSQL's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from psycopg import sql

from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.stores.postgres import PostgresTaskMessageQueue, PostgresTaskStore
from mcp_task_runtime.testing.bench import Capability, Check
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.machine import check_task_store_machine
from mcp_task_runtime.testing.question_checks import QUESTION_CHECKS, TaskBackend
from mcp_task_runtime.testing.queue_checks import QUEUE_CHECKS
from mcp_task_runtime.testing.store_checks import STORE_CHECKS
from tests.stores.postgres_server import PostgresServer, running_server

CAPABILITIES: tuple[Capability, ...] = ("durable", "listing", "mailbox", "shared")


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def schema(server: PostgresServer) -> Iterator[str]:
    with server.fresh_schema() as schema:
        yield schema


class Opener:
    """Opens at the kit's locations: each is a database schema."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.locations: set[str] = set()

    @asynccontextmanager
    async def store(self, clock: FakeClock, location: str) -> AsyncIterator[TaskStore]:
        self.locations.add(location)
        async with PostgresTaskStore(self.server.url, clock=clock, schema=location, max_connections=4) as store:
            yield store

    @asynccontextmanager
    async def queue(self, clock: FakeClock, location: str) -> AsyncIterator[TaskMessageQueue]:
        self.locations.add(location)
        async with PostgresTaskMessageQueue(self.server.url, clock=clock, schema=location, max_connections=4) as queue:
            yield queue

    @asynccontextmanager
    async def backend(self, clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
        self.locations.add(location)
        async with PostgresTaskStore(self.server.url, clock=clock, schema=location, max_connections=4) as store:
            yield TaskBackend(store, store.message_queue)

    async def count_rows(self, kept: object) -> int:
        """Count all rows at the location that was used last."""
        assert len(self.locations) == 1
        name = next(iter(self.locations))
        tables = [sql.Identifier(name, table) for table in ("tasks", "messages")]
        counts = [self.server.execute(sql.SQL("SELECT count(*)::int FROM {}").format(table)) for table in tables]
        return sum(int(count) for ((count,),) in counts)


@pytest.fixture
def opener(server: PostgresServer) -> Iterator[Opener]:
    opener = Opener(server)
    yield opener
    for location in opener.locations:
        server.drop_schema(location)


@pytest.mark.parametrize("check", STORE_CHECKS, ids=str)
async def test_the_store_keeps_the_laws(check: Check[TaskStore], opener: Opener) -> None:
    await check.run(opener.store, footprint=opener.count_rows)


@pytest.mark.parametrize("check", QUEUE_CHECKS, ids=str)
async def test_the_queue_keeps_the_laws(check: Check[TaskMessageQueue], opener: Opener) -> None:
    await check.run(opener.queue, footprint=opener.count_rows)


@pytest.mark.parametrize("check", QUESTION_CHECKS, ids=str)
async def test_store_and_queue_keep_the_laws_together(check: Check[TaskBackend], opener: Opener) -> None:
    await check.run(opener.backend, footprint=opener.count_rows)


@pytest.mark.parametrize("event_loop", ["asyncio", "trio"])
def test_random_stories_go_as_the_model_says(event_loop: str, opener: Opener) -> None:
    check_task_store_machine(opener.backend, capabilities=CAPABILITIES, backends=[event_loop])
