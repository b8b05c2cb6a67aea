"""`RedisTaskStore`: tasks in Redis, for several machines. Needs the extra `redis`, and Redis 6.2 or later.

Every change is one script (`lua/`), every operation one round trip, and the stored form is documented (`_form`).
Waiting is woken by push: one connection for each store subscribes to the channels of the tasks that have waiters. A
message there says only that something happened, so waiters look again; after a lost connection all of them do.

On a cluster a task and its mailbox are in one slot, and the indexes that span tasks are in others. What a
script cannot do in one step there is made safe by order: the index is written after the task and checked
against it when it is read. So on a cluster `create_task`, `list_tasks`, `list_lapsed` and
`claim_task` take two round trips, as `list_lost` does everywhere.

All time is the server's, unless a clock is injected: when a task was created or changed, whether it has expired and
whether its lease has lapsed. On a cluster it is that of the node that has the task.

Redis decides how durable tasks are: see its `appendonly` and `appendfsync`, and `WAIT` for replicas. A server that
may evict keys (`maxmemory` set and `maxmemory-policy` other than `noeviction`) drops tasks without a trace: the store
warns of it when it connects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

import anyio
from typing_extensions import Unpack

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import (
    Fence,
    Finding,
    LiveStatus,
    NewTask,
    NewTaskFields,
    Outcome,
    Progress,
    TaskCounts,
    TaskEvent,
    TaskFilter,
    TaskPage,
    TaskRecord,
)
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import (
    InvalidTransitionError,
    LeaseLostError,
    RevisionConflictError,
    StoreError,
    TaskNotFoundError,
)
from mcp_task_runtime.stores import _storable
from mcp_task_runtime.stores._cursor import encode_cursor, owner_scope
from mcp_task_runtime.stores._opened import Opened
from mcp_task_runtime.stores.redis._backend import Backend, Source
from mcp_task_runtime.stores.redis._calls import TaskCalls, fencing, loaded, optional
from mcp_task_runtime.stores.redis._connections import Call, script_call
from mcp_task_runtime.stores.redis._creation import Creation, at_most
from mcp_task_runtime.stores.redis._form import (
    ASKED,
    EVENTS,
    SCHEMA_VERSION,
    STEPS,
    dump_answer,
    dump_message,
    dump_progress,
    event_text,
    key_field,
    load_event,
    load_message,
    load_record,
    pack,
    to_micros,
)
from mcp_task_runtime.stores.redis._leases import Leases
from mcp_task_runtime.stores.redis._pages import Entry, Pages, place_of
from mcp_task_runtime.stores.redis._scripts import FOLLOWS, LIVE, UPDATES
from mcp_task_runtime.stores.redis._search import Search
from mcp_task_runtime.stores.redis._statistics import RedisStatistics
from mcp_task_runtime.stores.redis._taking import Taking
from mcp_task_runtime.stores.redis._work import WaitingWork
from mcp_task_runtime.stores.redis.queue import RedisTaskMessageQueue, queue_of

__all__ = ["RedisTaskStore"]

_CLOCK_SECONDS: Final = 0.005
"""Seconds by which this process's idea of the server's time may be early."""


class RedisTaskStore(Opened):
    """A `TaskStore` in Redis, shared by all processes that use the same Redis and prefix, with all abilities.

    Open it with `async with`, which fails at once when the server cannot be reached; or just use it: it connects
    when it is first used. It opens two connections of its own, the second when something waits. Use it on one
    event loop at a time.
    """

    def __init__(
        self,
        source: Source,
        *,
        prefix: str = "mcp-task-runtime",
        clock: Clock | None = None,
        timeout: float = 5.0,
    ) -> None:
        """Make a store.

        Args:
            source: A URL such as `redis://localhost:6379/0`, or a client of `coredis`, which stays the
                caller's to open and close. A client of one server lends its settings; one of a cluster must
                be open as long as the store is.
            prefix: What all names in Redis begin with.
            clock: Where time comes from; `None` for the server's time.
            timeout: Seconds that an operation waits for a server that is not available, before it
                raises `StoreUnavailableError`.

        Raises:
            ValueError: An argument makes no sense.
        """
        self._backend = Backend(source, prefix=prefix, clock=clock, timeout=timeout)
        self._keys = self._backend.keys
        self._queue = queue_of(self._backend)
        self._pages = Pages(self._backend)
        self._search = Search(self._backend, self._pages)
        self._calls = TaskCalls(self._backend)
        self._work = WaitingWork(self._backend, self._pages)
        self._leases = Leases(self._backend, self._calls, self._pages, self._work)
        self._taking = Taking(self._backend, self._pages, self._work, self._leases)
        self._creation = Creation(self._backend, self._calls, self._work)

    @property
    def clock(self) -> Clock:
        """The clock that stamps and expires tasks: the injected one, or one that follows the server's time.

        The latter is measured when a connection is made and every 15 seconds, and moves with this machine's
        monotonic clock between. So neither the machine's wall clock nor a jump of it matters.
        """
        return self._backend.clock

    @property
    def message_queue(self) -> RedisTaskMessageQueue:
        """The queue that belongs to this store: a task's mailbox is deleted with the task."""
        return self._queue

    @property
    def is_shared(self) -> bool:
        """Whether other runtimes or processes may change its tasks: always."""
        return True

    async def connect(self) -> None:
        """Connect, or fail at once; see `TaskConnecting.connect`.

        Raises:
            StoreUnavailableError: The server cannot be reached; the message names its address and the reason.
            StoreError: It refused the connection.
        """
        await self._backend.connect()

    async def aclose(self) -> None:
        """Close the store and its queue: waiters wake with `StoreClosedError`."""
        await self._backend.aclose()

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        """Create a task, given whole or by its fields; see `TaskStore.create_task`."""
        return await self._creation.create(NewTask.of(new, fields))

    # --- TaskQuotas ---

    async def count_live_tasks(self, owner: str | None) -> int:
        """Return how many live tasks an owner has; see `TaskQuotas.count_live_tasks`.

        On a cluster `create_task` asks this before it creates a task: calls that overlap may make more than
        `NewTask.max_live`. Tasks of earlier versions count from the next change of their status on.
        """
        return await self._creation.count_live(owner)

    # --- TaskJoins ---

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        """Return the task that was made with this key, or create one; see `TaskJoins.join_task`.

        One step decides which identifier the call has, and one who creates the task with it. The first is known for the
        task's TTL at its creation, for 7 days without one: a task that lives longer is joined no more then.
        """
        return await self._creation.join(new, key=key, ended_ms=ended_ms)

    def _filed(self, record: TaskRecord) -> TaskRecord:
        """Return the record after a change that the search index must follow; on a cluster that is not waited for."""
        if self._backend.is_cluster:
            self._backend.post(self._creation.filing(record))
        return record

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        reply = await self._calls.read(task_id, "get", 0)
        return None if reply is None else load_record(reply[0])

    async def get_view(self, task_id: str) -> TaskView | None:
        """Return the task with its open questions; see `TaskQuestions.get_view`."""
        return _view_of(await self._calls.read(task_id, "view", ASKED))

    # --- TaskOwners ---

    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        """Return an owner's task with its open questions; see `TaskOwners.get_owned`."""
        try:
            owners = () if owner is None else (pack(owner),)
        except ValueError:
            return None
        return _view_of(await self._calls.read(task_id, "own", ASKED, *owners))

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
        """Change a live task; see `TaskStore.update_task`."""
        _storable.check_text("status_message", status_message)
        _storable.check_progress(progress)
        _storable.check_duration("ttl_ms", ttl_ms)
        tag, (reply, *rest) = await self._calls.change(
            *(task_id, "update", UPDATES.get(status, b" "), "" if status is None else status),
            optional(status_message),
            b"" if progress is None else dump_progress(progress),
            "" if ttl_ms is None else int(ttl_ms),
            "" if if_revision is None else int(if_revision),
            *fencing(fence),
            event_text(status_message),
        )
        if reply == b"refused":
            current = rest[0].decode()
            raise InvalidTransitionError(task_id, current=current, requested=current if status is None else status)
        if reply == b"conflict":
            raise RevisionConflictError(task_id, expected=int(if_revision or 0), current=int(rest[0]))
        record = self._calls.changed(task_id, reply, rest)
        if status is not None or ttl_ms is not None:
            self._filed(record)
        if ttl_ms is not None and self._backend.is_cluster:
            await self._extend(record, tag)
        return record

    async def _extend(self, record: TaskRecord, tag: bytes) -> None:
        """Let the indexes of a cluster follow a new TTL."""
        (mark,) = await self._backend.send(Call(b"HGET", self._keys.of_task(tag)[:1], (b"mark",)))
        if mark is None:
            return
        lives_ms, margin_ms = int(at_most(record)), self._backend.margin_ms
        latest = to_micros(record.task.created_at) + 1_000 * lives_ms
        owner = self._keys.of_owner(record.owner)
        calls = [script_call("extend", owner, self._backend.now(), margin_ms, mark + b" " + tag, latest)]
        if record.lease is not None:
            lapses = to_micros(record.lease.expires_at)
            calls.append(script_call("lease", (self._keys.leases,), tag, lapses, lives_ms + margin_ms))
        await self._backend.send(*calls)

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        """Record a terminal status and its outcome, and delete the mailbox; see `TaskStore.finish_task`."""
        status = outcome.status
        _storable.check_outcome(outcome)
        tag, (reply, *rest) = await self._calls.end(
            *(task_id, "finish", FOLLOWS.get(status, b" "), status),
            optional(outcome.payload_json),
            optional(outcome.status_message),
            *fencing(fence),
            event_text(outcome.status_message),
            int(outcome.is_error),
        )
        if reply == b"refused":
            raise InvalidTransitionError(task_id, current=rest[0].decode(), requested=status)
        record = self._calls.changed(task_id, reply, rest)
        self._backend.note_end(tag)
        if self._backend.is_cluster:
            self._backend.post(Call(b"ZREM", (self._keys.leases,), (tag,)))
            self._work.leave(tag, self._keys.name_tag(record.request.name))
        return self._filed(record)

    async def get_result(self, task_id: str) -> Outcome | None:
        """Return how the task ended, or `None`; see `TaskStore.get_result`."""
        record = await self.get_task(task_id)
        if record is None:
            raise TaskNotFoundError(task_id)
        return record.outcome

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`. Damaged tasks are left out."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        scope = owner_scope(owner)
        place = 0 if cursor is None else place_of(cursor, scope)[0]
        index = self._keys.of_owner(owner)[0]
        found: list[Entry] = []
        while True:
            wanted = limit + 1 - len(found)
            _, page = await self._pages.read(index, (f"({place}", "+inf"), limit=wanted)
            found += [entry for entry in page if entry.is_live]
            gone = [entry.member for entry in page if entry.is_gone]
            if gone:  # the index heals when it is read
                self._backend.unindex(owner, gone)
            if len(found) > limit or len(page) < wanted:
                break
            place = page[-1].place
        records = tuple(entry.record for entry in found[:limit] if entry.record is not None)
        next_cursor = encode_cursor(b"%d" % found[limit - 1].place, scope) if len(found) > limit else None
        return TaskPage(records, next_cursor)

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task; see `TaskStore.delete_task`."""
        # Carried out twice it could not say whether there was one.
        tag, (reply, *rest) = await self._calls.end(task_id, "delete", again=False, missing=b"absent")
        if reply != b"ok":
            return False
        self._backend.note_end(tag)
        self._backend.forget(tag, rest[0], rest[1])
        if self._backend.is_cluster:
            self._backend.post(script_call("unfile", (self._keys.search + b"all",), self._keys.search, rest[2]))
            self._work.leave(tag, rest[2].split(b" ")[1])
        return True

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        """Wait until the revision is greater than `after`; see `TaskStore.wait_for_update`."""
        channel = self._keys.channel(self._keys.tag(task_id))
        signals = await self._backend.signals()
        with signals.listen(channel, b"tx") as listener:
            known = signals.known(channel)
            is_first = True
            while True:
                if known is not None and known[0] <= after:
                    is_first = False
                    with self.clock.move_on_at(known[1]) as scope:
                        await listener.wait()
                    if scope.cancelled_caught:  # the server decides when the time has come
                        await anyio.sleep(_CLOCK_SECONDS)
                heard = signals.heard(channel)
                look = partial(self.get_task, task_id)
                record = await (look() if is_first else self._backend.look_again(look))
                if record is None:
                    raise TaskNotFoundError(task_id)
                if record.revision > after:
                    signals.remember(channel, heard, record.revision, record.task.expires_at)
                    return record
                known = record.revision, record.task.expires_at
                signals.remember(channel, heard, *known)

    # --- TaskWatching ---

    def watch_task(
        self, task_id: str, on_change: Callable[[TaskRecord | None], None], *, after: int
    ) -> Callable[[], None]:
        """Call a function after each change of a task; see `TaskWatching.watch_task`.

        It is called with `None`, first when the subscription has begun. On a cluster, whose bus may lose an event, it
        is also called every two seconds.
        """
        return self._backend.watch(self._keys.tag(task_id), on_change)

    # --- TaskEndWatching ---

    def watch_end(self, task_id: str, on_end: Callable[[], None]) -> Callable[[], None]:
        """Call a function when a task has ended; see `TaskEndWatching.watch_end`.

        All tasks of this object share one subscription. When that begins, they are looked at together; on a cluster,
        whose bus may lose an event, every two seconds.
        """
        return self._backend.watch_end(self._keys.tag(task_id), on_end)

    def statistics(self) -> RedisStatistics:
        """Return figures of this store and its queue in this process. Call it on the event loop that uses them."""
        return self._backend.statistics()

    async def diagnose(self) -> tuple[Finding, ...]:
        """Return what the servers say of eviction and persistence; see `TaskDiagnosis`."""
        written = Finding("schema", "ok", f"version {SCHEMA_VERSION} is written")
        return written, *await self._backend.diagnose()

    # --- leases

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Extend leases of a worker; see `TaskLeases.renew_leases`."""
        return await self._leases.renew(worker, task_ids, lease_ms=lease_ms)

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Release leases of a worker; see `TaskLeases.drop_leases`."""
        await self._leases.drop(worker, task_ids, lapse=lapse)

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`. Damaged tasks are left out."""
        return await self._leases.lapsed(limit=limit)

    async def list_lost(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Return tasks of lost workers, and of these tools those that wait; see `TaskSweeping.list_lost`."""
        return await self._leases.lost(names, limit=limit)

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task; see `TaskLeases.claim_task`."""
        return await self._leases.claim(task_id, worker=worker, lease_ms=lease_ms)

    # --- work

    async def wait_for_work(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker; see `TaskWork.wait_for_work`. Damaged tasks are left out.

        The cost of a look is linear in `names` and `limit`. On a cluster, where the index is in another slot than the
        task, it looks every two seconds.
        """
        return await self._work.wait(names, limit=limit)

    async def take_work(
        self, names: Collection[str], *, worker: str, lease_ms: int, limit: int, with_sealed: bool = False
    ) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker, and claim them; see `TaskTaking.take_work`.

        One step and one round trip for all; on a cluster one step for each task.
        """
        return await self._taking.work(names, worker=worker, lease_ms=lease_ms, limit=limit, with_sealed=with_sealed)

    async def take_task(
        self, task_id: str, names: Collection[str], *, worker: str, lease_ms: int, with_sealed: bool = False
    ) -> TaskRecord | None:
        """Claim a task of these tools that waits for a worker; see `TaskTaking.take_task`."""
        return await self._taking.task(task_id, names, worker=worker, lease_ms=lease_ms, with_sealed=with_sealed)

    # --- questions

    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        """Append a question and make the task `input_required`; see `TaskQuestions.ask`."""
        if question.key is None:
            raise ValueError("question must be a request")
        _storable.check_message(question)
        _, (reply, *rest) = await self._calls.change(
            *(task_id, "ask", FOLLOWS["input_required"], *fencing(fence)),
            *(key_field(question.key), dump_message(question), event_text(question.key)),
        )
        if reply == b"refused":
            raise InvalidTransitionError(task_id, current=rest[0].decode(), requested="input_required")
        if reply == b"known":
            return None
        return self._filed(self._calls.changed(task_id, reply, rest))

    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        """Answer open questions and set the status; see `TaskQuestions.answer_all`."""
        flat: list[bytes | int | str] = []
        for key, answer in answers.items():
            _storable.check_answer(answer)
            kind = b"withdrawn" if answer.type == "withdrawn" else b"answered"
            flat += key_field(key), dump_answer(answer), kind, event_text(key)
        if not flat:
            return frozenset()
        _, (reply, *rest) = await self._calls.change(task_id, "answer_all", LIVE, *flat, missing=b"absent")
        if reply != b"ok":
            return frozenset()
        if rest[0]:
            self._filed(loaded(rest[1]))
        taken = set(rest[0])
        return frozenset(key for key in answers if key_field(key) in taken)

    # --- steps and history

    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        """Record the result of a step, once; see `TaskJournal.record_step`."""
        _storable.check_text("key", key)
        _storable.check_json("value_json", value_json)
        step = pack(key), pack(value_json)
        _, (reply, *rest) = await self._calls.change(task_id, "record_step", LIVE, *fencing(fence), *step)
        if reply == b"refused":
            current = rest[0].decode()
            raise InvalidTransitionError(task_id, current=current, requested=current)
        if reply == b"lost":
            raise LeaseLostError(task_id)
        return _step(rest[0])[1]

    async def read_steps(self, task_id: str) -> Mapping[str, str]:
        """Return the recorded results by key; see `TaskJournal.read_steps`."""
        reply = await self._calls.read(task_id, "steps", STEPS)
        flat = [] if reply is None else reply[0]
        steps = sorted((_step(value), _text(key)) for key, value in zip(flat[::2], flat[1::2], strict=True))
        return {key: value for (_, value), key in steps}

    async def get_history(self, task_id: str) -> tuple[TaskEvent, ...]:
        """Return what happened to a task, oldest first; see `TaskSearch.get_history`."""
        reply = await self._calls.read(task_id, "history", EVENTS)
        if reply is None:
            return ()
        return (load_event(reply[0] + b" created"), *(load_event(event) for event in reply[1]))

    async def search_tasks(
        self, wanted: TaskFilter, *, newest_first: bool = True, cursor: str | None = None, limit: int = 50
    ) -> TaskPage:
        """Return a page of the tasks that match; see `TaskSearch.search_tasks`. Damaged tasks are left out."""
        return await self._search.find(wanted, newest_first=newest_first, cursor=cursor, limit=limit)

    async def count_tasks(self) -> TaskCounts:
        """Return how many tasks there are; see `TaskSearch.count_tasks`."""
        return await self._search.count()


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except ValueError as error:
        raise StoreError("A stored step is damaged") from error


def _step(data: bytes) -> tuple[int, str]:
    """Return the number and the result of a stored step."""
    number, _, value = data.partition(b" ")
    try:
        return int(number), _text(value)
    except ValueError as error:
        raise StoreError("A stored step is damaged") from error


def _view_of(reply: list[Any] | None) -> TaskView | None:
    record = None if reply is None else load_record(reply[0])
    if reply is None or record is None:
        return None
    return TaskView(record, tuple(load_message(question) for question in reply[1]))
