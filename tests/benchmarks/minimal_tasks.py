"""The least that a server and a client of the tasks extension do over the SDK: the floor of `TasksClient`.

A task is a dict and an asyncio task. It has no owner, store, limit, time to live, event or rerun, nothing is checked,
and no failure is handled. The client makes the requests that `TasksClient` makes, in the same order, and trusts what
it gets. Where a task does not end at once, the client is told in the process that it has ended, at no cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import datetime, timezone
from secrets import token_hex
from typing import Any, ClassVar, Literal

from mcp.client import ClaimContext, ClientExtension, ClientRequestContext, ResultClaim
from mcp.server import MCPServer
from mcp.server.context import CallNext
from mcp.server.extension import Extension, MethodBinding
from mcp_types import CallToolRequestParams, CallToolResult, ElicitRequest, Request, RequestParams, Result
from pydantic import BaseModel, ConfigDict, RootModel

__all__ = ["MinimalClient", "MinimalTasks", "minimal_server"]

EXTENSION_ID = "io.modelcontextprotocol/tasks"


class _Params(RequestParams):
    task_id: str


class _UpdateParams(_Params):
    input_responses: dict[str, Any]


class _Request(Request[dict[str, Any], str]):
    name_param: ClassVar[str | None] = "taskId"
    method: str
    params: dict[str, Any]


class _Result(RootModel[dict[str, Any]]):
    pass


class _Handle(Result):
    model_config = ConfigDict(extra="allow")

    result_type: Literal["task"] = "task"


class MinimalTasks(Extension):
    """Runs each call as a task. Use it with one client, in the same process."""

    identifier = EXTENSION_ID

    def __init__(self) -> None:
        self._tasks: dict[str, dict[str, Any]] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._current: ContextVar[str] = ContextVar("minimal_task")
        self._running: set[asyncio.Task[None]] = set()

    def methods(self) -> list[MethodBinding]:
        return [
            MethodBinding("tasks/get", _Params, self._get),
            MethodBinding("tasks/update", _UpdateParams, self._update),
        ]

    async def intercept_tool_call(self, params: CallToolRequestParams, ctx: Any, call_next: CallNext) -> dict[str, Any]:
        task_id = token_hex(16)
        now = datetime.now(timezone.utc).isoformat()
        self._tasks[task_id] = task = {
            "taskId": task_id,
            "status": "working",
            "createdAt": now,
            "lastUpdatedAt": now,
            "ttlMs": 3_600_000,
            "pollIntervalMs": 500,
        }
        self._ended[task_id] = asyncio.Event()
        running = asyncio.create_task(self._run(task_id, ctx, call_next))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return {"resultType": "task", **task}

    async def _run(self, task_id: str, ctx: Any, call_next: CallNext) -> None:
        self._current.set(task_id)
        result: Any = await call_next(ctx)
        body = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        self._tasks[task_id] = self._changed(task_id, status="completed", result=body)
        self._ended.pop(task_id).set()

    def _changed(self, task_id: str, **what: Any) -> dict[str, Any]:
        return {**self._tasks[task_id], "lastUpdatedAt": datetime.now(timezone.utc).isoformat(), **what}

    async def ended(self, task_id: str) -> None:
        """Wait until a task has ended."""
        if task_id in self._ended:
            await self._ended[task_id].wait()

    async def ask(self, message: str, form: type[BaseModel]) -> Any:
        """Ask the client of the task that runs here; return what the form was filled with."""
        task_id = self._current.get()
        params = {"mode": "form", "message": message, "requestedSchema": form.model_json_schema()}
        question = {"question": {"method": "elicitation/create", "params": params}}
        self._tasks[task_id] = self._changed(task_id, status="input_required", inputRequests=question)
        self._answers[task_id] = asyncio.get_running_loop().create_future()
        answer = await self._answers[task_id]
        return form.model_validate(answer["content"])

    async def _get(self, ctx: Any, params: _Params) -> dict[str, Any]:
        return {"resultType": "complete", **self._tasks[params.task_id]}

    async def _update(self, ctx: Any, params: _UpdateParams) -> dict[str, Any]:
        self._tasks[params.task_id] = self._changed(params.task_id, status="working")
        self._answers.pop(params.task_id).set_result(params.input_responses["question"])
        return {"resultType": "complete"}


class MinimalClient(ClientExtension):
    """Follows tasks to their results."""

    identifier = EXTENSION_ID

    def __init__(self, tasks: MinimalTasks) -> None:
        """Make a client of the server that has these tasks."""
        self._tasks = tasks

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return (ResultClaim(result_type="task", model=_Handle, resolve=self._follow),)

    async def _follow(self, handle: _Handle, context: ClaimContext) -> CallToolResult:
        task_id = (handle.model_extra or {})["taskId"]
        while True:
            task = await self._send(context, "tasks/get", {"taskId": task_id})
            if task["status"] == "completed":
                return CallToolResult.model_validate(task["result"], by_name=False)
            if task["status"] == "input_required":
                request = ElicitRequest.model_validate(task["inputRequests"]["question"], by_name=False)
                asked = ClientRequestContext(session=context.session, request_id="question")
                answer = await context.session.dispatch_input_request(asked, request)
                answers = {"question": answer.model_dump(by_alias=True, mode="json", exclude_none=True)}
                await self._send(context, "tasks/update", {"taskId": task_id, "inputResponses": answers})
            else:
                await self._tasks.ended(task_id)

    async def _send(self, context: ClaimContext, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return (await context.session.send_request(_Request(method=method, params=params), _Result)).root


def minimal_server(form: type[BaseModel]) -> tuple[MCPServer[Any], MinimalTasks]:
    """Return a server with the tools of the benchmark, and its tasks."""
    tasks = MinimalTasks()
    mcp: MCPServer[Any] = MCPServer("minimal", extensions=[tasks])

    @mcp.tool()
    async def quick() -> str:
        return "done"

    @mcp.tool()
    async def ask() -> str:
        await tasks.ask("Sure?", form)
        return "accept"

    @mcp.tool()
    async def ten_ms() -> str:
        await asyncio.sleep(0.01)
        return "done"

    return mcp, tasks
