"""`TaskStreamSession`: what reaches the client of a task of revision 2025-11-25 after its call was answered."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mcp_task_runtime.adapters.notifications import LatestSender, StartSoon
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.store_calls import log_loss
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import Outcome, Progress, Task, TaskRecord
from mcp_task_runtime.errors import StoreError, TaskNotFoundError
from mcp_task_runtime.wire import v2025_11_25 as wire_2025

__all__ = ["TaskStreamSession"]

logger: logging.Logger = logging.getLogger(__name__)


class TaskStreamSession:
    """The `TaskSession` of a task: what its work can send when the call is long answered.

    As a `TaskNotifier` it sends each status over the connection (wire rule B10), and progress over the stream of a
    `tasks/result` if there is one (B11).
    """

    __slots__ = (
        "_connection",
        "_handler",
        "_is_over",
        "_is_telling",
        "_news",
        "_progress",
        "_record",
        "_runtime",
        "_start_soon",
        "_statuses",
        "_told",
        "_told_progress",
        "_unwatch",
        "_with_progress",
    )

    can_send_request = False

    def __init__(
        self, record: TaskRecord, connection: TaskSession, handler: TaskResultHandler, start_soon: StartSoon
    ) -> None:
        """Make the session of a task.

        Args:
            record: The task as it was made.
            connection: What of the client's connection outlives the call.
            handler: Knows the streams of the task in this process.
            start_soon: Starts what tells the client in the background.
        """
        self._record = record
        self._told: JSONValue = record.task.status
        self._connection = connection
        self._handler = handler
        self._start_soon = start_soon
        self._statuses: LatestSender | None = None  # for what the work itself says
        self._progress: LatestSender | None = None
        self._runtime: TaskRuntime | None = None
        self._unwatch: Callable[[], None] | None = None
        self._news: TaskRecord | None = None
        self._is_telling = False
        self._is_over = False
        self._with_progress = False
        self._told_progress: Progress | None = None

    @property
    def client_capabilities(self) -> JSONObject:
        """What the client declared when it made the task."""
        return self._record.client_capabilities

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Send a notification about the task, over one of its streams or the connection."""
        task_id = self._record.task_id
        params = wire_2025.with_related_task(params, task_id)
        if not await self._handler.notify(task_id, method, params):
            await self._connection.send_notification(method, params)

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Refuse: requests go through the task's questions.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("Requests to the client go through the task's questions")

    async def notify_status(self, task: Task, outcome: Outcome | None) -> None:
        """Send the whole task. The work waits half a second at most for a client that does not read."""
        if self._statuses is None:
            self._statuses = LatestSender(self._connection, self._start_soon)
        await self._send_status(wire_2025.render_task(task, outcome))

    async def _send_status(self, params: JSONObject) -> None:
        self._told = params["status"]
        if self._statuses is not None:
            await self._statuses.send(wire_2025.STATUS_NOTIFICATION, params)
            return
        try:  # in the background: nothing but the news of this connection waits for its client
            await self._connection.send_notification(wire_2025.STATUS_NOTIFICATION, params)
        except Exception:
            logger.debug("A change of a task was not announced", exc_info=True)

    async def notify_progress(self, task: Task, progress: Progress) -> None:
        """Send the whole task, and progress if the client gave a token for it."""
        await self.notify_status(task, None)
        token = self._record.request.progress_token
        if token is not None:
            if self._progress is None:
                self._progress = LatestSender(self, self._start_soon)
            await self._progress.send(*wire_2025.render_progress(progress, token))

    def announce(self, runtime: TaskRuntime, *, with_progress: bool = False) -> None:
        """Send each change of the task's status, unless the work has sent it, until the task has ended.

        Args:
            runtime: Follows the task.
            with_progress: Whether to send progress, too: the work runs in another process.
        """
        record = self._record
        self._runtime = runtime
        self._with_progress = with_progress
        unwatch = runtime.followers.watch(record.task_id, self._on_change, after=record.revision)
        if self._is_over:  # the first call was the last one
            unwatch()
        else:
            self._unwatch = unwatch

    def _on_change(self, record: TaskRecord | None) -> None:
        if record is None or is_terminal(record.status):
            self._is_over = True
            unwatch, self._unwatch = self._unwatch, None
            if unwatch is not None:
                unwatch()
        self._news = record
        if record is None or self._is_telling:
            return
        if record.status != self._told or self._has_progressed(record):
            self._is_telling = True
            self._start_soon(self._tell)

    def _has_progressed(self, record: TaskRecord) -> bool:
        return self._with_progress and record.progress not in (None, self._told_progress) and record.outcome is None

    async def _tell(self) -> None:
        """Send what is new, and again while there is something newer. It does not raise."""
        try:
            while (record := self._news) is not None:
                self._news = None
                await self._tell_of(record)
        except TaskNotFoundError:
            return
        except StoreError as error:
            log_loss(logger, "A change of a task was not announced", error)
        finally:
            self._is_telling = False

    async def _tell_of(self, record: TaskRecord) -> None:
        if self._has_progressed(record):
            assert record.progress is not None
            self._told_progress = record.progress
            await self.notify_progress(record.task, record.progress)
            return
        params = wire_2025.render_record(record)
        if params["status"] == self._told:
            return
        if record.status == "input_required":
            assert self._runtime is not None
            params = wire_2025.render_view(await self._runtime.get(record.task_id, owner=record.owner))
            if params["status"] != self._told:  # the question waits for a person elsewhere
                await self._send_status(params)
        else:
            await self._send_status(params)
