"""The pages: what each shows, and what its forms do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from time import perf_counter
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from mcp_task_runtime.core.ids import handle_of
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, is_terminal
from mcp_task_runtime.core.types import TaskFilter, TaskRecord
from mcp_task_runtime.errors import InvalidCursorError, ProtocolError, TaskNotFoundError, TaskRuntimeError
from mcp_task_runtime.operations._numbers import counted
from mcp_task_runtime.operations.inspect import AmbiguousTaskError, TaskDetails, TaskInspector
from mcp_task_runtime.operations.web import _charts as charts
from mcp_task_runtime.operations.web._filters import AGES, STATUSES, Search
from mcp_task_runtime.operations.web._forms import FormError, form_of, read_answer
from mcp_task_runtime.operations.web._guard import Access, csrf_token, read_form
from mcp_task_runtime.operations.web._live import Item, LiveResponse, Regions, Show, Streams, make_item
from mcp_task_runtime.operations.web._templates import dom_id, render

__all__ = ["Pages", "error_page"]

_PAGE: Final = 50
_MOST_WAITING: Final = 25
_MOST_IN_CHARTS: Final = 500
_LOOK_AGAIN_SECONDS: Final = 2.0
"""How often a page that shows many tasks looks again: a store tells of changes of one task, not of all."""

_SHARE_OF_LOOKING: Final = 10
"""Where a look takes long, the pause after it is so many times as long: a page that is open must not load a store."""

_SHORTEST_PAUSE_SECONDS: Final = 0.2
"""The pause after each change of a followed task: changes in between come together."""

_SAID: Final[Mapping[str, str]] = {
    "answered": "The answer was taken.",
    "cancelled": "The task was cancelled.",
    "late": "The question was answered or withdrawn before.",
    "retried": "This is a new task, made from the request of the other one.",
}
"""What a page says after a form was sent; the address has the key alone."""

Look: TypeAlias = Callable[[Request], Awaitable[Regions]]


class Pages:
    """The handlers of all addresses, over one inspector."""

    def __init__(self, inspector: TaskInspector, access: Access, streams: Streams) -> None:
        """Make the handlers."""
        self._inspector = inspector
        self._access = access
        self._streams = streams

    # -- the list of tasks

    async def tasks(self, request: Request) -> Response:
        """Show a page of tasks, the form to search them, and how many there are."""
        search = Search.of(request.query_params)
        regions, tools = await self._task_list(request)
        return self._page(
            request, "tasks.html", "Tasks", regions, is_live=not search.cursor, search=search, tools=tools,
            statuses=STATUSES, ages=AGES,
        )  # fmt: skip

    async def tasks_live(self, request: Request) -> LiveResponse:
        """Send the list again when it has changed."""

        async def look(request: Request) -> Regions:
            return (await self._task_list(request))[0]

        return self._again_and_again(request, look)

    async def _task_list(self, request: Request) -> tuple[Regions, list[str]]:
        search = Search.of(request.query_params)
        base = _base(request)
        counts = await self._inspector.counts()
        try:
            page = await self._inspector.page(
                search.filter(self._inspector.now()),
                newest_first=not search.is_oldest_first,
                cursor=search.cursor or None,
                limit=_PAGE,
            )
        except InvalidCursorError:
            raise HTTPException(400, "This page of the list is not there any more.") from None
        by_status: dict[str, list[int]] = {status: [] for status in STATUSES}
        for (status, _), number in counts.by_status_and_name.items():
            by_status[status].append(number)
        errors = list(counts.errors_by_name.values())
        rows = [_row(record, base) for record in page.records]
        if not rows:
            text = "No tasks."
            if search.is_narrow:
                text = "No task matches." if page.next_cursor is None else "None of the tasks looked at matches."
            rows = [make_item("items/empty.html", "none", text=text)]
        more: list[Item] = []
        if page.next_cursor is not None:
            text = "Next page" if len(page.records) == _PAGE else "Look at more tasks"
            pairs = search.pairs(cursor=page.next_cursor)
            more = [make_item("items/more.html", "next", base=base, pairs=pairs, text=text)]
        regions = {
            "counts": [
                make_item(
                    *("items/count.html", f"count-{status}"),
                    base=base,
                    status=status,
                    number=counted(numbers, counts.counted_up_to),
                    errors=counted(errors, counts.errors_up_to) if status == "completed" and any(errors) else "",
                )
                for status, numbers in by_status.items()
            ],
            "tasks": rows,
            "more": more,
        }
        return regions, sorted({name for _, name in counts.by_status_and_name if name})

    # -- one task

    async def task(self, request: Request) -> Response:
        """Show all there is to see of a task."""
        task_id = await self._resolve(request)
        if isinstance(task_id, Response):
            return task_id
        return await self._task_page(request, task_id)

    async def task_live(self, request: Request) -> Response | LiveResponse:
        """Send the page of a task again after each change, until the task has ended."""
        task_id = await self._resolve(request)
        if isinstance(task_id, Response):
            return task_id

        async def pump(show: Show) -> None:
            async with aclosing(self._inspector.follow(task_id)) as changes:
                async for _ in changes:
                    await show(self._task_regions(request, await self._inspector.details(task_id)))
                    await anyio.sleep(_SHORTEST_PAUSE_SECONDS)

        return LiveResponse(pump, self._streams)

    async def _task_page(
        self,
        request: Request,
        task_id: str,
        *,
        sent: tuple[str, Mapping[str, Sequence[str]]] | None = None,
        error: str = "",
        status_code: int = 200,
    ) -> Response:
        details = await self._inspector.details(task_id)
        record = details.record
        regions = self._task_regions(request, details, sent, error)
        return self._page(
            request, "task.html", record.request.name or "Task", regions, is_live=not is_terminal(record.status),
            status_code=status_code, record=record, error="" if sent is not None else error,
            shows_values=_shows_values(request), toggled=_toggled(request, record),
        )  # fmt: skip

    def _task_regions(
        self,
        request: Request,
        details: TaskDetails,
        sent: tuple[str, Mapping[str, Sequence[str]]] | None = None,
        error: str = "",
    ) -> Regions:
        record = details.record
        common = {"base": _base(request), "csrf": csrf_token(request), "record": record}
        shows_values = _shows_values(request)
        is_live = not is_terminal(record.status)
        return {
            "state": [make_item("items/state.html", "state-now", **common)],
            "actions": [make_item("items/actions.html", "actions-now", is_live=is_live, **common)],
            "questions": [
                _question(record, question, common, sent if sent and sent[0] == question.key else None, error)
                for question in details.questions
            ],
            "facts": [
                make_item(
                    "items/facts.html", "facts-now", shows_values=shows_values, steps=details.steps, **common
                )
            ],
            "history": [
                make_item("items/event.html", f"event-{index}", event=event)
                for index, event in enumerate(details.history)
            ],
        }  # fmt: skip

    async def _resolve(self, request: Request) -> str | Response:
        """Return the identifier that an address means, or where to choose one."""
        handle = request.query_params.get("id", "")
        try:
            return await self._inspector.resolve(handle)
        except AmbiguousTaskError:
            return RedirectResponse(f"{_base(request)}/?{urlencode({'id': handle})}", status_code=303)

    # -- what a person can do

    async def cancel(self, request: Request) -> Response:
        """Cancel a task."""
        form = await read_form(request)
        task_id = _one(form, "task")
        try:
            await self._inspector.cancel(task_id)
        except TaskNotFoundError:
            raise
        except TaskRuntimeError as error:
            return await self._task_page(request, task_id, error=str(error), status_code=409)
        return _see_task(request, task_id, "cancelled")

    async def retry(self, request: Request) -> Response:
        """Make a new task from the request of one that has ended."""
        form = await read_form(request)
        task_id = _one(form, "task")
        try:
            record = await self._inspector.retry(task_id)
        except TaskNotFoundError:
            raise
        except TaskRuntimeError as error:
            return await self._task_page(request, task_id, error=str(error), status_code=409)
        return _see_task(request, record.task_id, "retried")

    async def answer(self, request: Request) -> Response:
        """Answer a question of a task."""
        form = await read_form(request)
        task_id, key = _one(form, "task"), _one(form, "key")
        questions = await self._inspector.questions(task_id)
        question = next((each for each in questions if each.key == key), None)
        if question is None:
            return _see_task(request, task_id, "late")
        try:
            is_taken = await self._inspector.answer(task_id, key, read_answer(question, form))
        except (FormError, ProtocolError) as error:
            return await self._task_page(request, task_id, sent=(key, form), error=str(error), status_code=422)
        return _see_task(request, task_id, "answered" if is_taken else "late")

    # -- what waits for a person

    async def waiting(self, request: Request) -> Response:
        """Show the questions that are open, the one of the oldest task first."""
        return self._page(request, "waiting.html", "Waiting", await self._waiting(request))

    async def waiting_live(self, request: Request) -> LiveResponse:
        """Send the questions again when they have changed."""
        return self._again_and_again(request, self._waiting)

    async def _waiting(self, request: Request) -> Regions:
        wanted = TaskFilter(statuses=frozenset({"input_required"}))
        page = await self._inspector.page(wanted, newest_first=False, limit=_MOST_WAITING)
        items: list[Item] = []
        for record in page.records:
            try:
                questions = await self._inspector.questions(record.task_id)
            except TaskNotFoundError:
                continue
            common = {"base": _base(request), "csrf": csrf_token(request), "record": record}
            items += [_question(record, question, common, None, "", names_task=True) for question in questions]
        return {"waiting": items or [make_item("items/none.html", "none", text="No question is open.")]}

    # -- who runs what

    async def workers(self, request: Request) -> Response:
        """Show the processes that run work."""
        return self._page(request, "workers.html", "Workers", await self._workers(request))

    async def workers_live(self, request: Request) -> LiveResponse:
        """Send the processes again when they have changed."""
        return self._again_and_again(request, self._workers)

    async def _workers(self, request: Request) -> Regions:
        found = (await self._inspector.survey_workers()).workers
        items = [make_item("items/worker.html", dom_id("worker", worker.name), worker=worker) for worker in found]
        return {"workers": items or [make_item("items/empty.html", "none", text="No process runs a task.")]}

    # -- statistics

    async def statistics(self, request: Request) -> Response:
        """Show charts of what ended, how long it took and what waits."""
        span = request.query_params.get("span", "1h")
        if span not in charts.SPANS:
            span = "1h"
        name, length = charts.SPANS[span]
        page = await self._inspector.page(TaskFilter(statuses=TERMINAL_STATUSES), limit=_MOST_IN_CHARTS)
        counts = await self._inspector.counts()
        shown = [
            (charts.throughput(page.records, self._inspector.now(), length, name), True),
            (charts.durations(page.records), False),
            (charts.waiting(counts), False),
        ]
        return self._page(
            request, "statistics.html", "Statistics", {}, is_live=False, charts=shown, spans=charts.SPANS, span=span,
            counts=counts, is_cut=page.next_cursor is not None, most=_MOST_IN_CHARTS,
        )  # fmt: skip

    # -- signing in

    async def login(self, request: Request) -> Response:
        """Ask for the token, and take it."""
        if not self._access.has_login:
            raise HTTPException(404, "This page does not exist.")
        if request.method != "POST":
            wanted = _own_page(request.query_params.get("next", "/"))
            return self._page(request, "login.html", "Sign in", {}, is_live=False, error="", next=wanted)
        form = await read_form(request)
        wanted = _own_page(_one(form, "next"))
        if not self._access.is_token(_one(form, "token")):
            error = "This is not the token."
            return self._page(
                request, "login.html", "Sign in", {}, is_live=False, error=error, next=wanted, status_code=401
            )
        response = RedirectResponse(f"{_base(request)}{wanted}", status_code=303)
        self._access.sign_in(response, request)
        return response

    async def logout(self, request: Request) -> Response:
        """Forget the browser."""
        await read_form(request)
        response = RedirectResponse(f"{_base(request)}/login", status_code=303)
        self._access.sign_out(response, request)
        return response

    # -- helpers

    def _page(
        self,
        request: Request,
        template: str,
        title: str,
        regions: Regions,
        *,
        is_live: bool = True,
        status_code: int = 200,
        **values: Any,
    ) -> HTMLResponse:
        base = _base(request)
        path = request.url.path.removeprefix(base) or "/"
        query = request.url.query
        html = render(
            template,
            base=base,
            csrf=csrf_token(request),
            title=title,
            regions=regions,
            live=f"{base}/events{path}{'?' if query else ''}{query}" if is_live and request.method == "GET" else "",
            current=path,
            said=_SAID.get(request.query_params.get("said", ""), ""),
            has_login=self._access.has_login and path != "/login",
            **values,
        )
        return HTMLResponse(html, status_code=status_code)

    def _again_and_again(self, request: Request, look: Look) -> LiveResponse:
        async def pump(show: Show) -> None:
            while True:
                began = perf_counter()
                await show(await look(request))
                await anyio.sleep(max(_LOOK_AGAIN_SECONDS, _SHARE_OF_LOOKING * (perf_counter() - began)))

        return LiveResponse(pump, self._streams)


def error_page(request: Request, status_code: int, text: str) -> HTMLResponse:
    """Return a page that says what went wrong."""
    html = render("error.html", base=_base(request), title="Error", text=text, live="", current="", said="",
                  has_login=False)  # fmt: skip
    return HTMLResponse(html, status_code=status_code)


def _row(record: TaskRecord, base: str) -> Item:
    return make_item("items/task.html", dom_id("task", record.task_id), record=record, base=base)


def _question(
    record: TaskRecord,
    question: QueuedMessage,
    common: Mapping[str, Any],
    sent: tuple[str, Mapping[str, Sequence[str]]] | None,
    error: str,
    *,
    names_task: bool = False,
) -> Item:
    form = form_of(question, None if sent is None else sent[1], error=error if sent is not None else "")
    item_id = dom_id("question", record.task_id, question.key or "")
    return make_item("items/question.html", item_id, form=form, names_task=names_task, **common)


def _base(request: Request) -> str:
    base: str = request.scope.get("root_path", "")
    return base.rstrip("/")


def _own_page(address: str) -> str:
    """Return where to go after signing in: an address of one of these pages, or the first page instead."""
    path, mark, query = address.partition("?")
    is_own = path in ("/", "/task", "/waiting", "/workers", "/statistics")
    return f"{path}{mark}{query}" if is_own and query.isprintable() and query.isascii() else "/"


def _one(form: Mapping[str, Sequence[str]], name: str) -> str:
    """Return a field that a form of ours always has."""
    values = form.get(name, ())
    if len(values) != 1:
        raise HTTPException(400, f"The form has no {name}.")
    return values[0]


def _see_task(request: Request, task_id: str, said: str) -> Response:
    query = urlencode({"id": handle_of(task_id), "said": said})
    return RedirectResponse(f"{_base(request)}/task?{query}", status_code=303)


def _shows_values(request: Request) -> bool:
    return request.query_params.get("values") == "1"


def _toggled(request: Request, record: TaskRecord) -> dict[str, str]:
    """Return the query of the same page with values shown, or masked again."""
    query = {"id": handle_of(record.task_id)}
    return query if _shows_values(request) else {**query, "values": "1"}
