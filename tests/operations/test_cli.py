"""`mcp-tasks`, as people and scripts use it, on every store with a server in another process."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from mcp_task_runtime import (
    Execution,
    InMemoryTaskStore,
    Outcome,
    TaskNotFoundError,
    TaskRequest,
    TaskRuntime,
    TaskSpec,
    open_store,
)
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.questions import ask_question
from mcp_task_runtime.core.types import NewTask, Progress
from mcp_task_runtime.operations import RetryError, TaskInspector
from mcp_task_runtime.stores.sqlite import _search as sqlite_search
from mcp_task_runtime.stores.url import BundledTaskStore
from tests.operations.terminal import Terminal, mcp_tasks, open_command
from tests.support.patience import PATIENCE


@pytest.fixture
def anyio_backend() -> str:
    """Run on one event loop: what is tested here runs in processes of its own."""
    return "asyncio"


# How a terminal shows what any store holds: a command on a terminal is a process, which takes a second to start.
on_one_store = pytest.mark.parametrize("server", ["sqlite"], indirect=True)

FORM = {
    "type": "object",
    "properties": {"ok": {"type": "boolean", "title": "Really"}, "note": {"type": "string"}},
    "required": ["ok"],
}
QUESTION = QueuedMessage.request("q1", "elicitation/create", {"message": "Publish it?", "requestedSchema": FORM})


async def make(store: BundledTaskStore, task_id: str, tool: str, owner: str | None = None, **arguments: Any) -> None:
    request = TaskRequest(name=tool, arguments_json=json.dumps(arguments))
    await store.create_task(NewTask(ttl_ms=3_600_000, task_id=task_id, owner=owner, request=request))


async def some_tasks(store: BundledTaskStore) -> None:
    """Three tasks: one that reports progress, one that asks, one that has ended."""
    await make(store, "aaa-build", "build", "ada", secret="s3cret")
    await store.update_task("aaa-build", status_message="half", progress=Progress(1, 2))
    await make(store, "bbb-ask", "ask", "bob")
    await store.update_task("bbb-ask", status="input_required")
    await make(store, "ccc-done", "build", None)
    await store.finish_task("ccc-done", Outcome.completed({"content": [], "hidden": "s3cret"}))


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


async def test_list_shows_the_tasks_of_all_owners_the_newest_first(url: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    shown = await mcp_tasks(url, "list")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines] == ["ID", "ccc-done", "bbb-ask", "aaa-build"]
    assert "half" in lines[3]
    assert "1/2" in lines[3]
    assert "\x1b" not in shown.out


@on_one_store
async def test_a_pipe_gets_whole_identifiers_and_a_terminal_the_beginning(url: str, store: BundledTaskStore) -> None:
    await make(store, "f" * 48, "a tool with a long name " * 4)
    assert "f" * 48 in (await mcp_tasks(url, "list")).out
    terminal = Terminal(url, "list")
    assert await terminal.end() == 0
    assert "f" * 12 in terminal.shown
    assert "f" * 13 not in terminal.shown


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--status", "working"), ["aaa-build"]),
        (("--tool", "build", "--oldest-first"), ["aaa-build", "ccc-done"]),
        (("--owner", "bob"), ["bbb-ask"]),
        (("--owner", ""), ["ccc-done"]),
        (("--id", "bb"), ["bbb-ask"]),
        (("--text", "HAL"), ["aaa-build"]),
        (("--older-than", "1h"), []),
        (("--newer-than", "1h", "--limit", "1"), ["ccc-done"]),
    ],
)
async def test_list_filters_for_scripts(
    url: str, store: BundledTaskStore, options: tuple[str, ...], found: list[str]
) -> None:
    await some_tasks(store)
    shown = await mcp_tasks(url, "list", "--json", *options)
    assert (shown.code, [row["taskId"] for row in rows(shown.out)]) == (0, found)


async def test_a_result_that_is_an_error_is_shown_found_and_counted(url: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    await make(store, "eee-wrong", "build")
    await store.finish_task("eee-wrong", Outcome.completed({"content": [], "isError": True}))
    assert "completed (error)" in (await mcp_tasks(url, "list")).out.splitlines()[1]
    found = rows((await mcp_tasks(url, "list", "--errors", "--json")).out)
    assert [(row["taskId"], row["status"], row["isError"]) for row in found] == [("eee-wrong", "completed", True)]
    (row,) = rows((await mcp_tasks(url, "stats", "--json")).out)
    assert row["errors"] == [{"tool": "build", "count": 1}]
    assert (await mcp_tasks(url, "stats")).out.splitlines()[2].split() == ["build", "1", "2", "1"]


async def test_a_list_says_where_it_stopped_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'tasks.db'}"
    monkeypatch.setattr(sqlite_search, "LOOKED_AT_MOST", 2)
    async with open_store(url) as store:
        for number in range(320):
            await make(store, f"task-{number}", "build")
        await store.update_task("task-0", status_message="needle")
        short = await mcp_tasks(url, "list", "--text", "needle", "--json", "--limit", "50")
        assert (short.code, short.out) == (0, "")
        assert "--all" in short.err
        full = await mcp_tasks(url, "list", "--text", "needle", "--json", "--all")
        assert ([row["taskId"] for row in rows(full.out)], full.err) == (["task-0"], "")


async def test_values_are_shown_only_when_asked_for(url: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    for task in ("aaa", "ccc"):
        for form in ((), ("--json",)):
            masked = await mcp_tasks(url, "show", task, *form)
            assert masked.code == 0
            assert "s3cret" not in masked.out
            assert "s3cret" in (await mcp_tasks(url, "show", task, "--values", *form)).out


async def test_show_tells_what_happened_to_a_task(url: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    (row,) = rows((await mcp_tasks(url, "show", "aaa", "--json")).out)
    assert [event["kind"] for event in row["history"]] == ["created", "status"]
    assert row["progress"] == {"progress": 1.0, "total": 2.0}
    await store.create_task(NewTask(ttl_ms=60_000, task_id="ddd-asks", worker="w1", lease_ms=60_000))
    await store.message_queue.enqueue(
        "ddd-asks", QueuedMessage.request("q", "elicitation/create", {"message": "Sure?"})
    )
    (row,) = rows((await mcp_tasks(url, "show", "ddd", "--json")).out)
    assert row.keys() >= {"createdAt", "lastUpdatedAt", "expiresAt"}
    assert (row["worker"], row["attempt"]) == ("w1", 1)
    assert [question["method"] for question in row["questions"]] == ["elicitation/create"]


async def test_an_unknown_or_ambiguous_id_is_an_error(url: str, store: BundledTaskStore) -> None:
    await make(store, "twin-1", "build")
    await make(store, "twin-2", "build")
    unknown = await mcp_tasks(url, "show", "nothing")
    assert (unknown.code, unknown.err) == (1, "Error: Task not found\n")
    twin = await mcp_tasks(url, "show", "twin")
    assert twin.code == 1
    assert "More than one task" in twin.err


async def test_cancel_ends_tasks_by_id_and_says_which_it_could_not(url: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    done = await mcp_tasks(url, "cancel", "aaa", "ccc")
    assert done.code == 1
    assert done.out == "aaa-build cancelled\n"
    assert "ccc-done: A task that is 'completed' cannot become 'cancelled'" in done.err
    record = await store.get_task("aaa-build")
    assert record is not None
    assert (record.status, record.task.status_message) == ("cancelled", "Cancelled by an operator")


async def test_cancel_says_once_what_it_has_done(url: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    with open_command(url, "cancel", "aaa") as process, anyio.fail_after(PATIENCE):
        out, err = await anyio.to_thread.run_sync(process.communicate, abandon_on_cancel=True)
    assert (out, err) == ("aaa-build cancelled\n", "")


async def test_cancelling_many_asks_first(url: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    refused = await mcp_tasks(url, "cancel", "--tool", "build", stdin="n\n")
    assert refused.code == 1
    assert "Cancel 1 task(s)?" in refused.err
    assert (await mcp_tasks(url, "cancel", "--tool", "build", "--yes", "--json")).code == 0
    record = await store.get_task("aaa-build")
    assert record is not None
    assert record.status == "cancelled"
    assert (await mcp_tasks(url, "cancel", "--yes")).code == 2  # never all tasks by accident


async def test_a_cancel_stops_the_work_in_its_server(url: str, store: BundledTaskStore) -> None:
    stopped = anyio.Event()

    async def work(_: object) -> dict[str, Any]:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()
        return {}

    async with TaskRuntime(store) as runtime:
        record = await runtime.submit(TaskSpec(), work)
        assert (await mcp_tasks(url, "cancel", record.task_id)).code == 0
        with anyio.fail_after(PATIENCE):
            await stopped.wait()


async def test_a_retried_task_is_a_new_one_that_a_server_with_its_tool_runs(url: str, store: BundledTaskStore) -> None:
    request = TaskRequest(name="build", arguments_json='{"n":7}', progress_token="gone")
    await store.create_task(NewTask(ttl_ms=60_000, task_id="old", owner="ada", request=request))
    await store.finish_task("old", Outcome.failed("no paper"))
    done = await mcp_tasks(url, "retry", "old")
    new_id = done.out.removeprefix("old retried as ").rstrip("\n")
    assert (done.code, done.err) == (0, "")
    record = await store.get_task(new_id)
    assert record is not None
    assert (record.owner, record.request) == ("ada", replace(request, progress_token=None))

    async def work(execution: Execution[Outcome]) -> Outcome:
        assert execution.record is not None
        return Outcome.completed(execution.record.request.arguments)

    async with TaskRuntime(store) as runtime:
        runtime.register("build", work)
        await runtime.get(new_id, owner="ada")  # as a client that polls; the next look for lost work does it, too
        with anyio.fail_after(PATIENCE):
            assert (await runtime.result(new_id, owner="ada")).result == {"n": 7}
    old = await store.get_task("old")
    assert old is not None
    assert old.status == "failed"


async def test_retry_refuses_what_cannot_run_again_and_takes_all_that_match(url: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    await store.create_task(NewTask(ttl_ms=None, task_id="ddd-nameless"))
    await store.finish_task("ddd-nameless", Outcome.cancelled())
    refused = await mcp_tasks(url, "retry", "aaa", "ddd")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.splitlines() == [
        "aaa-build: The task has not ended: cancel it first",
        "ddd-nameless: The task was not made by a call of a tool: what it ran is not stored",
    ]
    done = await mcp_tasks(url, "retry", "--tool", "build", "--yes", "--json")
    (row,) = rows(done.out)
    assert (done.code, row["tool"], row["status"], row["attempt"]) == (0, "build", "working", 0)
    assert (await mcp_tasks(url, "retry", "--yes")).code == 2  # never all tasks by accident


async def test_a_store_of_one_process_has_no_retry() -> None:
    async with InMemoryTaskStore() as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="old", request=TaskRequest(name="build")))
        await store.finish_task("old", Outcome.cancelled())
        with pytest.raises(RetryError, match="belongs to one process"):
            await TaskInspector(store).retry("old")
        with pytest.raises(TaskNotFoundError):
            await TaskInspector(store).retry("unknown")


@on_one_store
async def test_a_question_is_answered_at_the_terminal(url: str, store: BundledTaskStore) -> None:
    await make(store, "task", "ask")
    with anyio.fail_after(PATIENCE * 2):
        async with anyio.create_task_group() as group:
            answers: list[Any] = []

            async def ask() -> None:
                answers.append(await ask_question(store, store.message_queue, "task", QUESTION))

            group.start_soon(ask)
            await until_it_asks(store, "task")
            terminal = Terminal(url, "answer", "ta")
            await terminal.until("accept, decline or cancel")
            assert "Publish it?" in terminal.shown
            terminal.press("accept\r")
            await terminal.until("Really")
            terminal.press("y\r")
            await terminal.until("note")
            terminal.press("\r")
            assert await terminal.end() == 0
    assert answers[0].unwrap() == {"action": "accept", "content": {"ok": True}}


async def until_it_asks(store: BundledTaskStore, task_id: str) -> None:
    """Wait until a task has an open question."""
    record = await store.get_task(task_id)
    assert record is not None
    while record.status != "input_required":
        record = await store.wait_for_update(task_id, after=record.revision)


async def test_a_script_answers_with_json(url: str, store: BundledTaskStore) -> None:
    await make(store, "task", "ask")
    assert (await mcp_tasks(url, "answer", "task", "--json", "{}")).code == 1  # nothing is open
    async with anyio.create_task_group() as group:
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await ask_question(store, store.message_queue, "task", QUESTION))

        group.start_soon(ask)
        await until_it_asks(store, "task")
        malformed = await mcp_tasks(url, "answer", "task", "--json", '{"action": "accept", "content": {"ok": 7}}')
        assert malformed.code == 1
        assert "Invalid answer" in malformed.err
        assert (await mcp_tasks(url, "answer", "task", "--json", '{"action": "decline"}')).code == 0
    assert answers[0].unwrap() == {"action": "decline"}


async def test_watch_follows_tasks_until_they_have_ended(url: str, store: BundledTaskStore) -> None:
    await make(store, "task", "build")
    terminal = Terminal(url, "watch", "ta")
    await terminal.until("working")
    await store.update_task("task", status_message="nearly", progress=Progress(9, 10))
    await terminal.until("nearly")
    await store.finish_task("task", Outcome.failed("no paper"))
    assert await terminal.end() == 0
    assert "no paper" in terminal.shown


async def test_watch_without_an_id_shows_changes_as_the_store_tells_them(url: str, store: BundledTaskStore) -> None:
    await make(store, "first", "build")
    await make(store, "second", "build")
    terminal = Terminal(url, "watch")
    await terminal.until("second")
    await store.update_task("first", status_message="nearly")
    await terminal.until("nearly")
    await store.finish_task("first", Outcome.failed("no paper"))
    await terminal.until("no paper")
    await make(store, "third", "index")
    await terminal.until("third")
    await store.delete_task("second")
    terminal.interrupt()
    assert await terminal.end() == 130


async def test_watch_ends_with_a_line_where_a_task_is_unknown_or_goes_away(url: str, store: BundledTaskStore) -> None:
    await make(store, "one", "build")
    await make(store, "two", "build")
    unknown = await mcp_tasks(url, "watch", "one", "nothing")
    assert (unknown.code, unknown.err) == (1, "Error: Task not found\n")
    terminal = Terminal(url, "watch", "one", "two")
    await terminal.until("two")
    await terminal.until("one")
    await store.delete_task("one")
    assert await terminal.end() == 1
    assert "Error: Task not found" in terminal.shown
    assert "Traceback" not in terminal.shown


@on_one_store
async def test_watch_into_a_pipe_that_breaks_ends_without_a_traceback(url: str, store: BundledTaskStore) -> None:
    await make(store, "task", "build")
    with open_command(url, "watch", "--json") as process:
        assert process.stdout is not None
        try:
            with anyio.fail_after(PATIENCE):
                assert '"task"' in await anyio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
                process.stdout.close()
                await store.update_task("task", status_message="more")
                code = await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        finally:
            process.kill()
        assert process.stderr is not None
        assert (code, process.stderr.read()) == (1, "")


async def test_prune_deletes_ended_tasks_alone(url: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    assert (await mcp_tasks(url, "prune", "--tool", "build", stdin="n\n")).code == 1
    done = await mcp_tasks(url, "prune", "--tool", "build", "--yes", "--json")
    assert (done.code, rows(done.out)) == (0, [{"deleted": 1}])
    assert await store.get_task("ccc-done") is None
    assert await store.get_task("aaa-build") is not None
    assert (await mcp_tasks(url, "prune", "--yes")).code == 2


async def test_workers_and_stats_and_doctor_tell_who_runs_what(url: str, store: BundledTaskStore) -> None:
    request = TaskRequest(name="build")
    await store.create_task(NewTask(ttl_ms=60_000, request=request, worker="w1", lease_ms=30_000))
    queued = NewTask(ttl_ms=60_000, request=request, worker="w1", lease_ms=30_000, status_message="Queued")
    await store.create_task(queued)
    healthy = await mcp_tasks(url, "doctor", "--json")
    levels = {row["subject"]: row["level"] for row in rows(healthy.out)}
    persistence = levels.pop("persistence", None)
    # The servers of the tests do not write what they keep to the disk; another PostgreSQL may.
    expected: dict[str, tuple[str | None, ...]] = {"sqlite": (None,), "redis": ("warning",)}
    assert persistence in expected.get(url.partition(":")[0], ("error", None))
    assert healthy.code == (0 if persistence is None else 4)
    assert levels.keys() >= {"store", "schema", "clock", "leases"}
    assert ("eviction" in levels) == url.startswith("redis")
    assert set(levels.values()) == {"ok"}
    await store.create_task(NewTask(ttl_ms=60_000, request=request, worker="lost", lease_ms=1))
    await store.create_task(NewTask(ttl_ms=60_000, request=request, worker="", lease_ms=1))
    await anyio.sleep(0.01)  # by the store's own clock
    found = {row["worker"]: row for row in rows((await mcp_tasks(url, "workers", "--json")).out)}
    assert found["w1"]["tasks"] == {"build": 2}
    assert (found["w1"]["hasLapsed"], found["lost"]["hasLapsed"]) == (False, True)
    assert "(waiting for one)" in (await mcp_tasks(url, "workers")).out
    (row,) = rows((await mcp_tasks(url, "stats", "--json")).out)
    assert row["counts"] == [{"status": "working", "tool": "build", "count": 4}]
    assert (row["waitingForWorker"], row["waitingForSlot"], row["waitingIsComplete"]) == (1, 1, True)
    assert "waiting for a worker: 1, the oldest made " in (await mcp_tasks(url, "stats")).out
    ill = await mcp_tasks(url, "doctor")
    assert ill.code == 4
    assert "1 task of lost workers" in ill.out
    assert "1 task wait" in ill.out


@on_one_store
async def test_a_narrow_terminal_cuts_what_is_long_and_nothing_else(url: str, store: BundledTaskStore) -> None:
    await make(store, "f" * 48, "a tool with a long name " * 4)
    await store.update_task("f" * 48, status_message="a long message " * 9)
    await store.finish_task("f" * 48, Outcome.completed({"isError": True}, status_message="it went wrong " * 9))
    terminal = Terminal(url, "list", columns=80)
    assert await terminal.end() == 0
    heads, row = (re.sub("\x1b\\[[0-9;]*m", "", line) for line in terminal.shown.strip().splitlines())
    assert heads.split() == ["ID", "STATUS", "TOOL", "AGE", "PROGRESS", "MESSAGE"]
    assert row.startswith("ffffffffffff  completed (error)  a tool")
    assert re.search(r"…  \d+s ", row)


@on_one_store
async def test_what_a_client_put_into_a_task_is_shown_and_not_obeyed(url: str, store: BundledTaskStore) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J[red]x[/red]"
    await make(store, "task", f"tool {hostile}", f"owner {hostile}")
    await store.update_task("task", status_message=hostile)
    for command in ("list", "show task", "stats"):
        terminal = Terminal(url, *command.split())
        assert await terminal.end() == 0
        assert "\x1b]0;" not in terminal.shown
        assert "\x1b[2J" not in terminal.shown
        assert "[red]x" in terminal.shown


async def test_wrong_usage_and_a_store_that_is_not_there_have_codes_of_their_own() -> None:
    missing = await mcp_tasks(None, "list")
    assert missing.code == 2
    assert "MCP_TASKS_STORE" in missing.err
    assert (await mcp_tasks("memory://", "list")).code == 2
    assert (await mcp_tasks("redis://host\udcff/0", "list")).code == 2
    for path in ("/nowhere/at/all.db", f"/{'long' * 99}.db"):
        away = await mcp_tasks(f"sqlite:///{path}", "list")
        assert away.code == 3
        assert path in away.err
        assert "Traceback" not in away.err


@pytest.mark.parametrize("command", ["list", "show a", "cancel a", "stats", "doctor", "workers", "web --port 0"])
async def test_a_file_that_is_not_there_is_not_made(command: str, tmp_path: Path) -> None:
    """A path with a fault in it would show no tasks, and look as if there were none."""
    done = await mcp_tasks(f"sqlite:///{tmp_path / 'tsaks.db'}", *command.split())
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith(f"Error: There is no database file {tmp_path / 'tsaks.db'}")
    assert os.listdir(tmp_path) == []


@on_one_store
@pytest.mark.parametrize(
    "arguments",
    [*(f"list --{name}" for name in ("text", "tool", "owner", "id")), "show", "watch", "cancel", "retry", "answer"],
)
async def test_bytes_that_are_no_text_are_wrong_usage(url: str, store: BundledTaskStore, arguments: str) -> None:
    """So Python shows bytes of a command line that it cannot decode."""
    await some_tasks(store)
    done = await mcp_tasks(url, *arguments.split(), "a\udcff")
    assert done.code == 2
    assert "is not Unicode text" in done.err


@on_one_store
async def test_an_age_before_the_calendar_begins_is_one_that_no_task_has(url: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    assert rows((await mcp_tasks(url, "list", "--older-than", "999999d", "--json")).out) == []
    assert len(rows((await mcp_tasks(url, "list", "--newer-than", "999999d", "--json")).out)) == 3


async def test_workers_are_those_of_the_2000_oldest_live_tasks() -> None:
    async with InMemoryTaskStore() as store:
        for number in range(2_001):
            tool = "newest" if number == 2_000 else "build"
            request = TaskRequest(name=tool)
            await store.create_task(NewTask(ttl_ms=None, request=request, worker="w", lease_ms=600_000))
        survey = await TaskInspector(store).survey_workers()
    assert [worker.tasks for worker in survey.workers] == [{"build": 2_000}]
    assert not survey.is_complete
