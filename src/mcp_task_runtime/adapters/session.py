"""`TaskSession`: all this library needs of a connection, in JSON terms."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from mcp_task_runtime.core.json import JSONObject, load_json
from mcp_task_runtime.core.types import Outcome, Progress, Task
from mcp_task_runtime.errors import CapabilityError

__all__ = ["DetachedSession", "TaskSession"]


@runtime_checkable
class TaskSession(Protocol):
    """A connection to one client. Anything with these four members is one."""

    @property
    def client_capabilities(self) -> JSONObject:
        """What the client declared, as in `initialize` or in the request's `_meta`; `{}` for nothing."""
        ...

    @property
    def can_send_request(self) -> bool:
        """Whether a request can be sent to the client now."""
        ...

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Send a notification. A client that has left is no error."""
        ...

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Send a request and return its result.

        Raises:
            ProtocolError: The client answered with a JSON-RPC error.
            Exception: Anything else means that the client did not answer; the request may be sent again.
        """
        ...


class DetachedSession:
    """The `TaskSession` of work whose request is over: its client is only reached through the task.

    It is also a `TaskNotifier` that does nothing: the client sees the task when it polls, or by a push.
    """

    __slots__ = ("_capabilities_json",)

    can_send_request = False

    def __init__(self, capabilities_json: str = "{}") -> None:
        """Make a session.

        Args:
            capabilities_json: What the client declared when it made the task, as JSON text.
        """
        self._capabilities_json = capabilities_json

    @property
    def client_capabilities(self) -> JSONObject:
        """What the client declared when it made the task."""
        value: JSONObject = load_json(self._capabilities_json)
        return value

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Do nothing: there is no connection to send a notification on."""

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Refuse: there is no connection to send a request on.

        Raises:
            CapabilityError: Always.
        """
        raise CapabilityError("This connection carries no requests to the client")

    async def notify_status(self, task: Task, outcome: Outcome | None) -> None:
        """Do nothing."""

    async def notify_progress(self, task: Task, progress: Progress) -> None:
        """Do nothing."""
