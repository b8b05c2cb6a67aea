"""Forked processes, as of a web server that loads its application first: each one works on its own.

What forks must have no threads and no event loop: a program that has only imported does it, one for all tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from typing import Any

import anyio
import anyio.to_thread
import pytest

from mcp_task_runtime import TaskRuntime
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.errors import StoreError
from tests.stores.worker_program import Place, Store
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ROUNDS = 10


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    """The program that runs the scripts below."""
    command = [sys.executable, "-m", "tests.stores.test_forks"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as program:
        yield program


async def test_a_store_that_was_made_before_the_fork_serves_each_process(
    place: Place, anyio_backend_name: str, forking: subprocess.Popen[str]
) -> None:
    async with place.store() as store:
        await store.create_task(NewTask(ttl_ms=60_000, task_id="shared"))
        said = await run_script(forking, "share", place, anyio_backend_name)
        shared = await store.get_task("shared")
    assert shared is not None
    assert shared.revision == 3, "a change of one process was taken for that of the other"
    assert len(said) == len(set(said)) == 2, "two processes have one name"


async def test_a_store_that_was_used_before_the_fork_serves_its_process_and_no_other_gets_its_connections(
    place: Place, anyio_backend_name: str, forking: subprocess.Popen[str]
) -> None:
    said = await run_script(forking, "keep", place, anyio_backend_name)
    assert said == [["ok"] * 3 if place.kind == "redis" else ["forked"] * 3]


async def run_script(program: subprocess.Popen[str], name: str, place: Place, loop: str) -> list[Any]:
    """Run one of the scripts below in a process without threads; return the output of its forks."""
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(json.dumps({"name": name, "place": asdict(place), "loop": loop}) + "\n")
    program.stdin.flush()
    said = []
    # The program prints its end in any case: forks give up in time, and a signal ends those that do not.
    while (line := await anyio.to_thread.run_sync(program.stdout.readline)) not in ("passed\n", "failed\n", ""):
        said.append(json.loads(line))
    assert line == "passed\n", "see what the program wrote to standard error"
    return said


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


def main() -> None:
    """Run each script that standard input names in a fork of its own, which must not take longer than a test."""
    scripts = {"share": share, "keep": keep}
    for line in sys.stdin:
        child = os.fork()
        if not child:
            signal.alarm(int(PATIENCE))
            try:
                asked = json.loads(line)
                scripts[asked["name"]](Place(**asked["place"]).store(), asked["loop"])
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        ended_well = os.waitpid(child, 0)[1] == 0
        print("passed" if ended_well else "failed", flush=True)


if __name__ == "__main__":
    main()
