"""The command `mcp-tasks`: find, see and end tasks from a terminal or a script.

Exit codes: 0 done; 1 no such task, or it could not be done; 2 wrong usage; 3 the store cannot be used; 4 `doctor`
found an error or a warning; 130 interrupted. With `--json` each command prints JSON alone, one object a line where
there are several. Arguments, results, questions and answers are masked unless `--values` is given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from traceback import walk_tb
from typing import Any, Final

try:
    import click
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError as _missing:
    raise ImportError("The command mcp-tasks needs: pip install 'mcp-task-runtime[cli]'") from _missing
import anyio

from mcp_task_runtime.core.json import JSONValue, dump_json, load_json
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import TaskFilter, TaskRecord
from mcp_task_runtime.errors import StoreError, TaskRuntimeError
from mcp_task_runtime.operations._asking import ask_at_terminal
from mcp_task_runtime.operations._command import (
    EXIT_CODES,
    as_json_option,
    command,
    filter_options,
    task_filter,
    values_option,
    yes_option,
)
from mcp_task_runtime.operations._figures import (
    json_of_figures,
    json_of_worker,
    lines_of_figures,
    table_of_counts,
    table_of_workers,
)
from mcp_task_runtime.operations._rendering import (
    console,
    json_of,
    json_of_details,
    plain,
    print_json,
    question_text,
    table_of,
)
from mcp_task_runtime.operations._watching import MOST_WATCHED, WatchView
from mcp_task_runtime.operations.inspect import TaskInspector
from mcp_task_runtime.operations.worker import load_worker, run_worker

__all__ = ["main"]

_LIVE: Final = TaskFilter(statuses=frozenset({"working", "input_required"}))
_MASK: Final = "•••"
_LOOK_SECONDS: Final = 1.0
"""How often `watch` looks for new tasks: a store tells of changes of one task, not of all."""

_LOGS_WITH_IDS: Final = ("docket", "procrastinate")
"""Loggers of engines that name tasks by their identifiers at INFO: secrets, where tasks have no owner."""

_NOT_LOGGED: Final = logging.NullHandler()
"""Keeps what a command says from being logged to standard error as well, as Python does where there is no handler."""

_PAGES_LOOKED_AT: Final = 5
"""Pages that `list` looks at where few tasks match."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.option("--store", envvar="MCP_TASKS_STORE", metavar="URL", help="sqlite:///FILE, redis://… or postgresql://…")
@click.option(
    "--seal-key",
    "seal_keys",
    envvar="MCP_TASKS_SEAL_KEYS",
    multiple=True,
    metavar="KEY",
    help="A key that opens sealed tasks; the variable takes several, with commas.",
)
@click.version_option(package_name="mcp-task-runtime")
def main(store: str | None, seal_keys: tuple[str, ...]) -> None:
    """Find, see and end the tasks of MCP servers.

    The store is named by --store or MCP_TASKS_STORE. Tasks of servers with Tasks(seal=...) need their keys: put them
    into MCP_TASKS_SEAL_KEYS, since other users of a machine see command lines. A task is named by its identifier or the
    beginning of it.
    """


@main.command("list")
@filter_options
@click.option("--id", "id_prefix", metavar="PREFIX", help="Only with an identifier that begins so.")
@click.option("--oldest-first", is_flag=True, help="Oldest first instead of newest first.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Tasks to print.")
@click.option("--all", "looks_at_all", is_flag=True, help="Look at all tasks, however long that takes.")
@values_option
@as_json_option
@command
async def list_(
    inspector: TaskInspector,
    id_prefix: str | None,
    oldest_first: bool,
    limit: int,
    looks_at_all: bool,
    values: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """List tasks."""
    now = inspector.now()
    wanted = task_filter(now, **filters)
    if id_prefix is not None:
        wanted = replace(wanted, id_prefix=id_prefix)
    records: list[TaskRecord] = []
    cursor: str | None = None
    for number in count(1):
        page = await inspector.page(wanted, newest_first=not oldest_first, cursor=cursor, limit=limit - len(records))
        records += page.records
        cursor = page.next_cursor
        if cursor is None or len(records) == limit or (number == _PAGES_LOOKED_AT and not looks_at_all):
            break
    if as_json:
        for record in records:
            print_json(json_of(record, values=values))
    else:
        console().print(table_of(records, now))
    if cursor is not None and len(records) == limit:
        click.echo(f"There are more than these {limit}; see --limit.", err=True)
    elif cursor is not None:
        click.echo("Few tasks match: there may be more behind those that were looked at; see --all.", err=True)


@main.command()
@click.argument("task_id", metavar="ID")
@values_option
@as_json_option
@command
async def show(inspector: TaskInspector, task_id: str, values: bool, as_json: bool) -> None:
    """Show all there is to see of a task."""
    details = await inspector.details(await inspector.resolve(task_id))
    if as_json:
        print_json(json_of_details(details, values=values))
        return
    terminal = console()
    grid = Table.grid(padding=(0, 2))
    for name, value in json_of_details(details, values=values).items():
        if value is not None and name not in ("history", "questions", "steps"):
            grid.add_row(Text(name, style="bold"), plain(value if isinstance(value, str) else dump_json(value)))
    if not values:
        grid.add_row(Text("arguments", style="bold"), f"{_MASK}  (--values shows them)")
    terminal.print(grid)
    for question in details.questions:
        terminal.print(Text(f"open question {plain(question.key)}", style="yellow"))
        terminal.print(Text(f"  {question_text(question) if values else _MASK}"))
    for event in details.history:
        text = "" if event.text is None else plain(event.text)
        terminal.print(Text(f"{event.at:%Y-%m-%d %H:%M:%S.%f}".removesuffix("000") + f"  {event.kind:<10} {text}"))


@main.command()
@click.argument("task_ids", metavar="[ID]…", nargs=-1)
@as_json_option
@command
async def watch(inspector: TaskInspector, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Follow tasks until they have ended; without an ID, follow all live tasks until interrupted."""
    named = dict.fromkeys([await inspector.resolve(prefix) for prefix in task_ids])
    terminal = console()
    with Live(console=terminal, auto_refresh=False, transient=False) as live:
        view = WatchView(inspector, live if terminal.is_terminal and not as_json else None, as_json=as_json)
        async with anyio.create_task_group() as group:
            if named:
                for task_id in named:
                    group.start_soon(view.follow, task_id)
                return
            while True:
                for record in (await inspector.page(_LIVE, limit=MOST_WATCHED)).records[::-1]:
                    if view.has_room_for(record.task_id):
                        group.start_soon(view.follow_while_there, record.task_id)
                await anyio.sleep(_LOOK_SECONDS)


@main.command()
@click.argument("task_ids", metavar="[ID]…", nargs=-1)
@filter_options
@yes_option
@as_json_option
@command
async def cancel(
    inspector: TaskInspector, task_ids: tuple[str, ...], yes: bool, as_json: bool, **filters: Any
) -> int | None:
    """Cancel tasks by ID, or all live ones that match."""
    logging.getLogger("mcp_task_runtime.tasks").addHandler(_NOT_LOGGED)
    chosen = await _chosen(inspector, task_ids, filters, ended=False)
    if not (yes or task_ids or not chosen):
        click.confirm(f"Cancel {len(chosen)} task(s)?", abort=True, err=True)
    return await _act(inspector.cancel, chosen, "{0} cancelled", as_json=as_json)


@main.command()
@click.argument("task_ids", metavar="[ID]…", nargs=-1)
@filter_options
@yes_option
@as_json_option
@command
async def retry(
    inspector: TaskInspector, task_ids: tuple[str, ...], yes: bool, as_json: bool, **filters: Any
) -> int | None:
    """Make new tasks from the requests of ended ones, by ID, or of all that match.

    A server that has their tools runs them.
    """
    chosen = await _chosen(inspector, task_ids, filters, ended=True)
    if not (yes or task_ids or not chosen):
        click.confirm(f"Retry {len(chosen)} task(s)?", abort=True, err=True)
    return await _act(inspector.retry, chosen, "{0} retried as {1}", as_json=as_json)


async def _chosen(
    inspector: TaskInspector, task_ids: tuple[str, ...], filters: dict[str, Any], *, ended: bool
) -> list[str]:
    """Return the tasks that a command is to act on: named ones, or those that match and have ended or not."""
    if task_ids:
        return [await inspector.resolve(prefix) for prefix in task_ids]
    wanted = task_filter(inspector.now(), **filters)
    if wanted == TaskFilter():
        raise click.UsageError("name tasks by ID, or say which with --status, --tool and the like")
    return [record.task_id async for record in inspector.each(wanted) if is_terminal(record.status) is ended]


async def _act(
    act: Callable[[str], Awaitable[TaskRecord]], task_ids: list[str], done: str, *, as_json: bool
) -> int | None:
    """Act on each task and show the one that it led to; go on after an error, and return 1 then."""
    failed = 0
    for task_id in task_ids:
        try:
            record = await act(task_id)
        except TaskRuntimeError as error:
            failed += 1
            click.echo(f"{task_id}: {error}", err=True)
        else:
            print_json(json_of(record, values=False)) if as_json else click.echo(done.format(task_id, record.task_id))
    return 1 if failed else None


@main.command()
@click.argument("task_id", metavar="ID")
@click.option("--key", help="Which question; needed where more than one is open.")
@click.option("--json", "answer_json", metavar="JSON", help='The answer, such as {"action": "decline"}.')
@command
async def answer(inspector: TaskInspector, task_id: str, key: str | None, answer_json: str | None) -> int | None:
    """Answer an open question of a task in its client's place: at the terminal, or with --json."""
    task_id = await inspector.resolve(task_id)
    questions = (await inspector.details(task_id)).questions
    if key is not None:
        questions = tuple([question for question in questions if question.key == key])
    if not questions:
        click.echo("Error: the task has no open question" + ("" if key is None else " with this key"), err=True)
        return 1
    if len(questions) > 1:
        for question in questions:
            click.echo(f"{question.key}  {question_text(question)}", err=True)
        raise click.UsageError("more than one question is open; choose one with --key")
    question = next(iter(questions))
    result = ask_at_terminal(question) if answer_json is None else _parse(answer_json)
    if await inspector.answer(task_id, question.key or "", result):
        click.echo("answered")
        return None
    click.echo("Error: the question was answered or withdrawn meanwhile", err=True)
    return 1


def _parse(text: str) -> JSONValue:
    try:
        return load_json(text)
    except ValueError as error:
        raise click.UsageError("--json is no JSON") from error


@main.command()
@filter_options
@yes_option
@as_json_option
@command
async def prune(inspector: TaskInspector, yes: bool, as_json: bool, **filters: Any) -> None:
    """Delete ended tasks that match, before their time to live is over."""
    wanted = task_filter(inspector.now(), **filters)
    if wanted == TaskFilter():
        raise click.UsageError("say which tasks with --older-than, --status, --tool and the like")
    if not yes:
        click.confirm("Delete the ended tasks that match?", abort=True, err=True)
    count = await inspector.prune(wanted)
    print_json({"deleted": count}) if as_json else click.echo(f"{count} deleted")


@main.command()
@as_json_option
@command
async def workers(inspector: TaskInspector, as_json: bool) -> None:
    """Show which processes run what."""
    now = inspector.now()
    survey = await inspector.survey_workers()
    if as_json:
        for worker in survey.workers:
            print_json(json_of_worker(worker))
    else:
        console().print(table_of_workers(survey.workers, now))
    if not survey.is_complete:
        click.echo("These run the oldest tasks that have not ended; there are more tasks.", err=True)


@main.command()
@as_json_option
@command
async def stats(inspector: TaskInspector, as_json: bool) -> None:
    """Show how many tasks there are by status and tool, the oldest live ones, and what waits for a worker."""
    now = inspector.now()
    counts = await inspector.counts()
    survey = await inspector.survey_workers()
    if as_json:
        print_json(json_of_figures(counts, survey))
        return
    console().print(table_of_counts(counts))
    for line in lines_of_figures(counts, survey, now):
        click.echo(line)


@main.command()
@as_json_option
@command
async def doctor(inspector: TaskInspector, as_json: bool) -> int | None:
    """Check the store, clocks, leases and work that waits."""
    findings = await inspector.diagnose()
    for finding in findings:
        if as_json:
            print_json({"subject": finding.subject, "level": finding.level, "text": finding.text})
        else:
            colour = {"ok": "green", "warning": "yellow", "error": "red"}[finding.level]
            console().print(Text(f"{finding.level:<8}", style=colour) + Text(f"{finding.subject}: {finding.text}"))
    return None if all(finding.level == "ok" for finding in findings) else 4


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8321, show_default=True, help="The port; 0 takes any.")
@click.option("--origin", "origins", multiple=True, metavar="URL", help="Address of the page behind a proxy.")
@command
async def web(inspector: TaskInspector, host: str, port: int, origins: tuple[str, ...]) -> int | None:
    """Serve a web page that shows the tasks, and lets people act on them.

    It is for this machine alone, unless the environment variable MCP_TASKS_WEB_TOKEN holds a token of at least 16
    characters to sign in with. With the secret of the servers' Inbox in MCP_TASKS_INBOX_SECRET, the users of clients
    answer a question at its own page.
    """
    try:
        from mcp_task_runtime.operations.web import dashboard
        from mcp_task_runtime.operations.web._serve import is_loopback, listen, serve
    except ImportError as error:
        raise click.UsageError(str(error)) from error
    token = os.environ.get("MCP_TASKS_WEB_TOKEN") or None
    if token is None and not is_loopback(host):
        raise click.UsageError("set MCP_TASKS_WEB_TOKEN to listen anywhere but at this machine's loopback address")
    secret = os.environ.get("MCP_TASKS_INBOX_SECRET") or None
    try:
        application = dashboard(inspector.store, token=token, origins=origins, inbox_secret=secret)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        listener = listen(host, port)
    except OSError as error:
        click.echo(f"Error: cannot listen at {host}:{port}: {error.strerror}", err=True)
        return 1
    name = f"[{host}]" if ":" in host else host
    click.echo(f"The tasks are at http://{name}:{listener.getsockname()[1]}/ (press Ctrl+C to end)")
    await serve(application, listener)
    return None


@main.command()
@click.argument("path", metavar="MODULE:TASKS")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Tasks that run at once.")
@click.option("--tools", metavar="A,B", help="Only tasks of these tools.")
@click.option(
    "--loop",
    type=click.Choice(["asyncio", "trio"]),
    default="asyncio",
    show_default=True,
    help="The event loop that the work runs on.",
)
def worker(path: str, concurrency: int, tools: str | None, loop: str) -> None:
    """Run tasks of a server that has a dispatcher, until SIGTERM.

    MODULE:TASKS names the Tasks object of the server, such as reports.server:tasks; its store is the server's, and
    --store is not needed.
    """
    names = None if tools is None else [name.strip() for name in tools.split(",") if name.strip()]
    if names is not None and not names:
        raise click.UsageError("--tools names no tool; leave it out for all tools")
    if find_spec(loop) is None:
        raise click.UsageError(f"--loop {loop} needs: pip install 'anyio[{loop}]'")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in _LOGS_WITH_IDS:  # before the module of the server is imported, which may want them
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        tasks = load_worker(path)
        anyio.run(partial(run_worker, tasks, concurrency=concurrency, tools=names), backend=loop)
    except StoreError as error:
        click.echo(f"Error: {error}", err=True)
        click.get_current_context().exit(3)
    except (ValueError, LookupError, RuntimeError) as error:
        if not _is_raised_here(error):  # a fault of the server: its author needs the traceback
            raise
        raise click.UsageError(str(error)) from error


def _is_raised_here(error: Exception) -> bool:
    """Return whether this package raised an error, and not the module or the lifespan of a server."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] == __name__.partition(".")[0]
