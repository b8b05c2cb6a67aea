"""`dashboard`: the ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final

try:
    import jinja2 as _jinja2  # noqa: F401  # here, so that the sentence below names the extra
    from starlette.applications import Starlette
except ImportError as _missing:
    raise ImportError("The dashboard needs: pip install 'mcp-task-runtime[web]'") from _missing
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mcp_task_runtime.core.inbox import check_secret
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.errors import StoreError, TaskNotFoundError
from mcp_task_runtime.operations.inspect import TaskInspector
from mcp_task_runtime.operations.web._guard import Access, Guard
from mcp_task_runtime.operations.web._live import Streams
from mcp_task_runtime.operations.web._pages import Pages, error_page
from mcp_task_runtime.operations.web._question_page import QuestionPage

__all__ = ["dashboard"]

_STATIC: Final = Path(__file__).parent / "static"


def dashboard(
    store: TaskStore,
    *,
    token: str | None = None,
    behind_auth: bool = False,
    origins: Iterable[str] = (),
    inbox_secret: str | None = None,
) -> Starlette:
    """Return an ASGI application that shows and ends the tasks of all owners; see the package for who may use it.

    Serve it alone, or mount it in an application of yours. It opens nothing and needs no lifespan: the store stays
    yours to open and close. A server that is to stop waits for open responses: under uvicorn the live parts of pages
    end then; with another server `app.state.streams.close()` ends them.

    Args:
        store: The store of the servers, the same object or another on the same backend; every bundled one will do.
        token: What a person signs in with, at least 16 characters. Serve the page by HTTPS then, or through a tunnel.
        behind_auth: Whether the application lets in only those who may see and end every task.
        origins: Addresses at which browsers reach the page, such as `https://ops.example`, where a proxy changes the
            `Host` header; needed there alone.
        inbox_secret: The secret of the servers' `Inbox`. Then the address of a question's page, which a client gets,
            shows that question alone to anyone who opens it, without signing in. An application that mounts the
            dashboard lets `/question` pass its own authentication.

    Raises:
        ValueError: The store does not implement `TaskSearch`, or has no message queue of its own; `token` is too short
            or given together with `behind_auth`; an origin is malformed; `inbox_secret` is too short.
    """
    inspector = TaskInspector(store)
    access = Access(token=token, behind_auth=behind_auth, origins=origins)
    streams = Streams()
    pages = Pages(inspector, access, streams)
    if inbox_secret is not None:
        check_secret(inbox_secret)
    question_page = QuestionPage(inspector, inbox_secret)
    app = Starlette(
        routes=[
            Mount("/static", StaticFiles(directory=_STATIC)),
            Route("/", pages.tasks),
            Route("/events/", pages.tasks_live),
            Route("/task", pages.task),
            Route("/events/task", pages.task_live),
            Route("/cancel", pages.cancel, methods=["POST"]),
            Route("/retry", pages.retry, methods=["POST"]),
            Route("/answer", pages.answer, methods=["POST"]),
            Route("/question", question_page.serve, methods=["GET", "POST"]),
            Route("/waiting", pages.waiting),
            Route("/events/waiting", pages.waiting_live),
            Route("/workers", pages.workers),
            Route("/events/workers", pages.workers_live),
            Route("/statistics", pages.statistics),
            Route("/login", pages.login, methods=["GET", "POST"]),
            Route("/logout", pages.logout, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, access)],
        exception_handlers=_HANDLERS,
    )
    app.state.streams = streams
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = error_page(request, error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


async def _not_found(request: Request, error: Exception) -> Response:
    return error_page(request, 404, "This task does not exist, or has expired.")


async def _store_error(request: Request, error: Exception) -> Response:
    return error_page(request, 503, f"The store cannot be used now: {error}")


_HANDLERS: Final[dict[Any, Callable[[Request, Exception], Awaitable[Response]]]] = {
    HTTPException: _http_error,
    TaskNotFoundError: _not_found,
    StoreError: _store_error,
}
