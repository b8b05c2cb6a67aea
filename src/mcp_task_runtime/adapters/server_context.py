"""`ServerTaskContext`: what work sees of its task and of the client it works for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Literal, TypeAlias, TypeVar, overload

import anyio
from pydantic import BaseModel, ValidationError

from mcp_task_runtime.adapters.answers import (
    AcceptedElicitation,
    CancelledElicitation,
    CreateMessageResult,
    DeclinedElicitation,
    Elicitation,
    ElicitResult,
)
from mcp_task_runtime.adapters.forms import form_schema
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.sampling import check_tool_messages
from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.context import TaskContext
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.json import JSONObject, JSONValue, to_json_value
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.questions import CLEANUP_SECONDS, ask_question
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import Outcome, Task
from mcp_task_runtime.errors import (
    INVALID_PARAMS,
    CapabilityError,
    ProtocolError,
    StoreUnavailableError,
)
from mcp_task_runtime.wire.v2025_11_25 import STATUS_NOTIFICATION, render_task

__all__ = ["ServerTaskContext"]

MessageT = TypeVar("MessageT", bound=BaseModel)
ModelT = TypeVar("ModelT", bound=BaseModel)

JSONLike: TypeAlias = BaseModel | Mapping[str, Any]
"""A JSON object, or a pydantic model of one, such as the SDK's own types."""


class ServerTaskContext:
    """A task and its client, for the work of the task.

    Say how the work goes (`update_status`, `report_progress`), ask the client (`elicit`, `create_message`
    and their relatives), look whether to stop (`is_cancelled`). Questions go through the task's message
    queue: the client answers them whenever it can, maybe on another connection or another server
    process. While at least one is open the task is `input_required` (law L5).

    Every asking method raises, besides what it names:

    - `ProtocolError` if the client answers with an error, or with what is no answer,
    - `CapabilityError` if the client's connection carries no questions,
    - `InvalidTransitionError` if the task has ended, `TaskNotFoundError` if it has expired,
    - `RuntimeError` if the context has no handler.

    Cancelled while it waits, it withdraws its question.
    """

    def __init__(
        self,
        *,
        task: Task,
        store: TaskStore,
        session: TaskSession,
        queue: TaskMessageQueue,
        handler: TaskResultHandler | None = None,
        progress_token: str | int | None = None,
        execution: Execution[Any] | None = None,
        attempt: int = 1,
    ) -> None:
        """Make the context of a task.

        Args:
            task: The task as it is now.
            store: The store it is kept in.
            session: The connection of the client that made it.
            queue: The queue for its questions.
            handler: Who delivers questions; without one nothing can be asked.
            progress_token: The token the client gave for progress, if it did (wire rule B11).
            execution: The run of work this context belongs to, if a runtime runs it.
            attempt: More than 1 when the work runs again: a question that is asked as it was before then has
                the answer that it got, if it got one (law L12).
        """
        self._ctx = TaskContext(task=task, store=store, queue=queue)
        self._store = store
        self._session = session
        self._queue = queue
        self._handler = handler
        self._progress_token = progress_token
        self._execution = execution
        self._attempt = attempt
        self._times_asked: Counter[str] = Counter()
        if execution is not None:
            execution.on_cancel(self.request_cancellation)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: object, handler: object) -> JSONObject:
        """Refuse to be an argument that clients pass: a tool with such a parameter was made without these tasks.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "A tool with a ServerTaskContext needs @tasks.tool(), or @tasks.task() between @mcp.tool() and the function"
        )

    @property
    def task_id(self) -> str:
        """The task's identifier."""
        return self._ctx.task_id

    @property
    def task(self) -> Task:
        """The task as this context last saw it."""
        return self._ctx.task

    @property
    def is_cancelled(self) -> bool:
        """Whether the work is to stop. Async work is cancelled as well; look at this in a thread."""
        return self._ctx.is_cancelled

    def request_cancellation(self) -> None:
        """Set `is_cancelled`, for work that looks at it. Ends nothing by itself."""
        self._ctx.request_cancellation()

    def detach(self) -> None:
        """Leave the task open when the work returns, for something outside to end it by its id.

        Whoever knows the id ends it with `Tasks.complete` or `Tasks.fail`. Until then only its TTL does.

        Raises:
            RuntimeError: This work is not run by a runtime, or not as a task.
        """
        if self._execution is None:
            raise RuntimeError("detach() needs work that a runtime runs as a task")
        self._execution.detach()

    async def update_status(self, message: str, *, notify: bool = True) -> None:
        """Set the status message.

        Args:
            message: Text for people to read.
            notify: Whether to tell the client at once, where its protocol has a way to.

        Raises:
            InvalidTransitionError: The task has ended.
            TaskNotFoundError: The task has expired or was deleted.
        """
        await self._ctx.update_status(message)
        if notify:
            await self._send_notification()

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress: as the status message, and to the caller's progress token if it gave one.

        Args:
            progress: How far the work is; more each time.
            total: What `progress` will be at the end, if that is known.
            message: What the work is doing.

        Raises:
            InvalidTransitionError: The task has ended.
            TaskNotFoundError: The task has expired or was deleted.
        """
        count = _number(progress) if total is None else f"{_number(progress)}/{_number(total)}"
        await self.update_status(count if message is None else f"{message} ({count})")
        if self._progress_token is not None:
            params: JSONObject = {"progressToken": self._progress_token, "progress": progress}
            if total is not None:
                params["total"] = total
            if message is not None:
                params["message"] = message
            await self._session.send_notification("notifications/progress", params)

    async def complete(self, result: object, *, notify: bool = True) -> None:
        """End the task as `completed`; see `TaskContext.complete`. Releases every open question."""
        await self._finish(Outcome.completed(result), notify=notify)

    async def fail(self, error: str, *, notify: bool = True) -> None:
        """End the task as `failed`; see `TaskContext.fail`. Releases every open question."""
        await self._finish(Outcome.failed(error), notify=notify)

    async def _finish(self, outcome: Outcome, *, notify: bool) -> None:
        with anyio.move_on_after(CLEANUP_SECONDS, shield=True) as scope:
            with nullcontext() if self._execution is None else self._execution.ending():
                await self._ctx.finish(outcome)
        if scope.cancelled_caught:
            raise StoreUnavailableError("The store did not answer in time")
        if notify:
            await self._send_notification(outcome)

    async def _send_notification(self, outcome: Outcome | None = None) -> None:
        await self._session.send_notification(STATUS_NOTIFICATION, render_task(self.task, outcome))

    @overload
    async def elicit(self, message: str, requested_schema: type[ModelT]) -> Elicitation[ModelT]: ...

    @overload
    async def elicit(self, message: str, requested_schema: Mapping[str, Any]) -> ElicitResult: ...

    async def elicit(
        self, message: str, requested_schema: type[BaseModel] | Mapping[str, Any]
    ) -> Elicitation[Any] | ElicitResult:
        """Ask the user to fill a form.

        Args:
            message: What to tell the user.
            requested_schema: The form: a pydantic model class of flat primitive fields, or the JSON Schema
                of such a form.

        Returns:
            For a model class, an answer whose `data` is a model where `action` is `accept`; for a schema,
            the plain answer.

        Raises:
            CapabilityError: The client did not declare elicitation.
            TypeError: `requested_schema` is neither, or the model class is no flat form.
        """
        self._require_elicitation("form")
        self._require_handler("elicit")
        answer = await self.ask("elicitation/create", _form_params(message, requested_schema))
        return _read_elicitation(answer, requested_schema)

    async def elicit_url(self, message: str, url: str, elicitation_id: str) -> ElicitResult:
        """Ask the user to open a URL, for what must not pass through the client: logins, payments.

        Args:
            message: Why the user should open it.
            url: What to open.
            elicitation_id: Identifier of this elicitation, unique on the server.

        Returns:
            Whether the user agreed to open it; what happens there is not known here.

        Raises:
            CapabilityError: The client did not declare elicitation by URL.
        """
        self._require_elicitation("url")
        self._require_handler("elicit_url")
        answer = await self.ask(
            "elicitation/create",
            {"mode": "url", "message": message, "url": url, "elicitationId": elicitation_id},
        )
        return _read(ElicitResult, answer)

    async def create_message(
        self,
        messages: Sequence[JSONLike],
        *,
        max_tokens: int,
        system_prompt: str | None = None,
        include_context: Literal["none", "thisServer", "allServers"] | None = None,
        temperature: float | None = None,
        stop_sequences: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        model_preferences: JSONLike | None = None,
        tools: Sequence[JSONLike] | None = None,
        tool_choice: JSONLike | None = None,
    ) -> CreateMessageResult:
        """Let the client's model write a message (sampling).

        Messages, tools, tool choice and preferences are JSON objects or the SDK's own types.

        Args:
            messages: The conversation so far.
            max_tokens: Tokens to write at the most.
            system_prompt: System prompt to use.
            include_context: Context of other servers to include.
            temperature: Sampling temperature.
            stop_sequences: Texts that end the message.
            metadata: Passed on to the model's provider.
            model_preferences: Which model to choose.
            tools: Tools the model may use.
            tool_choice: Whether it may or must use them.

        Raises:
            CapabilityError: The client did not declare sampling, or not sampling with tools.
            TypeError: A message is no JSON object.
            ValueError: Tool uses and tool results in the messages do not match.
        """
        self._require_deliverable()
        if self._capability("sampling") is None:
            raise CapabilityError("Client does not support sampling capability")
        params = self._sampling_params(
            messages,
            max_tokens=max_tokens,
            system_prompt=system_prompt,
            include_context=include_context,
            temperature=temperature,
            stop_sequences=stop_sequences,
            metadata=metadata,
            model_preferences=model_preferences,
            tools=tools,
            tool_choice=tool_choice,
        )
        self._require_handler("create_message")
        return _read(CreateMessageResult, await self.ask("sampling/createMessage", params))

    @overload
    async def elicit_as_task(
        self, message: str, requested_schema: type[ModelT], *, ttl: int = 60_000
    ) -> Elicitation[ModelT]: ...

    @overload
    async def elicit_as_task(
        self, message: str, requested_schema: Mapping[str, Any], *, ttl: int = 60_000
    ) -> ElicitResult: ...

    async def elicit_as_task(
        self, message: str, requested_schema: type[BaseModel] | Mapping[str, Any], *, ttl: int = 60_000
    ) -> Elicitation[Any] | ElicitResult:
        """Ask the user to fill a form, as a task on the client's side (wire rule B12).

        Args:
            message: What to tell the user.
            requested_schema: The form, as for `elicit`.
            ttl: TTL of the client's task in milliseconds.

        Raises:
            CapabilityError: The client did not declare tasks for elicitation.
            TypeError: As for `elicit`.
        """
        self._require_deliverable()
        if self._capability("tasks", "requests", "elicitation", "create") is None:
            raise CapabilityError("Client does not support task-augmented elicitation")
        self._require_handler("elicit_as_task")
        params = {**_form_params(message, requested_schema), "task": {"ttl": ttl}}
        return _read_elicitation(await self.ask("elicitation/create", params), requested_schema)

    async def create_message_as_task(
        self,
        messages: Sequence[JSONLike],
        *,
        max_tokens: int,
        ttl: int = 60_000,
        system_prompt: str | None = None,
        include_context: Literal["none", "thisServer", "allServers"] | None = None,
        temperature: float | None = None,
        stop_sequences: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        model_preferences: JSONLike | None = None,
        tools: Sequence[JSONLike] | None = None,
        tool_choice: JSONLike | None = None,
    ) -> CreateMessageResult:
        """Let the client's model write a message, as a task on the client's side (wire rule B12).

        The arguments are those of `create_message`, and `ttl`: TTL of the client's task in milliseconds.

        Raises:
            CapabilityError: The client did not declare tasks for sampling, or not sampling with tools.
            TypeError: A message is no JSON object.
            ValueError: Tool uses and tool results in the messages do not match.
        """
        self._require_deliverable()
        if self._capability("tasks", "requests", "sampling", "createMessage") is None:
            raise CapabilityError("Client does not support task-augmented sampling")
        params = self._sampling_params(
            messages,
            max_tokens=max_tokens,
            system_prompt=system_prompt,
            include_context=include_context,
            temperature=temperature,
            stop_sequences=stop_sequences,
            metadata=metadata,
            model_preferences=model_preferences,
            tools=tools,
            tool_choice=tool_choice,
        )
        self._require_handler("create_message_as_task")
        answer = await self.ask("sampling/createMessage", {**params, "task": {"ttl": ttl}})
        return _read(CreateMessageResult, answer)

    def _capability(self, *path: str) -> JSONValue:
        value: JSONValue = self._session.client_capabilities
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def _require_deliverable(self) -> None:
        # Before the capabilities: a connection that carries no questions often declared none either.
        if self._handler is not None and self._handler.undeliverable is not None:
            raise CapabilityError(self._handler.undeliverable)

    def _require_elicitation(self, mode: Literal["form", "url"]) -> None:
        self._require_deliverable()
        declared = self._capability("elicitation")
        if not isinstance(declared, Mapping):
            raise CapabilityError("Client does not support elicitation capability")
        # An empty declaration means forms: they came first.
        if mode not in declared and not (mode == "form" and not declared):
            raise CapabilityError(f"Client does not support elicitation in {mode} mode")

    def _require_handler(self, method: str) -> None:
        if self._handler is None:
            raise RuntimeError(f"handler is required for {method}(). Pass handler= to ServerTaskContext.")
        self._require_deliverable()

    def _sampling_params(
        self,
        messages: Sequence[JSONLike],
        *,
        max_tokens: int,
        system_prompt: str | None,
        include_context: str | None,
        temperature: float | None,
        stop_sequences: Sequence[str] | None,
        metadata: Mapping[str, Any] | None,
        model_preferences: JSONLike | None,
        tools: Sequence[JSONLike] | None,
        tool_choice: JSONLike | None,
    ) -> JSONObject:
        wants_tools = tools is not None or tool_choice is not None
        if wants_tools and self._capability("sampling", "tools") is None:
            raise CapabilityError("Client does not support sampling tools capability", code=INVALID_PARAMS)
        conversation = [to_json_value(message) for message in messages]
        if not all(isinstance(message, Mapping) for message in conversation):
            raise TypeError("messages must be JSON objects or the SDK's own messages, in a list")
        check_tool_messages(conversation)
        optional = {
            "systemPrompt": system_prompt,
            "includeContext": include_context,
            "temperature": temperature,
            "stopSequences": None if stop_sequences is None else list(stop_sequences),
            "metadata": metadata,
            "modelPreferences": to_json_value(model_preferences),
            "tools": None if tools is None else [to_json_value(tool) for tool in tools],
            "toolChoice": to_json_value(tool_choice),
        }
        return {
            "messages": conversation,
            "maxTokens": max_tokens,
            **{name: value for name, value in optional.items() if value is not None},
        }

    async def ask(self, method: str, params: JSONObject) -> JSONObject:
        """Put any request to the client, such as `roots/list`, and return its result.

        The other asking methods check the client's capabilities and give typed answers; this one does
        neither.
        """
        self._require_handler("ask")
        if self._execution is None:
            return await self._ask(method, params)
        self._execution.announce()  # the client cannot answer a task it has not heard of
        self._execution.give_turn()
        try:
            return await self._ask(method, params)
        finally:
            await self._execution.take_turn()

    async def _ask(self, method: str, params: JSONObject) -> JSONObject:
        message = QueuedMessage.request("", method, params)
        content = f"{method}\0{message.params_json}".encode("utf-8", "surrogatepass")
        digest = blake2b(content, digest_size=12).hexdigest()
        while True:
            # Made of what is asked, so that a rerun finds the answer to this question, and no other one's, whatever
            # it asks before or beside it; and of how often, for no key is used twice (wire rule C7).
            self._times_asked[digest] += 1
            answer = await self._put(replace(message, key=f"{digest}.{self._times_asked[digest]}"))
            if answer is not None and answer.type != "withdrawn":  # an earlier run may have given it up
                return answer.unwrap()

    async def _put(self, question: QueuedMessage) -> Answer | None:
        execution = self._execution
        return await ask_question(
            self._store,
            self._queue,
            self.task_id,
            question,
            replays=self._attempt > 1,
            stays_open=lambda: execution is not None and execution.is_released,
        )


def _number(value: float) -> str:
    """Return a number as people read it: without an exponent, and short where it is no whole number."""
    if isinstance(value, int):
        return str(value)
    return f"{value:g}" if abs(value) < 1e6 else f"{value:.0f}"


def _form_params(message: str, form: type[BaseModel] | Mapping[str, Any]) -> JSONObject:
    if not (issubclass(form, BaseModel) if isinstance(form, type) else isinstance(form, Mapping)):
        raise TypeError("requested_schema must be a pydantic model class, or the JSON Schema of a form")
    return {"message": message, "requestedSchema": form_schema(form) if isinstance(form, type) else form}


def _read(model: type[MessageT], answer: JSONObject) -> MessageT:
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise ProtocolError(INVALID_PARAMS, "The client's answer is malformed") from error


def _read_elicitation(answer: JSONObject, form: type[BaseModel] | Mapping[str, Any]) -> Elicitation[Any] | ElicitResult:
    result = _read(ElicitResult, answer)
    if not isinstance(form, type):
        return result
    if result.action == "accept":
        return AcceptedElicitation(_read(form, {} if result.content is None else result.content))
    return DeclinedElicitation() if result.action == "decline" else CancelledElicitation()
