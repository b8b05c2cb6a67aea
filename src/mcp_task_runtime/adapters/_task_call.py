"""A tool call that becomes a task, and what its task is made with."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Final, TypeVar

import anyio
import anyio.lowlevel

from mcp_task_runtime.adapters._options import DEFAULT_OPTIONS, TaskOptions
from mcp_task_runtime.adapters._tool_calls import ToolCall
from mcp_task_runtime.adapters._tool_table import DeclaredTool
from mcp_task_runtime.adapters._unwinding_call import Convert, UnwindingCall
from mcp_task_runtime.adapters.notifications import NotifyingSession
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.types import Outcome, TaskRecord, TaskSpec
from mcp_task_runtime.errors import TaskRuntimeError

__all__ = [
    "BEGIN_SECONDS",
    "TaskCall",
    "cancelled_with_caller",
    "enter_for_good",
    "submit_call",
    "with_options",
]

T = TypeVar("T")

BEGIN_SECONDS: Final = 0.1
"""How long a tool may take to say with which options it runs as a task; then it runs with the default ones."""

_HANDLE_SECONDS: Final = 0.005
"""How long the work of an adopted tool waits for its handle to go out."""

_HANDLE_STEPS: Final = 20
"""How many steps of the event loop it waits: a handle passes through a few tasks."""


class TaskCall(ToolCall):
    """A call that becomes a task, or is one already when it runs again."""

    def __init__(
        self,
        runtime: TaskRuntime,
        name: str,
        *,
        execution: Execution[Any],
        handler: TaskResultHandler,
        new: Callable[[], TaskSpec],
        connect: Callable[[TaskRecord], NotifyingSession],
        declared: DeclaredTool | None = None,
        client_decides: bool = False,
    ) -> None:
        """Make a call.

        Args:
            runtime: Where it runs.
            name: The tool's name.
            execution: Its run.
            handler: Delivers its questions.
            new: Returns what its task is made with, unless the options of the work say otherwise.
            connect: Called once when the task exists; returns the session for the work.
            declared: What was declared of the tool; `None` where it says in `Tasks.run` how it runs, or never does.
            client_decides: Whether the client has asked for a task, so that it gets one at once.
        """
        super().__init__(runtime, name)
        self.model_immediate_response: str | None = None
        self._execution = execution
        self._handler = handler
        self._new: Callable[[], TaskSpec] | None = new
        self._connect: Callable[[TaskRecord], NotifyingSession] | None = connect
        self._declared = declared
        self._options = DEFAULT_OPTIONS if declared is None else declared.options
        self._client_decides = client_decides
        self._session: NotifyingSession | None = None
        self._context: ServerTaskContext | None = None

    async def run(self, work: Callable[[ServerTaskContext], Awaitable[T]], options: TaskOptions) -> T:
        """Make the call a task, at once or after `promote_after`, and run work for it."""
        context = await self.context(options)
        result = await work(context)
        await self._handler.flush(context.task_id)
        return result

    async def perform(self, unwinding: UnwindingCall, convert: Convert[T]) -> T:
        """Do the work that an unwinding call of the tool has kept, as that of this task."""
        context = await self.context()
        return await unwinding.perform(self._execution, handler=self._handler, convert=convert, context=context)

    def note_failure(self, error: Exception) -> bool:
        """Note what left the work; see `ToolCall.note_failure`."""
        if self.is_task:
            self._execution.note_failure(error)
        return self.is_task

    @property
    def is_task(self) -> bool:
        """Whether the client knows this call as a task."""
        return self._client_decides or self._execution.is_published

    @property
    def has_inbox(self) -> bool:
        """Whether forms for a client that cannot be asked wait for a person."""
        return self._handler.inbox is not None

    @property
    def client_capabilities(self) -> JSONObject:
        """What the client declared when it made the task; `{}` where there is none yet."""
        record = self._execution.record
        return {} if record is None else record.client_capabilities

    @property
    def may_become_task(self) -> bool:
        """Whether it may become a task although its tool does not call `Tasks.run`."""
        return self._client_decides or self._declared is not None

    async def context(self, options: TaskOptions | None = None) -> ServerTaskContext:
        """Make the call a task, if it is none yet, and return its task's one context."""
        record = await self.begin(options)
        if self._context is None:
            assert self._session is not None
            self._context = ServerTaskContext.of_run(
                self._execution, record, self.runtime, self._session, self._handler
            )
        return self._context

    async def begin(self, options: TaskOptions | None = None) -> TaskRecord:
        """Make the call a task, once, with these options or its tool's own.

        Raises:
            LimitExceededError: The owner has as many tasks as it may have.
            StoreError: The store could not create it.
        """
        options = options or self._options
        execution = self._execution
        if self.model_immediate_response is None:
            self.model_immediate_response = options.model_immediate_response
        if execution.record is not None:
            record = await execution.reserve(TaskSpec())
        elif options.promote_after is None or self._client_decides:
            record = await execution.begin(self.new_task(options))
        else:
            new = self.new_task(options)
            execution.promote_after(options.promote_after, new)
            record = await execution.reserve(new)
        if self._session is None:
            assert self._connect is not None
            self._session = self._connect(record)
            self._new = self._connect = None  # they hold the request
        return record

    async def start(self) -> None:
        """Do what comes before the tool runs: become a task, or let time decide.

        An adopted tool becomes a task before its work begins. Its handle is on its way by then: the work may block
        the event loop for as long as it takes, unless it has one of its own.
        """
        if self._declared is None:
            return
        if self._client_decides or self._declared.is_adopted:
            if self._options.promote_after is not None and not self._client_decides:
                self._execution.promote_after(self._options.promote_after, self.new_task(self._options))
                return
            await self.begin()
            if self._declared.is_adopted and not self._declared.blocks:
                await _let_handle_go()

    def new_task(self, options: TaskOptions) -> TaskSpec:
        """Return what a task for this call is made with; the client's own TTL comes first."""
        assert self._new is not None
        return with_options(self._new(), options)


async def _let_handle_go() -> None:
    """Wait until the handle has left the event loop, and a little longer for the thread that writes it."""
    await anyio.sleep(_HANDLE_SECONDS)
    for _ in range(_HANDLE_STEPS):  # on a slow machine the moment is over before the event loop is done with it
        await anyio.lowlevel.checkpoint()


async def submit_call(
    runtime: TaskRuntime,
    spec: TaskSpec,
    work: Callable[[Execution[T]], Awaitable[T]],
    *,
    outcome_of: Callable[[T], Outcome],
    resource_scope: Hashable,
) -> TaskRecord:
    """Make the task of a call, and run its work. Cancelled, the task ends: no client will ever get its handle."""
    record = await runtime.submit(spec, work, outcome_of=outcome_of, resource_scope=resource_scope)
    await cancelled_with_caller(runtime, record, spec)
    return record


async def cancelled_with_caller(runtime: TaskRuntime, record: TaskRecord, spec: TaskSpec) -> None:
    """Cancel a task that was just made if its caller was cancelled meanwhile: no client will ever get its handle.

    One that a repeated call can join goes on.
    """
    if spec.join_key is not None:
        return
    try:
        await anyio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        with anyio.CancelScope(shield=True), suppress(TaskRuntimeError):
            await runtime.finish(record.task_id, Outcome.cancelled())
        raise


def with_options(spec: TaskSpec, options: TaskOptions) -> TaskSpec:
    """Return what a task is made with, by the options of its tool; the client's own TTL comes first."""
    is_usual = not options.rerunnable and options.ttl_ms is None and options.poll_interval_ms is None
    if is_usual and options.queue is None and not options.join:
        return spec
    rerun, request = options.rerun, spec.request
    if rerun is not None:
        request = replace(request, rerunnable=True, max_attempts=rerun.max_attempts)
    return replace(
        spec,
        ttl_ms=options.ttl_ms if spec.ttl_ms is None else spec.ttl_ms,
        poll_interval_ms=options.poll_interval_ms,
        request=request,
        queue=options.queue,
        join_key=_join_key(spec, options),
    )


def _join_key(spec: TaskSpec, options: TaskOptions) -> str | None:
    """Return what names a call and its owner, if a repeated call joins its task."""
    if not options.join:
        return None
    arguments = spec.request.arguments
    if callable(options.join):
        key: object = options.join(arguments)
        if key is None:
            return None
    elif spec.owner is None:  # a task must not be given to another caller who happens to say the same (law L10)
        return None
    else:
        key = json.dumps(arguments, sort_keys=True)
    named = json.dumps([spec.owner, spec.request.name, callable(options.join), str(key)])
    return blake2b(named.encode(), digest_size=24).hexdigest()


def enter_for_good(block: AbstractContextManager[object]) -> None:
    """Enter a block that sets context variables, and never leave it: in a task whose variables are its own.

    To leave it, what the variables held before would be kept: the request, while the work waits for days.
    """
    block.__enter__()
