"""The page for one question: the user of a client opens it by an address that the server made."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from mcp_task_runtime.core.inbox import is_page_token, question_of_page
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.errors import ProtocolError, StoreError, TaskNotFoundError
from mcp_task_runtime.operations.inspect import AmbiguousTaskError, TaskInspector
from mcp_task_runtime.operations.web._forms import FormError, form_of, read_answer
from mcp_task_runtime.operations.web._guard import csrf_token, read_form
from mcp_task_runtime.operations.web._templates import render

__all__ = ["QuestionPage"]

_DONE: Final = "done"


class QuestionPage:
    """Shows a question to anyone who has its address, and takes the answer. It shows nothing else."""

    def __init__(self, inspector: TaskInspector, secret: str | None) -> None:
        """Make the page.

        Args:
            inspector: Finds the question.
            secret: What proves an address; `None` for no pages.
        """
        self._inspector = inspector
        self._secret = secret

    async def serve(self, request: Request) -> Response:
        """Show the question of an address, or take the answer to it."""
        try:
            return await self._serve(request)
        except StoreError:  # its text names the store's address, which is for operators
            return _page(request, "The question cannot be shown or answered now. Try again later.", status_code=503)

    async def _serve(self, request: Request) -> Response:
        found = await self._find(request)
        if found is None:
            if request.query_params.get("said") == _DONE:
                return _page(request, "Thank you: the answer was taken. You can close this page.")
            return _page(request, "There is no open question here: the address is wrong, or the question was answered, "
                         "withdrawn, or has expired.", status_code=404)  # fmt: skip
        task_id, question = found
        if request.method != "POST":
            return _page(request, "", question=question)
        form = await read_form(request)
        try:
            is_taken = await self._inspector.answer(task_id, question.key or "", read_answer(question, form))
        except (FormError, ProtocolError) as error:
            return _page(request, "", question=question, sent=form, error=str(error), status_code=422)
        query = request.url.include_query_params(said=_DONE if is_taken else "late").query
        return RedirectResponse(f"{_base(request)}/question?{query}", status_code=303)

    async def _find(self, request: Request) -> tuple[str, QueuedMessage] | None:
        """Return the task and the open question of an address that is ours; any other address costs no read."""
        names = ("id", "key", "until", "token")
        handle, key, until, token = (request.query_params.get(name, "") for name in names)
        if self._secret is None or not (handle and key):
            return None
        if not is_page_token(self._secret, handle, key, until, token, now=self._inspector.now()):
            return None
        try:
            task_id = await self._inspector.resolve(handle)
            question = question_of_page(await self._inspector.questions(task_id), key)
        except (TaskNotFoundError, AmbiguousTaskError):
            return None
        return None if question is None else (task_id, question)


def _page(
    request: Request,
    text: str,
    *,
    question: QueuedMessage | None = None,
    sent: dict[str, list[str]] | None = None,
    error: str = "",
    status_code: int = 200,
) -> HTMLResponse:
    form = None if question is None else form_of(question, sent, error=error)
    html = render(
        "question.html", base=_base(request), csrf=csrf_token(request), title="A question", text=text, form=form,
        answer_at=f"{_base(request)}/question?{request.url.query}", live="", current="/question", said="",
        has_login=False, item_id="question",
    )  # fmt: skip
    return HTMLResponse(html, status_code=status_code)


def _base(request: Request) -> str:
    base: str = request.scope.get("root_path", "")
    return base.rstrip("/")
