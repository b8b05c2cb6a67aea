"""The engine of the SQLite store on its own: group commit, cancellation, and waiting out a file that is unavailable."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime.errors import StoreError, StoreUnavailableError, TaskExistsError
from mcp_task_runtime.stores.sqlite._engine import Engine
from mcp_task_runtime.stores.sqlite._transaction import Transaction
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.concurrency.stepping import quiesce
from tests.support.patience import PATIENCE

LOGGER = "mcp_task_runtime.stores.sqlite"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


def make_engine(path: Path, **options: Any) -> Engine:
    given: dict[str, Any] = {"clock": FakeClock(), "synchronous": "full", "timeout": 5.0, **options}
    return Engine(path, purge=lambda transaction, most: 0, complete=lambda transaction: None, **given)


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[Engine]:
    """Open an engine; in the end, close it."""
    engine = make_engine(path, **options)
    try:
        await engine.open()
        yield engine
    finally:
        await engine.aclose()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock of a file, as another process does while it commits."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def note(text: str, transaction: Transaction) -> None:
    transaction.execute("INSERT INTO clears (task_id) VALUES (?)", (text,))


def notes(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [text for (text,) in connection.execute("SELECT task_id FROM clears ORDER BY number")]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it comes true in another thread, without an event
            await anyio.sleep(0.005)


# --- group commit -------------------------------------------------------------------------------------


async def test_writes_that_wait_share_one_commit(path: Path) -> None:
    async with opened(path) as engine:
        before = engine.statistics().writes
        async with anyio.create_task_group() as group:
            with locked(path):
                for number in range(100):
                    group.start_soon(engine.write, partial(note, str(number)))
                await quiesce()
        assert engine.statistics().writes - before <= 3
        assert len(notes(path)) == 100


async def test_what_fails_among_others_fails_alone(path: Path) -> None:
    together: dict[str, list[Transaction]] = {}
    endings: dict[str, str] = {}

    async with opened(path) as engine:

        async def write(name: str, error: Exception | None = None) -> None:
            def operation(transaction: Transaction) -> None:
                together.setdefault(name, []).append(transaction)
                if isinstance(error, TaskExistsError):
                    raise error
                note(name, transaction)
                if error is not None:
                    raise error

            try:
                await engine.write(operation)
                endings[name] = "done"
            except (StoreError, TaskExistsError) as caught:
                endings[name] = type(caught).__name__

        async with anyio.create_task_group() as group:
            with locked(path):
                group.start_soon(write, "first")
                await quiesce()
                await until(lambda: engine.statistics().queued == 0)
                errors = {"a": None, "taken": TaskExistsError("t"), "broken": OverflowError("too large"), "b": None}
                for name, error in errors.items():
                    group.start_soon(write, name, error)
                    await quiesce()
        assert together["a"][0] is together["taken"][0] is together["broken"][0]  # first all together
        assert len({id(transactions[-1]) for transactions in together.values()}) == 5
    assert endings == {
        "first": "done",
        "a": "done",
        "taken": "TaskExistsError",
        "broken": "StoreError",
        "b": "done",
    }
    assert sorted(notes(path)) == ["a", "b", "first"]


async def test_commits_wait_for_the_disk_unless_told_otherwise(path: Path) -> None:
    def level(transaction: Transaction) -> int:
        found: int = transaction.execute("PRAGMA synchronous").fetchone()[0]
        return found

    async with opened(path) as engine:
        assert await engine.write(level) == 2
        assert await engine.write(level, is_lasting=False) == 1
        assert await engine.write(level) == 2
    async with opened(path, synchronous="normal") as engine:
        assert await engine.write(level) == 1


async def test_a_rollback_drops_what_operations_kept(path: Path) -> None:
    def keep(transaction: Transaction) -> None:
        transaction.known["kept"] = 1
        raise OverflowError

    async with opened(path) as engine:
        with pytest.raises(StoreError):
            await engine.write(keep)
        assert await engine.write(lambda transaction: dict(transaction.known)) == {}


# --- cancellation -------------------------------------------------------------------------------------


async def test_a_write_that_waits_for_its_turn_is_withdrawn_when_it_is_cancelled(path: Path) -> None:
    async with opened(path) as engine:
        with anyio.fail_after(PATIENCE), locked(path):
            async with anyio.create_task_group() as group:
                for number in range(3):
                    group.start_soon(engine.write, partial(note, str(number)))
                    await quiesce()
                await until(lambda: engine.statistics().queued < 3)  # it waits for the lock
                group.start_soon(engine.write, partial(note, "late"))
                group.cancel_scope.cancel()
        await engine.write(partial(note, "after"))
        assert notes(path) == ["after"]


class SlowWrite:
    """A write that has begun and goes on when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.error = error
        self.times = 0

    def __call__(self, transaction: Transaction) -> str:
        self.times += 1
        note("slow", transaction)
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return "done"


async def test_a_write_that_has_begun_returns_its_result_when_it_is_cancelled(path: Path) -> None:
    slow, returned = SlowWrite(), []

    async with opened(path) as engine:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:

                async def write() -> None:
                    returned.append(await engine.write(slow))
                    await anyio.lowlevel.checkpoint()
                    returned.append("not reached")

                group.start_soon(write)
                await until(slow.begun.is_set)
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await quiesce()
                slow.go_on.set()
    assert returned == ["done"]
    assert notes(path) == ["slow"]


async def test_a_write_that_is_cancelled_and_fails_is_not_repeated(path: Path) -> None:
    slow, raised = SlowWrite(sqlite3.OperationalError("disk I/O error")), []

    async with opened(path) as engine:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:

                async def write() -> None:
                    try:
                        await engine.write(slow)
                    except StoreUnavailableError:
                        raised.append(True)

                group.start_soon(write)
                await until(slow.begun.is_set)
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await quiesce()
                slow.go_on.set()
        await engine.write(partial(note, "after"))
    assert raised == [True]
    assert slow.times == 1
    assert notes(path) == ["after"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_cancellation_of_an_asyncio_task_is_raised_once_the_result_is_known(path: Path) -> None:
    import asyncio

    slow = SlowWrite()
    async with opened(path) as engine:
        task = asyncio.ensure_future(engine.write(slow))
        await until(slow.begun.is_set)
        task.cancel()
        await quiesce()
        assert not task.done()
        slow.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert notes(path) == ["slow"]


# --- unavailable for a moment, or longer --------------------------------------------------------------


class Outage:
    """A write that finds the disk failing until it is over."""

    def __init__(self) -> None:
        self.is_over = False
        self.tries = 0

    def __call__(self, transaction: Transaction) -> str:
        self.tries += 1
        if not self.is_over:
            raise sqlite3.OperationalError("disk I/O error")
        return "done"


@pytest.mark.parametrize("method", ["write", "read"])
async def test_an_outage_is_waited_out_and_others_go_on_meanwhile(
    path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    outage, results = Outage(), []
    async with opened(path) as engine:
        with anyio.fail_after(PATIENCE), caplog.at_level(logging.INFO, LOGGER):
            async with anyio.create_task_group() as group:

                async def operate() -> None:
                    results.append(await getattr(engine, method)(outage))

                group.start_soon(operate)
                await until(lambda: outage.tries >= 3)
                await engine.write(partial(note, "meanwhile"))
                assert results == []
                outage.is_over = True
            assert results == ["done"]
    assert notes(path) == ["meanwhile"]
    assert len([record for record in caplog.records if "disk failed" in record.getMessage()]) == 1


@pytest.mark.parametrize("method", ["write", "read"])
async def test_an_outage_that_outlasts_the_timeout_is_raised_with_the_files_name(path: Path, method: str) -> None:
    async with opened(path, timeout=0.2) as engine:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="disk failed") as caught:
            await getattr(engine, method)(Outage())
        assert 0.2 <= time.monotonic() - begun < PATIENCE
        assert str(path) in str(caught.value)
        await engine.write(partial(note, "after"))


async def test_a_request_that_was_put_aside_is_withdrawn_when_it_is_cancelled(path: Path) -> None:
    outage = Outage()

    async def operate(method: Callable[[Outage], Awaitable[str]]) -> None:
        with suppress(StoreUnavailableError):  # of a try that was under way
            await method(outage)

    async with opened(path, timeout=60.0) as engine:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(operate, engine.write)
                group.start_soon(operate, engine.read)
                await until(lambda: outage.tries >= 4)
                group.cancel_scope.cancel()
            await engine.write(partial(note, "after"))  # behind a try that was under way
            await engine.read(lambda transaction: None)
            await until(lambda: engine.statistics().queued == 0)
            tries = outage.tries
            await anyio.sleep(0.15)
            assert outage.tries == tries


async def test_a_lock_is_waited_for_and_leaves_no_log_line(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(path) as engine:
        with anyio.fail_after(PATIENCE), caplog.at_level(logging.INFO, LOGGER):
            async with anyio.create_task_group() as group:
                with locked(path):
                    group.start_soon(engine.write, partial(note, "a"))
                    await anyio.sleep(0.1)
    assert notes(path) == ["a"]
    assert not caplog.records


async def test_a_lock_that_is_not_released_in_time_is_raised_and_nothing_is_lost(path: Path) -> None:
    async with opened(path, timeout=0.1) as engine:
        with locked(path):
            with pytest.raises(StoreUnavailableError, match="stayed locked") as caught:
                await engine.write(partial(note, "refused"))
            assert str(path) in str(caught.value)
        await engine.write(partial(note, "after"))
        assert notes(path) == ["after"]


@pytest.mark.parametrize("method", ["write", "read"])
@pytest.mark.parametrize("says", ["locking protocol", "database schema is locked: main", "database is locked"])
async def test_a_lock_is_waited_for_whatever_sqlite_calls_it(
    path: Path, says: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[Transaction] = []

    def locked_twice(transaction: Transaction) -> str:
        tries.append(transaction)
        if len(tries) < 3:
            raise sqlite3.OperationalError(says)
        return "done"

    async with opened(path, timeout=PATIENCE) as engine:
        with caplog.at_level(logging.INFO, LOGGER):
            assert await getattr(engine, method)(locked_twice) == "done"
    assert len(tries) == 3
    assert not caplog.records


async def test_a_file_that_is_locked_at_the_start_is_opened_when_it_is_free(path: Path) -> None:
    async with opened(path):
        pass
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            with locked(path):
                engine = make_engine(path)
                group.start_soon(engine.open)
                await anyio.sleep(0.1)
        await engine.aclose()


@contextmanager
def moved_away(path: Path) -> Iterator[None]:
    """Rename a file, as a backup or a person may, and put it back."""
    aside = path.with_name("aside.db")
    os.rename(path, aside)
    try:
        yield
    finally:
        os.replace(aside, path)


async def test_operations_wait_while_the_file_is_away_for_a_moment(path: Path) -> None:
    done: list[str] = []
    async with opened(path) as engine:

        async def operate() -> None:
            await engine.write(partial(note, "written"))
            done.append("written")

        async def look() -> None:
            done.append(await engine.read(lambda transaction: "read"))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                with moved_away(path):
                    group.start_soon(operate)
                    group.start_soon(look)
                    await anyio.sleep(0.2)
                    assert done == []
        assert sorted(done) == ["read", "written"]
    assert notes(path) == ["written"]


async def test_closing_ends_what_waits_for_a_file_that_does_not_come_back(path: Path) -> None:
    refused: list[str] = []
    engine = make_engine(path, timeout=0.3)
    await engine.open()

    async def operate() -> None:
        try:
            await engine.write(partial(note, "never"))
        except StoreUnavailableError as error:
            refused.append(str(error))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            os.unlink(path)
            group.start_soon(operate)
            await quiesce()
            await engine.aclose()
    assert refused == [f"The database file {path} was deleted"]


async def test_nothing_is_acknowledged_that_was_committed_to_a_file_that_is_gone(path: Path) -> None:
    slow = SlowWrite()
    async with opened(path, timeout=0.2) as engine:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:

                async def write() -> None:
                    with pytest.raises(StoreUnavailableError, match="was deleted"):
                        await engine.write(slow)

                group.start_soon(write)
                await until(slow.begun.is_set)
                os.unlink(path)
                slow.go_on.set()
    assert slow.times == 1


async def test_a_replaced_file_is_refused_until_the_first_is_back_and_logged_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = path.with_name("other.db")
    async with opened(other) as engine:
        await engine.write(partial(note, "of the other"))
    async with opened(path, timeout=0.1) as engine:
        await engine.write(partial(note, "first"))
        with caplog.at_level(logging.INFO, LOGGER):
            aside = path.with_name("aside.db")
            os.rename(path, aside)
            os.rename(other, path)
            for _ in range(3):
                for operation in (engine.write(partial(note, "lost")), engine.read(lambda transaction: None)):
                    with pytest.raises(StoreUnavailableError, match="was replaced by another") as caught:
                        await operation
                    assert str(path) in str(caught.value)
            os.replace(aside, path)
            await engine.write(partial(note, "again"))
            await engine.read(lambda transaction: None)
    assert notes(path) == ["first", "again"]
    assert [record.getMessage() for record in caplog.records] == [
        f"The database file {path} was replaced by another; trying again",
        f"The database file {path} can be used again",
    ]


async def test_a_deleted_file_is_noticed_while_there_are_only_waiters(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Never:
        def __call__(self, transaction: Transaction) -> tuple[None, None]:
            return None, None

        def accept(self, change: object) -> None:
            return None

    async with opened(path) as engine:
        with caplog.at_level(logging.WARNING, LOGGER), anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(engine.wait, "a", Never())
                await until(lambda: engine.statistics().reads > 0)
                os.unlink(path)
                await until(lambda: caplog.records)
                await anyio.sleep(0.2)
                group.cancel_scope.cancel()
    assert [record.getMessage() for record in caplog.records] == [f"The database file {path} was deleted; trying again"]
