"""The SQLite store when something is wrong: damaged rows, files that are away, clocks that jump, reboots."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_task_runtime.core.clock import SystemClock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import Fence, Lease, NewTask, Outcome, TaskFilter
from mcp_task_runtime.errors import StoreError, StoreUnavailableError
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore, _machine
from mcp_task_runtime.testing.clock import FakeClock
from tests.support.patience import PATIENCE

LOGGER = "mcp_task_runtime.stores.sqlite"
DONE = Outcome.completed({})
QUESTION = QueuedMessage.request("k", "elicitation/create", {"message": "Sure?"})
SECOND = 1_000_000  # microseconds
HOUR = 3_600 * SECOND


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


def run(path: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


# --- damaged rows -------------------------------------------------------------------------------------

DAMAGE: list[tuple[str, Any]] = [
    ("status", "sleeping"),
    ("status_message", b"\xff\xfe"),
    ("created_at", "yesterday"),
    ("created_at", 2**62),
    ("last_updated_at", b"x"),
    ("ttl_ms", "long"),
    ("ttl_ms", 2**62),
    ("poll_interval_ms", "often"),
    ("revision", "last"),
    ("owner_", b"\xff"),
    ("retention_ms", 1.5),
    ("method", b"\xff"),
    ("name", b"\xff"),
    ("arguments", "{"),
    ("arguments", b"\xff"),
    ("arguments", "[" * 300 + "]" * 300),
    ("progress_token", "{"),
    ("client_capabilities", "nonsense"),
    ("lease_worker", b"\xff"),
    ("lease_attempt", "first"),
    ("lease_attempt", None),
    ("max_attempts", "many"),
    ("caller", "{"),
    ("sealed_credentials", b"\xff"),
    ("progress", "[1]"),
    ("progress", "7"),
]


@pytest.mark.parametrize(
    ("column", "value"), DAMAGE, ids=[f"{column}-{number}" for number, (column, _) in enumerate(DAMAGE)]
)
async def test_a_damaged_task_is_a_store_error_and_hurts_no_other(
    path: Path, column: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        for task_id in ("before", "bad-task-and-secret", "after"):
            await store.create_task(NewTask(ttl_ms=None, task_id=task_id, owner="ada", worker="w", lease_ms=1_000))
        clock.advance(2)
    run(path, f"UPDATE tasks SET {column.rstrip('_')} = ? WHERE task_id = 'bad-task-and-secret'", value)
    healthy = ["before", "after"]
    async with SQLiteTaskStore(path, clock=clock) as store:
        uses: list[Callable[[], Awaitable[Any]]] = [
            partial(store.get_task, "bad-task-and-secret"),
            partial(store.get_view, "bad-task-and-secret"),
            partial(store.get_result, "bad-task-and-secret"),
            partial(store.update_task, "bad-task-and-secret", status_message="x"),
            partial(store.ask, "bad-task-and-secret", QUESTION),
            partial(store.answer_all, "bad-task-and-secret", {"k": Answer.result({})}),
            partial(store.record_step, "bad-task-and-secret", "s", "1", fence=Fence("w", 1)),
            partial(store.claim_task, "bad-task-and-secret", worker="w", lease_ms=1),
            partial(store.wait_for_update, "bad-task-and-secret", after=1),
            partial(store.finish_task, "bad-task-and-secret", DONE),
        ]
        with caplog.at_level(logging.WARNING, LOGGER), anyio.fail_after(PATIENCE):
            for use in uses:
                with pytest.raises(StoreError, match="task bad-task… is damaged"):
                    await use()
            for _ in range(3):
                listed = (await store.list_tasks(owner="ada")).records
                assert [record.task_id for record in listed] == healthy
                assert [record.task_id for record in await store.list_lapsed(limit=1)] == ["before"]
                assert [record.task_id for record in await store.list_lapsed()] == healthy
                found = (await store.search_tasks(TaskFilter(), newest_first=False)).records
                assert [record.task_id for record in found] == healthy
            await store.count_tasks()
            await store.drop_leases("w", ["bad-task-and-secret", "after"], lapse=False)
            assert [record.task_id for record in await store.list_lapsed()] == ["before"]
            await store.update_task("after", status_message="goes on")
            assert await store.delete_task("bad-task-and-secret")
        (line,) = caplog.messages
        assert "What is stored of task bad-task… is damaged, and left out of lists" in line


async def test_a_list_of_nothing_but_damaged_tasks_ends(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        for number in range(7):
            await store.create_task(NewTask(ttl_ms=None, task_id=f"{number}", worker="w", lease_ms=1 + number))
        clock.advance(2)
        run(path, "UPDATE tasks SET created_at = 'x' WHERE task_id < '5'")
        assert [record.task_id for record in await store.list_lapsed(limit=1)] == ["5"]
        assert [record.task_id for record in await store.list_lapsed(limit=2)] == ["5", "6"]
        run(path, "UPDATE tasks SET created_at = 'x'")
        assert await store.list_lapsed(limit=2) == ()
        page = await store.list_tasks(owner=None, limit=3)
        assert page.records == ()
        assert page.next_cursor is not None
        assert (await store.list_tasks(owner=None, cursor=page.next_cursor, limit=5)).next_cursor is None


@pytest.mark.parametrize(("column", "value"), [("type", "x"), ("method", b"\xff"), ("params", "{"), ("key", b"\xff")])
async def test_a_damaged_question_hurts_its_task_alone(path: Path, column: str, value: Any) -> None:
    async with SQLiteTaskStore(path, clock=FakeClock()) as store:
        for task_id in ("bad", "good"):
            await store.create_task(NewTask(ttl_ms=None, task_id=task_id))
            await store.ask(task_id, QUESTION)
        run(path, f"UPDATE messages SET {column} = ? WHERE task_id = 'bad'", value)
        queue = store.message_queue
        for use in (store.get_view, queue.outstanding, queue.peek, queue.dequeue):
            with pytest.raises(StoreError, match="damaged"):
                await use("bad")
            assert await use("good")
        await store.finish_task("bad", DONE)
        assert await queue.outstanding("bad") == ()


@pytest.mark.parametrize(
    ("column", "value"), [("answer_type", "x"), ("answer_payload", "{"), ("answer_payload", b"\xff")]
)
async def test_a_damaged_answer_is_a_store_error(path: Path, column: str, value: Any) -> None:
    async with SQLiteTaskStore(path, clock=FakeClock()) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        await store.ask("a", QUESTION)
        await store.answer_all("a", {"k": Answer.result({})})
        run(path, f"UPDATE messages SET {column} = ?", value)
        with pytest.raises(StoreError, match="damaged"):
            await store.message_queue.wait_for_answer("a", "k")


async def test_a_damaged_history_is_a_store_error(path: Path) -> None:
    async with SQLiteTaskStore(path, clock=FakeClock()) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        for value in ("{", "[1]", '[["x","y","z"]]', b"\xff"):
            run(path, "UPDATE tasks SET events = ?", value)
            with pytest.raises(StoreError, match="damaged"):
                await store.get_history("a")
            assert await store.get_task("a") is not None


# --- a file that cannot be opened ---------------------------------------------------------------------


async def test_a_file_that_cannot_be_opened_fails_at_the_start_in_one_line_that_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").mkdir()
    missing = tmp_path / "missing"
    for path, why in ((missing / "tasks.db", f"there is no folder {missing}"), (tmp_path / "folder", "it is a folder")):
        with caplog.at_level(logging.DEBUG, LOGGER), anyio.fail_after(PATIENCE / 2):  # well before the timeout
            with pytest.raises(StoreUnavailableError, match="cannot be opened") as caught:
                async with SQLiteTaskStore(path, timeout=PATIENCE):
                    pytest.fail("it was opened")
        assert str(caught.value).splitlines() == [f"The database file {path} cannot be opened: {why}"]
    assert not caplog.records


async def test_an_outage_is_one_line_in_the_log_however_many_calls_there_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "tasks.db"
    store = SQLiteTaskStore(path, timeout=0.1)
    with caplog.at_level(logging.DEBUG, LOGGER):
        for _ in range(3):
            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(expect_unavailable, store.get_task if number % 2 else store.delete_task)
    await store.aclose()
    why = f"there is no folder {path.parent}"
    assert caplog.messages == [f"The database file {path} cannot be opened: {why}; trying again"]


async def expect_unavailable(operation: Callable[[str], Awaitable[Any]]) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be opened"):
        await operation("a")


async def test_what_is_asked_before_the_folder_is_there_is_done_when_it_is(tmp_path: Path) -> None:
    path = tmp_path / "late" / "tasks.db"
    store = SQLiteTaskStore(path)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(store.create_task, NewTask(ttl_ms=None, task_id="a"))
            await anyio.sleep(0.15)
            os.mkdir(path.parent)
        assert await store.get_task("a") is not None
    await store.aclose()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
async def test_a_folder_that_may_not_be_read_is_an_outage_and_no_more() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inner" / "tasks.db"
        os.mkdir(path.parent)
        async with SQLiteTaskStore(path, timeout=0.1) as store:
            await store.create_task(NewTask(ttl_ms=None, task_id="a"))
            assert await store.get_task("a") is not None
            is_root = os.geteuid() == 0
            os.chmod(path.parent, 0)
            if is_root:  # permissions do not stop root
                os.seteuid(65534)
            try:
                for use in (store.get_task, store.update_task):
                    with pytest.raises(StoreUnavailableError, match="cannot be used: Permission denied") as caught:
                        await use("a")
                    assert str(path) in str(caught.value)
            finally:
                if is_root:
                    os.seteuid(0)
                os.chmod(path.parent, 0o755)
            assert (await store.update_task("a")).revision == 2


# --- a disk that is full, or read-only ----------------------------------------------------------------


class Disk:
    """A disk of one megabyte."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tasks.db"
        self._folder = folder

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self._folder], check=True, capture_output=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self._folder], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = Disk(folder)
    try:
        disk.mount("size=1m")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    try:
        yield disk
    finally:
        disk.unmount()


async def test_a_full_disk_is_said_and_what_was_acknowledged_stays(disk: Disk) -> None:
    big = Outcome.completed({"text": "x" * 100_000})
    ended: list[str] = []

    async def fill(store: SQLiteTaskStore) -> None:
        for number in range(20):
            task_id = (await store.create_task(NewTask(ttl_ms=None, task_id=f"task-{number}"))).task_id
            await store.finish_task(task_id, big)
            ended.append(task_id)

    async with SQLiteTaskStore(disk.path, timeout=0.1) as store:
        with pytest.raises(StoreUnavailableError) as caught:
            await fill(store)
        assert str(caught.value) == f"The database file {disk.path} cannot grow, the disk is full"
        disk.mount("remount,size=8m")
        await store.create_task(NewTask(ttl_ms=None, task_id="after"))
    async with SQLiteTaskStore(disk.path) as store:
        assert ended
        for task_id in ended:
            assert await store.get_result(task_id) == big
        assert await store.get_task("after") is not None


async def test_what_is_on_a_disk_that_is_read_only_is_read(disk: Disk, path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        for each in path.parent.glob("tasks.db*"):  # as a process that was killed leaves them
            shutil.copy(each, disk.path.parent)
    disk.mount("remount,ro")
    async with SQLiteTaskStore(disk.path, timeout=0.1) as store:
        for use in (store.update_task, store.delete_task):
            with pytest.raises(StoreUnavailableError) as caught:
                await use("a")
            assert str(caught.value) == f"The database file {disk.path} is read-only"
        assert await store.get_task("a") is not None
    another = disk.path.with_name("another.db")
    with pytest.raises(StoreUnavailableError) as caught:
        await SQLiteTaskStore(another).__aenter__()
    assert str(caught.value) == f"The database file {another} cannot be opened: {another.parent} may not be written"


# --- whose time counts --------------------------------------------------------------------------------


class Machine:
    """Stands for the machine: its uptime, its boots, its sleep and its wall clock."""

    def __init__(self) -> None:
        self.boot = "first"
        self.now = 1_000 * SECOND  # of uptime
        self.slept = 0
        self.wall = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def advance(self, microseconds: int) -> None:
        self.now += microseconds
        self.wall += timedelta(microseconds=microseconds)

    def sleep(self, microseconds: int) -> None:
        self.advance(microseconds)
        self.slept += microseconds

    def reboot(self, boot: str, microseconds: int) -> None:
        self.boot, self.now, self.slept = boot, 5 * SECOND, 0
        self.wall += timedelta(microseconds=microseconds)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(_machine, "uptime", lambda: machine.now)
    monkeypatch.setattr(_machine, "asleep", lambda: machine.slept)
    monkeypatch.setattr(_machine, "boot_id", lambda: machine.boot)
    monkeypatch.setattr(SystemClock, "now", lambda clock: machine.wall)
    return machine


async def lapsed(store: SQLiteTaskStore) -> list[str]:
    return [record.task_id for record in await store.list_lapsed()]


async def test_a_wall_clock_that_jumps_ends_no_lease_and_no_task(path: Path, machine: Machine) -> None:
    async with SQLiteTaskStore(path) as store:
        created = await store.create_task(NewTask(ttl_ms=60_000, task_id="a", worker="w", lease_ms=10_000))
        machine.wall += timedelta(hours=2)
        assert store.clock.now() == created.task.created_at
        async with SQLiteTaskStore(path) as other:  # a process that starts after the jump
            assert other.clock.now() == created.task.created_at
            assert await lapsed(other) == []
            assert await other.get_task("a") == created
            assert await other.claim_task("a", worker="thief", lease_ms=1) is None
        machine.wall -= timedelta(hours=4)
        machine.advance(10 * SECOND)
        async with SQLiteTaskStore(path) as other:
            assert await lapsed(other) == ["a"]
        machine.advance(50 * SECOND)
        assert await store.get_task("a") is None


async def test_leases_lapse_with_a_reboot_however_soon_it_is_and_whatever_the_clock_says(
    path: Path, machine: Machine
) -> None:
    async with SQLiteTaskStore(path) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a", worker="w", lease_ms=3_600_000))
        await store.create_task(NewTask(ttl_ms=None, task_id="none"))
    machine.reboot("second", -2 * SECOND)  # and the battery of the clock is empty
    async with SQLiteTaskStore(path) as store, SQLiteTaskStore(path) as other:
        assert await lapsed(store) == ["a"]
        claimed = await other.claim_task("a", worker="new", lease_ms=10_000)
        assert claimed is not None
        assert claimed.lease == Lease("new", store.clock.now() + timedelta(seconds=10), 2)
    async with SQLiteTaskStore(path) as store:  # not a second time
        assert await lapsed(store) == []


async def test_a_reboot_is_noticed_where_boots_have_no_name(path: Path, machine: Machine) -> None:
    machine.boot = ""
    async with SQLiteTaskStore(path) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a", worker="w", lease_ms=3_600_000))
    async with SQLiteTaskStore(path) as store:
        assert await lapsed(store) == []
    machine.reboot("", 60 * SECOND)
    async with SQLiteTaskStore(path) as store:
        assert await lapsed(store) == ["a"]
        assert store.clock.now() == machine.wall


async def test_time_goes_on_over_a_reboot(path: Path, machine: Machine) -> None:
    async with SQLiteTaskStore(path) as store:
        await store.create_task(NewTask(ttl_ms=60_000, task_id="short"))
        await store.create_task(NewTask(ttl_ms=7_200_000, task_id="long"))
    machine.reboot("second", HOUR)
    async with SQLiteTaskStore(path) as store:
        assert await store.get_task("short") is None
        assert await store.get_task("long") is not None


async def test_no_lease_runs_out_while_the_machine_sleeps_but_time_goes_on(path: Path, machine: Machine) -> None:
    async with SQLiteTaskStore(path) as first, SQLiteTaskStore(path) as second:
        await first.create_task(NewTask(ttl_ms=60_000, task_id="short", worker="w"))
        await first.create_task(NewTask(ttl_ms=None, task_id="a", worker="w", lease_ms=10_000))
        await second.create_task(NewTask(ttl_ms=None, task_id="b", worker="v", lease_ms=10_000))
        machine.advance(4 * SECOND)
        machine.sleep(HOUR)
        assert await second.claim_task("a", worker="thief", lease_ms=1) is None
        assert await first.claim_task("b", worker="thief", lease_ms=1) is None
        assert await lapsed(first) == []
        assert await second.get_task("short") is None
        assert first.clock.now() == second.clock.now() == machine.wall
        machine.advance(6 * SECOND)  # extended once, not once for each process
        assert await lapsed(second) == ["a", "b"]
        assert await second.claim_task("a", worker="new", lease_ms=1) is not None


async def test_an_injected_clock_replaces_all_of_it(path: Path, machine: Machine) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        assert store.clock is clock
        await store.create_task(NewTask(ttl_ms=None, task_id="a", worker="w", lease_ms=10_000))
        machine.sleep(HOUR)
        machine.reboot("second", HOUR)
    async with SQLiteTaskStore(path, clock=clock) as store:
        assert await lapsed(store) == []
        clock.advance(10)
        assert await lapsed(store) == ["a"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM clock").fetchall() == []


def test_the_machine_says_what_it_is_asked() -> None:
    before = _machine.uptime()
    assert 0 <= _machine.asleep() <= before <= _machine.uptime()
    assert _machine.boot_id() == _machine.boot_id()
    if sys.platform in ("linux", "darwin"):
        assert len(_machine.boot_id()) == 36


# --- several processes whose clocks disagree ----------------------------------------------------------

SKEWED = """
import sys
from datetime import timedelta
import anyio
from mcp_task_runtime.core.clock import SystemClock
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore

true_now = SystemClock.now
ahead = timedelta(seconds=float(sys.argv[2]))
SystemClock.now = lambda clock: true_now(clock) + ahead

async def main():
    async with SQLiteTaskStore(sys.argv[1]) as store:
        stolen = [record.task_id for record in await store.list_lapsed()]
        for task_id in sys.argv[3:]:
            if await store.claim_task(task_id, worker="thief", lease_ms=1000) is not None:
                stolen.append(task_id)
            if await store.get_task(task_id) is None:
                stolen.append(task_id)
        await store.create_task(NewTask(ttl_ms=60_000, task_id=f"of {sys.argv[2]}", worker="w", lease_ms=30_000))
        print(stolen, flush=True)

anyio.run(main)
"""


async def test_processes_whose_wall_clocks_disagree_take_nothing_from_each_other(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        await store.create_task(NewTask(ttl_ms=60_000, task_id="live", worker="w", lease_ms=30_000))
        for ahead in ("3600", "-3600", "40"):
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            command = [sys.executable, "-c", SKEWED, str(path), ahead, "live"]
            with anyio.fail_after(PATIENCE):
                finished = await anyio.run_process(command, env=environment, stderr=None)
            assert finished.stdout.decode().strip() == "[]"
            assert await store.get_task(f"of {ahead}") is not None
        assert await lapsed(store) == []
