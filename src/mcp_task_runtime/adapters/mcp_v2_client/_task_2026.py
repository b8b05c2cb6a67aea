"""The client's side of a task under protocol revision 2026-07-28: the tasks extension, for `mcp` 2.x."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.abc
import mcp_types as types
from mcp.client import ClientRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from pydantic import ValidationError

from mcp_task_runtime.adapters.mcp_v2_client._connection import Connection
from mcp_task_runtime.adapters.mcp_v2_client._errors import TaskError, TaskFailedError
from mcp_task_runtime.adapters.task_client.errors import MalformedError, is_passing
from mcp_task_runtime.adapters.task_client.polling import Pushes, Watch
from mcp_task_runtime.adapters.task_client.remote_task import OnUpdate, RemoteTask
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot, problems
from mcp_task_runtime.adapters.task_client.tasks_2026 import parse_task
from mcp_task_runtime.core.causes import is_stray
from mcp_task_runtime.core.event_loop import call_later
from mcp_task_runtime.core.json import JSONObject, dump_json, load_json
from mcp_task_runtime.core.transitions import is_terminal

__all__ = ["Task2026"]

_INPUT_REQUESTS: Final[Mapping[str, tuple[type[types.InputRequest], tuple[type[types.Result], ...]]]] = {
    "elicitation/create": (types.ElicitRequest, (types.ElicitResult,)),
    "sampling/createMessage": (
        types.CreateMessageRequest,
        (types.CreateMessageResult, types.CreateMessageResultWithTools),
    ),
    "roots/list": (types.ListRootsRequest, (types.ListRootsResult,)),
}
"""What a server may ask, and what a callback may answer."""

_GRACE_SECONDS: Final = 0.02
"""How long answers may take before the task is followed meanwhile: those that come at once save a stream."""

_ANSWERS_HERE: Final = sys.version_info >= (3, 11)
"""Whether a callback runs in the task of the event loop that follows: before Python 3.11 none can tell whether it was
cancelled itself, or what the callback waited for."""


class Task2026(RemoteTask[CallToolResult]):
    """A task of the extension: its questions and its result come with each look."""

    connection: Connection

    def __init__(
        self,
        connection: Connection,
        task_id: str,
        *,
        pushes: Pushes | None = None,
        on_update: OnUpdate | None = None,
        read_timeout_seconds: float | None = None,
    ) -> None:
        super().__init__(
            connection, task_id, pushes=pushes, on_update=on_update, read_timeout_seconds=read_timeout_seconds
        )
        self.questions: dict[str, Question] = {}

    def take_handle(self, raw: JSONObject) -> None:
        """Keep the handle that a call was answered with (C4).

        Raises:
            InvalidTaskResponseError: It is no task.
        """
        try:
            self.handle = parse_task(raw, self.task_id, is_detailed=False)
        except MalformedError as error:
            raise self.invalid(f"tools/call: {error}") from None

    async def get(self) -> TaskSnapshot:
        """Ask the server how the task stands."""
        raw = await self.request("tasks/get")
        try:
            return parse_task(raw, self.task_id)
        except MalformedError as error:
            raise self.invalid(f"tasks/get: {error}") from None

    async def update(self, answers: Mapping[str, JSONObject]) -> None:
        """Answer questions by their keys (C8)."""
        await self.request("tasks/update", {"inputResponses": dict(answers)})

    async def cancel(self) -> None:
        """Ask the server to cancel the task (C9)."""
        await self.request("tasks/cancel")

    async def request(self, method: str, params: JSONObject | None = None, *, is_limited: bool = True) -> JSONObject:
        """Send a request and return the raw result, which is no handle (C14)."""
        raw = await super().request(method, params, is_limited=is_limited)
        # No resultType at all is how older servers say "complete".
        if raw.get("resultType", "complete") != "complete":
            raise self.invalid(f"the resultType of {method}")
        return raw

    async def follow(self, watch: Watch) -> CallToolResult:
        """Follow the task to its end, with its questions asked and answered while it is polled."""
        while True:  # no task group before there is a question
            snapshot = await watch.next()
            if snapshot.status == "input_required":
                snapshot = await _Following(self, watch).run(snapshot)
            if is_terminal(snapshot.status):
                self.has_ended = True
            await self.report(snapshot)
            if self.has_ended:
                return self._outcome(snapshot)

    def _outcome(self, final: TaskSnapshot) -> CallToolResult:
        """Return the result of a task that ended, or raise its error."""
        if final.status == "cancelled":
            raise self.cancelled(final)
        if final.error is not None:
            raise TaskFailedError(**final.error, task_id=final.task_id)
        try:
            result = self.connection.parse_result(final.result)
        except MalformedError as error:
            raise self.invalid(f"result: {error}") from None
        if result.result_type != "complete":
            raise self.invalid("the resultType of a task's result")
        return result

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
        session = self.connection.session
        context = ClientRequestContext(
            session=session, request_id=key, meta=request.params.meta if request.params else None
        )
        answer = await session.dispatch_input_request(context, request)
        if isinstance(answer, types.ErrorData):
            raise MCPError.from_error_data(answer)
        if not isinstance(answer, answers):
            raise MCPError(types.INTERNAL_ERROR, "Client callback returned an invalid result")
        try:
            value: JSONObject = load_json(dump_json(answer))
        except ValueError:  # such as half a surrogate pair, which would end the whole connection
            raise MCPError(types.INTERNAL_ERROR, "Client callback returned a result that is not JSON") from None
        return value


@dataclass(slots=True, eq=False)
class Question:
    """An input request, and how far this side is with it."""

    request: JSONObject
    answer: JSONObject | None = None  # kept until the server has it: the user is asked once
    delivered: bool = False


@dataclass(slots=True, eq=False)
class _Failure:
    """Why an answer could not be delivered."""

    error: TaskError
    look: int  # the last one that had begun by then
    count: int


class _Following:
    """Following a task while it asks: its questions are asked and answered while it is polled.

    What follows the task also asks the first question of each look, and another task of the event loop goes on
    following where the answer takes a while: most answers need no second task.
    """

    _group: anyio.abc.TaskGroup

    def __init__(self, task: Task2026, watch: Watch) -> None:
        self._task = task
        self._watch = watch
        self._polling = task.connection.limits.polling
        self._busy: set[str] = set()  # the questions that are being asked or answered
        self._prompts: dict[str, anyio.CancelScope] = {}  # those that are being asked
        self._failures: dict[str, _Failure] = {}  # those whose answer could not be delivered
        self._final: TaskSnapshot | None = None
        self._error: Exception | None = None
        self._was_refused = False

    async def run(self, snapshot: TaskSnapshot) -> TaskSnapshot:
        """Return the terminal snapshot.

        Args:
            snapshot: How the task stands.

        Raises:
            Exception: What a callback raised or refused with; the task was cancelled.
            TaskError: The task could not be followed.
        """
        async with anyio.create_task_group() as self._group:
            await self._follow(snapshot)
        if self._final is None:
            if self._was_refused:
                await self._task.give_up()
            assert self._error is not None
            raise self._error
        return self._final

    async def _follow(self, snapshot: TaskSnapshot | None) -> None:
        """Follow the task to its end, or until an answer takes so long that another task follows it.

        Args:
            snapshot: How the task stands; `None` to wait for what comes next.
        """
        try:
            while snapshot is None or not is_terminal(snapshot.status):
                grace = 0.0
                if snapshot is not None and not self._was_refused:
                    key = self._attend(snapshot.input_requests)
                    await self._task.report(snapshot)
                    if key is not None and not await self._answer_here(key):
                        return
                    grace = _GRACE_SECONDS if self._busy else 0
                if self._was_refused:  # cancelled: but a look in this process may pass no point where that shows
                    return
                snapshot = await self._watch.next(grace=grace)
            self._final = snapshot
        except Exception as error:  # raised by `run`: from here it would come out in an exception group
            self._error = self._error or error
        if (
            self._busy or self._final is None
        ):  # cancelling costs more than a look, also where there is nothing to cancel
            self._group.cancel_scope.cancel()

    def _attend(self, requests: Mapping[str, JSONObject]) -> str | None:
        """Withdraw what is no longer asked, and ask what is new or deliver what the server has not got yet.

        Returns:
            The key of a question that the caller is to answer, if there is one; the others are being answered.
        """
        for key in self._prompts.keys() - requests.keys():
            self._prompts[key].cancel()
        first: str | None = None
        for key, request in requests.items():
            question = self._task.questions.setdefault(key, Question(request))
            if _content(question.request) != _content(request):
                raise self._task.invalid(f"the key {key!r} of an input request was used twice")  # C7
            if question.delivered or key in self._busy:
                continue
            failure = self._failures.get(key)
            if failure is not None:
                if failure.look == self._watch.begun:
                    continue  # this snapshot may be from before the failure
                if not is_passing(failure.error):
                    self._refuse(failure.error)
                    return None
                if failure.count >= self._polling.max_failures:
                    raise failure.error
            self._busy.add(key)
            if first is None and _ANSWERS_HERE:
                first = key
            else:
                self._group.start_soon(self._answer, key)
        return first

    async def _answer_here(self, key: str) -> bool:
        """Answer a question; return whether this task still follows, since that took little time."""
        is_late = False

        def follow() -> None:
            nonlocal is_late
            is_late = True
            self._group.start_soon(self._follow, None)

        stop = call_later(_GRACE_SECONDS, follow)
        try:
            await self._answer(key)
        finally:
            stop()
        return not is_late

    async def _answer(self, key: str) -> None:
        """Get the answer to a question and deliver it."""
        question = self._task.questions[key]
        try:
            if question.answer is None:
                await self._ask(key, question)
            if question.answer is not None:
                await self._deliver(key, question.answer)
                question.delivered = True
                self._watch.expect_change()
        except TaskError as error:
            # Not the end yet: the task may have ended meanwhile, or another client may have answered.
            earlier = self._failures.get(key)
            count = 1 if earlier is None else earlier.count + 1
            self._failures[key] = _Failure(error, self._watch.begun, count)
            if is_passing(error):
                self._watch.look_within(self._polling.pause_after(error, count))
            else:
                self._watch.wake()
        finally:
            self._busy.discard(key)

    async def _deliver(self, key: str, answer: JSONObject) -> None:
        while True:
            try:
                return await self._task.update({key: answer})
            except TaskError as error:
                rest = self._polling.rest_after(error)
                if rest is None:
                    raise
                await anyio.sleep(rest)

    async def _ask(self, key: str, question: Question) -> None:
        with anyio.CancelScope() as prompt:
            self._prompts[key] = prompt
            try:
                question.answer = await self._task.ask(key, question.request)
            except Exception as error:
                if not prompt.cancel_called:  # else the server no longer wants to know
                    self._refuse(error)
            except anyio.get_cancelled_exc_class() as error:
                if anyio.current_effective_deadline() == -math.inf or (_ANSWERS_HERE and not is_stray(error)):
                    raise
                # This was not cancelled: on asyncio, the callback waited for something else that was cancelled.
                self._refuse(MCPError(types.INTERNAL_ERROR, "Client callback was cancelled"))
            finally:
                del self._prompts[key]

    def _refuse(self, error: Exception) -> None:
        """End the run: the question has no answer, so the task would wait until it expires."""
        if self._error is None:
            self._error = error
            self._was_refused = True
            self._group.cancel_scope.cancel()


def _content(request: JSONObject) -> JSONObject:
    """Return what a question asks: its `_meta` may differ each time it is shown."""
    params = request.get("params")
    if isinstance(params, dict):
        return {**request, "params": {name: value for name, value in params.items() if name != "_meta"}}
    return request
