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
from mcp.server.mcpserver import authenticated_principal
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp_types import (
    RequestId,
    SubscriptionFilter,
    SubscriptionsAcknowledgedNotification,
    SubscriptionsAcknowledgedNotificationParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from mcp_task_runtime.adapters.mcp_v2_support import Context, RawMessage, as_mcp_errors, declares_tasks
from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.errors import INVALID_PARAMS, LimitExceededError, ProtocolError, TaskNotFoundError
from mcp_task_runtime.wire import v2026_07_28 as wire

__all__ = ["MAX_TASKS_PER_STREAM", "serve_listen", "wanted_task_ids"]

MAX_TASKS_PER_STREAM: Final = 1000
"""Tasks that one stream may listen to."""


def wanted_task_ids(ctx: Context) -> JSONValue:
    """Return the `taskIds` of a `subscriptions/listen` request, unchecked; `None` if it has none."""
    if ctx.method != "subscriptions/listen" or ctx.request_id is None:
        return None
    if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return None  # there is no such method
    notifications = (ctx.params or {}).get("notifications")
    return notifications.get("taskIds") if isinstance(notifications, Mapping) else None


async def serve_listen(runtime: TaskRuntime, task_ids: JSONValue, ctx: Context, call_next: CallNext) -> HandlerResult:
    """Serve a listen request that names tasks, with the core filters beside them if there are any.

    The stream ends by itself when it listens to tasks alone and all of them have ended.

    Raises:
        MCPError: The extension was not declared, or `taskIds` is malformed or too long.
    """
    owner = authenticated_principal(ctx)
    with as_mcp_errors():
        if not declares_tasks(ctx):
            raise wire.missing_capability()
        agreed = await _agreed(runtime, _checked(task_ids), owner)
    notifications = cast(Mapping[str, Any], (ctx.params or {})["notifications"])
    if any(name != "taskIds" and wanted for name, wanted in notifications.items()):
        result: HandlerResult = None
        failure: Exception | None = None
        async with anyio.create_task_group() as group:

            def start() -> None:
                group.start_soon(_push_all, runtime, ctx, agreed, owner)

            proxy = _AcknowledgingSession(ctx.session, agreed, start)
            try:
                result = await call_next(replace(ctx, session=cast(Any, proxy)))
            except Exception as error:  # the group would wrap it
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result
    await ctx.session.send_notification(_acknowledgement(ctx.request_id, SubscriptionFilter(), agreed), ctx.request_id)
    await _push_all(runtime, ctx, agreed, owner)
    return {"resultType": "complete", "_meta": {SUBSCRIPTION_ID_META_KEY: ctx.request_id}}


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
