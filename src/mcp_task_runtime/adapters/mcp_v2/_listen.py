"""Push on `mcp` 2.x: the `taskIds` of `subscriptions/listen` (wire rule C11).

All streams that listen to one task share one wait in the store, and one read for each change. A slow reader sees
fewer of the states in between, always in order and always the last one; many readers get a change in turns.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import anyio
import anyio.lowlevel
from mcp.server.context import CallNext, HandlerResult
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp_types import (
    RequestId,
    SubscriptionFilter,
    SubscriptionsAcknowledgedNotification,
    SubscriptionsAcknowledgedNotificationParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.mcp_v2._listened import ListenedTasks
from mcp_task_runtime.adapters.mcp_v2._requests import Context, RawMessage, as_mcp_errors, declares_tasks
from mcp_task_runtime.core import audit
from mcp_task_runtime.core.followers import TaskFollower
from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.store_calls import log_store_error, pause_after
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import (
    INVALID_PARAMS,
    LimitExceededError,
    ProtocolError,
    StoreClosedError,
    StoreError,
    StoreUnavailableError,
    TaskNotFoundError,
)
from mcp_task_runtime.wire import v2026_07_28 as wire_2026

__all__ = ["MAX_TASKS_PER_STREAM", "Listeners", "is_listen"]

logger: logging.Logger = logging.getLogger(__name__)

MAX_TASKS_PER_STREAM: Final = 1000
"""Tasks that one stream may listen to."""

_LONGEST_ID: Final = 200
"""Characters of an id that may be one of ours."""

_BATCH: Final = 32
"""Tasks that are read before others have their turn."""


def is_listen(ctx: Context) -> bool:
    """Whether this is a `subscriptions/listen` request, which older protocol revisions do not have."""
    return (
        ctx.method == "subscriptions/listen"
        and ctx.request_id is not None
        and ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
    )


class Listeners:
    """Serves the `subscriptions/listen` requests of one server, and bounds what they listen to (law L16)."""

    def __init__(self, runtime: TaskRuntime, host: RuntimeHost) -> None:
        """Make the listeners of a server; the host must hold the runtime open while they are served."""
        self._runtime = runtime
        self._host = host
        self._listened: Counter[str | None] = Counter()

    @property
    def listened(self) -> int:
        """Number of tasks that streams listen to, each counted once for each stream."""
        return self._listened.total()

    async def serve(self, owner: str | None, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Serve a listen request: tasks, together with the core filters if there are any.

        The stream ends when it listens to tasks alone and all of them have ended, and when the server stops.

        Raises:
            MCPError: It names tasks, and the extension was not declared, or `taskIds` is malformed or too long, or
                the owner's streams listen to as many tasks as they may.
        """
        notifications = (ctx.params or {}).get("notifications")
        task_ids = notifications.get("taskIds") if isinstance(notifications, Mapping) else None
        if task_ids is None:
            with self._host.until_stopped():
                return await call_next(ctx)
            return _ended(ctx)
        assert isinstance(notifications, Mapping)
        with as_mcp_errors():
            if not declares_tasks(ctx):
                raise wire_2026.missing_capability()
            wanted = _checked(task_ids)
            reserved = self._reserve(owner, max(1, len(wanted)))
        try:
            with as_mcp_errors():
                agreed = await self._agreed(wanted, owner)
            reserved = self._release(owner, reserved - max(1, len(agreed)), of=reserved)
            with self._host.until_stopped():
                if any(name != "taskIds" and is_wanted for name, is_wanted in notifications.items()):
                    return await self._serve_both(ctx, call_next, agreed, owner)
                alone = _acknowledgement(ctx.request_id, SubscriptionFilter(), _ids(agreed))
                await ctx.session.send_notification(alone, ctx.request_id)
                await self._push_all(ctx, agreed, owner)
        finally:
            self._release(owner, reserved, of=reserved)
        return _ended(ctx)

    def _reserve(self, owner: str | None, count: int) -> int:
        limit = self._runtime.settings.max_listened_tasks_per_owner
        if limit is not None and self._listened[owner] + count > limit:
            if not self._listened[owner]:
                del self._listened[owner]
            raise LimitExceededError("tasks that are listened to", limit)
        self._listened[owner] += count
        return count

    def _release(self, owner: str | None, count: int, *, of: int) -> int:
        self._listened[owner] -= count
        if not self._listened[owner]:
            del self._listened[owner]
        return of - count

    async def _agreed(self, task_ids: Sequence[str], owner: str | None) -> deque[TaskView]:
        """Return those of the tasks that are the caller's, as they are: the others are left out without a word.

        So is one that cannot be read: it costs the stream no other (law L13).
        """
        agreed: deque[TaskView] = deque()
        for number, task_id in enumerate(task_ids, 1):
            if number % _BATCH == 0:
                await anyio.lowlevel.checkpoint()  # a store in memory answers without one
            try:
                agreed.append(await self._runtime.get(task_id, owner=owner))
            except TaskNotFoundError:
                continue
            except StoreUnavailableError:
                raise
            except StoreError as error:
                log_store_error(logger, "A task cannot be listened to", error)
        return agreed

    async def _serve_both(
        self, ctx: Context, call_next: CallNext, agreed: deque[TaskView], owner: str | None
    ) -> HandlerResult:
        """Have the SDK serve the core filters, and push tasks on the same stream."""
        result: HandlerResult = None
        failure: Exception | None = None
        async with anyio.create_task_group() as group:

            def start() -> None:
                group.start_soon(self._push_all, ctx, agreed, owner)

            proxy = _AcknowledgingSession(ctx.session, _ids(agreed), start)
            try:
                result = await call_next(replace(ctx, session=cast(Any, proxy)))
            except Exception as error:  # the group would wrap it
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result

    async def _push_all(self, ctx: Context, agreed: deque[TaskView], owner: str | None) -> None:
        """Send each task as it is, and again after each change, until all of them have ended or are gone."""
        sent = 0
        with ListenedTasks(self._runtime.followers) as listened:
            async with anyio.create_task_group() as group:
                while agreed:  # a stream that waits keeps nothing of the tasks
                    task_id, revision = agreed[0].record.task_id, agreed[0].record.revision
                    if await self._send(ctx, agreed.popleft(), owner):
                        listened.follow(task_id, after=revision)
                    sent = await _rest(sent)
                while (taken := await listened.next()) is not None:
                    if taken[1].has_to_read:  # others need not wait for the store
                        group.start_soon(self._push, ctx, listened, *taken, owner)
                    else:
                        await self._push(ctx, listened, *taken, owner)
                    sent = await _rest(sent)

    async def _push(
        self, ctx: Context, listened: ListenedTasks, task_id: str, follower: TaskFollower, owner: str | None
    ) -> None:
        """Send a task that was taken if it is newer than what was sent last; one that cannot be read is tried again."""
        try:
            view = await self._news(follower)
        except TaskNotFoundError:
            listened.leave(task_id)
            return
        if view is None or await self._send(ctx, view, owner):
            listened.put_back(task_id)
        else:
            listened.leave(task_id)

    async def _news(self, follower: TaskFollower) -> TaskView | None:
        """Return what is new of a task; a store that fails for it costs the stream no other task (law L13)."""
        failures = 0
        while True:
            try:
                return await follower.news()
            except StoreClosedError:
                raise
            except StoreError as error:
                if not failures:
                    log_store_error(logger, "A task that is listened to cannot be read; trying again", error)
                failures += 1
            await pause_after(failures)

    async def _send(self, ctx: Context, view: TaskView, owner: str | None) -> bool:
        """Send a task; return whether it may still change."""
        params: JSONObject = {
            **wire_2026.render_view(self._runtime.paced(view)),
            "_meta": {SUBSCRIPTION_ID_META_KEY: ctx.request_id},
        }
        message = cast(Any, RawMessage(wire_2026.NOTIFICATION, params))
        await ctx.session.send_notification(message, ctx.request_id)
        if not is_terminal(view.task.status):
            return True
        audit.retrieved(view.record.task_id, owner)
        return False


async def _rest(sent: int) -> int:
    """Let others have their turn after so many notifications: a connection in memory takes them without waiting."""
    if (sent + 1) % _BATCH == 0:
        await anyio.lowlevel.checkpoint()
    return sent + 1


def _ended(ctx: Context) -> HandlerResult:
    return {"resultType": "complete", "_meta": {SUBSCRIPTION_ID_META_KEY: ctx.request_id}}


def _ids(views: Iterable[TaskView]) -> list[str]:
    return [view.record.task_id for view in views]


def _checked(task_ids: JSONValue) -> list[str]:
    if not isinstance(task_ids, list) or not all(isinstance(task_id, str) for task_id in task_ids):
        raise ProtocolError(INVALID_PARAMS, "taskIds must be a list of strings")
    if len(task_ids) > MAX_TASKS_PER_STREAM:
        raise LimitExceededError("tasks per listen stream", MAX_TASKS_PER_STREAM)
    return [task_id for task_id in dict.fromkeys(task_ids) if len(task_id) <= _LONGEST_ID]


def _acknowledgement(
    subscription_id: RequestId | None, core: SubscriptionFilter, task_ids: Sequence[str]
) -> SubscriptionsAcknowledgedNotification:
    agreed = SubscriptionFilter.model_validate(
        {**core.model_dump(by_alias=True, exclude_none=True), "taskIds": list(task_ids)}
    )
    return SubscriptionsAcknowledgedNotification(
        params=SubscriptionsAcknowledgedNotificationParams.model_validate(
            {"notifications": agreed, "_meta": {SUBSCRIPTION_ID_META_KEY: subscription_id}}
        )
    )


class _AcknowledgingSession:
    """The request's session, for the SDK's own listen handler: its acknowledgement also names the tasks."""

    def __init__(self, session: Any, task_ids: Sequence[str], on_acknowledged: Callable[[], None]) -> None:
        self._session = session
        self._task_ids = task_ids
        self._on_acknowledged = on_acknowledged

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def send_notification(self, notification: Any, related_request_id: Any = None) -> None:
        if isinstance(notification, SubscriptionsAcknowledgedNotification):
            both = _acknowledgement(related_request_id, notification.params.notifications, self._task_ids)
            await self._session.send_notification(both, related_request_id)
            self._on_acknowledged()
            return
        await self._session.send_notification(notification, related_request_id)
