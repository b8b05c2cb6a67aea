"""`TaskStore`: what a backend promises about the state of tasks."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.types import LiveStatus, Outcome, TaskPage, TaskRecord, TaskRequest

__all__ = ["TaskStore"]


@runtime_checkable
class TaskStore(Protocol):
    """State of tasks and their outcomes.

    A store implements these members and no more. For every method:

    - **Atomic.** It happens in full or not at all, for every observer, also when it is cancelled at any
      of its awaits (L6). Which changes are allowed is decided by `core.transitions` alone.
    - **Snapshots.** What it returns is frozen; what it was given may be changed afterwards without
      effect (L4).
    - **Time.** A task past `Task.expires_at` by `clock` does not exist any more: not for reading,
      changing, listing or waiting (L7), and nothing of it is kept for long (L8).
    - **Owners.** A store does not check who asks; `TaskRuntime` does (L10).

    Not promised: any order between calls that overlap, and a checkpoint in a call that need not wait.
    """

    @property
    def clock(self) -> Clock:
        """The clock that stamps and expires tasks; everything above the store uses the same one."""
        ...

    async def create_task(
        self,
        *,
        ttl_ms: int | None,
        poll_interval_ms: int = 500,
        task_id: str | None = None,
        owner: str | None = None,
        retention_ms: int = 0,
        request: TaskRequest | None = None,
        client_capabilities_json: str = "{}",
        worker: str | None = None,
        lease_ms: int = 30_000,
    ) -> TaskRecord:
        """Create a task in status `working`, at revision 1 (wire rules A1, C4).

        When this returns, every process that uses the backend finds the task, and with a durable
        backend no kill loses it (L12). Cancelled, the task may exist.

        Args:
            ttl_ms: Milliseconds until the task expires; `None` for never.
            poll_interval_ms: Milliseconds a client should wait between polls.
            task_id: Identifier to use; one with at least 128 random bits is made when it is `None`.
            owner: Principal the task belongs to.
            retention_ms: Milliseconds the outcome stays fetchable after the end, at the least.
            request: The request the task is made for.
            client_capabilities_json: What the client declared, as JSON text.
            worker: Name of the process that runs the work: it holds the first lease (law L12). A store
                that does not implement `TaskLeases` only records it.
            lease_ms: How long that lease lasts, in milliseconds.

        Raises:
            TaskExistsError: `task_id` is taken.
        """
        ...

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task as it is now, or `None` when there is none."""
        ...

    async def update_task(
        self,
        task_id: str,
        *,
        status: LiveStatus | None = None,
        status_message: str | None = None,
        if_revision: int | None = None,
    ) -> TaskRecord:
        """Change a live task; what is `None` stays as it is. Each accepted call adds one to the revision.

        Args:
            task_id: Identifier that `create_task` returned.
            status: `working` or `input_required`.
            status_message: Text for people to read.
            if_revision: Write only if the task is still at this revision.

        Returns:
            The stored snapshot.

        Raises:
            TaskNotFoundError: The task is unknown or its TTL has passed.
            InvalidTransitionError: The task has ended, or `status` is not a live one; nothing changed.
            RevisionConflictError: The task is at another revision than `if_revision`; nothing changed.
        """
        ...

    async def finish_task(self, task_id: str, outcome: Outcome) -> TaskRecord:
        """Record a terminal status and its outcome in one atomic write (L2).

        Of concurrent callers exactly one wins. Cancelled, the write happened in full or not at all.
        The TTL grows where the outcome would be gone before `retention_ms` have passed (L7). The task's
        lease goes (L12).

        The store does not know the task's mailbox: whoever ends a task afterwards calls
        `TaskMessageQueue.clear` for it, also when cancelled, so that who asks or waits there is released (L5).
        `TaskRuntime` does.

        Args:
            task_id: Identifier that `create_task` returned.
            outcome: Result, error or cancellation to store.

        Returns:
            The stored snapshot, never a live reference.

        Raises:
            TaskNotFoundError: The task is unknown or its TTL has passed.
            InvalidTransitionError: The task has already ended; nothing changed.
        """
        ...

    async def get_result(self, task_id: str) -> Outcome | None:
        """Return how the task ended, or `None` while it has not.

        Raises:
            TaskNotFoundError: The task is unknown or its TTL has passed.
        """
        ...

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of one owner's tasks, oldest first (wire rule B9).

        Walking the pages shows every task that exists throughout exactly once, whatever is created or
        deleted meanwhile. A cursor stays good when the task it was made at is gone.

        Args:
            owner: Whose tasks; `None` lists those without an owner.
            cursor: `TaskPage.next_cursor` of the page before; `None` for the first.
            limit: Tasks a page, at least 1.

        Raises:
            InvalidCursorError: The cursor was not made by this store for this owner.
            ValueError: `limit` is below 1.
        """
        ...

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task and all that belongs to it. Returns whether there was one.

        Whoever waits for it is woken with `TaskNotFoundError`. A queue that is not this store's own keeps the
        mailbox: call `TaskMessageQueue.clear`, as after `finish_task`.
        """
        ...

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        """Wait until the task's revision is greater than `after`; return it as it is then (L3).

        Level-triggered: a change that came before the call counts, so nothing is lost between reading
        a task and waiting for it. Every waiter wakes. Revisions in between may be skipped.

        Raises:
            TaskNotFoundError: The task is unknown, or expires or is deleted while waiting.
            StoreClosedError: The store was closed while waiting.
        """
        ...
