"""What `Tasks` is on every line of the SDK: a runtime that is held open, and tools whose calls become tasks."""

from __future__ import annotations

import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from importlib.metadata import version
from types import TracebackType
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import anyio
import anyio.lowlevel
from typing_extensions import Self, Unpack

from mcp_task_runtime.adapters._caller import undeliverable_in
from mcp_task_runtime.adapters._masking import MASKED
from mcp_task_runtime.adapters._options import TaskOptions, TaskOptionsDict
from mcp_task_runtime.adapters._own_loop import in_own_loop
from mcp_task_runtime.adapters._task_call import TaskCall
from mcp_task_runtime.adapters._tool_calls import ToolCall, calling, current_call, run_with_reruns
from mcp_task_runtime.adapters._tool_table import DeclaredTool, ToolTable
from mcp_task_runtime.adapters.credentials import CallerCredentials, Credentials, opened
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.adapters.session import DetachedSession
from mcp_task_runtime.adapters.tool_function import ToolFunction
from mcp_task_runtime.core.abilities import implements, queue_of
from mcp_task_runtime.core.causes import sole_cause
from mcp_task_runtime.core.change_hook import ChangeCallback
from mcp_task_runtime.core.dispatch import EngineDispatcher, TaskDispatcher
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.inbox import Inbox
from mcp_task_runtime.core.json import JSONObject, to_json_value
from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.observer import TaskObserver
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.store import TaskJoins, TaskStore
from mcp_task_runtime.core.types import Outcome, TaskSpec
from mcp_task_runtime.errors import TaskRuntimeError
from mcp_task_runtime.stores.memory import InMemoryTaskStore

__all__ = ["BaseTasks", "fastmcp_version", "to_call_result"]

logger: logging.Logger = logging.getLogger(__name__)

_MOST_REMEMBERED = 1_000
"""Tools that were not declared by their name, and whose work this process knows because they were called."""

T = TypeVar("T")
ContextT = TypeVar("ContextT")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class BaseTasks(ABC, Generic[ContextT]):
    """The part of `Tasks` that knows no SDK.

    A class of one SDK line makes what serves its requests (`_set_up`), and says how tools are added to a server
    (`_add_tool`), how one is run by its name (`_invoke`), and how errors of this library become the SDK's (`_raising`).

    Attributes:
        runtime: Runs the tasks, and serves them to the server itself.
    """

    _deliberate_errors: ClassVar[tuple[type[Exception], ...]]
    """The SDK's errors whose text is meant for clients; the first one is for tools in general."""

    _sdk_context: ClassVar[type]
    """The class of the context that the SDK gives to tools."""

    _sdk_dependency: ClassVar[type | None] = None
    """The class of the SDK's marks for parameters that a request resolves."""

    def __init__(
        self,
        store: TaskStore | None = None,
        queue: TaskMessageQueue | None = None,
        *,
        settings: TaskSettings | None = None,
        promote_after: float | None = None,
        principal: Callable[[ContextT], str | None] | None = None,
        mask_errors: bool = False,
        observer: TaskObserver | None = None,
        on_change: ChangeCallback | None = None,
        dispatcher: TaskDispatcher | None = None,
        inbox: float | Inbox | None = None,
        credentials: Credentials | None = None,
        seal: Sequence[str | bytes] | None = None,
    ) -> None:
        """Make the tasks of one server.

        Args:
            store: Where tasks are kept; in memory when `None`. It is not closed.
            queue: Where questions are kept; the store's own when `None`.
            settings: Limits and defaults.
            promote_after: Seconds after which any tool call becomes a task, if its client takes tasks; `None` for
                never. Such a call becomes a task at once when its tool asks the client. A client of protocol
                2025-11-25 decides itself: it sees that any tool may be called as a task. On `mcp` 1.x, where all
                clients do, the number has no other effect.
            principal: Returns the principal that makes a request. A task belongs to the principal of its call, and is
                hidden from all others (law L10). If it returns `None`, the caller is unknown: the task's id is its
                secret then, and on `mcp` 1.x the task belongs to the session, if there is one. When `principal` itself
                is `None`, the SDK's authentication names the principal. With a function of your own, a question is
                answered on `mcp` 1.x only by the principal that was asked. `mcp` 2.x does not show who posts an answer:
                there, tasks do not ask clients of protocol 2025-11-25 over HTTP, and their asking methods raise
                `CapabilityError`, unless the SDK's authentication opened the session, and so checks that itself.
            mask_errors: Whether clients read "internal error" instead of the text of an exception that the work of a
                tool raises, other than the errors that are meant for them. By default they read what the SDK shows
                of a plain call. Of an adopted tool, they do not read the text of a `ToolError` either on `mcp` 1.x and
                2.0, which do not show the exception behind a result; on a low-level server of 1.x, no error that is
                only a text.
            observer: Is told what happens to tasks, such as `mcp_task_runtime.operations.telemetry.Telemetry`.
            on_change: Called with a `TaskChange` for each new status that this process gives a task: in the order of
                the changes, each at most once. A coroutine function, or a function, which runs in a thread. See
                `mcp_task_runtime.core.change_hook`.
            dispatcher: Has worker processes run the tools that were declared by name: `StoreDispatcher()` for those
                that call `work`, or one of `mcp_task_runtime.engines`. `None`: their work runs here.
            inbox: Seconds that a form of a task (`elicit`) waits for a person where its client cannot be asked: at the
                page of `mcp-tasks web`, or for `mcp-tasks answer`. Meanwhile the client sees the task as `working`, and
                cannot answer. After that time the question is withdrawn, and asking raises `QuestionTimeoutError`.
                `None` for no inbox: asking raises `CapabilityError`. With an `Inbox` that has the address of the
                dashboard, a client that can have its user open addresses gets that of a page for this one question.
            credentials: What is kept of a caller's access token and headers, sealed, for work that runs in a worker or
                runs again. `None`: nothing, and there `get_access_token()` returns `None`.
            seal: Keys that seal what clients and tools put into the store; the first one seals, every one opens. See
                `mcp_task_runtime.stores.sealed`. `None`: it is kept as plain text.

        Raises:
            ImportError: `seal` is given, and the extra `credentials` is not installed.
            ValueError: No queue was given and the store has none; an argument has the wrong type or is out of range;
                a key of `seal` is malformed; or there is a dispatcher, and the store is not shared. The message names
                the argument.
        """
        if principal is None:
            principal = self._authenticated_principal
        elif not callable(principal):
            raise ValueError("principal must be a function of a request's context")
        if credentials is not None and not isinstance(credentials, Credentials):
            raise ValueError("credentials must be Credentials")
        store = InMemoryTaskStore() if store is None else store
        if seal is not None:
            from mcp_task_runtime.stores.sealed import seal_queue, seal_store  # most servers start without

            queue = None if queue is None or queue is queue_of(store) else seal_queue(queue, seal)
            store = seal_store(store, seal)
        self.runtime: TaskRuntime = TaskRuntime(
            store,
            queue,
            settings=settings,
            observer=observer,
            on_change=on_change,
            dispatcher=dispatcher,
        )
        self._dispatcher = dispatcher
        self._credentials = credentials
        self._host = RuntimeHost(self.runtime)
        self._inbox = Inbox.of(inbox)
        self._handler = TaskResultHandler(
            self.runtime.store, self.runtime.queue, settings=self.runtime.settings, inbox=self._inbox
        )
        self._tools = ToolTable(self._remember)
        self._remembered: set[str] = set()
        self._mask_errors = mask_errors
        if promote_after is not None:
            self._tools.declare_rest(DeclaredTool(TaskOptions(promote_after=promote_after), is_adopted=True))
        self._principal: Callable[[ContextT], str | None] = principal
        self._set_up()

    @abstractmethod
    def _set_up(self) -> None:
        """Make what serves the requests of the SDK line."""

    @staticmethod
    @abstractmethod
    def _authenticated_principal(ctx: Any, /) -> str | None:
        """Return the principal that the SDK's authentication names for a request."""

    async def __aenter__(self) -> Self:
        """Hold the runtime open while lifespans and connections come and go."""
        await self._host.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the runtime; its last holder waits until it has drained and closed."""
        await self._host.__aexit__(exc_type, exc, traceback)

    # -- workers

    async def work(self, *, concurrency: int = 8, tools: Collection[str] | None = None) -> None:
        """Be a worker: run tasks that wait for one, until cancelled. The command `mcp-tasks worker` calls this.

        For a process that has the same server and tools, on the same store, and serves no client. Any number of such
        processes share the tasks that the servers make: with `StoreDispatcher` the store wakes them, with another
        dispatcher its engine. The server's own lifespan is entered first. When this is cancelled, no more tasks are
        taken, and what runs gets the grace period of the settings; then rerunnable work is handed over to other
        workers, other work fails, and the lifespan closes.

        Args:
            concurrency: Most tasks that run at once; those that wait for an answer count.
            tools: Only tasks of these tools; `None` for all that were declared.

        Raises:
            LookupError: No tool was declared, or none of one of these names.
            RuntimeError: The store is not shared, or these Tasks are not installed in a server.
            ValueError: `concurrency` is below 1.
        """
        if self._dispatcher is None:
            logger.warning(
                "These Tasks have no dispatcher: a server runs its work itself, and this worker gets only what is "
                "retried or handed over. Where workers are to run all of it, write Tasks(store, dispatcher=...)"
            )
        failure: Exception | None = None
        taking = anyio.CancelScope()

        async def stop_when_cancelled() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                taking.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(stop_when_cancelled)
            try:
                with anyio.CancelScope(shield=True):  # a lifespan must be able to close what it opened
                    async with self.worker():
                        with taking:
                            if isinstance(self._dispatcher, EngineDispatcher):
                                await self._dispatcher.work(self, concurrency=concurrency, names=tools)
                            else:
                                await self.runtime.work(concurrency=concurrency, names=tools)
            except Exception as error:
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        await anyio.lowlevel.checkpoint_if_cancelled()

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Self]:
        """Context manager for a process that runs tasks by `execute`: the runtime and the server's lifespan are open.

        Raises:
            RuntimeError: These Tasks are not installed in a server.
        """
        async with self._lifespan_of_worker():
            yield self

    async def execute(self, task_id: str) -> bool:
        """Run a task that waits for a worker, inside `worker`; see `TaskRuntime.execute`."""
        return await self.runtime.execute(task_id)

    async def wind_down(self) -> None:
        """Take no more tasks, give what runs the grace period of the settings, and hand over the rest."""
        await self.runtime.drain(accept_new=False)

    # -- tools

    def tool(
        self,
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        annotations: Any = None,
        icons: list[Any] | None = None,
        meta: dict[str, Any] | None = None,
        structured_output: bool | None = None,
        *,
        advertise: bool = True,
        **options: Unpack[TaskOptionsDict],
    ) -> Callable[[FunctionT], FunctionT]:
        """Make a tool of the installed high-level server (`MCPServer`, `FastMCP`) that runs as a task.

        Args:
            name: As for the SDK's own `tool`.
            title: As for the SDK's own `tool`.
            description: As for the SDK's own `tool`.
            annotations: As for the SDK's own `tool`.
            icons: As for the SDK's own `tool`.
            meta: As for the SDK's own `tool`.
            structured_output: As for the SDK's own `tool`.
            advertise: As for `adopt`.
            **options: How its calls become tasks; see `TaskOptions`.

        Raises:
            RuntimeError: These Tasks are not installed in a high-level server.
            ValueError: A number is out of range, or options exclude each other; the message names them.
        """
        if callable(name):
            raise TypeError("Use @tasks.tool() instead of @tasks.tool")
        self._require_high_level()
        given = {
            "title": title,
            "description": description,
            "annotations": annotations,
            "icons": icons,
            "meta": meta,
            "structured_output": structured_output,
        }
        sdk_options = {key: value for key, value in given.items() if value is not None}
        declared = DeclaredTool(TaskOptions(**options), advertise=advertise)

        def register(function: FunctionT) -> FunctionT:
            tool = ToolFunction(function, name)
            self._add_tool(tool, self._task_body(tool, declared, rename=False), name=name, **sdk_options)
            return function

        return register

    def task(
        self, *, name: str | None = None, advertise: bool = True, **options: Unpack[TaskOptionsDict]
    ) -> Callable[[FunctionT], FunctionT]:
        """Return a decorator, to stand under `mcp.tool()`, for functions that run as tasks.

        A parameter annotated with `ServerTaskContext` gets the task's context and shows in no schema.
        Async and plain functions work; a plain one runs in a thread, where `anyio.from_thread.run` calls
        the context's methods, and `is_cancelled` says when to stop. Its task ends at once when it is
        cancelled, but Python cannot stop a thread, and a process waits for its threads when it exits.

        Args:
            name: The tool's name; the function's when `None`. A name that `mcp.tool()` gives must be given here, too.
            advertise: As for `adopt`.
            **options: How its calls become tasks; see `TaskOptions`.

        Raises:
            ValueError: A number is out of range, or options exclude each other; the message names them.
        """
        declared = DeclaredTool(TaskOptions(**options), advertise=advertise)

        def decorate(function: FunctionT) -> FunctionT:
            return cast(FunctionT, self._task_body(ToolFunction(function, name), declared, rename=True))

        return decorate

    def _task_body(self, tool: ToolFunction, declared: DeclaredTool, *, rename: bool) -> Callable[..., Any]:
        obstacle = None
        if self._sdk_dependency is not None and tool.takes(self._sdk_dependency):
            obstacle = "its request resolves some of its arguments"
        if declared.options.blocking and tool.takes(self._sdk_context):
            raise TypeError(
                f"{tool.name} cannot block and use the SDK's context, which belongs to the server's event loop; take a "
                "ServerTaskContext"
            )
        self._declare(tool.name, declared, obstacle)

        async def body(**arguments: Any) -> Any:
            work = functools.partial(tool.call, arguments)
            call = current_call(self.runtime)
            if call is not None and self._tools.has(call.name):
                return await self._run_within(call, work, declared.options)
            if call is not None and self._tools.get(call.name) is None:  # the SDK's decorator gave it another name
                self._declare(call.name, declared, obstacle)
            return await self._run(work, declared.options)

        return tool.disguise(body, rename=rename)

    def _declare(self, name: str, declared: DeclaredTool, obstacle: str | None = None) -> None:
        """Note a tool that runs as a task.

        Args:
            name: Its name.
            declared: How it runs.
            obstacle: Why its work cannot run in another process, if that is so.

        Raises:
            ValueError: It is to run elsewhere, and cannot.
        """
        options = declared.options
        self._check_join(options)
        if options.promote_after is not None:
            obstacle = "with promote_after, a call becomes a task after its work has begun"
        if self._dispatcher is None:
            obstacle = "these Tasks have no dispatcher"
        if options.dispatch and obstacle is not None:
            raise ValueError(f"dispatch=True: {name} cannot run in another process: {obstacle}")
        self._tools.declare(name, declared)
        # Whether the work of a lost process is repeated, the task says; a worker runs any tool.
        is_dispatched = obstacle is None and options.dispatch is not False
        self.runtime.register(name, self._run_by_name, queue=options.queue, is_dispatched=is_dispatched)

    def _remember(self, name: str) -> None:
        """Let this process run a tool by its name that it has seen a call of."""
        if name not in self._remembered and self._may_remember(name):
            self.runtime.register(name, self._run_by_name)

    def _may_remember(self, name: str) -> bool:
        if len(self._remembered) < _MOST_REMEMBERED:  # clients may call what does not exist (law L16)
            self._remembered.add(name)
        return name in self._remembered

    def _check_join(self, options: TaskOptions) -> None:
        if options.join and not implements(self.runtime.store, TaskJoins):
            raise ValueError("join needs a store that implements TaskJoins, as all bundled stores do")

    def adopt(self, name: str, *, advertise: bool = True, **options: Unpack[TaskOptionsDict]) -> None:
        """Have an existing tool run as a task, without a change of its code.

        The tool is found by its name when it is called, so it may be registered before or after this. Its own
        context asks and reports through the task. A call becomes a task before the tool runs, so wrong arguments end
        the task; with `promote_after` a quick call stays an ordinary one.

        Args:
            name: The tool's name, as `tools/list` shows it.
            advertise: Whether clients of protocol 2025-11-25 see that it may be called as a task. A call as a task is
                accepted in any case: some clients drop every tool that shows it.
            **options: How its calls become tasks; see `TaskOptions`.

        Raises:
            ValueError: A number is out of range, or options exclude each other; the message names them.
        """
        self._declare(name, DeclaredTool(TaskOptions(**options), is_adopted=True, advertise=advertise))

    def _adopt_all(self, tools: Iterable[str] | Literal["all"]) -> None:
        if tools == "all":
            if self._dispatcher is not None:
                raise ValueError('tools="all" and a dispatcher: workers run tools by name; write tools=["NAME", ...]')
            self._tools.declare_rest(DeclaredTool(TaskOptions(), is_adopted=True))
        elif isinstance(tools, str):
            raise TypeError(f'tools must be "all" or a list of names; write tools=[{tools!r}]')
        else:
            for name in tools:
                self.adopt(name)

    async def run(self, work: Callable[[ServerTaskContext], Awaitable[T]], **options: Unpack[TaskOptionsDict]) -> T:
        """Run work as a task, from inside a tool call.

        Returns what the work returns, for the handler to return; a client that takes a task has its handle long
        before. What a tool does before this is part of the call, what it does afterwards is part of the task. Under
        protocol 2025-11-25 the handle does not wait longer than a moment: options that come later are too late for it.

        On a high-level server of `mcp` 2.x, a tool that was not declared and has succeeded without calling this counts
        as a plain tool, whose calls become no tasks. Where a later call of it calls this, that one runs the work within
        the request, where it cannot ask, or raises with `required`; the calls after it become tasks. So declare a tool
        that calls this only in some of its calls.

        Args:
            work: What to run; it gets the task's context.
            **options: How the call becomes a task; see `TaskOptions`. A process that is to run the work of another
                one again (`rerunnable`) must have seen a call of this tool.

        Raises:
            RuntimeError: This is no tool call of the server these Tasks are installed in, or the tool runs in a thread
                by `blocking` already.
            TaskRuntimeError: With `required`, the call cannot become a task.
            ValueError: A number is out of range; the message names it.
            Exception: What the work raised. A `ProtocolError` or `CapabilityError` that leaves the handler ends the
                call with exactly that error.
        """
        return await self._run(work, TaskOptions(**options))

    async def _run(self, work: Callable[[ServerTaskContext], Awaitable[T]], options: TaskOptions) -> T:
        call = current_call(self.runtime)
        if call is None:
            raise RuntimeError(
                "run() works in a tool call of the server that these Tasks are installed in, and not in the thread of "
                "one that has blocking=True"
            )
        if self._tools.has(call.name) or self._may_remember(call.name):
            self._check_join(options)
            self._tools.note_run(call.name)
        if options.queue is not None or not self._tools.has(call.name):
            self.runtime.register(call.name, self._run_by_name, queue=options.queue)
        return await self._run_within(call, work, options)

    async def _run_within(
        self, call: ToolCall, work: Callable[[ServerTaskContext], Awaitable[T]], options: TaskOptions
    ) -> T:
        """Run work within a call of a tool that is known."""
        if options.blocking:
            work = functools.partial(in_own_loop, work)
        if options.rerun is not None and options.rerun.on:
            work = functools.partial(run_with_reruns, work, options.rerun)
        if call.raises_as_is:
            return await call.run(work, options)
        try:
            return await call.run(work, options)
        except Exception:
            with self._raising(call), self._masking(call):
                raise

    @contextmanager
    def _masking(self, call: ToolCall) -> Generator[None, None, None]:
        """Note an unexpected exception, and keep its text in the server where `mask_errors` asks for that."""
        try:
            yield
        except Exception as error:
            deliberate = (*self._deliberate_errors, TaskRuntimeError)
            if isinstance(error, deliberate) or isinstance(sole_cause(error), deliberate):
                raise
            is_noted = call.note_failure(error)
            if not self._mask_errors:
                raise
            if not is_noted:
                logger.exception("The work of a tool raised an exception")
            raise self._deliberate_errors[0](MASKED) from error

    def _blocks(self, name: str) -> bool:
        """Return whether the server's handler runs an adopted tool in a thread."""
        declared = self._tools.get(name)
        return declared is not None and declared.blocks

    def _is_masked(self, name: str) -> bool:
        """Return whether the results of a tool are masked here: an adopted one does not do it itself."""
        declared = self._tools.get(name)
        return self._mask_errors and declared is not None and declared.is_adopted

    async def _run_by_name(self, execution: Execution[Outcome]) -> Outcome:
        """Run a tool by its name: its task waited for a worker, or the process that ran it was lost (law L12)."""
        record = execution.record
        assert record is not None
        credentials = opened(self._credentials, record)
        handler = self._handler
        if (undeliverable := undeliverable_in(record)) is not None:
            handler = handler.silent(undeliverable)
        call = TaskCall(
            self.runtime,
            record.request.name,
            execution=execution,
            handler=handler,
            new=TaskSpec,
            connect=lambda record: DetachedSession(record.client_capabilities_json),
        )
        with calling(call):
            return await self._invoke(call, record.request.arguments, credentials)

    def _sealed(self, spec: TaskSpec, ctx: Any) -> TaskSpec:
        """Return what a task is made with, and the credentials of its caller where they are to be kept."""
        return spec if self._credentials is None else self._credentials.seal(spec, *self._credentials_of(ctx))

    @abstractmethod
    def _credentials_of(self, ctx: Any) -> tuple[JSONObject | None, Mapping[str, str] | None]:
        """Return the access token and the headers of a request."""

    @abstractmethod
    def _lifespan_of_worker(self) -> AbstractAsyncContextManager[Any]:
        """Return what a process that serves no client must enter: the server's lifespan, and the runtime in it.

        Raises:
            RuntimeError: These Tasks are not installed in a server.
        """

    @abstractmethod
    def _require_high_level(self) -> None:
        """Check that these Tasks are installed in a high-level server.

        Raises:
            RuntimeError: They are not.
        """

    @abstractmethod
    def _add_tool(self, tool: ToolFunction, body: Callable[..., Any], **sdk_options: Any) -> None:
        """Add a tool to the installed high-level server.

        Args:
            tool: The author's function.
            body: What the SDK calls.
            **sdk_options: As for the SDK's own `add_tool`.
        """

    @abstractmethod
    def _raising(self, call: ToolCall) -> AbstractContextManager[None]:
        """Return a block whose errors of this library end the call as they are."""

    @abstractmethod
    async def _invoke(self, call: TaskCall, arguments: JSONObject, credentials: CallerCredentials) -> Outcome:
        """Run a tool by its name, apart from any request."""

    # -- tasks that end elsewhere

    async def complete(self, task_id: str, result: object) -> None:
        """End a task as `completed`, from anywhere in the server.

        Args:
            task_id: The task, usually one that was detached.
            result: A `CallToolResult` or its JSON object; or a text, for a tool that returns `str`.

        Raises:
            TaskNotFoundError: The task is unknown or has expired.
            InvalidTransitionError: The task has already ended; nothing changed.
            LimitExceededError: The result is larger than `TaskSettings.max_payload_bytes`; nothing changed.
            StoreError: The store failed; see `TaskRuntime.finish`.
            ValueError: The result is none of these.
        """
        if isinstance(result, str):
            result = {"content": [{"type": "text", "text": result}], "structuredContent": {"result": result}}
        await self.runtime.finish(task_id, Outcome.completed(to_call_result(result)))

    async def fail(self, task_id: str, error: str) -> None:
        """End a task as `failed`, from anywhere in the server.

        Args:
            task_id: The task, usually one that was detached.
            error: What went wrong. The client reads it.

        Raises:
            TaskNotFoundError: The task is unknown or has expired.
            InvalidTransitionError: The task has already ended; nothing changed.
            LimitExceededError: The text is larger than `TaskSettings.max_payload_bytes`; nothing changed.
            StoreError: The store failed; see `TaskRuntime.finish`.
        """
        await self.runtime.finish(task_id, Outcome.failed(error))


def fastmcp_version(server: object) -> str | None:
    """Return the version of the `fastmcp` package that a server is of, or `None` for a server of another package."""
    if not any(base.__module__.partition(".")[0] == "fastmcp" for base in type(server).__mro__):
        return None
    return version("fastmcp")


def to_call_result(result: object) -> JSONObject:
    """Return a tool's result in its wire form.

    Raises:
        ValueError: It has none.
    """
    value = to_json_value(result)
    if not isinstance(value, dict):
        raise ValueError("result must be a CallToolResult or its JSON object")
    return value
