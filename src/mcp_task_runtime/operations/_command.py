"""What the commands of `mcp-tasks` share: options, filters, an inspector, and exit codes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, Final, cast

import anyio
import click

from mcp_task_runtime.core.text import check_text
from mcp_task_runtime.core.types import TaskFilter, TaskStatus
from mcp_task_runtime.errors import StoreError, StoreUnavailableError, TaskRuntimeError
from mcp_task_runtime.operations.inspect import TaskInspector
from mcp_task_runtime.stores.sealed import seal_store
from mcp_task_runtime.stores.url import database_file, open_store

__all__ = [
    "EXIT_CODES",
    "STATUSES",
    "as_json_option",
    "command",
    "filter_options",
    "task_filter",
    "values_option",
    "yes_option",
]

EXIT_CODES: Final = (
    "Exit codes: 0 done; 1 no such task, or it could not be done, or the answer to a question was no; 2 wrong usage; "
    "3 the store cannot be used; 4 doctor found an error or a warning; 130 interrupted."
)

STATUSES: Final[tuple[TaskStatus, ...]] = ("working", "input_required", "completed", "failed", "cancelled")
"""All statuses, in the order in which they are shown."""

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_LONGEST_AGE: Final = timedelta(days=36_500)
"""An age that no task has; one that is longer might lead to a time before the calendar begins."""


class _Age(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        number, unit = str(value)[:-1], str(value)[-1:]
        if not (number.isascii() and number.isdigit()) or unit not in _UNITS or len(number) > 6:
            self.fail("write a number and a unit: 90s, 15m, 2h or 7d", param, ctx)
        return min(timedelta(seconds=int(number) * _UNITS[unit]), _LONGEST_AGE)


@asynccontextmanager
async def _inspector(ctx: click.Context) -> AsyncIterator[TaskInspector]:
    url = ctx.find_root().params["store"]
    keys = [key for given in ctx.find_root().params["seal_keys"] for key in given.split(",") if key]
    if url is None:
        raise click.UsageError("name the store with --store URL or the environment variable MCP_TASKS_STORE")
    try:
        store = open_store(url)
        seen = seal_store(store, keys) if keys else store
    except (ValueError, ImportError) as error:
        raise click.UsageError(str(error)) from error
    if not getattr(store, "is_shared", True):
        raise click.UsageError("memory:// is the memory of this command alone; name the store of the servers")
    _require_file(url)
    async with store:
        yield TaskInspector(seen)


def _require_file(url: str) -> None:
    """Require the file that a URL of SQLite names: one made here would be empty, and hide a fault in its path.

    Raises:
        StoreUnavailableError: It is not there.
    """
    file = database_file(url)
    if file is None:
        return
    try:
        file.stat()
    except FileNotFoundError:
        raise StoreUnavailableError(f"There is no database file {file.absolute()}; a server makes it") from None
    except OSError:
        pass  # the store says what is wrong with it


def command(body: Callable[..., Awaitable[int | None]]) -> Callable[..., None]:
    """Return the function of a command that runs a coroutine function with an inspector.

    An error becomes a line on stderr and an exit code.
    """

    async def run(ctx: click.Context, options: dict[str, Any]) -> int | None:
        try:
            async with _inspector(ctx) as inspector:
                return await body(inspector, **options)
        except Exception as error:
            raise _leaf_of(error) from error

    @wraps(body)
    def run_command(**options: Any) -> None:
        ctx = click.get_current_context()
        _check_texts(ctx.params)
        try:
            code = anyio.run(run, ctx, options)
        except StoreError as error:
            click.echo(f"Error: {error}", err=True)
            code = 3
        except TaskRuntimeError as error:
            click.echo(f"Error: {error}", err=True)
            code = 1
        except KeyboardInterrupt:
            code = 130
        ctx.exit(code or 0)

    return run_command


def _check_texts(params: Mapping[str, Any]) -> None:
    """Refuse bytes of a command line that are not Unicode text: no store could hold what they are compared with.

    Raises:
        click.UsageError: An argument or option has some; the message names it.
    """
    for name, value in params.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                try:
                    check_text(name, text)
                except ValueError as error:
                    raise click.UsageError(str(error)) from error


def _leaf_of(error: BaseException) -> BaseException:
    """Return the first exception of a group: `watch` raises one where tasks or the store go away, or a pipe breaks."""
    while isinstance(inner := getattr(error, "exceptions", None), tuple):
        error = inner[0]
    return error


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
values_option = click.option("--values", is_flag=True, help="Show arguments, results, questions and answers.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask before acting on several tasks.")


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which tasks; `task_filter` takes their values."""
    options = (
        click.option("--status", "statuses", multiple=True, type=click.Choice(STATUSES), help="Only in this status."),
        click.option("--tool", "names", multiple=True, metavar="NAME", help="Only for this tool."),
        click.option("--owner", "owners", multiple=True, help="Only of this owner; empty for tasks without one."),
        click.option("--text", help="Only with this in the status message."),
        click.option("--errors", "errors_only", is_flag=True, help="Only completed with a result that is an error."),
        click.option("--older-than", type=_Age(), help="Only made so long ago or earlier, such as 7d."),
        click.option("--newer-than", type=_Age(), help="Only made less than so long ago, such as 15m."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def task_filter(
    now: datetime,
    statuses: tuple[str, ...],
    names: tuple[str, ...],
    owners: tuple[str, ...],
    text: str | None,
    older_than: timedelta | None,
    newer_than: timedelta | None,
    errors_only: bool,
) -> TaskFilter:
    """Return the filter that the values of `filter_options` make."""
    return TaskFilter(
        statuses=frozenset(cast("tuple[TaskStatus, ...]", statuses)) or None,
        names=frozenset(names) or None,
        owners=frozenset(owner or None for owner in owners) or None,
        text=text,
        created_before=None if older_than is None else now - older_than,
        created_after=None if newer_than is None else now - newer_than,
        errors_only=errors_only,
    )
