"""`RedisTaskStore`: tasks in Redis, for several machines. Needs the extra `redis`, and Redis 6.2 or later.

Every change is one script (`lua/`), every operation one round trip, and the stored form is documented (`_form`).
Waiting is woken by push: one connection for each store subscribes to the channels of the tasks that have waiters. A
message there says only that something happened, so waiters look again; after a lost connection all of them do.

On a cluster a task and its mailbox are in one slot, and the indexes that span tasks are in others. What a
script cannot do in one step there is made safe by order: the index is written after the task and checked
against it when it is read. So on a cluster `create_task`, `list_tasks` and `list_lapsed` take two round trips.

All time is the server's, unless a clock is injected: when a task was created or changed, whether it has expired and
whether its lease has lapsed. On a cluster it is that of the node that has the task.

Redis decides how durable tasks are: see its `appendonly` and `appendfsync`, and `WAIT` for replicas. A server that
may evict keys (`maxmemory` set and `maxmemory-policy` other than `noeviction`) drops tasks without a trace: the store
warns of it when it connects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

import anyio
from typing_extensions import Unpack

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import check_room, create_record, may_join
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
    TaskExistsError,
    TaskNotFoundError,
)
from mcp_task_runtime.stores import _storable
from mcp_task_runtime.stores._cursor import decode_cursor, encode_cursor
from mcp_task_runtime.stores._opened import Opened
from mcp_task_runtime.stores.redis._backend import Backend, Source
from mcp_task_runtime.stores.redis._connections import Call, script_call
from mcp_task_runtime.stores.redis._form import (
    ASKED,
    EVENTS,
    SCHEMA_VERSION,
    STEPS,
    dump_answer,
    dump_message,
    dump_progress,
    dump_record,
    event_text,
    from_micros,
    key_field,
    load_event,
    load_message,
    load_nothing,
    load_record,
    pack,
    schema_error,
    to_micros,
)
from mcp_task_runtime.stores.redis._pages import SET_ASIDE_MICROS, Entry, Pages
from mcp_task_runtime.stores.redis._scripts import FOLLOWS, LIVE, UPDATES
from mcp_task_runtime.stores.redis._search import Search
from mcp_task_runtime.stores.redis._statistics import RedisStatistics
from mcp_task_runtime.stores.redis._work import WaitingWork
from mcp_task_runtime.stores.redis.queue import RedisTaskMessageQueue, queue_of

__all__ = ["RedisTaskStore"]

_CALLS_FORGOTTEN: Final = 20
"""Most expired calls that one call removes."""

_LONGEST_CALL_MS: Final = 7 * 24 * 60 * 60 * 1_000

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
        self._work = WaitingWork(self._backend, self._pages)

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
        new = NewTask.of(new, fields)
        _storable.check_new_task(new)
        task_id = new_task_id() if new.task_id is None else new.task_id
        draft = create_record(replace(new, task_id=task_id), now=self.clock.now())
        tag, mark = self._keys.tag(task_id), self._backend.new_operation()
        if self._backend.is_cluster and new.max_live is not None:  # the index is in another slot
            check_room(await self.count_live_tasks(new.owner), new.max_live)
        (reply,) = await self._backend.send(self._creation(draft, new, tag, mark))
        if reply[0] == b"schema":
            raise schema_error(reply[1])
        if reply[0] == b"full":
            check_room(new.max_live or 0, new.max_live)
        if reply[0] != b"ok":
            raise TaskExistsError(task_id)
        record = create_record(replace(new, task_id=task_id), now=from_micros(reply[1]))
        if reply[3:] and reply[3] is not None:  # it took the place of one that had expired
            self._backend.forget(tag, reply[2], reply[3])
        if self._backend.is_cluster:
            await self._index(record, tag, mark, new.lease_ms)
        return record

    # --- TaskQuotas ---

    async def count_live_tasks(self, owner: str | None) -> int:
        """Return how many live tasks an owner has; see `TaskQuotas.count_live_tasks`.

        On a cluster `create_task` asks this before it creates a task: calls that overlap may make more than
        `NewTask.max_live`. Tasks of earlier versions count from the next change of their status on.
        """
        index = self._keys.search + b"live:" + self._keys.search_owner(owner)
        (reply,) = await self._backend.send(script_call("live", (index,), self._backend.now()))
        return int(reply)

    # --- TaskJoins ---

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        """Return the task that was made with this key, or create one; see `TaskJoins.join_task`.

        One step decides which identifier the call has, and one who creates the task with it. The first is known for the
        task's TTL at its creation, for 7 days without one: a task that lives longer is joined no more then.
        """
        _storable.check_new_task(new)
        _storable.check_text("key", key)
        own = pack(new_task_id() if new.task_id is None else new.task_id)
        ended = b""
        while True:
            reply = await self._decide(self._keys.call(key), ended, own, _known_ms(new))
            task_id = reply.decode()
            record = await self.get_task(task_id)
            if record is None:  # the caller whose identifier it is has not come so far, or the task was deleted
                with suppress(TaskExistsError):
                    return await self.create_task(replace(new, task_id=task_id)), True
                continue
            if may_join(record, now=self.clock.now(), ended_ms=ended_ms):
                return record, False
            ended = reply
            if ended == own:
                own = pack(new_task_id())

    async def _decide(self, call: bytes, ended: bytes, own: bytes, known_ms: int) -> bytes:
        """Return the identifier of the task that a call has."""
        now = self._backend.now()
        decide = script_call("join", self._keys.calls, now, call, ended, own, known_ms, _CALLS_FORGOTTEN)
        (reply,) = await self._backend.send(decide)
        identifier: bytes = reply
        return identifier

    def _creation(self, record: TaskRecord, new: NewTask, tag: bytes, mark: str) -> Call:
        """Return the call that stores a task, on a single server with its entries in the indexes."""
        ttl_ms = record.task.ttl_ms
        create = self._backend.task_call(
            *("create", tag, mark, _member(mark, tag), pack(record.request.name)),
            "" if ttl_ms is None else max(ttl_ms, 0) + self._backend.margin_ms,
            _at_most(record),
            "" if record.lease is None else new.lease_ms,
            "" if new.max_live is None else max(0, int(new.max_live)),
            *dump_record(record, mark),
        )
        if self._backend.is_cluster:
            return create
        return create._replace(keys=(*create.keys, *self._keys.of_owner(record.owner)))

    async def _index(self, record: TaskRecord, tag: bytes, mark: str, lease_ms: int) -> None:
        """Enter a new task in the indexes of a cluster."""
        now, margin_ms, at_most = to_micros(record.task.created_at), self._backend.margin_ms, _at_most(record)
        latest = "" if at_most == "" else now + 1_000 * int(at_most)
        owned = script_call("index", self._keys.of_owner(record.owner), now, margin_ms, _member(mark, tag), latest)
        calls = [owned, self._filing(record)]
        if record.lease is not None:
            kept = "" if at_most == "" else int(at_most) + margin_ms
            calls.append(script_call("lease", (self._keys.leases,), tag, now + 1_000 * lease_ms, kept))
        await self._backend.send(*calls)
        if record.lease is not None and not record.lease.worker:
            await self._work.enter(record)

    def _filing(self, record: TaskRecord) -> Call:
        """Return the call that enters a task in the search index of a cluster, in its status."""
        task, name = record.task, pack(record.request.name)
        tag = self._keys.tag(task.task_id)
        return self._backend.call_search(
            *("file", self._backend.margin_ms, self._keys.search, tag, name),
            _optional(task.task_id if tag.startswith(b"~") else None),
            *(task.status.encode(), to_micros(task.created_at)),
            *("" if task.ttl_ms is None else task.ttl_ms, record.retention_ms, _optional(record.owner)),
            int(record.outcome is not None and record.outcome.is_error),
        )

    def _filed(self, record: TaskRecord) -> TaskRecord:
        """Return the record after a change that the search index must follow; on a cluster that is not waited for."""
        if self._backend.is_cluster:
            self._backend.post(self._filing(record))
        return record

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        reply = await self._read(task_id, "get", 0)
        return None if reply is None else load_record(reply[0])

    async def get_view(self, task_id: str) -> TaskView | None:
        """Return the task with its open questions; see `TaskQuestions.get_view`."""
        return _view_of(await self._read(task_id, "view", ASKED))

    # --- TaskOwners ---

    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        """Return an owner's task with its open questions; see `TaskOwners.get_owned`."""
        try:
            owners = () if owner is None else (pack(owner),)
        except ValueError:
            return None
        return _view_of(await self._read(task_id, "own", ASKED, *owners))

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
        tag, (reply, *rest) = await self._change(
            *(task_id, "update", UPDATES.get(status, b" "), "" if status is None else status),
            _optional(status_message),
            b"" if progress is None else dump_progress(progress),
            "" if ttl_ms is None else int(ttl_ms),
            "" if if_revision is None else int(if_revision),
            *_fencing(fence),
            event_text(status_message),
        )
        if reply == b"refused":
            current = rest[0].decode()
            raise InvalidTransitionError(task_id, current=current, requested=current if status is None else status)
        if reply == b"conflict":
            raise RevisionConflictError(task_id, expected=int(if_revision or 0), current=int(rest[0]))
        record = self._changed(task_id, reply, rest)
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
        at_most, margin_ms = int(_at_most(record)), self._backend.margin_ms
        latest = to_micros(record.task.created_at) + 1_000 * at_most
        owner = self._keys.of_owner(record.owner)
        calls = [script_call("extend", owner, self._backend.now(), margin_ms, mark + b" " + tag, latest)]
        if record.lease is not None:
            lapses = to_micros(record.lease.expires_at)
            calls.append(script_call("lease", (self._keys.leases,), tag, lapses, at_most + margin_ms))
        await self._backend.send(*calls)

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        """Record a terminal status and its outcome, and delete the mailbox; see `TaskStore.finish_task`."""
        status = outcome.status
        _storable.check_outcome(outcome)
        tag, (reply, *rest) = await self._change(
            *(task_id, "finish", FOLLOWS.get(status, b" "), status),
            _optional(outcome.payload_json),
            _optional(outcome.status_message),
            *_fencing(fence),
            event_text(outcome.status_message),
            int(outcome.is_error),
        )
        if reply == b"refused":
            raise InvalidTransitionError(task_id, current=rest[0].decode(), requested=status)
        record = self._changed(task_id, reply, rest)
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
        place = 0 if cursor is None else decode_cursor(cursor, owner)
        index = self._keys.of_owner(owner)[0]
        found: list[Entry] = []
        while True:
            wanted = limit + 1 - len(found)
            _, page = await self._pages.read(index, f"({place}", "+inf", wanted)
            found += [entry for entry in page if entry.is_live]
            gone = [entry.member for entry in page if entry.is_gone]
            if gone:  # the index heals when it is read
                self._backend.unindex(owner, gone)
            if len(found) > limit or len(page) < wanted:
                break
            place = page[-1].place
        records = tuple(entry.record for entry in found[:limit] if entry.record is not None)
        return TaskPage(records, encode_cursor(found[limit - 1].place, owner) if len(found) > limit else None)

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task; see `TaskStore.delete_task`."""
        # Carried out twice it could not say whether there was one.
        tag, (reply, *rest) = await self._change(task_id, "delete", again=False, missing=b"absent")
        if reply != b"ok":
            return False
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
        _storable.check_duration("lease_ms", lease_ms)
        held = await self._change_leases("renew", worker, task_ids, lease_ms)
        return frozenset(held)

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Release leases of a worker; see `TaskLeases.drop_leases`."""
        await self._change_leases("drop", worker, task_ids, 1 if lapse else 0, event_text(worker))

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`. Damaged tasks are left out."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        found: dict[str, TaskRecord] = {}
        while True:
            now, page = await self._pages.read(self._keys.leases, "-inf", "", limit)
            corrections: list[bytes | int | str] = []
            for entry in page:
                record = entry.record
                lease = None if record is None else record.lease
                if entry.is_damaged:
                    corrections += entry.member, entry.place, now + SET_ASIDE_MICROS
                elif record is None or lease is None or not entry.is_live:
                    corrections += entry.member, entry.place, ""
                elif to_micros(lease.expires_at) > now:
                    corrections += entry.member, entry.place, to_micros(lease.expires_at)
                else:
                    found[record.task_id] = record
            if corrections:  # the index heals when it is read
                await self._backend.send(script_call("correct", (self._keys.leases,), *corrections))
            if not corrections or len(found) >= limit or len(page) < limit:
                self._work.mend(found.values())
                return tuple(sorted(found.values(), key=_lapsed_at)[:limit])

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task; see `TaskLeases.claim_task`."""
        _storable.check_text("worker", worker)
        _storable.check_duration("lease_ms", lease_ms)
        tag, (reply, *rest) = await self._change(
            task_id, "claim", pack(worker), lease_ms, event_text(worker), missing=b"absent"
        )
        if reply != b"ok":
            return None
        record = _loaded(rest[0])
        if record.lease is not None:
            self._move_lapse(tag, to_micros(record.lease.expires_at))
        if worker:
            self._work.leave(tag, self._keys.name_tag(record.request.name))
        else:
            await self._work.enter(record)
        return record

    # --- work

    async def wait_for_work(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker; see `TaskWork.wait_for_work`. Damaged tasks are left out.

        The cost of a look is linear in `names` and `limit`. On a cluster, where the index is in another slot than the
        task, it looks every two seconds.
        """
        return await self._work.wait(names, limit=limit)

    # --- questions

    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        """Append a question and make the task `input_required`; see `TaskQuestions.ask`."""
        if question.key is None:
            raise ValueError("question must be a request")
        _storable.check_message(question)
        _, (reply, *rest) = await self._change(
            *(task_id, "ask", FOLLOWS["input_required"], *_fencing(fence)),
            *(key_field(question.key), dump_message(question), event_text(question.key)),
        )
        if reply == b"refused":
            raise InvalidTransitionError(task_id, current=rest[0].decode(), requested="input_required")
        if reply == b"known":
            return None
        return self._filed(self._changed(task_id, reply, rest))

    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        """Answer open questions and set the status; see `TaskQuestions.answer_all`."""
        flat: list[bytes | int | str] = []
        for key, answer in answers.items():
            _storable.check_answer(answer)
            kind = b"withdrawn" if answer.type == "withdrawn" else b"answered"
            flat += key_field(key), dump_answer(answer), kind, event_text(key)
        if not flat:
            return frozenset()
        _, (reply, *rest) = await self._change(task_id, "answer_all", LIVE, *flat, missing=b"absent")
        if reply != b"ok":
            return frozenset()
        if rest[0]:
            self._filed(_loaded(rest[1]))
        taken = set(rest[0])
        return frozenset(key for key in answers if key_field(key) in taken)

    # --- steps and history

    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        """Record the result of a step, once; see `TaskJournal.record_step`."""
        _storable.check_text("key", key)
        _storable.check_json("value_json", value_json)
        step = pack(key), pack(value_json)
        _, (reply, *rest) = await self._change(task_id, "record_step", LIVE, *_fencing(fence), *step)
        if reply == b"refused":
            current = rest[0].decode()
            raise InvalidTransitionError(task_id, current=current, requested=current)
        if reply == b"lost":
            raise LeaseLostError(task_id)
        return _step(rest[0])[1]

    async def read_steps(self, task_id: str) -> Mapping[str, str]:
        """Return the recorded results by key; see `TaskJournal.read_steps`."""
        reply = await self._read(task_id, "steps", STEPS)
        flat = [] if reply is None else reply[0]
        steps = sorted((_step(value), _text(key)) for key, value in zip(flat[::2], flat[1::2], strict=True))
        return {key: value for (_, value), key in steps}

    async def get_history(self, task_id: str) -> tuple[TaskEvent, ...]:
        """Return what happened to a task, oldest first; see `TaskSearch.get_history`."""
        reply = await self._read(task_id, "history", EVENTS)
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

    # --- scripts

    async def _read(self, task_id: str, script: str, kind: int, *arguments: bytes) -> list[Any] | None:
        """Return what a script reads of a task, or `None` if there is none."""
        tag = self._keys.tag(task_id)
        ((reply, *rest),) = await self._backend.send(self._backend.read_call(script, tag, kind, *arguments))
        if reply == b"schema":
            raise schema_error(rest[0])
        if reply == b"expired":
            self._backend.purge(tag, *rest)
        if reply == b"absent" and rest:
            load_nothing()
        return rest if reply == b"ok" else None

    async def _change(
        self, task_id: str, script: str, *arguments: bytes | int | str, again: bool = True, missing: bytes = b""
    ) -> tuple[bytes, list[Any]]:
        """Run a script about a task; return the task's tag and the reply.

        Raises:
            TaskNotFoundError: The task does not exist, and `missing` is not `absent`.
            SchemaVersionError: A later version of this library stored it.
        """
        tag = self._keys.tag(task_id)
        call = self._backend.task_call(script, tag, self._backend.new_operation(), *arguments)
        (reply,) = await self._backend.send(call, again=again)
        if not self._exists(tag, reply):
            if missing != b"absent":
                raise TaskNotFoundError(task_id)
            return tag, [b"absent"]
        return tag, reply

    def _exists(self, tag: bytes, reply: list[Any]) -> bool:
        """Return whether a script found its task; clean up after one that it found expired."""
        if reply[0] == b"schema":
            raise schema_error(reply[1])
        if reply[0] == b"expired":
            self._backend.forget(tag, *reply[1:])
        return reply[0] not in (b"absent", b"expired")

    @staticmethod
    def _changed(task_id: str, reply: bytes, rest: Sequence[Any]) -> TaskRecord:
        """Return the record that a script changed."""
        if reply == b"lost":
            raise LeaseLostError(task_id)
        return _loaded(rest[0])

    async def _change_leases(
        self, script: str, worker: str, task_ids: Collection[str], *arguments: bytes | int | str
    ) -> list[str]:
        """Run a script on the leases of a worker; return the identifiers of those tasks that it changed."""
        tags = {self._keys.tag(task_id): task_id for task_id in task_ids}
        operation, name = self._backend.new_operation(), pack(worker)
        calls = [self._backend.task_call(script, tag, operation, name, *arguments) for tag in tags]
        replies = await self._backend.send(*calls, keeps_errors=True) if calls else []
        changed: list[str] = []
        for (tag, task_id), reply in zip(tags.items(), replies, strict=True):
            if isinstance(reply, Exception):
                self._pages.report(tag, reply)
            elif reply[0] == b"schema":
                self._pages.report(tag, schema_error(reply[1]))
            elif self._exists(tag, reply) and reply[0] == b"ok":
                changed.append(task_id)
                if len(reply) > 1:
                    self._move_lapse(tag, int(reply[1]))
        return changed

    def _move_lapse(self, tag: bytes, when: int) -> None:
        """Move an entry of the index of leases where the scripts cannot do it: on a cluster, without waiting."""
        if self._backend.is_cluster:
            self._backend.post(Call(b"ZADD", (self._keys.leases,), (b"XX", when, tag)))


def _member(mark: str, tag: bytes) -> bytes:
    return mark.encode() + b" " + tag


def _at_most(record: TaskRecord) -> int | str:
    """Return after how many milliseconds a task has expired whenever it ends; nothing for a task without TTL."""
    ttl_ms = record.task.ttl_ms
    return "" if ttl_ms is None else max(ttl_ms, 0) + record.retention_ms + 1


def _optional(text: str | None) -> bytes:
    """Return text in a form that is not empty unless it is `None`."""
    return b"" if text is None else b"+" + pack(text)


def _known_ms(new: NewTask) -> int:
    return _LONGEST_CALL_MS if new.ttl_ms is None else max(new.ttl_ms, 1)


def _fencing(fence: Fence | None) -> tuple[bytes, int | str]:
    """Return a fence as scripts take it."""
    return (b"", "") if fence is None else (_optional(fence.worker), fence.attempt)


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


def _loaded(values: list[bytes | None]) -> TaskRecord:
    record = load_record(values)
    if record is None:
        raise StoreError("A stored task is damaged")
    return record


def _lapsed_at(record: TaskRecord) -> float:
    return 0.0 if record.lease is None else record.lease.expires_at.timestamp()


def _view_of(reply: list[Any] | None) -> TaskView | None:
    record = None if reply is None else load_record(reply[0])
    if reply is None or record is None:
        return None
    return TaskView(record, tuple(load_message(question) for question in reply[1]))
