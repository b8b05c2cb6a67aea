"""Requests on `mcp` 1.x: their caller, their sessions, and errors."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeAlias, cast

import anyio
from mcp import types
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.session import ServerSession
from mcp.shared.context import RequestContext
from mcp.shared.exceptions import McpError
from mcp.shared.message import ServerMessageMetadata
from starlette.datastructures import Headers

from mcp_task_runtime.adapters.mcp_v1._connection import (
    answered_by,
    cancellable,
    current_connection,
    has_sessions,
    is_connected,
    use_random_request_ids,
)
from mcp_task_runtime.adapters.notifications import InTurn, StartSoon
from mcp_task_runtime.adapters.requestor import JSON_RESPONSES, NO_SESSION, http_manager
from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.causes import UnexpectedError
from mcp_task_runtime.core.context import client_error
from mcp_task_runtime.core.json import JSONObject, JSONValue, to_json_value
from mcp_task_runtime.core.store_calls import log_store_error
from mcp_task_runtime.core.text import shared_text
from mcp_task_runtime.errors import INTERNAL_ERROR, CapabilityError, ProtocolError, StoreError, TaskRuntimeError
from mcp_task_runtime.wire.client_values import client_json

__all__ = [
    "ConnectionSession",
    "Context",
    "KeptRequest",
    "RequestSession",
    "SharedSession",
    "as_caller",
    "as_kept_caller",
    "as_mcp_errors",
    "as_shown",
    "authenticated_principal",
    "declared_by",
    "is_stateless",
    "liveness",
    "mcp_error",
    "params_of",
    "progress_token",
    "protocol_version",
    "raw_result",
    "send_safely",
    "shared_session",
    "token_of",
    "undeliverable",
]

logger: logging.Logger = logging.getLogger(__name__)

# The session of mcp 2.x has the four members; this one is wrapped where it is passed as a TaskSession.
TaskSession.register(ServerSession)  # pyright: ignore[reportAttributeAccessIssue]  # each protocol is an ABC

Context: TypeAlias = RequestContext[Any, Any, Any]


class as_mcp_errors:  # read as a verb: with as_mcp_errors()
    """Context manager that turns this library's errors into the SDK's, with the code that belongs to them."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(exc, TaskRuntimeError):
            raise _as_mcp_error(exc) from exc


def _as_mcp_error(error: TaskRuntimeError) -> McpError:
    if isinstance(error, ProtocolError | CapabilityError):
        shown = client_error(error)  # sending what has no JSON form would end a stdio server
        return mcp_error(shown["code"], shown["message"], shown.get("data"))
    if isinstance(error, StoreError):
        log_store_error(logger, "The task store failed", error)
        return mcp_error(INTERNAL_ERROR, "The task store failed")
    return mcp_error(error.jsonrpc_code, str(error), error.data)


def as_shown(error: Exception) -> ProtocolError:
    """Return the error that the SDK would show the client where this exception leaves a `tools/call` handler."""
    if isinstance(error, McpError):
        return ProtocolError(error.error.code, error.error.message, error.error.data)
    return UnexpectedError(0, str(error))


def mcp_error(code: int, message: str, data: JSONValue = None) -> McpError:
    """Return an error of the SDK's."""
    return McpError(types.ErrorData(code=code, message=message, data=data))


def _user(ctx: Context) -> AuthenticatedUser | None:
    """Return who makes this very request; context variables are those of the connection's first one."""
    scope = getattr(ctx.request, "scope", None)
    user = scope.get("user") if scope is not None and isinstance(scope, Mapping) else auth_context_var.get()
    return user if isinstance(user, AuthenticatedUser) else None


def authenticated_principal(ctx: Context) -> str | None:
    """Return the principal of a request, in the same text as the adapter for `mcp` 2.x."""
    user = _user(ctx)
    if user is None:
        return None
    token = user.access_token
    issuer = (getattr(token, "claims", None) or {}).get("iss")
    principal = [token.client_id, None if issuer is None else str(issuer), getattr(token, "subject", None)]
    return json.dumps(principal, separators=(",", ":"))


@contextmanager
def as_kept_caller(token: JSONObject | None) -> Generator[None, None, None]:
    """Let `get_access_token()` return a token that was kept with a task, and no other request's."""
    reset = auth_context_var.set(None if token is None else AuthenticatedUser(AccessToken.model_validate(token)))
    try:
        yield
    finally:
        auth_context_var.reset(reset)


class KeptRequest:
    """In place of the HTTP request of a call, for work that runs without it: the headers that were kept."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = Headers(headers)


def token_of(ctx: Context) -> JSONObject | None:
    """Return the access token of this very request."""
    user = _user(ctx)
    token: JSONObject | None = None if user is None else to_json_value(user.access_token)
    return token


def protocol_version(ctx: Context) -> object:
    """Return the protocol revision of the connection, as far as it is known."""
    params = ctx.session.client_params
    return None if params is None else params.protocolVersion


class as_caller:  # read as a verb: with as_caller(ctx)
    """Context manager in which `get_access_token()` returns the token of this request, also in background work."""

    __slots__ = ("_token", "_user")

    def __init__(self, ctx: Context) -> None:
        self._user = _user(ctx)

    def __enter__(self) -> None:
        # Not set where it has the value already: a variable takes memory in each task that keeps this context.
        self._token = None if self._user is auth_context_var.get() else auth_context_var.set(self._user)

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            auth_context_var.reset(self._token)


def is_stateless(ctx: Context) -> bool:
    """Whether the client's requests come by several connections, so that it cannot be asked."""
    return ctx.session.client_params is None or not has_sessions()


def params_of(params: types.CallToolRequestParams) -> JSONObject:
    """Return what a task-augmented call says, as JSON; the SDK has checked it."""
    task: JSONValue = None if params.task is None else {"ttl": params.task.ttl}
    given: JSONObject = {"name": params.name, "arguments": params.arguments, "task": task}
    if params.meta is not None:
        given["_meta"] = to_json_value(params.meta)
    return given


def progress_token(ctx: Context) -> str | int | None:
    return None if ctx.meta is None else ctx.meta.progressToken


def undeliverable(ctx: Context) -> str | None:
    """Return why no question can reach this client, if that is so."""
    if is_stateless(ctx):
        return NO_SESSION
    manager = None if ctx.request is None else http_manager(ctx.request)
    return JSON_RESPONSES if manager is not None and manager.json_response else None


def liveness(ctx: Context) -> Callable[[], Awaitable[bool]] | None:
    """Return a function that says whether the client still reads this request's stream.

    Over Streamable HTTP a stream may end while the connection lives, and the handler does not learn of it.
    """
    headers = getattr(ctx.request, "headers", None)
    if headers is None or "mcp-session-id" not in headers:
        return None
    request: Any = ctx.request

    async def is_alive() -> bool:
        return not await request.is_disconnected()

    return is_alive


class _RawMessage:
    """A message the SDK sends as it is: it only asks for a dump."""

    def __init__(self, message: JSONObject) -> None:
        self._message = message

    def model_dump(self, **_: Any) -> JSONObject:
        return dict(self._message)


def raw_result(result: JSONObject) -> types.ServerResult:
    """Return a result that is sent as it is: the SDK's own models leave out a `ttl` of `null` (A4)."""
    return cast(types.ServerResult, _RawMessage(result))


class _RawAnswer:
    """A result type that takes any result as it is."""

    @staticmethod
    def model_validate(value: Any, **_: Any) -> Any:
        return value


def declared_by(session: ServerSession) -> JSONObject:
    """Return what the client of a connection declared, as JSON."""
    params = session.client_params
    declared: JSONObject | None = None if params is None else to_json_value(params.capabilities)
    return declared or {}


async def send_safely(session: Any, notification: object, related_request_id: Any) -> None:
    """Send a notification; a client that has left is no error."""
    try:
        await session.send_notification(notification, related_request_id)
    except (anyio.ClosedResourceError, anyio.BrokenResourceError):
        logger.debug("A notification was dropped: the client has left")


class ConnectionSession:
    """The `TaskSession` of a whole connection: what is sent here belongs to no request."""

    __slots__ = ("_may_answer", "_session", "can_send_request")

    _metadata: ServerMessageMetadata | None = None

    def __init__(self, ctx: Context, may_answer: Callable[[object], bool] | None = None) -> None:
        """Make the session of the connection that a request came by.

        Args:
            ctx: The request.
            may_answer: Called with the HTTP request that brings a response: whether its principal was asked.
        """
        self._may_answer = may_answer
        self.can_send_request: bool = not is_stateless(ctx)
        self._session = ctx.session
        use_random_request_ids(ctx.session)

    @property
    def client_capabilities(self) -> JSONObject:
        """What the client declared when it connected."""
        return declared_by(self._session)

    async def send_notification(self, method: str, params: JSONObject) -> None:
        await self._send(method, params, None)

    async def _send(self, method: str, params: JSONObject, related_request_id: Any) -> None:
        await send_safely(self._session, _RawMessage({"method": method, "params": params}), related_request_id)

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        try:
            return await cancellable(functools.partial(self._send_request, method, params))
        except McpError as error:
            if error.error.code == types.CONNECTION_CLOSED and not is_connected():
                raise ConnectionError("The client has left") from error
            raise ProtocolError(error.error.code, error.error.message, error.error.data) from error

    async def _send_request(self, method: str, params: JSONObject) -> JSONObject:
        with answered_by(self._session, self._may_answer):
            result: Any = await self._session.send_request(
                cast(Any, _RawMessage({"method": method, "params": params})),
                cast(Any, _RawAnswer),
                metadata=self._metadata,
            )
        return cast(JSONObject, result)


class SharedSession(ConnectionSession):
    """The one `ConnectionSession` of all tasks of a connection, with what they need to know of it.

    Attributes:
        session: The SDK's session.
        declared: Returns what the client declared, as JSON.
        news: Tells the client of its tasks, one after the other.
        tell_soon: Starts what tells the client of a task: `news.start_soon`.
    """

    __slots__ = ("_declared_json", "_experimental", "_params", "declared", "news", "session", "tell_soon")

    def __init__(self, ctx: Context, start_soon: StartSoon) -> None:
        """Make the session of the connection that a request came by.

        Args:
            ctx: The request.
            start_soon: Starts what tells the client in the background.
        """
        super().__init__(ctx)
        self.session: Any = ctx.session
        self.declared: Callable[[], JSONObject] = functools.partial(declared_by, ctx.session)
        self.news: InTurn = InTurn(start_soon)
        self.tell_soon: StartSoon = self.news.start_soon  # bound once: each task keeps it
        self._params: object = None
        self._declared_json = "{}"
        self._experimental: Any = None

    @property
    def declared_json(self) -> str:
        """What the client declared, as JSON text.

        Raises:
            ProtocolError: It has values that no store takes.
        """
        params = self.session.client_params
        if params is not self._params:
            self._declared_json = shared_text(client_json("capabilities", self.declared()))
            self._params = params
        return self._declared_json

    def shared_experimental(self, own: Any) -> Any:
        """Return what stands for the SDK's own tasks in the context of a request: one for all that say the same.

        A task that waits for days need not hold what its request said.
        """
        kept = self._experimental
        if kept is None or _said_by(kept) != _said_by(own):
            self._experimental = own
        return self._experimental


def _said_by(experimental: Any) -> object:
    """Return what a client said of the task that it asks for."""
    metadata = getattr(experimental, "task_metadata", None)
    return metadata if metadata is None else (metadata.ttl, metadata.model_extra)


class RequestSession(ConnectionSession):
    """The `TaskSession` of one request: what is sent here goes over its stream."""

    def __init__(self, ctx: Context, may_answer: Callable[[object], bool] | None = None) -> None:
        super().__init__(ctx, may_answer)
        self._request_id = ctx.request_id
        self._metadata = ServerMessageMetadata(related_request_id=ctx.request_id)

    async def send_notification(self, method: str, params: JSONObject) -> None:
        await self._send(method, params, self._request_id)


def shared_session(ctx: Context, start_soon: StartSoon) -> SharedSession:
    """Return the session that all tasks of a request's connection share.

    Args:
        ctx: The request.
        start_soon: As for `SharedSession`.
    """
    connection = current_connection()
    if connection is None:
        return SharedSession(ctx, start_soon)
    shared = connection.shared
    if not isinstance(shared, SharedSession) or shared.session is not ctx.session:
        shared = connection.shared = SharedSession(ctx, start_soon)
    return shared
