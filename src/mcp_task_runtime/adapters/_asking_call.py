"""A tool call that becomes a task when its work first asks the client, who knows of no tasks.

Until then it is a plain call: its task is a private one, and nothing of it is stored (law L14). From then on the work
lives apart from its request, and the request of the client that holds the call is the way to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from mcp_task_runtime.adapters._options import TaskOptions
from mcp_task_runtime.adapters._task_call import TaskCall
from mcp_task_runtime.adapters._tool_table import DeclaredTool
from mcp_task_runtime.adapters.notifications import CallNotifier
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.types import NewTask, Outcome, Progress, Task, TaskRecord, TaskSpec
from mcp_task_runtime.errors import CapabilityError, TaskRuntimeError
from mcp_task_runtime.stores.memory import InMemoryTaskStore

__all__ = ["AskingCall", "HeldRequests"]

T = TypeVar("T")


class HeldRequests:
    """The requests of this process whose clients wait for a call, by the call's task, and whose work runs here."""

    def __init__(self) -> None:
        self._held: dict[str, list[CallNotifier]] = {}
        self._running: set[str] = set()

    def is_running(self, task_id: str) -> bool:
        """Return whether the work of a call runs here, and tells the newest request itself how far it is."""
        return task_id in self._running

    @contextmanager
    def running(self, task_id: str) -> Generator[None, None, None]:
        """Context manager for the time that the work of a call runs here."""
        self._running.add(task_id)
        try:
            yield
        finally:
            self._running.discard(task_id)

    def newest(self, task_id: str) -> CallNotifier | None:
        """Return the newest request that waits for a call, or `None`."""
        held = self._held.get(task_id)
        return held[-1] if held else None

    def count(self, task_id: str) -> int:
        """Return how many requests wait for a call."""
        return len(self._held.get(task_id, ()))

    @contextmanager
    def holding(self, task_id: str, request: CallNotifier) -> Generator[None, None, None]:
        """Context manager for the time that a request waits for a call."""
        held = self._held.setdefault(task_id, [])
        held.append(request)
        try:
            yield
        finally:
            held.remove(request)
            if not held:
                del self._held[task_id]


class _HeldSession:
    """The `TaskSession` of a call: what is sent here goes to the request that waits for the call, if one does."""

    can_send_request = False

    def __init__(self, task_id: str, client_capabilities: JSONObject, requests: HeldRequests) -> None:
        self.client_capabilities = client_capabilities
        self._task_id = task_id
        self._requests = requests

    async def send_notification(self, method: str, params: JSONObject) -> None:
        request = self._requests.newest(self._task_id)
        if request is not None:
            await request.send_notification(method, params)

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        raise CapabilityError("This connection carries no requests to the client")

    async def notify_status(self, task: Task, outcome: Outcome | None) -> None:
        request = self._requests.newest(self._task_id)
        if request is not None:
            await request.notify_status(task, outcome)

    async def notify_progress(self, task: Task, progress: Progress) -> None:
        request = self._requests.newest(self._task_id)
        if request is not None:
            await request.notify_progress(task, progress)


class _AskingContext(ServerTaskContext):
    """The context of a private task, until the work first asks; then that of a task in the runtime, with the same id.

    A question that the client cannot be asked leaves it as it is.
    """

    def __init__(
        self, *, check: Callable[[str, JSONObject], None], become_task: Callable[[], Awaitable[Any]], **private: Any
    ) -> None:
        """Make the context of a private task.

        Args:
            check: Raises an exception for a question that the client cannot be asked.
            become_task: Makes the task, once, and returns the arguments of its context.
            **private: The arguments of the private task's context.
        """
        super().__init__(**private)
        self._check = check
        self._become_task = become_task

    def asks_person(self, method: str, params: JSONObject) -> bool:
        """Return `False`: the client waits for this call, and an inbox is for tasks."""
        return False

    async def ask(self, method: str, params: JSONObject, *, timeout: float | None = None) -> JSONObject:
        """Put a request to the client, as `ServerTaskContext.ask` does; before that, become a task.

        Raises:
            StoreError: The task could not be created.
        """
        self._check(method, params)
        if self._execution is None:
            arguments = await self._become_task()
            if self._execution is None:  # questions that are asked side by side come here together
                self._move(**arguments)
        return await super().ask(method, params, timeout=timeout)

    def _move(self, **arguments: Any) -> None:
        was_cancelled = self.is_cancelled
        super().__init__(**arguments)
        if was_cancelled:
            self.request_cancellation()


class AskingCall(TaskCall):
    """A call of a client that takes no task, and that can be asked by a later request of its own."""

    def __init__(
        self,
        runtime: TaskRuntime,
        name: str,
        *,
        task_id: str,
        execution: Execution[Any],
        handler: TaskResultHandler,
        new: Callable[[], TaskSpec],
        client_capabilities: JSONObject,
        requests: HeldRequests,
        declared: DeclaredTool | None,
        check: Callable[[str, JSONObject], None],
        refusal: Callable[[], TaskRuntimeError],
    ) -> None:
        """Make a call.

        Args:
            runtime: Where it runs.
            name: The tool's name.
            task_id: The id of its task.
            execution: Its run.
            handler: The handler of the runtime's tasks.
            new: Returns what its task is made with, unless the options of the work say otherwise.
            client_capabilities: What the client declared.
            requests: The requests that wait for calls; the call's own is among them.
            declared: What was declared of the tool, if anything was.
            check: Raises an exception for a question that the client cannot be asked.
            refusal: Makes the error for work that needs a task.
        """
        session = _HeldSession(task_id, client_capabilities, requests)
        super().__init__(
            runtime,
            name,
            execution=execution,
            handler=handler,
            new=lambda: replace(new(), task_id=task_id),
            connect=lambda record: session,
            declared=declared,
        )
        self._task_id = task_id
        self._held_session = session
        self._check = check
        self._refusal = refusal
        self._asking: _AskingContext | None = None

    async def run(self, work: Callable[[ServerTaskContext], Awaitable[T]], options: TaskOptions) -> T:
        """Run work for the call.

        Raises:
            TaskRuntimeError: The work needs a task.
        """
        if options.required:
            raise self._refusal()
        return await work(await self.context(options))

    async def context(self, options: TaskOptions | None = None) -> ServerTaskContext:
        """Return the call's one context."""
        if options is not None:
            self._options = options
        if self._asking is None:
            store = InMemoryTaskStore()
            record = await store.create_task(NewTask(ttl_ms=None, task_id=self._task_id))
            self._asking = _AskingContext(
                check=self._check,
                become_task=self._become_task,
                task=record.task,
                store=store,
                session=self._held_session,
                queue=store.message_queue,
                handler=self._handler,
            )
        return self._asking

    async def start(self) -> None:
        """Do nothing: the call becomes a task when its work asks, and in no other way."""

    async def begin(self, options: TaskOptions | None = None) -> TaskRecord:
        """Make the call a task, once, that its caller hears of with its first question."""
        return await self._execution.reserve(self.new_task(options or self._options))

    def new_task(self, options: TaskOptions) -> TaskSpec:
        """Return what a task for this call is made with; it joins no other, for its work has begun."""
        return replace(super().new_task(options), join_key=None)

    async def _become_task(self) -> dict[str, Any]:
        record = await self.begin()
        return {
            "task": record.task,
            "store": self.runtime.store,
            "session": self._held_session,
            "queue": self.runtime.queue,
            "handler": self._handler,
            "execution": self._execution,
        }
