"""`ClientQuestions`: what the work of a task asks its client."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from hashlib import blake2b
from typing import Any, Literal

import anyio
import anyio.lowlevel

from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.sdk_session import SDKSession
from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.execution import Execution, ExecutionState
from mcp_task_runtime.core.inbox import question_of_page
from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json, load_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.questions import answer_questions, ask_question, get_view
from mcp_task_runtime.core.settings import LONGEST_SECONDS
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.store_calls import outlasting
from mcp_task_runtime.core.text import check_size, check_text
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.errors import (
    INVALID_PARAMS,
    CapabilityError,
    InvalidTransitionError,
    LeaseLostError,
    LimitExceededError,
    QuestionTimeoutError,
    TaskNotFoundError,
)

__all__ = ["ClientQuestions"]

logger: logging.Logger = logging.getLogger(__name__)


class ClientQuestions:
    """Says what the client of a task can be asked, puts questions to it, and waits for the answers."""

    __slots__ = (
        "_attempt",
        "_execution",
        "_handler",
        "_open",
        "_queue",
        "_session",
        "_store",
        "_task_id",
        "_times_asked",
    )

    def __init__(
        self,
        task_id: str,
        store: TaskStore,
        queue: TaskMessageQueue,
        session: TaskSession,
        handler: TaskResultHandler | None,
        execution: Execution[Any] | None,
        attempt: int,
    ) -> None:
        """Make the questions of a run; none is asked yet.

        Args:
            task_id: The task.
            store: Where it is kept.
            queue: The queue for its questions.
            session: The connection of its client.
            handler: Delivers questions; without one nothing can be asked.
            execution: The run, if a runtime runs the work.
            attempt: More than 1 when the work runs again: questions of earlier runs have their answers then.
        """
        self._task_id = task_id
        self._store = store
        self._queue = queue
        self._session = session
        self._handler = handler
        self._execution = execution
        self._attempt = attempt
        self._open = 0
        self._times_asked: dict[str, int] = {}

    # -- what can be asked

    def require_handler(self, method: str) -> None:
        """Check that questions can be delivered.

        Args:
            method: The method of the context that needs it, for the error.

        Raises:
            CapabilityError: The client's connection carries no questions.
            RuntimeError: There is no handler.
        """
        if self._handler is None:
            raise RuntimeError(f"handler is required for {method}(). Pass handler= to ServerTaskContext.")
        self._require_deliverable()

    def require_elicitation(self, mode: Literal["form", "url"]) -> None:
        """Check that the client can be asked to fill a form, or to open a URL.

        Raises:
            CapabilityError: It did not declare this, or its connection carries no questions.
        """
        self._require_deliverable()
        declared = self._capability("elicitation")
        if not isinstance(declared, dict):
            raise CapabilityError("Client does not support elicitation capability")
        # An empty declaration means forms: they came first.
        if mode not in declared and not (mode == "form" and not declared):
            raise CapabilityError(f"Client does not support elicitation in {mode} mode")

    def require_sampling(self) -> None:
        """Check that the client can be asked for a message of its model.

        Raises:
            CapabilityError: It did not declare this, or its connection carries no questions.
        """
        self._require_deliverable()
        if self._capability("sampling") is None:
            raise CapabilityError("Client does not support sampling capability")

    def require_sampling_tools(self) -> None:
        """Check that the client's model can be given tools.

        Raises:
            CapabilityError: The client did not declare this.
        """
        if self._capability("sampling", "tools") is None:
            raise CapabilityError("Client does not support sampling tools capability", code=INVALID_PARAMS)

    def require_client_tasks(self, what: str, *request: str) -> None:
        """Check that the client answers a request by a task of its own (wire rule B12).

        Args:
            what: What is asked for, for the error.
            *request: Where it is declared below `tasks.requests`.

        Raises:
            CapabilityError: It did not declare this, or its connection carries no questions.
        """
        self._require_deliverable()
        if self._capability("tasks", "requests", *request) is None:
            raise CapabilityError(f"Client does not support task-augmented {what}")

    def for_person(self, method: str, params: JSONObject) -> bool:
        """Return whether a request waits for a person at the operators' inbox; see `ServerTaskContext.asks_person`."""
        if self._handler is None or self._handler.inbox is None or method != "elicitation/create":
            return False
        if params.get("mode", "form") != "form" or "task" in params:
            return False
        try:
            self.require_elicitation("form")
        except CapabilityError:
            return True
        return False

    def _capability(self, *path: str) -> JSONValue:
        value: JSONValue = self._session.client_capabilities
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def _require_deliverable(self) -> None:
        # Before the capabilities: a connection that carries no questions often declared none either.
        if self._handler is not None and self._handler.undeliverable is not None:
            raise CapabilityError(self._handler.undeliverable)

    # -- asking

    async def ask(
        self,
        method: str,
        params: JSONObject,
        *,
        within: float | None,
        is_for_person: bool,
    ) -> JSONObject:
        """Put a request to the client and return its result; see `ServerTaskContext.ask`.

        Args:
            method: The request's method.
            params: Its params.
            within: Seconds to wait for the answer; `None` for as long as the task lives.
            is_for_person: Whether a person at the operators' inbox answers.
        """
        if within is not None and not within >= 0:  # true for NaN, too
            raise ValueError("timeout must not be negative, in seconds")
        if is_for_person:
            assert self._handler is not None
            assert self._handler.inbox is not None
            seconds = self._handler.inbox.seconds
            within = seconds if within is None else min(within, seconds)
        else:
            self.require_handler("ask")
        assert self._handler is not None
        params_json = _params_json(method, params)
        check_size("questions", params_json, self._handler.settings.max_payload_bytes)
        del params  # the text is enough while this waits
        execution = self._execution
        if execution is not None:
            execution.publish()  # the client cannot answer a task it has not heard of
            execution.release_slot()
        try:
            self._count()
            try:
                if within is None and not self._has_general_stream():
                    return await self._put_until_answered(method, params_json)
                return await self._deliver(method, params_json, within, is_for_person=is_for_person)
            finally:
                self._open -= 1
        except (InvalidTransitionError, TaskNotFoundError):
            # Where both come at once, the end released the question before it cancelled the work.
            if execution is not None and execution.is_stopped:
                await anyio.lowlevel.checkpoint_if_cancelled()
            raise
        finally:
            if execution is not None:
                await execution.acquire_slot()

    def _count(self) -> None:
        assert self._handler is not None
        limit = self._handler.settings.max_open_questions
        if limit is not None and self._open >= limit:
            raise LimitExceededError("open questions of a task", limit)
        self._open += 1

    async def _deliver(self, method: str, params_json: str, within: float | None, *, is_for_person: bool) -> JSONObject:
        clock = self._store.clock
        deadline = None if within is None else clock.now() + timedelta(seconds=min(within, LONGEST_SECONDS))
        with clock.move_on_at(deadline) as scope:
            async with self._delivering():
                if deadline is not None and is_for_person and self._can_open_page():
                    return await self._put_at_page(method, params_json, deadline)
                return await self._put_until_answered(method, params_json, is_for_person=is_for_person)
        assert scope.cancelled_caught
        assert within is not None
        raise QuestionTimeoutError(within)

    def _can_open_page(self) -> bool:
        """Return whether the user of the client can be led to a page for a question."""
        assert self._handler is not None
        if self._handler.inbox is None or self._handler.inbox.url is None:
            return False
        try:
            self.require_elicitation("url")
        except CapabilityError:
            return False
        return True

    async def _put_at_page(self, method: str, params_json: str, until: datetime) -> JSONObject:
        """Put a question to a person, and have the client's user open the page for it; return the person's answer."""
        result: JSONObject = {}
        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._offer_page, self._digest(method, params_json), params_json, until)
            try:
                result = await self._put_until_answered(method, params_json, is_for_person=True)
            except Exception as error:  # raised outside: a group would wrap it
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result

    async def _offer_page(self, digest: str, params_json: str, until: datetime) -> None:
        """Ask the client to have its user open the page for a question; declining that declines the question.

        A failure is only logged: the question still waits for the operators.
        """
        assert self._handler is not None
        assert self._handler.inbox is not None
        address = self._handler.inbox.address_of(self._task_id, digest, until)
        assert address is not None
        message: JSONObject = load_json(params_json)
        params: JSONObject = {
            "mode": "url",
            "message": message.get("message", ""),
            "url": address,
            "elicitationId": blake2b(address.encode(), digest_size=16).hexdigest(),
        }
        try:
            await self._until_open(digest)
            # Named by the question: the address is another one in a rerun.
            named = dump_json({"page": digest})
            answer = await self._put_until_answered("elicitation/create", dump_json(params), named=named)
            if answer.get("action") != "decline":
                return
            await outlasting(partial(self._decline, digest))
        except Exception:
            logger.debug("The page for a question could not be offered to the client", exc_info=True)

    async def _until_open(self, digest: str) -> None:
        """Wait until a question is open, so that its page is there.

        Raises:
            TaskNotFoundError: The task has ended before, or is gone.
        """
        while True:
            view = await outlasting(partial(get_view, self._store, self._queue, self._task_id))
            if view is None or is_terminal(view.record.status):
                raise TaskNotFoundError(self._task_id)
            if question_of_page(view.questions, digest) is not None:
                return
            await outlasting(partial(self._store.wait_for_update, self._task_id, after=view.record.revision))

    async def _decline(self, digest: str) -> None:
        """Decline the question that a page shows, if it is open."""
        question = question_of_page(tuple(await self._queue.outstanding(self._task_id)), digest)
        if question is not None and question.key is not None:
            answers = {question.key: Answer.result({"action": "decline"})}
            await answer_questions(self._store, self._queue, self._task_id, answers)

    def _has_general_stream(self) -> bool:
        return isinstance(self._session, SDKSession) and self._session.can_send_request

    def _delivering(self) -> AbstractAsyncContextManager[None]:
        """Return a block in which a real session is one more way to the client, where no other stream waits (L15)."""
        if not self._has_general_stream():
            return nullcontext()
        assert self._handler is not None
        return self._handler.delivering(self._task_id, self._session, is_general=True)

    def _digest(self, method: str, params_json: str) -> str:
        record = None if self._execution is None else self._execution.record
        digest_key = b"" if record is None else record.request.digest_key
        return blake2b(f"{method}\0{params_json}".encode(), digest_size=12, key=digest_key).hexdigest()

    async def _put_until_answered(
        self, method: str, params_json: str, *, is_for_person: bool = False, named: str | None = None
    ) -> JSONObject:
        """Put a question until there is an answer, and return it.

        Args:
            method: The request's method.
            params_json: Its params.
            is_for_person: Whether a person at the operators' inbox answers.
            named: What stands for the params in the question's key; the params themselves unless given.
        """
        execution = self._execution
        digest = self._digest(method, params_json if named is None else named)
        while True:
            # The key is a digest of the question, so that a rerun finds its answer in any order of questions, and the
            # number of times it was asked, because no key is used twice (wire rule C7).
            number = self._times_asked[digest] = self._times_asked.get(digest, 0) + 1
            key = f"{digest}.{number}"
            try:
                answer = await ask_question(
                    self._store,
                    self._queue,
                    self._task_id,
                    QueuedMessage(
                        "request", method, params_json, QueuedMessage.key_for_person(key) if is_for_person else key
                    ),
                    replays=self._attempt > 1,
                    stays_open=bool if execution is None else execution.hands_over,
                    fence=None if execution is None else execution.fence,
                    ends_at_deadline=execution is not None and execution.state is not ExecutionState.DONE,
                )
            except LeaseLostError:
                if execution is not None:
                    execution.lose()
                raise
            if answer is not None and answer.type != "withdrawn":  # an earlier run may have given it up
                return answer.unwrap()


def _params_json(method: str, params: JSONObject) -> str:
    """Return the params of a question as JSON text.

    Raises:
        ValueError: They have no JSON form that can be read back, or the method is not Unicode.
    """
    try:
        check_text("method", method)
        return dump_json(params)
    except ValueError as error:
        raise ValueError(f"The params of {method!r} cannot be sent: {error}") from error
