"""How the calls of a tool become tasks: the options that `tool`, `task`, `run` and `adopt` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from typing_extensions import TypedDict

from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.reruns import Rerun
from mcp_task_runtime.core.settings import check_duration
from mcp_task_runtime.core.work_queue import WorkQueue

__all__ = ["DEFAULT_OPTIONS", "TaskOptions", "TaskOptionsDict"]

_USUAL_RERUN = Rerun()


class TaskOptionsDict(TypedDict, total=False):
    """The fields of `TaskOptions` as keyword arguments."""

    required: bool
    ttl_ms: int | None
    poll_interval_ms: int | None
    promote_after: float | None
    model_immediate_response: str | None
    rerunnable: bool | Rerun
    blocking: bool
    dispatch: bool | None
    queue: WorkQueue | None
    join: bool | Callable[[JSONObject], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How the calls of a tool become tasks.

    Attributes:
        required: Whether a client must take a task. If not, a client that takes none gets the result itself, and the
            work runs within its request.
        ttl_ms: TTL of the tasks in milliseconds, for clients that ask for none; the settings' default when `None`.
        poll_interval_ms: Milliseconds clients wait between polls; as the settings say when `None`.
        promote_after: Seconds to wait for the result before a client of protocol 2026-07-28 gets a task instead of
            it; `None` to give it a task at once. A question to the client ends the wait. Under protocol 2025-11-25
            the client decides: a call that asks for a task gets one at once, any other call gets none.
        model_immediate_response: What a client of protocol 2025-11-25 tells its model while the task runs (wire rule
            B3).
        rerunnable: Whether the work may run again, with the same arguments, when the process that ran it is lost; any
            process of the same server that shares the store does it. A question with the same method and params then
            gets the answer it got before, a step (`ServerTaskContext.step`) its result. If not, the task fails.
            A `Rerun` says how often, and for which exceptions as well; `True` is `Rerun()`.
        blocking: Whether the work may block, with `time.sleep` in an `async def` for example. It then runs in a thread
            with an event loop of its own, where its `ServerTaskContext` works. Without this, such work holds up every
            other request of the process. Of an adopted tool, all that the server has around the function runs there,
            too, and the SDK's own context asks, reports and logs from there; a function of `tool` or `task` cannot
            take that context. What belongs to the server's event loop, such as a connection pool of its lifespan, or
            `ctx.notify_tools_changed()` of `mcp` 2.x, cannot be used there, and what the function leaves running
            ends with it.
        dispatch: Whether worker processes run the work. `None`: they do where the Tasks have a dispatcher and the tool
            can run elsewhere. `True`: a tool that cannot is refused when it is registered. `False`: the work runs in
            the process that took the call.
        queue: Where the work of its tasks waits for a slot, by its owner's turn; give several tools the same one to
            bound them together. A task that waits has the status message "Queued". Calls that become no task do not
            wait. `None` for no bound but `TaskSettings.max_running`.
        join: Whether a repeated call gets the task of the first one, while that is live and shortly after its end
            (`TaskSettings.join_ended_ms`), unless it was cancelled: agents repeat calls whose answer was lost. `True`:
            a call of the same principal with the same arguments; without a principal, nothing is joined. A function
            of the arguments: one of the same principal for which it returns the same key; without a principal, any
            caller that knows the key gets the task. `None` from it: the call joins nothing.

    Raises:
        ValueError: A number is out of range; the message names it.
    """

    required: bool = False
    ttl_ms: int | None = None
    poll_interval_ms: int | None = None
    promote_after: float | None = None
    model_immediate_response: str | None = None
    rerunnable: bool | Rerun = False
    blocking: bool = False
    dispatch: bool | None = None
    queue: WorkQueue | None = None
    join: bool | Callable[[JSONObject], str | None] = False

    def __post_init__(self) -> None:
        if self.ttl_ms is not None and self.ttl_ms < 1:
            raise ValueError("ttl_ms must be at least 1")
        if self.poll_interval_ms is not None and self.poll_interval_ms < 1:
            raise ValueError("poll_interval_ms must be at least 1")
        if self.promote_after is not None:
            check_duration("promote_after", self.promote_after)
        if not isinstance(self.rerunnable, bool | Rerun):
            raise ValueError("rerunnable must be True, False or a Rerun")
        if self.queue is not None and not isinstance(self.queue, WorkQueue):
            raise ValueError("queue must be a WorkQueue")
        if not isinstance(self.join, bool) and not callable(self.join):
            raise ValueError("join must be True, False or a function of the arguments")
        if self.join and self.promote_after is not None:
            raise ValueError("join needs calls that become tasks before their work begins, without promote_after")

    @property
    def rerun(self) -> Rerun | None:
        """When the work runs again; `None` for never."""
        if isinstance(self.rerunnable, Rerun):
            return self.rerunnable
        return _USUAL_RERUN if self.rerunnable else None


DEFAULT_OPTIONS = TaskOptions()
