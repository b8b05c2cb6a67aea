"""Connections on `mcp` 1.x, with workarounds for faults of the SDK.

Each workaround names the versions that need it; with the last of them it can go.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, TypeVar

import anyio
from mcp import types
from mcp.shared.exceptions import McpError
from typing_extensions import Self

__all__ = [
    "Connection",
    "answered_by",
    "cancellable",
    "current_connection",
    "ending_with_connection",
    "has_list",
    "has_sessions",
    "is_about_lost_connection",
    "is_connected",
    "serving",
    "use_random_request_ids",
]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

_ENDS_REQUESTS: Final = tuple(map(int, version("mcp").split(".")[:2])) >= (1, 27)
"""Whether the SDK itself ends the requests of a connection that ends."""

_PAUSE_SECONDS: Final = 1.0
"""How long to wait for a connection to be idle, before going on regardless."""

_ID_BITS: Final = 48
"""Request ids start at a random number of so many bits: every JSON parser holds it exactly."""


class Connection:
    """A connection's incoming messages. When it ends, it ends the requests that still wait.

    `mcp` before 1.27 lets them wait without end, and fails on requests to the client that are open then.
    """

    def __init__(self, stream: Any, *, is_stateless: bool = False, has_list: bool = True) -> None:
        """Take over a stream of incoming messages.

        Args:
            stream: The SDK's stream.
            is_stateless: Whether each request may come by another connection.
            has_list: Whether `tasks/list` was declared to the client.
        """
        self.is_stateless = is_stateless
        self.has_list = has_list
        self.is_over = False
        self.shared: object = None
        """What the tasks of this connection share."""
        self.requests: set[anyio.CancelScope] = set()
        self.idle = anyio.Event()
        self._answerers: dict[str, Callable[[object], bool]] = {}
        self._stream = stream
        self._pauses = 0
        self._is_between = False
        self._between: anyio.Event | None = None  # made when something waits for it
        self._resumed = anyio.Event()

    @contextmanager
    def current(self) -> Generator[None, None, None]:
        """Run a block, and what is spawned in it, as part of this connection."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(exc_type, exc, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        self._is_between = True
        if self._between is not None:
            self._between.set()
        try:
            message = await self._stream.__anext__()
            while self._is_foreign(message):
                logger.warning("A response was dropped: another principal than the one that was asked posted it")
                message = await self._stream.__anext__()
            while self._pauses:
                await self._resumed.wait()
        except BaseException:
            await self._end()
            raise
        self._is_between = False
        return message

    @contextmanager
    def answered_by(self, request_id: object, may_answer: Callable[[object], bool]) -> Generator[None, None, None]:
        """Run a block in which a request waits for its response, and check who posts that.

        Over Streamable HTTP, `mcp` 1.x takes a response from anyone who knows the session's id.

        Args:
            request_id: The id of the request.
            may_answer: Called with the HTTP request that brings a response.
        """
        self._answerers[str(request_id)] = may_answer
        try:
            yield
        finally:
            del self._answerers[str(request_id)]

    def _is_foreign(self, message: Any) -> bool:
        if not self._answerers:
            return False
        response = getattr(getattr(message, "message", None), "root", None)
        if not isinstance(response, types.JSONRPCResponse | types.JSONRPCError):
            return False
        may_answer = self._answerers.get(str(response.id))
        request = getattr(message.metadata, "request_context", None)
        if may_answer is None or request is None:
            return False
        try:
            return not may_answer(request)
        except Exception:
            logger.exception("The principal of a response is unknown")
            return True

    @asynccontextmanager
    async def pause(self) -> AsyncGenerator[None, None]:
        """Run a block while the SDK handles no incoming message."""
        self._pauses += 1
        try:
            with anyio.move_on_after(_PAUSE_SECONDS, shield=True):
                await self._until_between()
            yield
        finally:
            self._pauses -= 1
            self._resumed.set()
            self._resumed = anyio.Event()

    async def _until_between(self) -> None:
        """Wait until the SDK asks for the next message."""
        if self._is_between:
            return
        if self._between is None or self._between.is_set():
            self._between = anyio.Event()
        await self._between.wait()

    async def _end(self) -> None:
        self.is_over = True
        for scope in self.requests:
            scope.cancel()
        if self.requests:
            with anyio.move_on_after(_PAUSE_SECONDS, shield=True):
                await self.idle.wait()


_current: ContextVar[Connection | None] = ContextVar("mcp_task_runtime_connection", default=None)


def current_connection() -> Connection | None:
    """Return the connection that this context is part of."""
    return _current.get()


class ending_with_connection:  # read as a verb: with ending_with_connection()
    """Context manager that runs a block which ends when its connection ends, however long it would wait."""

    __slots__ = ("_connection", "_scope")

    def __enter__(self) -> None:
        connection = self._connection = _current.get()
        if connection is not None:
            self._scope = anyio.CancelScope()
            self._scope.__enter__()
            connection.requests.add(self._scope)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        connection = self._connection
        if connection is None:
            return None
        try:
            is_swallowed = self._scope.__exit__(exc_type, exc, traceback)
        finally:
            connection.requests.discard(self._scope)
            if connection.is_over and not connection.requests:
                connection.idle.set()
        if self._scope.cancelled_caught:
            raise McpError(types.ErrorData(code=types.CONNECTION_CLOSED, message="Connection closed")) from None
        return is_swallowed


serving: Callable[[], AbstractContextManager[object]] = nullcontext if _ENDS_REQUESTS else ending_with_connection
"""Returns a block for a request, which the SDK or this library ends when its connection ends."""


def is_about_lost_connection(error: BaseException) -> bool:
    inner = getattr(error, "exceptions", None)
    if isinstance(inner, tuple):
        return all(is_about_lost_connection(each) for each in inner)
    return isinstance(error, anyio.ClosedResourceError | anyio.BrokenResourceError)


@contextmanager
def answered_by(session: object, may_answer: Callable[[object], bool] | None) -> Generator[None, None, None]:
    """Run a block that sends a session's next request, and check who posts the response.

    This reads the private name `_request_id` of the session: nothing public tells the id of a request.

    Args:
        session: The SDK's session.
        may_answer: Called with the HTTP request that brings a response; `None` for no check.
    """
    connection = _current.get()
    request_id = getattr(session, "_request_id", None)
    if connection is None or may_answer is None or request_id is None:
        yield
        return
    with connection.answered_by(request_id, may_answer):
        yield


def is_connected() -> bool:
    """Whether the connection of this context is open: the SDK raises for a lost one what a client may answer, too."""
    connection = _current.get()
    return connection is not None and not connection.is_over


def has_sessions() -> bool:
    """Whether the requests of one client come by this connection, as far as it says."""
    connection = _current.get()
    return connection is None or not connection.is_stateless


def has_list() -> bool:
    """Whether `tasks/list` was declared to the client of this connection."""
    connection = _current.get()
    return connection is None or connection.has_list


async def cancellable(request: Callable[[], Awaitable[T]]) -> T:
    """Send a request to the client that may be cancelled at any time.

    Cancelled just when its answer is being handled, the SDK's own method ends the whole connection (all of `mcp` 1.x).
    """
    connection = _current.get()
    answer: list[T] = []
    failure: list[Exception] = []
    ended = anyio.Event()
    scope = anyio.CancelScope(shield=True)

    async def send() -> None:
        try:
            with scope:
                answer.append(await request())
        except Exception as error:
            failure.append(error)
        finally:
            ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        try:
            await ended.wait()
        finally:
            with anyio.CancelScope(shield=True):
                if not ended.is_set():
                    async with nullcontext() if connection is None else connection.pause():
                        scope.cancel()
                        await ended.wait()
    if failure:
        raise failure[0]
    return answer[0]


def use_random_request_ids(session: object) -> None:
    """Let the ids of a session's requests start at a random number.

    All of `mcp` 1.x counts them from 0 in each connection, so that an answer meant for another one would fit. This
    writes the private name `_request_id`: nothing public sets where it starts.
    """
    counting: Any = session
    if getattr(counting, "_request_id", None) == 0:
        counting._request_id = secrets.randbits(_ID_BITS)
