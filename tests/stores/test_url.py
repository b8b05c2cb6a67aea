"""`open_store`: which store a URL names, and what is said of one that names none."""

from __future__ import annotations

import builtins
import importlib
import inspect
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from mcp_task_runtime import InMemoryTaskStore, TaskRuntime, open_store
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.errors import StoreUnavailableError
from mcp_task_runtime.stores.postgres import PostgresTaskStore
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from mcp_task_runtime.stores.url import database_file
from mcp_task_runtime.testing import FakeClock
from tests.stores import redis_server
from tests.stores.postgres_server import PostgresServer
from tests.support.patience import PATIENCE


def test_memory() -> None:
    clock = FakeClock()
    store = open_store("memory://", clock=clock)
    assert isinstance(store, InMemoryTaskStore)
    assert store.clock is clock


@pytest.mark.parametrize("name", ["tasks.db", "with space.db", "ä%?#&.db"])
async def test_a_file_is_relative_after_three_slashes_and_absolute_after_four(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quoted = name.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    for url in (f"sqlite:///{quoted}", f"sqlite:///{tmp_path}/{quoted}"):
        store = open_store(url)
        assert isinstance(store, SQLiteTaskStore)
        async with store:
            await store.create_task(NewTask(ttl_ms=None, task_id=url))
            assert await store.get_task(f"sqlite:///{quoted}") is not None
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("scheme", ["redis", "rediss", "postgresql"])
def test_a_url_of_a_server_is_text_and_one_of_a_file_any_bytes(scheme: str) -> None:
    with pytest.raises(ValueError, match="url is not Unicode text") as caught:
        open_store(f"{scheme}://user:secret@host\udcff/0")
    assert "secret" not in str(caught.value)
    assert isinstance(open_store("sqlite:///tasks\udcff.db"), SQLiteTaskStore)


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///a%20b.db?timeout=3", Path("a b.db")),
        ("sqlite:////var/tasks.db", Path("/var/tasks.db")),
        ("memory://", None),
        ("redis://host/0", None),
    ],
)
def test_the_file_of_a_url(url: str, file: Path | None) -> None:
    assert database_file(url) == file


@pytest.fixture(scope="module")
def redis_url() -> Generator[str, None, None]:
    with redis_server.own_server() as server:
        yield server.url


async def test_a_redis_and_what_all_names_in_it_begin_with(redis_url: str, anyio_backend: str) -> None:
    own = f"{redis_url}?prefix={anyio_backend}"
    first, again, other = (open_store(url) for url in (own, own, redis_url))
    assert isinstance(first, RedisTaskStore)
    async with first, again, other:
        await first.create_task(NewTask(ttl_ms=60_000, task_id="t"))
        assert await again.get_task("t") is not None
        assert await other.get_task("t") is None


async def test_a_postgresql_and_a_schema_in_it(postgres: PostgresServer) -> None:
    sign = "&" if "?" in postgres.url else "?"
    first, other = (open_store(url) for url in (postgres.url, f"{postgres.url}{sign}schema=the%20reports"))
    assert isinstance(first, PostgresTaskStore)
    try:
        async with first, other:
            await other.create_task(NewTask(ttl_ms=60_000, task_id="t"))
            assert await first.get_task("t") is None
        ((found,),) = postgres.execute('SELECT count(*) FROM "the reports".tasks', [])
        assert found == 1
    finally:
        postgres.drop_schema("the reports")


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("", "sqlite:///FILE"),
        ("tasks.db", "sqlite:///FILE"),
        ("mysql://localhost/tasks", "'mysql'.*postgresql://HOST"),
        ("sqlite://tasks.db", "sqlite:///FILE"),
        ("sqlite:///", "sqlite:///FILE"),
        ("sqlite:tasks.db", "sqlite:///FILE"),
        ("sqlite:///what?.db", "'.db'.*%3F"),
        ("sqlite:///number#1.db", "%23"),
        ("sqlite:///tasks.db?timeout=soon", "timeout"),
        ("sqlite:///tasks.db?timeout=0", "timeout"),
        ("sqlite:///tasks.db?synchronous=off", "synchronous"),
        ("redis://localhost/nought", "number of a database"),
        ("redis://localhost/0?prefix=a&prefix=b", "'prefix' twice"),
        ("postgresql:app", "postgresql://"),
        ("redis://localhost/0?prefix=", "prefix"),
        ("postgresql://localhost/app?schema=", "schema"),
    ],
)
def test_a_bad_url_says_what_to_write_instead(url: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "memory://?prefix=a",
        "sqlite:///tasks.db?prefix=a",
        "redis://localhost/0?prefx=a",
        "rediss://localhost/0?shcema=a&db=1",
        "redis://ada:secret@localhost/0?password=secret",
        "postgresql://ada:secret@localhost/app?shcema=a",
        "postgresql://localhost/app?timeuot=a&sslmode=require",
    ],
)
def test_an_unknown_parameter_is_refused_by_its_name(url: str) -> None:
    name = url.partition("?")[2].partition("=")[0]
    with pytest.raises(ValueError, match=f"unknown parameter '{name}'") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///tasks.db?timeout=0.25&synchronous=normal",
        "redis://localhost/0?timeout=0.25&prefix=a&client_name=b&ssl_check_hostname=false",
        "postgresql://localhost/app?timeout=0.25&schema=a&sslmode=require",
    ],
)
def test_known_parameters_are_taken(url: str) -> None:
    assert open_store(url).message_queue is not None


async def test_the_timeout_of_a_url_is_the_stores(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/missing/tasks.db?timeout=0.05")
    with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError, match="missing"):
        await store.get_task("t")
    await store.aclose()


@pytest.mark.parametrize(
    ("url", "conninfo"),
    [
        ("postgresql:///app", {"dbname": "app", "host": None}),
        ("postgresql:///app?host=/run/pg&schema=reports", {"dbname": "app", "host": "/run/pg"}),
        ("postgres://ada:p%40ss%2Fword@db:5433/app?sslmode=require", {"password": "p@ss/word", "sslmode": "require"}),
        ("postgresql://one:1,two:2/app", {"host": "one,two", "port": "1,2"}),
    ],
)
async def test_a_url_of_postgresql_reaches_the_driver_as_it_is(
    url: str, conninfo: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []

    def connect(text: str, **_: object) -> None:
        reached.append(text)
        raise psycopg.OperationalError

    monkeypatch.setattr(psycopg, "connect", connect)
    store = open_store(url)
    assert isinstance(store, PostgresTaskStore)
    with pytest.raises(StoreUnavailableError):
        await store.__aenter__()
    found = conninfo_to_dict(reached[0])
    assert {name: found.get(name) for name in conninfo} == conninfo


async def test_a_parameter_that_postgresql_does_not_know_is_named() -> None:
    with pytest.raises(ValueError, match="unknown parameter 'schme'") as refused:
        open_store("postgresql://ada:secret@localhost/app?schme=reports&sslmode=require")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:[secret@localhost/app",
        "postgresql://ada:secret℀@localhost/app",
        "postgresql://ada:%zzsecret@localhost/app",
        "redis://:a[secret@localhost/0",
        "redis://ada:secret/word@localhost/0",
        "redis://:sec%00ret@localhost:secret/0",
    ],
)
def test_the_error_of_a_url_that_cannot_be_read_shows_no_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)url") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://:secret@127.0.0.1:1/0", "127.0.0.1:1"),
        ("postgresql://ada:secret@127.0.0.1:1/app", "127.0.0.1:1"),
        ("sqlite:////nowhere/at/all/tasks.db", "/nowhere/at/all/tasks.db"),
    ],
)
async def test_a_runtime_over_a_store_that_cannot_be_reached_fails_at_its_start(
    url: str, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(url)
    runtime = TaskRuntime(store)
    for _ in range(2):
        with anyio.fail_after(60), pytest.raises(StoreUnavailableError, match=address) as caught:
            await runtime.__aenter__()
        assert "secret" not in str(caught.value)
    await store.aclose()
    assert caplog.text == "", "who opens the runtime gets the error"


async def test_a_runtime_leaves_a_store_open_that_was_open_before(tmp_path: Path) -> None:
    async with open_store(f"sqlite:///{tmp_path}/tasks.db") as store:
        record = await store.create_task(NewTask(ttl_ms=None))
        async with TaskRuntime(store):
            pass
        assert await store.get_task(record.task_id) == record


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [("redis://:secret@localhost", "coredis", "redis"), ("postgresql://u:secret@localhost/a", "psycopg", "postgres")],
)
def test_a_missing_driver_says_what_to_install_and_shows_no_password(
    url: str, driver: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without_driver(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == driver:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    for name in list(sys.modules):
        if name.partition(".")[0] == driver or name.startswith(f"mcp_task_runtime.stores.{extra}"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_driver)
    says_what_to_install = rf"pip install 'mcp-task-runtime\[{extra}\]'"
    with pytest.raises(ImportError, match=says_what_to_install) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(ImportError, match=says_what_to_install):
        importlib.import_module(f"mcp_task_runtime.stores.{extra}")


@pytest.mark.parametrize("store", [SQLiteTaskStore, RedisTaskStore, PostgresTaskStore])
def test_an_outage_is_waited_out_for_five_seconds_unless_told_otherwise(store: type[Any]) -> None:
    assert inspect.signature(store).parameters["timeout"].default == 5
