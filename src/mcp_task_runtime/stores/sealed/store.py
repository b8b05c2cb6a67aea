"""`seal_store`: a store whose values are sealed, over any other, with the abilities of that one."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol, cast

import anyio

from mcp_task_runtime.core.abilities import implements, queue_of
from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.mirror import mirror, overlay
from mcp_task_runtime.core.store import (
    TaskDiagnosis,
    TaskJoins,
    TaskJournal,
    TaskLeases,
    TaskOwners,
    TaskQuestions,
    TaskQuotas,
    TaskSearch,
    TaskStore,
    TaskSweeping,
    TaskTaking,
    TaskWatching,
    TaskWork,
)
from mcp_task_runtime.core.text import ascii_lower
from mcp_task_runtime.core.types import (
    LOOKED_AT_MOST,
    Fence,
    Finding,
    LiveStatus,
    NewTask,
    Outcome,
    Progress,
    TaskEvent,
    TaskFilter,
    TaskPage,
    TaskRecord,
)
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import InvalidCursorError, SealedError, StoreError
from mcp_task_runtime.stores._storable import check_json, check_new_task, check_outcome, check_progress, check_text
from mcp_task_runtime.stores.sealed._records import (
    open_outcome,
    open_record,
    readable,
    sealed_outcome,
    sealed_progress,
    sealed_task,
)
from mcp_task_runtime.stores.sealed._seal import Seal
from mcp_task_runtime.stores.sealed.queue import mirrored_queue, open_question, sealed_answer, sealed_question

__all__ = ["seal_store"]

logger: logging.Logger = logging.getLogger(__name__)

_SAMPLE: Final = 100
_LOOK_AGAIN_SECONDS: Final = 1.0
_LOST_RACE_SECONDS: Final = 0.02
_MORE: Final = 4


def seal_store(store: TaskStore, keys: Sequence[str | bytes]) -> TaskStore:
    """Return a store that seals what it is given and opens what the other returns; see `stores.sealed`.

    It has the abilities of the other, and its `message_queue`, sealed too. `Tasks(seal=keys)` calls it.

    Args:
        store: Keeps the tasks, and stays the caller's to close.
        keys: The first one seals, every one opens.

    Raises:
        ImportError: The extra `credentials` is not installed.
        ValueError: There is no key, or one is malformed.
    """
    seal = Seal(keys)
    members = overlay(store, _SealedStore(cast(_AbleStore, store), seal))
    members["is_sealed"] = True
    queue = queue_of(store)
    if queue is not None:
        members["message_queue"] = mirrored_queue(queue, seal)
    return cast(TaskStore, mirror(store, "Sealed", members))


class _AbleStore(
    TaskStore,
    TaskLeases,
    TaskSweeping,
    TaskWork,
    TaskTaking,
    TaskQuestions,
    TaskOwners,
    TaskJournal,
    TaskJoins,
    TaskQuotas,
    TaskSearch,
    TaskWatching,
    TaskDiagnosis,
    Protocol,
):
    """A store with every ability; those that a store lacks are not called."""


class _SealedStore:
    """The members of a store that read or write values."""

    def __init__(self, store: _AbleStore, seal: Seal) -> None:
        self._store = store
        self._seal = seal
        self._has_complained = False
        self._takes = True

    def _open(self, record: TaskRecord) -> TaskRecord:
        return open_record(self._seal, record)

    # --- TaskStore ---

    async def create_task(self, new: NewTask | None = None, **fields: Any) -> TaskRecord:
        return self._open(await self._store.create_task(self._sealed(NewTask.of(new, cast(Any, fields)))))

    async def get_task(self, task_id: str) -> TaskRecord | None:
        record = await self._store.get_task(task_id)
        return None if record is None else self._open(record)

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
        check_text("status_message", status_message)
        check_progress(progress)
        values = self._seal.of(task_id)
        record = await self._store.update_task(
            task_id,
            status=status,
            status_message=None if status_message is None else values.status(status_message),
            progress=None if progress is None else sealed_progress(values, progress),
            ttl_ms=ttl_ms,
            if_revision=if_revision,
            fence=fence,
        )
        return readable(self._seal, record)  # it is written: an error would say that it is not

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        check_outcome(outcome)
        sealed = sealed_outcome(self._seal.of(task_id), outcome)
        return readable(self._seal, await self._store.finish_task(task_id, sealed, fence=fence))

    async def get_result(self, task_id: str) -> Outcome | None:
        outcome = await self._store.get_result(task_id)
        return None if outcome is None else open_outcome(self._seal.of(task_id), outcome)

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of an owner's tasks: those stored under each of the owner's names, one after the other."""
        if owner is None:
            return self._page(await self._store.list_tasks(owner=None, cursor=cursor, limit=limit))
        names = self._seal.stored_owners(owner)
        number, inner = 0, None
        if cursor is not None:
            kind, _, inner = cursor.partition(".")
            number = next((at for at, (each, _) in enumerate(names) if each == kind), len(names))
            if number == len(names):
                raise InvalidCursorError
        records: list[TaskRecord] = []
        while True:
            kind, stored = names[number]
            page = await self._store.list_tasks(owner=stored, cursor=inner or None, limit=limit - len(records))
            records.extend(self._owned(page, owner, stored))
            if page.next_cursor is not None:
                return TaskPage(tuple(records), f"{kind}.{page.next_cursor}")
            number, inner = number + 1, None
            if number == len(names):
                return TaskPage(tuple(records))
            if len(records) == limit:
                return TaskPage(tuple(records), f"{names[number][0]}.")

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        return self._open(await self._store.wait_for_update(task_id, after=after))

    # --- TaskQuotas ---

    async def count_live_tasks(self, owner: str | None) -> int:
        """Return how many live tasks an owner has under any of its stored names; a new task is held to the last."""
        if owner is None:
            return await self._store.count_live_tasks(None)
        return sum([await self._store.count_live_tasks(stored) for _, stored in self._seal.stored_owners(owner)])

    # --- TaskJoins ---

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        check_text("key", key)
        key = self._seal.digest("join", key)
        record, is_new = await self._store.join_task(self._sealed(new), key=key, ended_ms=ended_ms)
        return self._open(record), is_new

    def _sealed(self, new: NewTask) -> NewTask:
        check_new_task(new)
        return sealed_task(self._seal, new, new_task_id() if new.task_id is None else new.task_id)

    # --- TaskWatching ---

    def watch_task(
        self, task_id: str, on_change: Callable[[TaskRecord | None], None], *, after: int
    ) -> Callable[[], None]:
        def changed(record: TaskRecord | None) -> None:
            try:
                opened = None if record is None else self._open(record)
            except SealedError:
                opened = None  # the caller looks, and gets the error
            on_change(opened)

        return self._store.watch_task(task_id, changed, after=after)

    # --- TaskLeases, TaskSweeping, TaskWork: a process takes no work that it cannot open

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        return await self._list_opened(self._store.list_lapsed, limit)

    async def list_lost(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        return await self._list_opened(partial(self._store.list_lost, names), limit)

    async def _list_opened(
        self, list_records: Callable[..., Awaitable[tuple[TaskRecord, ...]]], limit: int
    ) -> tuple[TaskRecord, ...]:
        wanted = limit
        while True:
            found = await list_records(limit=wanted)
            opened = self._openable(found)
            if len(opened) >= limit or len(found) < wanted:
                return tuple(opened[:limit])
            wanted *= _MORE

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        record = await self._store.claim_task(task_id, worker=worker, lease_ms=lease_ms)
        try:
            return None if record is None else self._open(record)
        except SealedError:
            await self._store.drop_leases(worker, [task_id], lapse=True)
            raise

    async def wait_for_work(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        wanted = limit
        while True:
            found = await self._store.wait_for_work(names, limit=wanted)
            opened = self._openable(found)
            if opened or not found:
                return tuple(opened[:limit])
            if len(found) < wanted:
                await anyio.sleep(_LOOK_AGAIN_SECONDS)  # they wait for a worker that has their key
            else:
                wanted *= _MORE

    # --- TaskTaking

    async def take_work(
        self, names: Collection[str], *, worker: str, lease_ms: int, limit: int, with_sealed: bool = True
    ) -> tuple[TaskRecord, ...]:
        while self._takes:
            taken = await self._store.take_work(
                names, worker=worker, lease_ms=lease_ms, limit=limit, with_sealed=with_sealed
            )
            opened = self._openable(taken)
            if len(opened) == len(taken):
                return tuple(opened)
            self._takes = False  # what is put back would be taken again at once: from now on it looks first
            ids = {record.task_id for record in taken} - {record.task_id for record in opened}
            with anyio.CancelScope(shield=True):
                for task_id in ids:
                    await self._put_back(task_id, worker)
            if opened:
                return tuple(opened)
        while True:
            found = await self.wait_for_work(names, limit=limit)
            claimed = await self._claim_each(found, worker, lease_ms)
            if claimed:
                return tuple(claimed)
            await anyio.sleep(_LOST_RACE_SECONDS)

    async def take_task(
        self, task_id: str, names: Collection[str], *, worker: str, lease_ms: int, with_sealed: bool = True
    ) -> TaskRecord | None:
        record = await self._store.take_task(task_id, names, worker=worker, lease_ms=lease_ms, with_sealed=with_sealed)
        try:
            return None if record is None else self._open(record)
        except SealedError:
            with anyio.CancelScope(shield=True):
                await self._put_back(task_id, worker)
            raise

    async def _claim_each(self, found: Sequence[TaskRecord], worker: str, lease_ms: int) -> list[TaskRecord]:
        """Claim tasks. Where a claim fails, those before it count: no other code would run or release them."""
        claimed: list[TaskRecord] = []
        with anyio.CancelScope(shield=True):
            for each in found:
                try:
                    record = await self.claim_task(each.task_id, worker=worker, lease_ms=lease_ms)
                except StoreError:
                    if not claimed:
                        raise
                    logger.debug("A task that waits could not be claimed", exc_info=True)
                    break
                if record is not None:
                    claimed.append(record)
        return claimed

    async def _put_back(self, task_id: str, worker: str) -> None:
        await self._store.drop_leases(worker, [task_id], lapse=True)
        await self._store.claim_task(task_id, worker="", lease_ms=0)

    def _openable(self, records: Sequence[TaskRecord]) -> list[TaskRecord]:
        opened: list[TaskRecord] = []
        for record in records:
            try:
                opened.append(self._open(record))
            except SealedError:
                if not self._has_complained:
                    self._has_complained = True
                    logger.exception("Waiting work is left to processes that have its seal key")
        return opened

    # --- TaskQuestions ---

    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        sealed = sealed_question(self._seal.of(task_id), question)
        record = await self._store.ask(task_id, sealed, fence=fence)
        return None if record is None else readable(self._seal, record)

    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        seal = self._seal.of(task_id)
        return await self._store.answer_all(
            task_id, {key: sealed_answer(seal, key, answer) for key, answer in answers.items()}
        )

    async def get_view(self, task_id: str) -> TaskView | None:
        return self._opened(await self._store.get_view(task_id))

    # --- TaskOwners ---

    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        """Return an owner's task, which is stored under one of the owner's names, most likely under the last."""
        if owner is None:
            return self._opened(await self._store.get_owned(task_id, owner=None))
        for _, stored in reversed(self._seal.stored_owners(owner)):
            view = self._opened(await self._store.get_owned(task_id, owner=stored))
            if view is not None:
                return view if view.record.owner == owner else None
        return None

    def _opened(self, view: TaskView | None) -> TaskView | None:
        if view is None:
            return None
        seal = self._seal.of(view.record.task_id)
        return TaskView(self._open(view.record), tuple([open_question(seal, question) for question in view.questions]))

    # --- TaskJournal ---

    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        check_json("value_json", value_json)
        seal, field = self._seal.of(task_id), _step_field(key)
        stored = await self._store.record_step(task_id, key, seal.json(field, value_json), fence=fence)
        return seal.open_json(field, stored)

    async def read_steps(self, task_id: str) -> Mapping[str, str]:
        seal = self._seal.of(task_id)
        steps = await self._store.read_steps(task_id)
        return {key: seal.open_json(_step_field(key), value) for key, value in steps.items()}

    # --- TaskSearch ---

    async def search_tasks(
        self, wanted: TaskFilter, *, newest_first: bool = True, cursor: str | None = None, limit: int = 50
    ) -> TaskPage:
        """Return a page of the tasks that match; a text is looked for here, since the store cannot read it."""
        stored = replace(wanted, text=None, owners=self._stored_owners(wanted.owners))
        if wanted.text is None:
            return self._page(
                await self._store.search_tasks(stored, newest_first=newest_first, cursor=cursor, limit=limit)
            )
        text = ascii_lower(wanted.text)
        mark = self._seal.digest("search", text)
        if cursor is not None:
            tag, _, cursor = cursor.partition(".")
            if tag != mark or not cursor:
                raise InvalidCursorError
        found: list[TaskRecord] = []
        seen = 0
        while True:
            page = await self._store.search_tasks(
                stored, newest_first=newest_first, cursor=cursor, limit=limit - len(found)
            )
            seen += len(page.records)
            found.extend(record for record in self._page(page).records if _says(record, text))
            cursor = page.next_cursor
            if cursor is None:
                return TaskPage(tuple(found))
            if len(found) >= limit or seen >= LOOKED_AT_MOST:
                return TaskPage(tuple(found), f"{mark}.{cursor}")

    async def get_history(self, task_id: str) -> tuple[TaskEvent, ...]:
        seal = self._seal.of(task_id)
        return tuple(
            [
                event if event.text is None else replace(event, text=seal.open_event(event.text))
                for event in await self._store.get_history(task_id)
            ]
        )

    def _stored_owners(self, owners: frozenset[str | None] | None) -> frozenset[str | None] | None:
        if owners is None:
            return None
        stored: set[str | None] = {None} if None in owners else set()
        for owner in owners:
            if owner is not None:
                stored.update(name for _, name in self._seal.stored_owners(owner))
        return frozenset(stored)

    def _page(self, page: TaskPage) -> TaskPage:
        """Return a page with what can be opened; a list must not fail for one task."""
        return TaskPage(tuple([readable(self._seal, record) for record in page.records]), page.next_cursor)

    def _owned(self, page: TaskPage, owner: str, stored: str) -> list[TaskRecord]:
        """Return the tasks of a page that are an owner's by what is sealed in them, not by the stored name alone."""
        records = self._page(page).records
        return [replace(record, owner=owner) for record in records if record.owner in (owner, stored)]

    # --- TaskDiagnosis ---

    async def diagnose(self) -> tuple[Finding, ...]:
        findings = await self._store.diagnose()
        if not implements(self._store, TaskSearch):
            return findings
        page = await self._store.search_tasks(TaskFilter(), limit=_SAMPLE)
        missing = len(page.records) - len(self._openable(page.records))
        if missing:
            text = f"{missing} of the newest {len(page.records)} tasks are sealed with a key that is not here"
            return (*findings, Finding("seal", "warning", text))
        return (*findings, Finding("seal", "ok", f"the newest {len(page.records)} tasks can be opened"))


def _says(record: TaskRecord, text: str) -> bool:
    message = record.task.status_message
    return message is not None and text in ascii_lower(message)


def _step_field(key: str) -> str:
    return f"step {key}"
