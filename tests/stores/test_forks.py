"""Forked processes, as of a web server that loads its application first: each one works on its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import anyio
import pytest

from mcp_task_runtime import TaskRuntime
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.errors import StoreError
from tests.stores.worker_program import Place, Store
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ROUNDS = 10


async def test_a_store_that_was_made_before_the_fork_serves_each_process(place: Place, anyio_backend_name: str) -> None:
    async with place.store() as store:
        await store.create_task(NewTask(ttl_ms=60_000, task_id="shared"))
        said = await run_script("share", place, anyio_backend_name)
        shared = await store.get_task("shared")
    assert shared is not None
    assert shared.revision == 3, "a change of one process was taken for that of the other"
    assert len(said) == len(set(said)) == 2, "two processes have one name"


async def test_a_store_that_was_used_before_the_fork_serves_its_process_and_no_other_gets_its_connections(
    place: Place, anyio_backend_name: str
) -> None:
    said = await run_script("keep", place, anyio_backend_name)
    assert said == [["ok"] * 3 if place.kind == "redis" else ["forked"] * 3]


async def run_script(name: str, place: Place, loop: str) -> list[Any]:
    """Run one of the scripts below in a process without threads; return the output of its forks."""
    command = [sys.executable, "-m", "tests.stores.test_forks", name, json.dumps(asdict(place)), loop]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(command, stdout=subprocess.PIPE, stderr=None, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- in other processes ---


def share(store: Store, loop: str) -> None:
    """Let two forks change one task, then each other's tasks by turns."""
    runtime = TaskRuntime(store)

    async def live(mine: str, other: str) -> Any:
        async with store:
            await store.update_task("shared")
            await store.create_task(NewTask(ttl_ms=60_000, task_id=mine))
            while await store.get_task(other) is None:  # noqa: ASYNC110 - the other process makes it
                await anyio.sleep(0.01)
            for number in range(ROUNDS):
                if mine == "first":
                    await store.update_task(other)
                await store.wait_for_update(mine, after=number + 1)
                if mine == "second":
                    await store.update_task(other)
        return runtime.statistics().worker

    in_forks(loop, lambda: live("first", "second"), lambda: live("second", "first"))


def keep(store: Store, loop: str) -> None:
    """Use a store, use it in a fork, and use it again."""

    async def use() -> None:
        await store.create_task(NewTask(ttl_ms=60_000))
        assert await store.get_task("unknown") is None

    async def try_it() -> list[str]:
        said = []
        for attempt in (
            store.create_task(NewTask(ttl_ms=60_000)),
            store.get_task("unknown"),
            store.message_queue.peek("a"),
        ):
            try:
                await attempt
                said.append("ok")
            except StoreError as error:
                said.append("forked" if "forked" in str(error) else str(error))
        await store.aclose()
        return said

    async def use_for_the_last_time() -> None:
        await use()
        await store.aclose()

    anyio.run(use, backend=loop)
    in_forks(loop, try_it)
    anyio.run(use_for_the_last_time, backend=loop)


def in_forks(loop: str, *lives: Callable[[], Awaitable[Any]]) -> None:
    """Run async functions in forks of this process, which print their results, and wait until they have ended."""

    async def live_in_time(live: Callable[[], Awaitable[Any]]) -> Any:
        with anyio.fail_after(PATIENCE / 3):
            return await live()

    children = []
    for live in lives:
        children.append(os.fork())
        if not children[-1]:
            try:
                os.write(1, json.dumps(anyio.run(live_in_time, live, backend=loop)).encode() + b"\n")
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)


if __name__ == "__main__":
    {"share": share, "keep": keep}[sys.argv[1]](Place(**json.loads(sys.argv[2])).store(), sys.argv[3])
