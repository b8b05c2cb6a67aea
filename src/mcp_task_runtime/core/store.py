"""`TaskStore`: what a backend promises about the state of tasks, and the further abilities it may have.

A custom store implements `TaskStore` and no more. Abilities are protocols of their own, declared by
implementing them: `TaskLeases`, `TaskSweeping`, `TaskWork`, `TaskQuestions`, `TaskOwners`, `TaskJoins`, `TaskQuotas`,
`TaskJournal`, `TaskSearch`, `TaskSharing`, `TaskWatching`, `TaskConnecting`, `TaskDiagnosis`. All bundled stores have
all of them, the last two where there is a backend. Those of Redis and PostgreSQL also have `TaskTaking` and
`TaskEndWatching`, which let many workers share them at a lower cost. `TaskSealing` says that a store seals what it
keeps, as `stores.sealed` has any store do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol, runtime_checkable

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.types import (
    Fence,
    Finding,
    LiveStatus,
    NewTask,
    Outcome,
    Progress,
    TaskCounts,
    TaskEvent,
    TaskFilter,
    TaskPage,
    TaskRecord,
)
from mcp_task_runtime.core.views import TaskView

__all__ = [
    "TaskConnecting",
    "TaskDiagnosis",
    "TaskEndWatching",
    "TaskJoins",
    "TaskJournal",
    "TaskLeases",
    "TaskOwners",
    "TaskQuestions",
    "TaskQuotas",
    "TaskSealing",
    "TaskSearch",
    "TaskSharing",
    "TaskStore",
    "TaskSweeping",
    "TaskTaking",
    "TaskWatching",
    "TaskWork",
]


@runtime_checkable
class TaskStore(Protocol):
    """State of tasks and their outcomes.

    These members are all that a store must have. For every method:

    - **Atomic.** It happens in full or not at all, for every observer, also when it is cancelled at any
      of its awaits (L6). `core.transitions` decides which changes are allowed.
    - **Snapshots.** What it returns is frozen; what it was given may be changed afterwards without
      effect (L4).
    - **Time.** A task past `Task.expires_at` by `clock` does not exist any more: not for reading,
      changing, listing or waiting (L7), and nothing of it is kept for long (L8).
    - **Owners.** A store does not check who asks; `TaskRuntime` does (L10), and `TaskOwners`.

    Not promised: any order between calls that overlap, and a checkpoint in a call that need not wait.
    """

    @property
    def clock(self) -> Clock:
        """The clock that stamps and expires tasks; everything above the store uses the same one."""
        ...

    async def create_task(self, new: NewTask) -> TaskRecord:
        """Create a task in status `working`, at revision 1 (wire rules A1, C4).

        `core.transitions.create_record` makes the record. When this returns, every process that uses the
        backend finds the task, and with a durable backend no kill loses it (L12). Cancelled, the task may exist.

        Raises:
            TaskExistsError: `new.task_id` is taken.
            ValueError: Something in it could not be read back (L4); nothing was written.
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
        progress: Progress | None = None,
        ttl_ms: int | None = None,
        if_revision: int | None = None,
        fence: Fence | None = None,
    ) -> TaskRecord:
        """Change a live task; what is `None` stays as it is. Each accepted call adds one to the revision.

        Args:
            task_id: Identifier that `create_task` returned.
            status: `working` or `input_required`.
            status_message: Text for people to read.
            progress: How far the work is.
            ttl_ms: The new TTL, in milliseconds from creation.
            if_revision: Write only if the task is still at this revision.
            fence: Write only if this run of the work still holds the task's lease (L12).

        Returns:
            The stored snapshot.

        Raises:
            TaskNotFoundError: The task is unknown or its TTL has passed.
            InvalidTransitionError: The task has ended, or `status` is not a live one; nothing changed.
            LeaseLostError: Another run of the work holds the lease, or none does; nothing changed.
            RevisionConflictError: The task is at another revision than `if_revision`; nothing changed.
        """
        ...

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        """Record a terminal status and its outcome in one atomic write (L2).

        Of concurrent callers exactly one wins. Cancelled, the write happened in full or not at all.
        The TTL grows where the outcome would be gone before `retention_ms` have passed (L7). The task's
        lease goes (L12).

        A store with `TaskQuestions` drops the task's mailbox in the same write, which releases every asker (L5).
        With another one, `TaskMessageQueue.clear` must follow; `core.endings` calls it.

        Args:
            task_id: Identifier that `create_task` returned.
            outcome: Result, error or cancellation to store.
            fence: Write only if this run of the work still holds the task's lease (L12).

        Returns:
            The stored snapshot, never a live reference.

        Raises:
            TaskNotFoundError: The task is unknown or its TTL has passed.
            InvalidTransitionError: The task has already ended; nothing changed.
            LeaseLostError: Another run of the work holds the lease, or none does; nothing changed.
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

        Walking the pages shows every task that exists throughout exactly once, no matter what is created or
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

        Waiters wake with `TaskNotFoundError`. The mailbox goes as in `finish_task`.
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


@runtime_checkable
class TaskLeases(Protocol):
    """Ability of a store whose tasks outlive the process that runs them: it shows which process was lost (law L12).

    A live task whose work a process runs has a lease (`TaskRecord.lease`): made with the task, kept when the
    task is updated, and renewed by that process. From its `expires_at` on, by the store's clock, it has
    *lapsed*: its process is lost. A lease with an empty worker is held by no process: the work waits for a
    worker, which may claim it at any time. A task that ends, expires or is deleted has no lease any more.
    For every method:

    - **Atomic.** One task's lease changes in full or not at all, also when the call is cancelled (L6). A call
      for several tasks may be seen, or cancelled, when it has reached some of them.
    - **Quiet.** Clients do not see leases: renewing, dropping or lapsing moves neither the task's revision nor
      `last_updated_at`, and wakes no waiter. Only `claim_task` does: the work starts again, and waiters wake.
    - **Server time.** `expires_at` is decided by one clock for all processes (law L17).
    """

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Reset the expiry of a worker's leases to `lease_ms` milliseconds from now; the attempt stays.

        Returns:
            Those of `task_ids` that are live and whose lease is this worker's, lapsed or not. The work of
            all others must stop: the task ended, is gone, or was claimed by another worker.
        """
        ...

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Release leases of a worker; tasks whose lease another worker holds stay as they are.

        Args:
            worker: The worker that releases them.
            task_ids: The tasks.
            lapse: `True` makes them lapse at once, so that another worker can claim them (a shutdown), and counts a
                hand-over for each (`Lease.handovers`); one that lapsed before stays as it is.
                `core.transitions.lapsed_lease` decides. `False` removes the leases (work that was handed to something
                outside).
        """
        ...

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed, the longest lapsed first.

        Args:
            limit: Most tasks to return, at least 1.

        Raises:
            ValueError: `limit` is below 1.
        """
        ...

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task whose lease has lapsed or is held by no process; of concurrent callers one gets it.

        `core.transitions.claim_record` says what is claimed and what the record is then: one attempt more, the
        status as before; the revision and `last_updated_at` move, and waiters wake.

        Args:
            task_id: The task.
            worker: The worker that takes it over; empty puts a lapsed task back to wait for a worker.
            lease_ms: How long the new lease lasts, in milliseconds.

        Returns:
            The stored snapshot, or `None`, and nothing changed, if there is nothing to claim: the task is
            unknown, has ended or expired, has no lease, or a worker holds one that has not lapsed.
        """
        ...


@runtime_checkable
class TaskSweeping(Protocol):
    """Ability of a store with `TaskLeases` to find the tasks of lost workers however many tasks wait for a worker.

    Without it a process lists all lapsed leases and looks behind the waiting tasks of others, but not behind more than
    10,000.
    """

    async def list_lost(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Return those tasks of `TaskLeases.list_lapsed` that a worker holds, and of these tools also the others.

        Those that a worker holds come first; among them and among the others the longest lapsed. Tasks of other tools
        that wait for a worker cost nothing (L8).

        Args:
            names: `TaskRequest.name` of the tasks that are listed although no process holds them.
            limit: Most tasks to return, at least 1.

        Raises:
            ValueError: `limit` is below 1.
        """
        ...


@runtime_checkable
class TaskWork(Protocol):
    """Ability of a store with `TaskLeases` that wakes workers; without it they poll."""

    async def wait_for_work(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker; return them, the longest waiting first.

        Those are live tasks whose lease no process holds and has lapsed: a task that is made or put back with a lease
        of 0 milliseconds. Level-triggered: one that waited before the call counts (L3). Tasks that others may claim
        meanwhile are shown to all that wait. It may miss a lease that lapses while it waits: call it again from time
        to time.

        Args:
            names: `TaskRequest.name` of the tasks.
            limit: Most tasks to return, at least 1.

        Raises:
            ValueError: `limit` is below 1.
            StoreClosedError: The store was closed while waiting.
        """
        ...


@runtime_checkable
class TaskTaking(Protocol):
    """Ability of a store with `TaskWork` to find tasks for a worker and claim them in one step.

    Without it a worker looks at the tasks that wait, and claims each: workers that look at once want the same ones.
    Both methods claim as `TaskLeases.claim_task` does. Cancelled, they have claimed nothing; a cancellation waits for
    the store's answer.
    """

    async def take_work(
        self, names: Collection[str], *, worker: str, lease_ms: int, limit: int, with_sealed: bool = False
    ) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker, and claim them, the longest waiting first.

        It waits for the tasks that `TaskWork.wait_for_work` returns, and as that does. Each task goes to one of
        concurrent callers.

        Args:
            names: `TaskRequest.name` of the tasks.
            worker: The worker that takes them over; not empty.
            lease_ms: How long the new leases last, in milliseconds.
            limit: Most tasks to take, at least 1.
            with_sealed: Whether sealed tasks are taken; others are left to workers with their keys.

        Returns:
            The stored snapshots, at least one.

        Raises:
            ValueError: `limit` is below 1.
            StoreClosedError: The store was closed while waiting.
        """
        ...

    async def take_task(
        self, task_id: str, names: Collection[str], *, worker: str, lease_ms: int, with_sealed: bool = False
    ) -> TaskRecord | None:
        """Claim a task of these tools that waits for a worker, overdue or not.

        Args:
            task_id: The task.
            names: As for `take_work`.
            worker: As for `take_work`.
            lease_ms: As for `take_work`.
            with_sealed: As for `take_work`.

        Returns:
            The stored snapshot, or `None`, and nothing changed: the task is unknown, has ended or expired, is another
            tool's or sealed, or does not wait.
        """
        ...


@runtime_checkable
class TaskQuestions(Protocol):
    """Ability of a store that keeps the questions of its tasks, too: status and questions change in one write (L5).

    These methods work on the mailboxes of its own `message_queue`. After each of them the task is
    `input_required` exactly while a question is open. `TaskStore.finish_task` and `delete_task` drop the mailbox
    in their own write. Every method is atomic, also when it is cancelled (L6).
    """

    @property
    def message_queue(self) -> TaskMessageQueue:
        """The queue that keeps the questions."""
        ...

    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        """Append a question to the task's mailbox and make the task `input_required`, in one write and revision.

        Args:
            task_id: The task that asks.
            question: A request to the client.
            fence: Write only if this run of the work still holds the task's lease (L12).

        Returns:
            The stored snapshot; `None`, and nothing changed, if the task has had a question with this key before.

        Raises:
            TaskNotFoundError: The task is unknown or has expired.
            InvalidTransitionError: The task has ended.
            LeaseLostError: Another run of the work holds the lease, or none does; nothing changed.
            ValueError: The message is not a request, or could not be read back (L4).
        """
        ...

    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        """Answer open questions and set the status, in one write and one revision; askers wake.

        The first answer to a question wins. An unknown task, or one that has ended, has no open questions. To
        withdraw a question, answer it with `Answer.withdrawn()`. Its cost is linear in the number of `answers`.

        Returns:
            The keys whose answer was taken; for none of them nothing changed.
        """
        ...

    async def get_view(self, task_id: str) -> TaskView | None:
        """Return the task with its open questions, in the order they were asked, as they were at one time."""
        ...


@runtime_checkable
class TaskOwners(Protocol):
    """Ability of a store that compares the owner of a task before it reads anything else of it (law L10).

    Without it a task of another owner is read first: one that is large is answered later than an unknown one, and one
    that is damaged with an error.
    """

    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        """Return the task with its open questions, or `None` when this owner has no task with that identifier.

        Status and questions are of one time, as in `TaskQuestions.get_view`. A task of another owner costs what an
        unknown one does.

        Args:
            task_id: The task.
            owner: Whose task it must be; `None` for one without an owner.
        """
        ...


@runtime_checkable
class TaskJournal(Protocol):
    """Ability of a store that records the results of steps, so that a rerun resumes behind them (law L12).

    Steps go with their task, at the latest when it has ended and expired.
    """

    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        """Record the result of a step, once; quiet: the revision stays and no waiter wakes.

        Args:
            task_id: The task.
            key: Names the step; unique in the task's life.
            value_json: The result, as JSON text.
            fence: The run that records; it must hold the task's lease.

        Returns:
            What is recorded: `value_json`, or what an earlier call recorded for this key.

        Raises:
            TaskNotFoundError: The task is unknown or has expired.
            InvalidTransitionError: The task has ended.
            LeaseLostError: Another run of the work holds the lease, or none does; nothing changed.
        """
        ...

    async def read_steps(self, task_id: str) -> Mapping[str, str]:
        """Return the recorded results by key, in the order they were recorded; empty for an unknown task."""
        ...


@runtime_checkable
class TaskJoins(Protocol):
    """Ability of a store to return the task that a call was made for before, in one step with making one."""

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        """Return a task that was made with this key and may be joined, or create one; of concurrent callers one does.

        A task may be joined while it is live, and for some time after its end unless it was cancelled;
        `core.transitions.may_join` decides. Atomic, as `create_task`: cancelled, the task may exist.

        Args:
            new: The task to create, if there is none to join.
            key: Names the call and its owner; nothing else tells them apart. At most 200 characters.
            ended_ms: How long a task may be joined after its end, in milliseconds.

        Returns:
            The task, and whether this call created it. Its identifier may be another one than `new.task_id`.

        Raises:
            TaskExistsError: `new.task_id` is taken.
            ValueError: Something in it could not be read back (L4); nothing was written.
        """
        ...


@runtime_checkable
class TaskQuotas(Protocol):
    """Ability of a store to hold an owner to a number of live tasks, over all processes that use it (law L16).

    `TaskStore.create_task` and `TaskJoins.join_task` raise `LimitExceededError`, and write nothing, where the owner of
    a new task has `NewTask.max_live` live tasks. That is decided in the step that would create it, for all processes;
    a call that joins needs no room. A task counts until it ends, expires or is deleted: a lost process leaves
    no count behind.
    """

    async def count_live_tasks(self, owner: str | None) -> int:
        """Return how many live tasks an owner has; `None` stands for tasks without an owner, which count together."""
        ...


@runtime_checkable
class TaskSearch(Protocol):
    """Ability of a store to show operators the tasks of all owners."""

    async def search_tasks(
        self, wanted: TaskFilter, *, newest_first: bool = True, cursor: str | None = None, limit: int = 50
    ) -> TaskPage:
        """Return a page of the tasks that match, by creation.

        Walking the pages shows every matching task that exists throughout exactly once. A page costs O(page), no
        matter how much is stored: an index leads to the tasks of a status, a tool, an owner, an age, a prefix of the
        id, and to those with `errors_only`. What else is asked for is looked for among these. One page looks at some
        `LOOKED_AT_MOST` of them, so it may be short, or empty, and yet have a cursor.

        Args:
            wanted: Which tasks.
            newest_first: Whether the newest come first.
            cursor: `TaskPage.next_cursor` of the page before; `None` for the first.
            limit: Tasks a page, at least 1.

        Raises:
            InvalidCursorError: The cursor was not made by this method for this filter and order.
            ValueError: `limit` is below 1.
        """
        ...

    async def count_tasks(self) -> TaskCounts:
        """Return how many tasks there are by status and tool; expired ones may still be counted.

        It costs O(statuses x tools), no matter how much is stored.
        """
        ...

    async def get_history(self, task_id: str) -> tuple[TaskEvent, ...]:
        """Return what happened to a task, oldest first: `created`, then the last `EVENTS_KEPT` events.

        An event is written in the write that makes it happen. Renewed leases and recorded steps are none.
        """
        ...


@runtime_checkable
class TaskSharing(Protocol):
    """Ability of a store to say that only one runtime uses it; without it, a store counts as shared."""

    @property
    def is_shared(self) -> bool:
        """Whether other runtimes or processes may change its tasks."""
        ...


@runtime_checkable
class TaskSealing(Protocol):
    """Ability of a store that seals its values: a reader of the backend cannot read them. See `stores.sealed`."""

    @property
    def is_sealed(self) -> bool:
        """Whether values are sealed. Then digests of them that are stored in plain, as names, are keyed."""
        ...


@runtime_checkable
class TaskWatching(Protocol):
    """Ability of a store to call a function when a task changes: a wait that costs nothing but the entry of a table.

    A process watches each task whose work it runs, for an end by another process. Without this ability it keeps a
    call of `wait_for_update` for each.
    """

    def watch_task(
        self, task_id: str, on_change: Callable[[TaskRecord | None], None], *, after: int
    ) -> Callable[[], None]:
        """Call a function on this event loop soon after each change of a task, until the function returned is called.

        The first call comes at once if the task is newer than `after`, is gone, or if the store does not know. A
        deletion is a change; the end of the TTL is none. No call is lost, not even in an outage.

        Args:
            task_id: The task.
            on_change: Called with the task as it is now, or with `None` where the caller has to look. It neither
                raises nor waits.
            after: The revision that the caller has already.

        Raises:
            StoreClosedError: The store was closed.
        """
        ...


@runtime_checkable
class TaskEndWatching(Protocol):
    """Ability of a store to call a function when a task has ended, and at no other change.

    A process watches each task whose work it runs, and each that it made for a worker. Without this ability it watches
    all their changes, with `TaskWatching` or in calls of `wait_for_update`.
    """

    def watch_end(self, task_id: str, on_end: Callable[[], None]) -> Callable[[], None]:
        """Call a function on this event loop, once, soon after a task has ended or was deleted.

        At once, before this returns, if the store knows that already. The end of the TTL is none. No end is missed,
        not even in an outage.

        Args:
            task_id: A task that this store object has made, or was the last to claim.
            on_end: Neither raises nor waits.

        Returns:
            A function that stops the watch; it may be called at any time.

        Raises:
            StoreClosedError: The store was closed.
        """
        ...


@runtime_checkable
class TaskConnecting(Protocol):
    """Ability of a store or queue that connects to something: a server that uses it fails at its start, not later."""

    async def connect(self) -> None:
        """Connect now instead of at the first use; where it is connected, nothing need happen.

        `TaskRuntime` calls it when it opens. Bounded in time. It closes nothing that is in use.

        Raises:
            StoreUnavailableError: It cannot be reached; the message names its address, never a password.
            StoreError: It cannot be used.
        """
        ...


@runtime_checkable
class TaskDiagnosis(Protocol):
    """Ability of a store to say what an operator should know of its backend."""

    async def diagnose(self) -> tuple[Finding, ...]:
        """Check the backend: its version, that of the stored form, and settings that endanger tasks.

        Raises:
            StoreError: The backend cannot be used.
        """
        ...
