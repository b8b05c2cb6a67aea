"""What an operator looks at, in a store with 100 tasks and in one with a million: pages, counts, workers, the web page.

`MCP_TASK_RUNTIME_BENCH_TASKS` says how many tasks the larger one has: 1,000,000 unless it is set.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, closing
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path
from secrets import token_hex

import anyio
import httpx

from mcp_task_runtime.core.store import TaskSearch
from mcp_task_runtime.core.types import NewTask, TaskFilter
from mcp_task_runtime.operations import TaskInspector
from mcp_task_runtime.operations.web import dashboard
from mcp_task_runtime.stores.redis._form import Keys
from tests.benchmarks.measuring import row
from tests.stores import postgres_server, redis_server
from tests.stores.worker_program import Place, Store

STORED = int(os.environ.get("MCP_TASK_RUNTIME_BENCH_TASKS", "1000000"))
FEW = 100
TOOLS = 20
ROUNDS = 9
DAY_MS = 86_400_000
ERROR = '{"content":[],"isError":true}'
DONE = '{"content":[{"type":"text","text":"done"}]}'

# One task in a thousand works, one asks, ten have failed, one was cancelled; the others are completed.
STATUS = """CASE WHEN n % 1000 = 0 THEN 'working' WHEN n % 1000 = 1 THEN 'input_required'
    WHEN n % 100 = 2 THEN 'failed' WHEN n % 1000 = 3 THEN 'cancelled' ELSE 'completed' END"""

SQLITE = f"""
INSERT INTO tasks (task_id, owner, status, status_message, created_at, last_updated_at, ttl_ms, expires_at,
    poll_interval_ms, retention_ms, revision, method, name, arguments, rerunnable, client_capabilities, outcome_payload,
    lease_worker, lease_expires_at, lease_attempt, is_error)
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :number),
    kinds AS (SELECT n, {STATUS} AS status, n % 5000 = 17 AS is_error FROM numbers)
SELECT lower(hex(randomblob(24))), 'owner-' || (n % 1000), status, 'message ' || n,
    :now - (:number - n) * 100000, :now, :ttl, :now + :ttl * 1000, 500, 0, 2, 'tools/call',
    'tool-' || (n * 7 % {TOOLS}), '{{}}', 0, '{{}}',
    CASE WHEN is_error THEN '{ERROR}' WHEN status = 'completed' THEN '{DONE}'
    WHEN status = 'failed' THEN '{{"code":-1,"message":"no"}}' END,
    CASE WHEN status = 'working' THEN 'worker-' || (n / 1000 % 8) END,
    CASE WHEN status = 'working' THEN :now + 3600000000 END, CASE WHEN status = 'working' THEN 1 END, is_error
FROM kinds"""

ERROR_IN_FORMAT, DONE_IN_FORMAT = (text.replace("{", "{{").replace("}", "}}") for text in (ERROR, DONE))
POSTGRES = f"""
INSERT INTO {{schema}}.tasks (task_id, owner, status, status_message, created_at, last_updated_at, ttl_ms, expires_at,
    poll_interval_ms, retention_ms, revision, request_method, request_name, request_arguments, rerunnable,
    client_capabilities, outcome, lease_worker, lease_expires_at, lease_attempt, watchers, is_error)
SELECT md5(n::text) || left(md5((n + 1)::text), 16), 'owner-' || (n % 1000), status, 'message ' || n,
    now() - interval '0.1 second' * ({{number}} - n), now(), {DAY_MS}, now() + interval '1 day', 500, 0, 2,
    'tools/call', 'tool-' || (n * 7 % {TOOLS}), '{{{{}}}}', false, '{{{{}}}}',
    CASE WHEN is_error THEN '{ERROR_IN_FORMAT}' WHEN status = 'completed' THEN '{DONE_IN_FORMAT}'
    WHEN status = 'failed' THEN '{{{{"code":-1,"message":"no"}}}}' END::json,
    CASE WHEN status = 'working' THEN 'worker-' || (n / 1000 % 8) END,
    CASE WHEN status = 'working' THEN now() + interval '1 hour' END, CASE WHEN status = 'working' THEN 1 END,
    '{{{{}}}}', is_error
FROM (SELECT n, {STATUS} AS status, n % 5000 = 17 AS is_error FROM generate_series(1, {{number}}) AS g (n)) AS kinds
ORDER BY n"""

REDIS = """
    local function statused(n)
        if n % 1000 == 0 then return 'working' elseif n % 1000 == 1 then return 'input_required'
        elseif n % 100 == 2 then return 'failed' elseif n % 1000 == 3 then return 'cancelled' end
        return 'completed'
    end
    local opening, now = ARGV[1], tonumber(ARGV[2])
    local search = opening .. 'search:}:'
    for n = tonumber(ARGV[3]), tonumber(ARGV[4]) do
        local status, name, owner = statused(n), 'tool-' .. (n * 7 % 20), 'owner-' .. (n % 1000)
        local tag = string.sub(redis.sha1hex(tostring(n)) .. '0000000000', 1, 48)
        local at = string.format('%.0f', now - (tonumber(ARGV[5]) - n) * 100000)
        local key = opening .. tag .. '}:task'
        redis.call('HSET', key, 'v', 2, 'mark', 'bulk', 'op', 'bulk', 'task_id', tag, 'status', status,
            'created_at', at, 'last_updated_at', at, 'poll_interval_ms', 500, 'revision', 2, 'retention_ms', 0,
            'owner', owner, 'status_message', 'message ' .. n, 'name', name,
            'request', '["tools/call","' .. name .. '","{}",null,false,3,"{}",null]')
        local is_error = n % 5000 == 17
        if status == 'working' then
            redis.call('HSET', key, 'worker', 'worker-' .. (math.floor(n / 1000) % 8), 'attempt', 1,
                'lease_expires_at', string.format('%.0f', now + 3600000000))
        elseif status == 'completed' then
            redis.call('HSET', key, 'outcome', is_error and '{"content":[],"isError":true}' or '{"content":[]}')
        elseif status == 'failed' then
            redis.call('HSET', key, 'outcome', '{"code":-1,"message":"no"}')
        end
        local owner_tag = string.sub(redis.sha1hex(owner), 1, 12)
        local entry = tag .. ' ' .. name .. ' ' .. owner_tag
        redis.call('ZADD', search .. 'all', at, entry)
        redis.call('ZADD', search .. 'ids', 0, tag .. string.char(0) .. entry)
        redis.call('ZADD', search .. 'owner:' .. owner_tag, at, entry)
        redis.call('ZADD', search .. status .. ':' .. name, at, entry)
        if is_error then redis.call('ZADD', search .. 'error:' .. name, at, entry) end
        redis.call('HSET', search .. 'names', name, name)
    end
"""

Fill = Callable[[Place, int], None]


def searches(store: Store) -> dict[str, TaskFilter]:
    """Return what an operator looks for."""
    now = store.clock.now()
    return {
        "no filter": TaskFilter(),
        "a status": TaskFilter(statuses=frozenset({"failed"})),
        "a frequent status": TaskFilter(statuses=frozenset({"completed"})),
        "a tool": TaskFilter(names=frozenset({"tool-3"})),
        "a status and a tool": TaskFilter(statuses=frozenset({"cancelled"}), names=frozenset({"tool-1"})),
        "an owner": TaskFilter(owners=frozenset({"owner-5"})),
        "an owner and a status": TaskFilter(owners=frozenset({"owner-5"}), statuses=frozenset({"working"})),
        "older than": TaskFilter(created_before=now - timedelta(seconds=STORED / 20)),
        "newer than": TaskFilter(created_after=now - timedelta(seconds=5)),
        "a text that none has": TaskFilter(text="nowhere"),
        "two characters of the id": TaskFilter(id_prefix="a1"),
        "six characters of the id": TaskFilter(id_prefix="a1b2c3"),
        "errors": TaskFilter(errors_only=True),
    }


async def shortest(calls: Sequence[Callable[[], Awaitable[object]]]) -> list[float]:
    """Run calls in turns; return the shortest time of each, in seconds: what else runs here makes only some longer."""
    times = [inf] * len(calls)
    for _ in range(ROUNDS):
        for number, call in enumerate(calls):
            began = time.perf_counter()
            await call()
            times[number] = min(times[number], time.perf_counter() - began)
    return times


def looks(store: Store, browser: httpx.AsyncClient) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return what an operator looks at, by name."""
    assert isinstance(store, TaskSearch)
    inspector = TaskInspector(store)

    async def open_page(address: str) -> None:
        assert (await browser.get(address)).status_code == 200

    return {
        **{
            f"{name}, {order} first": partial(store.search_tasks, wanted, newest_first=order == "newest")
            for name, wanted in searches(store).items()
            for order in ("newest", "oldest")
        },
        "counts": inspector.counts,
        "workers": inspector.survey_workers,
        "the web page": partial(open_page, "/"),
        "the web page with a text that none has": partial(open_page, "/?text=nowhere"),
    }


async def compare(name: str, few: Place, many: Place, fill: Fill) -> None:
    """Print how much longer each look takes with many tasks than a page takes with few."""
    async with AsyncExitStack() as stack:
        both = []
        for place, number in ((few, FEW), (many, STORED)):
            store = place.store()
            await stack.enter_async_context(store)
            await store.create_task(NewTask(ttl_ms=None, task_id="first"))
            await store.delete_task("first")
            fill(place, number)
            transport = httpx.ASGITransport(dashboard(store), client=("127.0.0.1", 1))
            browser = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8321")
            both.append(looks(store, await stack.enter_async_context(browser)))
        times = {name: await shortest([each[name] for each in both]) for name in both[0]}
    of_few, of_many = ({name: pair[number] for name, pair in times.items()} for number in (0, 1))
    page = of_few["no filter, newest first"]  # a search that finds nothing among few is no measure
    ratios = {
        key: (of_many[key] + of_many["counts"]) / (max(of_few[key], page) + of_few["counts"])
        for key in of_many
        if " first" in key
    }
    slowest = max(ratios, key=ratios.__getitem__)
    what = f"{name} with {STORED:,} stored tasks"
    row(
        f"{what}: a search and the counts / the same, or a page, with {FEW}; the worst of {len(ratios)}",
        "≤ 10",
        f"{ratios[slowest]:.1f} ({slowest}: {of_many[slowest] * 1000:.1f} ms, and {of_many['counts'] * 1000:.1f} ms)",
    )
    for page_name in ("the web page", "the web page with a text that none has"):
        ratio = of_many[page_name] / of_few["the web page"]
        row(f"{what}: {page_name}, the same", "≤ 10", f"{ratio:.1f} ({of_many[page_name] * 1000:.1f} ms)")
    row(f"{what}: who runs what", "", f"{of_many['workers'] * 1000:.0f} ms")


def fill_sqlite(place: Place, number: int) -> None:
    """Store tasks in a file."""
    values = {"number": number, "now": time.time_ns() // 1000, "ttl": DAY_MS}
    with closing(sqlite3.connect(place.address, timeout=60)) as connection, connection:
        connection.execute(SQLITE, values)
        connection.execute("DELETE FROM counts")
        connection.execute("INSERT INTO counts SELECT status, name, count(*) FROM tasks GROUP BY status, name")


def fill_postgres(server: postgres_server.PostgresServer, place: Place, number: int) -> None:
    """Store tasks in a database."""
    server.execute(POSTGRES.format(schema=place.name, number=number))
    server.execute(f"VACUUM (ANALYZE) {place.name}.tasks")  # as a living server's autovacuum does


def fill_redis(server: redis_server.RedisServer, place: Place, number: int) -> None:
    """Store tasks in Redis."""
    opening, now = Keys(place.name).opening, time.time_ns() // 1000
    for first in range(1, number + 1, 1_000):
        server.client.eval(REDIS, 0, opening, now, first, min(number, first + 999), number)


async def main() -> None:
    """Print the rows."""
    with tempfile.TemporaryDirectory(prefix="mcp-task-runtime-", dir=os.environ.get("TMPDIR")) as folder:
        few, many = (Place("sqlite", str(Path(folder) / name)) for name in ("few.db", "many.db"))
        await compare("SQLite", few, many, fill_sqlite)
    with redis_server.own_server() as redis:
        few, many = (Place("redis", redis.url, f"bench_{token_hex(4)}") for _ in range(2))
        await compare("Redis", few, many, partial(fill_redis, redis))
    with postgres_server.running_server() as postgres:
        few, many = (Place("postgres", postgres.url, f"bench_{token_hex(4)}") for _ in range(2))
        await compare("PostgreSQL", few, many, partial(fill_postgres, postgres))


if __name__ == "__main__":
    anyio.run(main)
