"""`ServerTaskContext`: what work sees of its task and of the client it works for."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast, overload

import anyio
import anyio.lowlevel
from pydantic import BaseModel
from typing_extensions import Self

from mcp_task_runtime.adapters._caller import TaskCaller, caller_in, related_tasks_of
from mcp_task_runtime.adapters._client_questions import ClientQuestions
from mcp_task_runtime.adapters.answers import CreateMessageResult, Elicitation, ElicitResult
from mcp_task_runtime.adapters.forms import form_params, read_answer, read_elicitation
from mcp_task_runtime.adapters.notifications import NotifyingSession, StatusNotifier, TaskNotifier
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.sampling import sampling_params
from mcp_task_runtime.adapters.sdk_session import as_task_session
from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.abilities import implements, is_queue
from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.core.context import TaskContext
from mcp_task_runtime.core.event_loop import current_task
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.settings import check_duration
from mcp_task_runtime.core.steps import AtHome, Retries, TaskSteps
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.store_calls import CLEANUP_SECONDS
from mcp_task_runtime.core.text import check_size, clean_text
from mcp_task_runtime.core.types import Outcome, Progress, Task, TaskRecord
from mcp_task_runtime.errors import (
    InvalidTransitionError,
    LeaseLostError,
    QuestionTimeoutError,
    StoreUnavailableError,
    TaskNotFoundError,
)

__all__ = ["ServerTaskContext"]

ModelT = TypeVar("ModelT", bound=BaseModel)
ResultT = TypeVar("ResultT")

_BACKOFF: Final = Backoff()

JSONLike: TypeAlias = BaseModel | Mapping[str, Any]
"""A JSON object, or a pydantic model of one, such as the SDK's own types."""


class ServerTaskContext:
    """A task and its client, for the work of the task.

    Say how the work goes (`update_status`, `report_progress`), ask the client (`elicit`, `create_message`
    and their relatives), look whether to stop (`is_cancelled`). Questions go through the task's message
    queue: the client answers them when it can, perhaps on another connection or another server
    process. While at least one is open the task is `input_required` (law L5).

    Every asking method takes a `timeout` in seconds, and raises, in addition to what it names:

    - `ProtocolError` if the client answers with an error, or with something that is not an answer,
    - `QuestionTimeoutError` if the client has not answered within `timeout`; the question is withdrawn,
    - `CapabilityError` if the client's connection carries no questions,
    - `LimitExceededError` if the task has as many open questions as `TaskSettings.max_open_questions` allows, or the
      question is larger than `TaskSettings.max_payload_bytes`,
    - `InvalidTransitionError` if the task has ended, `TaskNotFoundError` if it has expired,
    - `LeaseLostError` if another run of the work holds the task's lease; the work is stopped (law L12),
    - `ValueError` if a text is not Unicode or a value has no JSON form; nothing is asked then,
    - `RuntimeError` if the context has no handler.

    Cancelled while it waits, it withdraws its question.
    """

    __slots__ = (
        "__weakref__",
        "_attempt",
        "_ctx",
        "_execution",
        "_handler",
        "_notifier",
        "_questions",
        "_root_task",
        "_steps",
        "_store",
    )

    def __init__(
        self,
        *,
        task: Task,
        store: TaskStore,
        session: TaskSession | Any,
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
            session: The connection of the client that made it: a `TaskSession`, or a `ServerSession` of `mcp` 1.x
                or 2.x. If it is a `TaskNotifier`, it says how the client hears of the task.
            queue: The queue for its questions.
            handler: Delivers questions; without one nothing can be asked.
            progress_token: The token the client gave for progress, if it did (wire rule B11).
            execution: The run of work this context belongs to, if a runtime runs it.
            attempt: More than 1 when the work runs again: a question that is asked as it was before then has
                the answer that it got, if it got one (law L12).

        Raises:
            ValueError: An argument has the wrong type; the message names it.
        """
        ctx = TaskContext(
            task=task, store=store, queue=queue, fence=None if execution is None else execution.current_fence
        )
        if not is_queue(queue):
            raise ValueError(f"queue must be a TaskMessageQueue, not {type(queue).__name__}")
        if handler is not None and not isinstance(handler, TaskResultHandler):
            raise ValueError(f"handler must be a TaskResultHandler, not {type(handler).__name__}")
        client: TaskSession = as_task_session(session)
        notifier: TaskNotifier = (
            cast(TaskNotifier, session) if implements(session, TaskNotifier) else StatusNotifier(client, progress_token)
        )
        self._begin(ctx, store, queue, client, notifier, handler, execution, attempt)

    @classmethod
    def of_run(
        cls,
        execution: Execution[Any],
        record: TaskRecord,
        runtime: TaskRuntime,
        session: NotifyingSession,
        handler: TaskResultHandler,
    ) -> Self:
        """Return the context of a task that a runtime runs: what it holds was checked when it was made.

        Args:
            execution: The run.
            record: Its task.
            runtime: Where it runs.
            session: The connection of the client that made the task; it says how the client hears of that.
            handler: Delivers questions.
        """
        context = cls.__new__(cls)
        store, queue = runtime.store, runtime.queue
        ctx = TaskContext.of_run(record.task, store, queue, execution.current_fence)
        attempt = 1 if record.lease is None else record.lease.attempt
        context._begin(ctx, store, queue, session, session, handler, execution, attempt)
        return context

    def _begin(
        self,
        ctx: TaskContext,
        store: TaskStore,
        queue: TaskMessageQueue,
        client: TaskSession,
        notifier: TaskNotifier,
        handler: TaskResultHandler | None,
        execution: Execution[Any] | None,
        attempt: int,
    ) -> None:
        self._ctx = ctx
        self._notifier = notifier
        self._store = store
        self._handler = handler
        self._execution = execution
        self._attempt = attempt
        self._questions = ClientQuestions(ctx.task_id, store, queue, client, handler, execution, attempt)
        self._root_task = None if execution is None else current_task()
        self._steps: TaskSteps | None = None
        if execution is not None:
            execution.on_cancel(self.request_cancellation)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: object, handler: object) -> JSONObject:
        """Refuse to be an argument that clients pass: a tool with this parameter was made without these Tasks.

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
    def attempt(self) -> int:
        """1 in the first run of the work, one more in each rerun, also after a hand-over to another process."""
        return self._attempt

    @property
    def is_cancelled(self) -> bool:
        """Whether the work is to stop. Async work is cancelled as well; look at this in a thread."""
        return self._ctx.is_cancelled

    def request_cancellation(self) -> None:
        """Set `is_cancelled`, for work that checks it. It does not end the task."""
        self._ctx.request_cancellation()

    def run_again(self, after: float = 0.0) -> bool:
        """Have the work run again, with the same arguments, when it has returned or raised here.

        The task does not end then: it stays `working` until a run ends without this. `Rerun(on=...)` calls this where
        the work raises what it names.

        Args:
            after: Seconds to wait.

        Returns:
            Whether the work will run again: not if the task is not `rerunnable` or this is its last attempt.

        Raises:
            ValueError: `after` is negative, or above a hundred years.
        """
        check_duration("after", after)
        return self._execution is not None and self._execution.run_again(timedelta(seconds=after))

    def detach(self) -> None:
        """Leave the task open when the work returns, for something outside to end it by its id.

        Code that knows the id ends it with `Tasks.complete` or `Tasks.fail`. Until then only its TTL does.

        Raises:
            RuntimeError: This work is not run by a runtime, or not as a task.
        """
        if self._execution is None:
            raise RuntimeError("detach() needs work that a runtime runs as a task")
        self._execution.detach()

    async def update_status(self, message: str, *, notify: bool = True) -> None:
        """Set the status message. An outage of the store is waited out.

        A client that does not read its notifications holds this up by half a second at most, and once.

        Args:
            message: Text for people to read; U+FFFD replaces what is not Unicode in it.
            notify: Whether to tell the client at once, where its protocol has a way to.

        Raises:
            InvalidTransitionError: The task has ended.
            TaskNotFoundError: The task has expired or was deleted.
            LeaseLostError: Another run of the work holds the task's lease; the work is stopped (law L12).
            LimitExceededError: The message is larger than `TaskSettings.max_payload_bytes`.
        """
        self._check_size("status messages", message)
        with self._writing():
            await self._ctx.update_status(message)
        if notify:
            await self._notifier.notify_status(self.task, None)

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress: as the status message, and to the caller's progress token if it gave one.

        An outage of the store is waited out.

        Args:
            progress: How far the work is; more each time.
            total: What `progress` will be at the end, if that is known.
            message: What the work is doing; U+FFFD replaces what is not Unicode in it.

        Raises:
            InvalidTransitionError: The task has ended.
            TaskNotFoundError: The task has expired or was deleted.
            LeaseLostError: Another run of the work holds the task's lease; the work is stopped (law L12).
            LimitExceededError: The message is larger than `TaskSettings.max_payload_bytes`.
            ValueError: A number is not finite.
        """
        for name, value in (("progress", progress), ("total", total)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number")
        if message is not None:
            message = clean_text(message)
            self._check_size("status messages", message)
        reported = Progress(progress, total, message)
        count = _number(progress) if total is None else f"{_number(progress)}/{_number(total)}"
        with self._writing():
            await self._ctx.update_status(count if message is None else f"{message} ({count})", progress=reported)
        await self._notifier.notify_progress(self.task, reported)

    @overload
    async def step(
        self,
        name: str,
        function: Callable[..., Awaitable[ResultT]],
        *args: Any,
        attempts: int = 1,
        retry_on: type[Exception] | Iterable[type[Exception]] = Exception,
        backoff: Backoff | float = _BACKOFF,
        returns: Any = None,
    ) -> ResultT: ...

    @overload
    async def step(
        self,
        name: str,
        function: Callable[..., ResultT],
        *args: Any,
        attempts: int = 1,
        retry_on: type[Exception] | Iterable[type[Exception]] = Exception,
        backoff: Backoff | float = _BACKOFF,
        returns: Any = None,
    ) -> ResultT: ...

    async def step(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        attempts: int = 1,
        retry_on: type[Exception] | Iterable[type[Exception]] = Exception,
        backoff: Backoff | float = _BACKOFF,
        returns: Any = None,
    ) -> Any:
        """Run a function as a step and record its result; a rerun gets the recorded result instead (law L12).

        The step runs at least once, its result is recorded exactly once, in a store that several processes can use and
        for a task that is `rerunnable`. Elsewhere the function runs, and nothing is recorded. In the first
        run, too, the result is what its JSON restores. Steps that run side by side find their results by name
        and arguments; those that the work takes one after the other must come in the same order in a rerun.

        Args:
            name: Name of the step.
            function: An async function, or a plain one, which runs in a thread.
            *args: Its arguments; they must have a JSON form. Bind others with `functools.partial`.
            attempts: Most runs of the function, where it raises.
            retry_on: What it must raise to be run again.
            backoff: Delays between these runs; a number is the same delay in seconds each time.
            returns: Type of the result, which pydantic restores; the function's return annotation when `None`. Without
                either, the result must be plain JSON values.

        Raises:
            StepChangedError: The run before took other steps, or had a result of another type.
            StepResultError: Arguments or result have no JSON form that gives the same value back.
            InvalidTransitionError: The task has ended.
            TaskNotFoundError: The task has expired or was deleted.
            LeaseLostError: Another run of the work holds the task's lease; the work is stopped (law L12).
            ValueError: A number or `retry_on` is out of range.
            Exception: What the function raised last.
        """
        retries = Retries.of(attempts, retry_on, backoff)
        return await self._step(name, function, args, retries, returns, None)

    async def _step(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        retries: Retries,
        returns: Any,
        at_home: AtHome | None,
    ) -> Any:
        try:
            with self._writing():
                return await self._task_steps().run(
                    name, function, args, retries=retries, returns=returns, at_home=at_home
                )
        except (InvalidTransitionError, TaskNotFoundError):
            if self._execution is not None and self._execution.scope.cancel_called:
                await anyio.lowlevel.checkpoint_if_cancelled()
            raise

    def _task_steps(self) -> TaskSteps:
        if self._steps is None:
            execution = self._execution
            record = None if execution is None else execution.record
            self._steps = TaskSteps(
                self.task_id,
                self._store,
                fence=(lambda: None) if execution is None else execution.current_fence,
                may_rerun=record is not None and record.request.rerunnable,
                root=self._root_task,
                digest_key=b"" if record is None else record.request.digest_key,
            )
        return self._steps

    async def extend(self, ttl_ms: int) -> Task:
        """Let the task live for at least so long from now. An outage of the store is waited out.

        Never makes it live shorter, and not longer than `TaskSettings.max_ttl_ms` allows. The time to live counts
        from the creation of the task; what the client sees of it changes with its next look.

        Args:
            ttl_ms: Milliseconds from now.

        Returns:
            The task as it is now.

        Raises:
            ValueError: `ttl_ms` is not a positive integer.
            InvalidTransitionError: The task has ended.
            TaskNotFoundError: The task has expired or was deleted.
            LeaseLostError: Another run of the work holds the task's lease; the work is stopped (law L12).
        """
        if not _is_positive_integer(ttl_ms):
            raise ValueError("ttl_ms must be a positive integer, in milliseconds")
        with self._writing():
            return await self._ctx.extend(ttl_ms, settings=None if self._handler is None else self._handler.settings)

    @property
    def caller(self) -> TaskCaller:
        """Who made the task: principal, declared capabilities, protocol, trace context; nothing for a plain call."""
        return caller_in(None if self._execution is None else self._execution.record)

    async def related_tasks(self) -> tuple[TaskRecord, ...]:
        """Return the tasks that the caller named as related to its call, as they are now, with their outcomes.

        They are those of `_meta["io.modelcontextprotocol/relatedTaskIds"]` that belong to the owner of this task. An
        id of another owner's task is left out, exactly as an unknown or expired one (law L10). A call whose client
        took no task has none.

        Raises:
            StoreError: The store failed.
        """
        return await related_tasks_of(self._store, self.task_id)

    async def complete(self, result: object, *, notify: bool = True) -> None:
        """End the task as `completed`; see `TaskContext.complete`. Releases every open question."""
        await self._finish(Outcome.completed(result), notify=notify)

    async def fail(self, error: str, *, notify: bool = True) -> None:
        """End the task as `failed`; see `TaskContext.fail`. Releases every open question."""
        await self._finish(Outcome.failed(clean_text(error)), notify=notify)

    def _check_size(self, what: str, text: str | None) -> None:
        check_size(what, text, None if self._handler is None else self._handler.settings.max_payload_bytes)

    async def _finish(self, outcome: Outcome, *, notify: bool) -> None:
        self._check_size("results and errors", outcome.payload_json)
        if self._handler is not None:
            await self._handler.flush(self.task_id)
        with anyio.move_on_after(CLEANUP_SECONDS, shield=True) as scope:
            with self._writing(), nullcontext() if self._execution is None else self._execution.finishing():
                await self._ctx.finish(outcome)
        if scope.cancelled_caught:
            raise StoreUnavailableError("The store did not answer in time")
        if notify:
            await self._notifier.notify_status(self.task, outcome)

    @contextmanager
    def _writing(self) -> Generator[None, None, None]:
        """Stop the work if a write in the block shows that its run has lost the task's lease (law L12)."""
        try:
            yield
        except LeaseLostError:
            self._lose()
            raise

    @overload
    async def elicit(
        self, message: str, requested_schema: type[ModelT], *, timeout: float | None = None
    ) -> Elicitation[ModelT]: ...

    @overload
    async def elicit(
        self, message: str, requested_schema: Mapping[str, Any], *, timeout: float | None = None
    ) -> ElicitResult: ...

    async def elicit(
        self, message: str, requested_schema: type[BaseModel] | Mapping[str, Any], *, timeout: float | None = None
    ) -> Elicitation[Any] | ElicitResult:
        """Ask the user to fill a form; where the client cannot be asked, a person at the operators' inbox, if any.

        Args:
            message: What to tell the user.
            requested_schema: The form: a pydantic model class of flat primitive fields, or the JSON Schema
                of a form of that kind.
            timeout: Seconds to wait for the answer; `None` for as long as the task lives.

        Returns:
            For a model class, an answer whose `data` is a model where `action` is `accept`; for a schema,
            the plain answer.

        Raises:
            CapabilityError: The client did not declare elicitation.
            TypeError: `requested_schema` is neither, or the model class is no flat form.
        """
        params = form_params(message, requested_schema)
        if not self.asks_person("elicitation/create", params):
            self._questions.require_elicitation("form")
            self._questions.require_handler("elicit")
        asking = self.ask("elicitation/create", params, timeout=timeout)
        del params  # the answer may take days
        return read_elicitation(await asking, requested_schema)

    async def elicit_url(
        self, message: str, url: str, elicitation_id: str, *, timeout: float | None = None
    ) -> ElicitResult:
        """Ask the user to open a URL, for what must not pass through the client: logins, payments.

        Args:
            message: Why the user should open it.
            url: What to open.
            elicitation_id: Identifier of this elicitation, unique on the server.
            timeout: Seconds to wait for the answer; `None` for as long as the task lives.

        Returns:
            Whether the user agreed to open it; what happens there is not known here.

        Raises:
            CapabilityError: The client did not declare elicitation by URL.
        """
        self._questions.require_elicitation("url")
        self._questions.require_handler("elicit_url")
        answer = await self.ask(
            "elicitation/create",
            {"mode": "url", "message": message, "url": url, "elicitationId": elicitation_id},
            timeout=timeout,
        )
        return read_answer(ElicitResult, answer)

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
        timeout: float | None = None,
    ) -> CreateMessageResult:
        """Let the client's model write a message (sampling).

        Messages, tools, tool choice and preferences are JSON objects or the SDK's own types.

        Args:
            messages: The conversation so far.
            max_tokens: Most tokens to write.
            system_prompt: System prompt to use.
            include_context: Context of other servers to include.
            temperature: Sampling temperature.
            stop_sequences: Texts that end the message.
            metadata: Passed on to the model's provider.
            model_preferences: Which model to choose.
            tools: Tools the model may use.
            tool_choice: Whether it may or must use them.
            timeout: Seconds to wait for the answer; `None` for as long as the task lives.

        Raises:
            CapabilityError: The client did not declare sampling, or not sampling with tools.
            TypeError: A message is not a JSON object.
            ValueError: A message is malformed, or tool uses and tool results in the messages do not match.
        """
        self._questions.require_sampling()
        if tools is not None or tool_choice is not None:
            self._questions.require_sampling_tools()
        params = sampling_params(
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
        self._questions.require_handler("create_message")
        asking = self.ask("sampling/createMessage", params, timeout=timeout)
        del messages, tools, params  # the answer may take days
        return read_answer(CreateMessageResult, await asking)

    @overload
    async def elicit_as_task(
        self, message: str, requested_schema: type[ModelT], *, ttl: int = 60_000, timeout: float | None = None
    ) -> Elicitation[ModelT]: ...

    @overload
    async def elicit_as_task(
        self, message: str, requested_schema: Mapping[str, Any], *, ttl: int = 60_000, timeout: float | None = None
    ) -> ElicitResult: ...

    async def elicit_as_task(
        self,
        message: str,
        requested_schema: type[BaseModel] | Mapping[str, Any],
        *,
        ttl: int = 60_000,
        timeout: float | None = None,
    ) -> Elicitation[Any] | ElicitResult:
        """Ask the user to fill a form, as a task on the client's side (wire rule B12).

        Args:
            message: What to tell the user.
            requested_schema: The form, as for `elicit`.
            ttl: TTL of the client's task in milliseconds.
            timeout: Seconds to wait for the answer; `None` for as long as the task lives.

        Raises:
            CapabilityError: The client did not declare tasks for elicitation.
            TypeError: As for `elicit`.
        """
        self._questions.require_client_tasks("elicitation", "elicitation", "create")
        self._questions.require_handler("elicit_as_task")
        params = {**form_params(message, requested_schema), "task": {"ttl": ttl}}
        asking = self.ask("elicitation/create", params, timeout=timeout)
        del params  # the answer may take days
        return read_elicitation(await asking, requested_schema)

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
        timeout: float | None = None,
    ) -> CreateMessageResult:
        """Let the client's model write a message, as a task on the client's side (wire rule B12).

        The arguments are those of `create_message`, and `ttl`: TTL of the client's task in milliseconds.

        Raises:
            CapabilityError: The client did not declare tasks for sampling, or not sampling with tools.
            TypeError: A message is not a JSON object.
            ValueError: A message is malformed, or tool uses and tool results in the messages do not match.
        """
        self._questions.require_client_tasks("sampling", "sampling", "createMessage")
        if tools is not None or tool_choice is not None:
            self._questions.require_sampling_tools()
        params = sampling_params(
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
        self._questions.require_handler("create_message_as_task")
        asking = self.ask("sampling/createMessage", {**params, "task": {"ttl": ttl}}, timeout=timeout)
        del messages, tools, params  # the answer may take days
        return read_answer(CreateMessageResult, await asking)

    async def ask(self, method: str, params: JSONObject, *, timeout: float | None = None) -> JSONObject:
        """Put any request to the client, such as `roots/list`, and return its result.

        The other asking methods check the client's capabilities and give typed answers; this one does
        neither.

        Args:
            method: The request's method.
            params: Its params.
            timeout: Seconds to wait for the answer; `None` for as long as the task lives.
        """
        is_for_person = self.asks_person(method, params)
        try:
            asking = self._questions.ask(method, params, within=timeout, is_for_person=is_for_person)
            del params  # the answer may take days
            return await asking
        except QuestionTimeoutError:
            self._leave_order()
            raise

    def asks_person(self, method: str, params: JSONObject) -> bool:
        """Return whether a request waits for a person at the operators' inbox: the client cannot be asked (law L15).

        Only forms do: no person stands in for a client's model, its roots, or what its user's browser opens.

        Args:
            method: The request's method.
            params: Its params.
        """
        return self._questions.for_person(method, params)

    def _leave_order(self) -> None:
        self._task_steps().leave_order()  # a rerun may get an answer

    def _lose(self) -> None:
        if self._execution is not None:
            self._execution.lose()


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _number(value: float) -> str:
    """Return a number as people read it: without an exponent, and short where it is no whole number."""
    if isinstance(value, int):
        return str(value)
    return f"{value:g}" if abs(value) < 1e6 else f"{value:.0f}"
