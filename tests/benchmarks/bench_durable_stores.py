"""The durable stores, each against its bare driver: the cycle create, status, finish, get.

`MCP_TASK_RUNTIME_BENCH_TASKS` says how many stored tasks the flatness is measured with: 1,000,000 unless it is set.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any

import anyio
import anyio.to_thread
import coredis
import psycopg
from anyio.abc import ByteStream, SocketAttribute
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

from mcp_task_runtime import Answer, Outcome, QueuedMessage
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.stores.redis._form import Keys
from tests.benchmarks.measuring import rates, row
from tests.stores import postgres_server, redis_server
from tests.stores.postgres_server import PostgresServer
from tests.stores.redis_server import RedisServer
from tests.stores.worker_program import Place, Store

STORED = int(os.environ.get("MCP_TASK_RUNTIME_BENCH_TASKS", "1000000"))
OWNERS = 1_000
ROUNDS = 61
"""Many and short: load of others on the same disk comes in bursts, and must meet both rivals."""
LISTED = "owner-5"
HOUR_MS = 3_600_000
RESULT = {"content": [{"type": "text", "text": "done"}]}
RESULT_TEXT = '{"content":[{"type":"text","text":"done"}]}'
ROUND_TRIP = 0.02
QUESTION = QueuedMessage.request("1", "elicitation/create", {"message": "Sure?", "requestedSchema": {}})
YES = Answer.result({"action": "accept"})

Bulk = Callable[[Place, list[str], int], None]
"""Stores copies of the task `template`: at a place, for each of some owners, so many.

Where there is an order of creation, the tasks of all owners are mixed in it, as they come in life.
"""


async def cycles(store: Store, number: int) -> None:
    for _ in range(number):
        record = await store.create_task(NewTask(ttl_ms=HOUR_MS))
        await store.update_task(record.task_id, status_message="working on it")
        await store.finish_task(record.task_id, Outcome.completed(RESULT))
        await store.get_task(record.task_id)


async def callers(store: Store, number: int, each: int) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(number):
            group.start_soon(cycles, store, each)


async def flatness(name: str, few: Place, many: Place, bulk: Bulk, number: int) -> None:
    """Compare a store that holds the tasks of one owner with one that holds those of all."""
    async with few.store() as few_store, many.store() as many_store:
        for store, place, owners in ((few_store, few, [LISTED]), (many_store, many, names_of_owners())):
            await store.create_task(NewTask(ttl_ms=HOUR_MS, task_id="template", owner=LISTED))
            bulk(place, owners, STORED // OWNERS)
            page = await store.list_tasks(owner=LISTED)
            assert len(page.records) == min(50, STORED // OWNERS + 1)

        async def pages(store: Store) -> None:
            for _ in range(number):
                await store.list_tasks(owner=LISTED)

        both = await rates(
            {"few": partial(cycles, few_store, number), "many": partial(cycles, many_store, number)},
            operations=number,
            rounds=ROUNDS,
        )
        listing = await rates(
            {"few": partial(pages, few_store), "many": partial(pages, many_store)}, operations=number, rounds=ROUNDS
        )
    what = f"{name} with {STORED:,} stored tasks"
    row(
        f"{what}: rate / that of an empty one",
        "≥ 0.7",
        f"{both['many'] / both['few']:.2f} ({both['many']:,.0f} a second)",
    )
    row(
        f"{what}: pages of one owner's list, the same",
        "≥ 0.7",
        f"{listing['many'] / listing['few']:.2f} ({listing['many']:,.0f} a second)",
    )


def names_of_owners() -> list[str]:
    return [f"owner-{number}" for number in range(OWNERS)]


async def wake_up(asking: Store, answering: Store, samples: int) -> float:
    """Return the median of the seconds from an answer in one store to the asker awake in another."""
    taken = []
    for _ in range(samples):
        task_id = (await asking.create_task(NewTask(ttl_ms=HOUR_MS))).task_id
        await asking.message_queue.enqueue(task_id, QUESTION)
        ended = 0.0

        async def wait(task_id: str = task_id) -> None:
            nonlocal ended
            await asking.message_queue.wait_for_answer(task_id, "1")
            ended = time.perf_counter()

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(5 * ROUND_TRIP)  # until it waits
            began = time.perf_counter()
            await answering.message_queue.answer(task_id, "1", YES)
        taken.append(ended - began)
    return statistics.median(taken)


async def median_of(call: Callable[[], Awaitable[object]], samples: int = 300) -> float:
    taken = []
    for _ in range(samples):
        began = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@asynccontextmanager
async def far_away(connect: Callable[[], Awaitable[ByteStream]]) -> AsyncIterator[int]:
    """Yield a port of loopback from which everything takes half a round trip to a server, and half back."""

    async def carry(source: ByteStream, target: ByteStream) -> None:
        send, receive = anyio.create_memory_object_stream[tuple[float, bytes]](10_000)

        async def deliver() -> None:
            async for due, data in receive:
                await anyio.sleep_until(due)
                await target.send(data)

        async with send, receive, anyio.create_task_group() as group:
            group.start_soon(deliver)
            try:
                while True:
                    data = await source.receive()
                    send.send_nowait((anyio.current_time() + ROUND_TRIP / 2, data))
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                group.cancel_scope.cancel()
                await target.aclose()

    async def handle(near: ByteStream) -> None:
        async with near, await connect() as far, anyio.create_task_group() as group:
            group.start_soon(carry, near, far)
            group.start_soon(carry, far, near)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        yield listener.extra(SocketAttribute.local_port)
        group.cancel_scope.cancel()


async def awakening(name: str, near: Place, far: Place, bare: Callable[[], Awaitable[object]]) -> None:
    """Measure from an answer to the asker awake, over a slow link and over none."""
    async with far.store() as asking, far.store() as answering:
        distant = await wake_up(asking, answering, 15)
    async with near.store() as asking, near.store() as answering:
        local = await wake_up(asking, answering, 40)
    row(
        f"{name}, from an answer in one store to the asker awake in another: round trips of {ROUND_TRIP:.2f} s",
        "≤ 3",
        f"{distant / ROUND_TRIP:.1f} (without the distance {1_000 * local:.1f} ms, "
        f"{local / await median_of(bare):.1f} bare calls)",
    )


# --- SQLite -----------------------------------------------------------------------------------------------------


async def bare_sqlite_cycles(connection: sqlite3.Connection, ids: count[int], number: int) -> None:
    """Three commits, each in a thread. Reading costs the rival nothing."""

    def do(statement: str, *parameters: object) -> None:
        connection.execute(statement, parameters)

    for task_id in (f"task-{next(ids)}" for _ in range(number)):
        await anyio.to_thread.run_sync(do, "INSERT INTO tasks VALUES (?, 'working', NULL, NULL)", task_id)
        await anyio.to_thread.run_sync(do, "UPDATE tasks SET message = ? WHERE task_id = ?", "working on it", task_id)
        await anyio.to_thread.run_sync(
            do, "UPDATE tasks SET status = 'completed', outcome = ? WHERE task_id = ?", RESULT_TEXT, task_id
        )


def bulk_sqlite(place: Place, owners: list[str], each: int) -> None:
    with closing(sqlite3.connect(place.address, timeout=30)) as connection, connection:
        names = [name for _, name, *_ in connection.execute("PRAGMA table_info(tasks)") if name != "sequence"]
        new = {"task_id": "o.value || '-' || n", "owner": "o.value"}
        connection.execute(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT ?)"
            f" INSERT INTO tasks ({', '.join(names)})"
            f" SELECT {', '.join(new.get(name, name) for name in names)}"
            " FROM tasks CROSS JOIN numbers CROSS JOIN json_each(?) AS o WHERE task_id = 'template'",
            (each, json.dumps(owners)),
        )


async def bench_sqlite(folder: Path) -> None:
    bare = sqlite3.connect(folder / "bare.db", check_same_thread=False, isolation_level=None)
    with closing(bare):
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE tasks (task_id TEXT PRIMARY KEY, status TEXT, message TEXT, outcome TEXT)",
        ):
            bare.execute(statement)
        ids = count()
        async with Place("sqlite", str(folder / "ours.db")).store() as store:
            one = await rates(
                {"bare": partial(bare_sqlite_cycles, bare, ids, 10), "ours": partial(cycles, store, 10)},
                operations=10,
                rounds=ROUNDS,
            )
            many = await rates(
                {"bare": partial(bare_sqlite_cycles, bare, ids, 50), "ours": partial(callers, store, 100, 5)},
                operations=50,
                rounds=ROUNDS,
            )
    row(
        "SQLite, one caller, cycle: rate / that of bare `sqlite3` committing three times, in threads",
        "≥ 0.6",
        f"{one['ours'] / one['bare']:.2f} ({one['ours']:,.0f} / {one['bare']:,.0f} a second)",
    )
    many["ours"] *= 10  # each of its rounds is 500 cycles: fewer, and starting 100 callers would count as much
    row(
        "SQLite, 100 callers at once: rate / that of the same one bare caller",
        "≥ 3",
        f"{many['ours'] / many['bare']:.1f} ({many['ours']:,.0f} / {many['bare']:,.0f} a second)",
    )
    few, full = (Place("sqlite", str(folder / name)) for name in ("few.db", "many.db"))
    await flatness("SQLite", few, full, bulk_sqlite, 10)


# --- Redis ------------------------------------------------------------------------------------------------------

BARE_SCRIPT = "redis.call('HSET', KEYS[1], 'value', ARGV[1]) return redis.call('HGET', KEYS[1], 'value')"
COPIES = """
    local fields = redis.call('HGETALL', ARGV[1] .. 'template}:task')
    local at = {}
    for number = 1, #fields, 2 do at[fields[number]] = number + 1 end
    fields[at['owner']] = ARGV[2]
    local left = redis.call('PTTL', ARGV[1] .. 'template}:task')
    for number = 1, ARGV[3] do
        local tag = ARGV[2] .. '-' .. number
        local key, mark = ARGV[1] .. tag .. '}:task', 'bulk-' .. number
        fields[at['task_id']] = tag
        fields[at['mark']] = mark
        fields[at['op']] = mark
        redis.call('HSET', key, unpack(fields))
        redis.call('PEXPIRE', key, left)
        redis.call('ZADD', ARGV[4], fields[at['created_at']] + number, mark .. ' ' .. tag)
        redis.call('ZADD', ARGV[5], fields[at['created_at']] + 3600000000, mark .. ' ' .. tag)
    end
"""


async def bench_redis(server: RedisServer) -> None:
    def place(url: str = server.url) -> Place:
        return Place("redis", url, f"bench_{token_hex(4)}")

    def bulk(place: Place, owners: list[str], each: int) -> None:
        keys = Keys(place.name)
        for owner in owners:
            server.client.eval(COPIES, 0, keys.opening, owner, each, *keys.of_owner(owner))

    # coredis keeps a task for each connection: its client is opened like ours.
    async with coredis.Redis.from_url(server.url) as bare, place().store() as store:
        sha = await bare.script_load(BARE_SCRIPT)

        async def bare_cycles(number: int) -> None:
            for task in range(number):
                for _ in range(4):
                    await bare.evalsha(sha, keys=[f"bare-{task}"], args=[RESULT_TEXT])

        both = await rates(
            {"bare": partial(bare_cycles, 30), "ours": partial(cycles, store, 30)}, operations=30, rounds=ROUNDS
        )
        row(
            "Redis, cycle: rate / that of four bare EVALSHA with the same driver",
            "≥ 0.6",
            f"{both['ours'] / both['bare']:.2f} ({both['ours']:,.0f} / {both['bare']:,.0f} a second)",
        )

        async def connect() -> ByteStream:
            return await anyio.connect_tcp(server.host, server.port)

        async with far_away(connect) as port:
            await awakening("Redis", place(), place(f"redis://127.0.0.1:{port}"), bare.ping)
    await flatness("Redis", place(), place(), bulk, 20)


# --- PostgreSQL -------------------------------------------------------------------------------------------------


def bulk_postgres(server: PostgresServer, place: Place, owners: list[str], each: int) -> None:
    columns = server.execute(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = %s AND table_name = 'tasks' AND is_identity = 'NO' AND is_generated = 'NEVER'",
        [place.name],
    )
    names = [name for (name,) in columns]
    new = {"task_id": sql.SQL("o || '-' || n"), "owner": sql.SQL("o")}
    table = sql.Identifier(place.name, "tasks")
    server.execute(
        sql.SQL(
            "INSERT INTO {table} ({names}) SELECT {values} FROM {table}, generate_series(1, {each}) AS numbers(n)"
            " CROSS JOIN unnest({owners}::text[]) AS owners(o) WHERE task_id = 'template' ORDER BY n"
        ).format(
            table=table,
            names=sql.SQL(", ").join(map(sql.Identifier, names)),
            values=sql.SQL(", ").join([new.get(name, sql.Identifier(name)) for name in names]),
            each=each,
            owners=owners,
        )
    )
    server.execute(sql.SQL("VACUUM (ANALYZE) {}").format(table))  # as a living server's autovacuum does


async def bench_postgres(server: PostgresServer) -> None:
    def place(url: str = server.url) -> Place:
        return Place("postgres", url, f"bench_{token_hex(4)}")

    pool: ConnectionPool[psycopg.Connection[Any]] = ConnectionPool(
        server.url, kwargs={"autocommit": True}, min_size=1, max_size=4, open=True
    )
    ids = count()

    def execute(statement: str, *parameters: object) -> object:
        with pool.connection() as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchone() if cursor.description else None

    async def bare_cycles(number: int) -> None:
        for task_id in (f"task-{next(ids)}" for _ in range(number)):
            await anyio.to_thread.run_sync(execute, "INSERT INTO bare VALUES (%s, 'working')", task_id)
            await anyio.to_thread.run_sync(
                execute, "UPDATE bare SET message = %s WHERE task_id = %s", "working on it", task_id
            )
            await anyio.to_thread.run_sync(
                execute, "UPDATE bare SET status = 'completed', outcome = %s WHERE task_id = %s", RESULT_TEXT, task_id
            )
            await anyio.to_thread.run_sync(execute, "SELECT * FROM bare WHERE task_id = %s", task_id)

    with pool:
        execute("CREATE TABLE bare (task_id text PRIMARY KEY, status text NOT NULL, message text, outcome json)")
        async with place().store() as store:
            both = await rates(
                {"bare": partial(bare_cycles, 10), "ours": partial(cycles, store, 10)}, operations=10, rounds=ROUNDS
            )
        row(
            "PostgreSQL, cycle: rate / that of four bare statements with the same driver and pool, in threads",
            "≥ 0.6",
            f"{both['ours'] / both['bare']:.2f} ({both['ours']:,.0f} / {both['bare']:,.0f} a second)",
        )
        execute("DROP TABLE bare")
        address: dict[str, Any] = conninfo_to_dict(server.url)

        async def connect() -> ByteStream:
            host, port = str(address.get("host", "127.0.0.1")), address.get("port", 5432)
            if host.startswith("/"):
                return await anyio.connect_unix(f"{host}/.s.PGSQL.{port}")
            return await anyio.connect_tcp(host, int(port or 5432))

        async with far_away(connect) as far_port:
            far = place(make_conninfo(**{**address, "host": "127.0.0.1", "port": far_port}))
            near = place()
            await awakening("PostgreSQL", near, far, partial(anyio.to_thread.run_sync, execute, "SELECT 1"))
    few, full = place(), place()
    await flatness("PostgreSQL", few, full, partial(bulk_postgres, server), 10)


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mcp-task-runtime-", dir=os.environ.get("TMPDIR")) as folder:
        await bench_sqlite(Path(folder))
    with redis_server.own_server() as redis:
        await bench_redis(redis)
    os.sync()  # what the others leave the disk to do would slow every commit
    with postgres_server.running_server() as postgres:
        await bench_postgres(postgres)


if __name__ == "__main__":
    anyio.run(main)
