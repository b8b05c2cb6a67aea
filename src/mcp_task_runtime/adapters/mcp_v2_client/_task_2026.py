"""The client's side of a task under protocol revision 2026-07-28: the tasks extension, for `mcp` 2.x."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import anyio
import anyio.abc
import mcp_types as types
from mcp.client import ClientRequestContext, ClientSession
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from pydantic import BaseModel, Field, StrictInt, StrictStr, ValidationError

from mcp_task_runtime.adapters.mcp_v2_client._support import (
    MAX_FAILED_REQUESTS,
    Beside,
    InvalidTaskResponseError,
    Looks,
    RawResult,
    RemoteTask,
    Report,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    TaskFields,
    TaskSnapshot,
    Timeouts,
    is_passing,
    parse_result,
    problems,
    retry_after_seconds,
)
from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json, load_json, to_json_value
from mcp_task_runtime.core.transitions import is_terminal

__all__ = ["ModernTask"]

_INPUT_REQUESTS: Final[Mapping[str, tuple[type[types.InputRequest], tuple[type[types.Result], ...]]]] = {
    "elicitation/create": (types.ElicitRequest, (types.ElicitResult,)),
    "sampling/createMessage": (
        types.CreateMessageRequest,
        (types.CreateMessageResult, types.CreateMessageResultWithTools),
    ),
    "roots/list": (types.ListRootsRequest, (types.ListRootsResult,)),
}
"""What a server may ask, and what a callback may answer."""


class ModernTask(RemoteTask):
    """A task of the extension: its questions and its result come with each look."""

    def __init__(
        self, session: ClientSession, task_id: str, timeouts: Timeouts, *, read_timeout_seconds: float | None = None
    ) -> None:
        super().__init__(session, task_id, timeouts, read_timeout_seconds=read_timeout_seconds)
        self.questions: dict[str, _Question] = {}

    def take_handle(self, raw: JSONObject) -> None:
        """Keep the handle that a call was answered with (C4)."""
        self.handle: TaskSnapshot | None = _parse_task(raw, self.task_id, "tools/call", detailed=False)

    async def get(self) -> TaskSnapshot:
        """Ask the server how the task stands."""
        raw = await self.request(_GetTask(params=_TaskParams(task_id=self.task_id)))
        return _parse_task(raw, self.task_id, "tasks/get", detailed=True)

    async def update(self, answers: Mapping[str, JSONObject]) -> None:
        """Answer questions by their keys (C8)."""
        params = _UpdateParams(task_id=self.task_id, input_responses=dict(answers))
        await self.request(_UpdateTask(params=params))

    async def cancel(self) -> None:
        """Ask the server to cancel the task (C9)."""
        await self.request(_CancelTask(params=_TaskParams(task_id=self.task_id)))

    async def subscribe(self) -> None:
        """Have changes pushed for as long as the server does (C11)."""
        wanted = types.SubscriptionFilter.model_validate({"taskIds": [self.task_id]})
        params = types.SubscriptionsListenRequestParams(notifications=wanted)
        # It is answered when the server stops: no read time-out of the client may end it before.
        await self.session.send_request(types.SubscriptionsListenRequest(params=params), RawResult, math.inf)

    async def follow(self, looks: Looks, report: Report, beside: Beside) -> CallToolResult:
        """Follow the task to its end, with its questions asked and answered beside the polling."""
        final = await _Following(self, looks, report).run(beside)
        return _outcome(final)

    async def request(self, request: types.Request[Any, Any], *, limited: bool = True) -> JSONObject:
        """Send a request and return the raw result, which is no handle (C14)."""
        raw = await super().request(request, limited=limited)
        # No resultType at all is how older servers say "complete".
        if raw.get("resultType", "complete") != "complete":
            raise self.invalid(f"the resultType of {request.method}")
        return raw

    async def ask(self, key: str, raw: JSONObject) -> JSONObject:
        """Put a question to the client's own callback, and return its answer."""
        method = raw.get("method")
        known = _INPUT_REQUESTS.get(method) if isinstance(method, str) else None
        if known is None:
            raise self.invalid(f"input request {key!r} has the unknown method {method!r}")
        model, answers = known
        try:
            request = model.model_validate(raw, by_name=False)
        except ValidationError as error:
            raise self.invalid(f"input request {key!r}: {problems(error)}") from None
        context = ClientRequestContext(
            session=self.session, request_id=key, meta=request.params.meta if request.params else None
        )
        answer = await self.session.dispatch_input_request(context, request)
        if isinstance(answer, types.ErrorData):
            raise MCPError.from_error_data(answer)
        if not isinstance(answer, answers):
            raise MCPError(types.INTERNAL_ERROR, "Client callback returned an invalid result")
        try:
            value: JSONObject = load_json(dump_json(to_json_value(answer)))
        except ValueError:  # such as half a surrogate pair, which would end the whole connection
            raise MCPError(types.INTERNAL_ERROR, "Client callback returned a result that is not JSON") from None
        return value


@dataclass(slots=True, eq=False)
class _Question:
    """An input request, and how far this side is with it."""

    request: JSONObject
    answer: JSONObject | None = None  # kept until the server has it: nobody is asked twice
    delivered: bool = False


@dataclass(slots=True, eq=False)
class _Failure:
    """Why an answer could not be delivered."""

    error: TaskError
    look: int  # the last one that had begun by then
    count: int


class _Following:
    """One run of following a task to its end, with its questions asked and answered beside the polling."""

    _beside: anyio.abc.TaskGroup

    def __init__(self, task: ModernTask, looks: Looks, report: Report) -> None:
        self._task = task
        self._looks = looks
        self._report = report
        self._busy: set[str] = set()  # the questions that are being asked or answered
        self._prompts: dict[str, anyio.CancelScope] = {}  # those that are being asked
        self._failures: dict[str, _Failure] = {}  # those whose answer could not be delivered
        self._error: Exception | None = None
        self._refused = False

    async def run(self, beside: Beside) -> TaskSnapshot:
        """Return the terminal snapshot.

        Args:
            beside: What else runs until then.

        Raises:
            Exception: What a callback raised or refused with; the task was cancelled.
            TaskError: The task could not be followed.
        """
        final: TaskSnapshot | None = None
        async with anyio.create_task_group() as self._beside:
            self._beside.start_soon(beside)
            try:
                final = await self._until_end()
            except Exception as error:  # raised below: from here it would come out in an exception group
                self._error = self._error or error
            self._beside.cancel_scope.cancel()
        if final is None:
            if self._refused:
                await self._task.abandon()
            assert self._error is not None
            raise self._error
        self._task.has_ended = True
        await self._report(final)
        return final

    async def _until_end(self) -> TaskSnapshot:
        await self._task.report_handle(self._report)
        while True:
            snapshot = await self._looks.next()
            if is_terminal(snapshot.status):
                return snapshot
            self._attend(snapshot.input_requests)
            await self._report(snapshot)

    def _attend(self, requests: Mapping[str, JSONObject]) -> None:
        """Ask what is new, withdraw what is no longer asked, and deliver what the server has not got yet."""
        for key in self._prompts.keys() - requests.keys():
            self._prompts[key].cancel()
        for key, request in requests.items():
            question = self._task.questions.setdefault(key, _Question(request))
            if _content(question.request) != _content(request):
                raise self._task.invalid(f"the key {key!r} of an input request was used twice")  # C7
            if question.delivered or key in self._busy:
                continue
            failure = self._failures.get(key)
            if failure is not None:
                if failure.look == self._looks.begun:
                    continue  # this snapshot may be from before the failure
                if not is_passing(failure.error):
                    self._refuse(failure.error)
                    return
                if failure.count >= MAX_FAILED_REQUESTS:
                    raise failure.error
            self._busy.add(key)
            self._beside.start_soon(self._settle, key, question)

    async def _settle(self, key: str, question: _Question) -> None:
        """Get the answer to a question and deliver it."""
        try:
            if question.answer is None:
                await self._ask(key, question)
            if question.answer is not None:
                await self._deliver(key, question.answer)
                question.delivered = True
        except TaskError as error:
            # Not the end yet: the task may have ended meanwhile, or somebody else may have answered.
            earlier = self._failures.get(key)
            count = 1 if earlier is None else earlier.count + 1
            self._failures[key] = _Failure(error, self._looks.begun, count)
            if not is_passing(error):
                self._looks.wake()
        finally:
            self._busy.discard(key)

    async def _deliver(self, key: str, answer: JSONObject) -> None:
        while True:
            try:
                return await self._task.update({key: answer})
            except TaskError as error:
                rest = retry_after_seconds(error)
                if rest is None:
                    raise
                await anyio.sleep(rest)

    async def _ask(self, key: str, question: _Question) -> None:
        with anyio.CancelScope() as prompt:
            self._prompts[key] = prompt
            try:
                question.answer = await self._task.ask(key, question.request)
            except Exception as error:
                if not prompt.cancel_called:  # else the server no longer wants to know
                    self._refuse(error)
            except anyio.get_cancelled_exc_class():
                if anyio.current_effective_deadline() == -math.inf:
                    raise
                # Nobody cancelled this: on asyncio, the callback waited for something else that was cancelled.
                self._refuse(MCPError(types.INTERNAL_ERROR, "Client callback was cancelled"))
            finally:
                del self._prompts[key]

    def _refuse(self, error: Exception) -> None:
        """End the run: the question has no answer, so that the task would wait for ever."""
        if self._error is None:
            self._error = error
            self._refused = True
            self._beside.cancel_scope.cancel()


class _TaskParams(types.RequestParams):
    task_id: str


class _UpdateParams(_TaskParams):
    input_responses: dict[str, JSONValue]


class _GetTask(types.Request[_TaskParams, Literal["tasks/get"]]):
    method: Literal["tasks/get"] = "tasks/get"
    params: _TaskParams
    name_param: ClassVar[str | None] = "taskId"  # C14: sent as Mcp-Name


class _UpdateTask(types.Request[_UpdateParams, Literal["tasks/update"]]):
    method: Literal["tasks/update"] = "tasks/update"
    params: _UpdateParams
    name_param: ClassVar[str | None] = "taskId"


class _CancelTask(types.Request[_TaskParams, Literal["tasks/cancel"]]):
    method: Literal["tasks/cancel"] = "tasks/cancel"
    params: _TaskParams
    name_param: ClassVar[str | None] = "taskId"


class _ErrorFields(BaseModel):
    code: StrictInt
    message: StrictStr
    data: Any = None


class _InputRequired(BaseModel):
    requests: dict[str, dict[str, Any]] = Field(alias="inputRequests")


class _Completed(BaseModel):
    result: dict[str, Any]


class _Failed(BaseModel):
    error: _ErrorFields


def _parse_task(raw: JSONObject, task_id: str, method: str, *, detailed: bool) -> TaskSnapshot:
    """Return the snapshot that a server sent, if it is one of this task.

    Args:
        raw: What it sent.
        task_id: The task that was asked for.
        method: The method that it answers, for the error's text.
        detailed: Whether it must hold what belongs to its status (C6); a handle must not (C4).

    Raises:
        InvalidTaskResponseError: It is none.
    """
    questions: dict[str, dict[str, Any]] = {}
    result_json: str | None = None
    error_json: str | None = None
    try:
        fields = TaskFields.model_validate(raw)
        if detailed and fields.status == "input_required":
            questions = _InputRequired.model_validate(raw).requests
        elif detailed and fields.status == "completed":
            result_json = dump_json(_Completed.model_validate(raw).result)
        elif detailed and fields.status == "failed":
            error_json = dump_json(_Failed.model_validate(raw).error.model_dump(exclude_unset=True))
        questions_json = dump_json(questions)
    except ValidationError as error:
        raise InvalidTaskResponseError._because(f"{method}: {problems(error)}", task_id=task_id) from None
    except ValueError:  # only from a server in this process: anything else came as JSON
        raise InvalidTaskResponseError._because(f"{method}: not JSON", task_id=task_id) from None
    return fields.snapshot(
        task_id, method, input_requests_json=questions_json, result_json=result_json, error_json=error_json
    )


def _outcome(final: TaskSnapshot) -> CallToolResult:
    """Return the result of a task that ended, or raise its error."""
    if final.status == "cancelled":
        raise TaskCancelledError._of(final)
    if final.error is not None:
        raise TaskFailedError(**final.error, task_id=final.task_id)
    result = parse_result(final.result, final.task_id)
    if result.result_type != "complete":
        raise InvalidTaskResponseError._because("the resultType of a task's result", task_id=final.task_id)
    return result


def _content(request: JSONObject) -> JSONObject:
    """Return what a question asks: its `_meta` may differ each time it is shown."""
    params = request.get("params")
    if isinstance(params, dict):
        return {**request, "params": {name: value for name, value in params.items() if name != "_meta"}}
    return request
