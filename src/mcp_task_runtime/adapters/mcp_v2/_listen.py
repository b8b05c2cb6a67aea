"""Push on `mcp` 2.x: the `taskIds` of `subscriptions/listen` (wire rule C11).

Each listed task has a waiter of its own for as long as the stream lives, so a change costs work only
for those who listen to that task. A slow reader sees fewer of the states in between, always in order and
always the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import anyio
import anyio.abc
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
from mcp_task_runtime.adapters.mcp_v2._requests import Context, RawMessage, as_mcp_errors, declares_tasks
from mcp_task_runtime.core import audit
from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.errors import INVALID_PARAMS, LimitExceededError, ProtocolError, TaskNotFoundError
from mcp_task_runtime.wire import v2026_07_28 as wire

__all__ = ["MAX_TASKS_PER_STREAM", "is_listen", "serve_listen"]

MAX_TASKS_PER_STREAM: Final = 1000
"""Tasks that one stream may listen to."""


def is_listen(ctx: Context) -> bool:
    """Whether this is a `subscriptions/listen` request, which older protocol revisions do not have."""
    return (
        ctx.method == "subscriptions/listen"
        and ctx.request_id is not None
        and ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
    )


async def serve_listen(
    runtime: TaskRuntime, host: RuntimeHost, owner: str | None, ctx: Context, call_next: CallNext
) -> HandlerResult:
    """Serve a listen request: tasks, with the core filters beside them if there are any, or those alone.

    The stream ends by itself when it listens to tasks alone and all of them have ended, and when the
    server is to stop.

    Raises:
        MCPError: It names tasks, and the extension was not declared, or `taskIds` is malformed or too long.
    """
    notifications = (ctx.params or {}).get("notifications")
    task_ids = notifications.get("taskIds") if isinstance(notifications, Mapping) else None
    agreed: list[str] = []
    if task_ids is not None:
        with as_mcp_errors():
            if not declares_tasks(ctx):
                raise wire.missing_capability()
            agreed = await _agreed(runtime, _checked(task_ids), owner)
    with host.until_stopped():
        if task_ids is None:
            return await call_next(ctx)
        assert isinstance(notifications, Mapping)
        if any(name != "taskIds" and wanted for name, wanted in notifications.items()):
            return await _serve_both(runtime, ctx, call_next, agreed, owner)
        alone = _acknowledgement(ctx.request_id, SubscriptionFilter(), agreed)
        await ctx.session.send_notification(alone, ctx.request_id)
        await _push_all(runtime, ctx, agreed, owner)
    return {"resultType": "complete", "_meta": {SUBSCRIPTION_ID_META_KEY: ctx.request_id}}


async def _serve_both(
    runtime: TaskRuntime, ctx: Context, call_next: CallNext, task_ids: Sequence[str], owner: str | None
) -> HandlerResult:
    """Have the SDK serve the core filters, and push tasks beside it."""
    result: HandlerResult = None
    failure: Exception | None = None
    async with anyio.create_task_group() as group:

        def start() -> None:
            group.start_soon(_push_all, runtime, ctx, task_ids, owner)

        proxy = _AcknowledgingSession(ctx.session, task_ids, start)
        try:
            result = await call_next(replace(ctx, session=cast(Any, proxy)))
        except Exception as error:  # the group would wrap it
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result


def _checked(task_ids: JSONValue) -> list[str]:
    if not isinstance(task_ids, list) or not all(isinstance(task_id, str) for task_id in task_ids):
        raise ProtocolError(INVALID_PARAMS, "taskIds must be a list of strings")
    if len(task_ids) > MAX_TASKS_PER_STREAM:
        raise LimitExceededError("tasks per listen stream", MAX_TASKS_PER_STREAM)
    return list(dict.fromkeys(task_ids))


async def _agreed(runtime: TaskRuntime, task_ids: Sequence[str], owner: str | None) -> list[str]:
    """Return those of the ids that are the caller's: the others are left out without a word."""
    agreed = []
    for task_id in task_ids:
        try:
            await runtime.get(task_id, owner=owner)
        except TaskNotFoundError:
            continue
        agreed.append(task_id)
    return agreed


async def _push_all(runtime: TaskRuntime, ctx: Context, task_ids: Sequence[str], owner: str | None) -> None:
    async with anyio.create_task_group() as group:
        for task_id in task_ids:
            group.start_soon(_push, runtime, ctx, task_id, owner)


async def _push(runtime: TaskRuntime, ctx: Context, task_id: str, owner: str | None) -> None:
    """Send a task as it is now, and again after each change, until it has ended or is gone."""
    try:
        while True:
            view = await runtime.get(task_id, owner=owner)
            params: JSONObject = {
                **wire.render_view(view),
                "_meta": {SUBSCRIPTION_ID_META_KEY: ctx.request_id},
            }
            await ctx.session.send_notification(cast(Any, RawMessage(wire.NOTIFICATION, params)), ctx.request_id)
            if is_terminal(view.task.status):
                audit.retrieved(task_id, owner)
                return
            await runtime.store.wait_for_update(task_id, after=view.record.revision)
    except TaskNotFoundError:
        return


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
