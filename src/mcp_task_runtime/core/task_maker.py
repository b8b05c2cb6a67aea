"""`TaskMaker`: makes tasks within the bounds of the settings."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import anyio

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.live_tasks import LiveTasks
from mcp_task_runtime.core.observer import TaskObserver
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.status_messages import QUEUED
from mcp_task_runtime.core.store import TaskJoins, TaskQuotas, TaskSealing, TaskStore
from mcp_task_runtime.core.store_calls import does_never_wait, store_errors, time_limit
from mcp_task_runtime.core.stored_tasks import StoredTasks
from mcp_task_runtime.core.text import check_size, check_text
from mcp_task_runtime.core.types import DEFAULT_POLL_INTERVAL_MS, Fence, NewTask, TaskRecord, TaskRequest, TaskSpec
from mcp_task_runtime.core.worker_leases import WorkerLeases
from mcp_task_runtime.errors import LimitExceededError, StoreUnavailableError

__all__ = ["TaskMaker"]

_CREATE_SECONDS = 60.0
_MOST_UNANSWERED = 1_000
"""Calls without an answer that are known when they come again."""
_MOST_TRIES = 10
"""Tasks that may have been made for each of them."""


class TaskMaker:
    """Makes the tasks of a runtime."""

    def __init__(
        self,
        store: TaskStore,
        settings: TaskSettings,
        live: LiveTasks,
        stored: StoredTasks,
        leases: WorkerLeases | None,
        observer: TaskObserver | None,
        *,
        is_shared: bool,
    ) -> None:
        """Make the maker of a runtime's tasks.

        Args:
            store: Where the tasks are kept.
            settings: Bounds and defaults.
            live: Counts the live tasks; the new one is added.
            stored: Counts the stored tasks; the new one is added.
            leases: The leases of this process, if the store has leases.
            observer: Returns the trace that a task belongs to.
            is_shared: Whether other processes use the store; if not, only tasks that may rerun have leases, which
                count their attempts.
        """
        self._store = store
        self._settings = settings
        self._live = live
        self._stored = stored
        self._leases = leases
        self._observer = observer
        self._is_shared = is_shared
        self._has_quotas = isinstance(store, TaskQuotas)
        self._max_live = settings.max_tasks_per_owner if is_shared and self._has_quotas else None
        self._creates_at_once = does_never_wait(store.create_task)
        self._is_sealed = isinstance(store, TaskSealing) and store.is_sealed
        self._unanswered: dict[str, list[str]] = {}

    async def make(
        self, spec: TaskSpec, *, waits_ms: int | None = None, is_queued: bool = False, shield: bool = False
    ) -> tuple[TaskRecord, bool]:
        """Create a task whose work this process runs, or that waits for a worker.

        Cancelled, the task may exist; with `shield`, a cancellation waits until it exists or could not be made.

        With `TaskSpec.join_key`, the task that was made with this key is returned instead where it may be joined,
        also where there is no room for a new one.

        Args:
            spec: What it is made with.
            waits_ms: Milliseconds until its wait for a worker is overdue; `None` for work that runs here.
            is_queued: Whether its status message says that it waits.
            shield: Whether a cancellation waits; not for longer than a minute.

        Returns:
            The task, and whether it is a new one.

        Raises:
            LimitExceededError: The owner has as many tasks as it may have, live or stored; or the arguments are too
                large.
            StoreError: The store could not create it.
            ValueError: Owner or name are not Unicode text.
        """
        self._check(spec)
        try:
            size = self._stored.check(spec)
            self._live.reserve(spec.owner)  # before the store is asked: others may be on their way too
        except LimitExceededError:
            joined = await self.join(spec, shield=shield)
            if joined is None:
                raise
            return joined, False
        is_new = False
        try:
            record, is_new = await self._create(self._bounded(spec, waits_ms, is_queued), spec.join_key, shield)
        finally:
            if not is_new:
                self._live.unreserve(spec.owner)
        if is_new:
            self._live.add_reserved(record)
            self._stored.add(record, size)
            audit.created(record)
        return record, is_new

    async def join(self, spec: TaskSpec, *, shield: bool = False) -> TaskRecord | None:
        """Return the task that a call joins, or `None`; no task is created.

        Only a store with `TaskQuotas` can join without creating a task; with others a call joins none here.

        Args:
            spec: What a task would have been made with.
            shield: Whether a cancellation waits for the answer; not for longer than a minute.

        Raises:
            LimitExceededError: The arguments are too large.
            StoreError: The store could not be asked.
            ValueError: Owner or name are not Unicode text.
        """
        if spec.join_key is None or not self._has_quotas:
            return None
        self._check(spec)
        new = replace(self._bounded(spec, None, is_queued=False), max_live=0)
        try:
            record, _ = await self._create(new, spec.join_key, shield)
        except LimitExceededError:
            return None
        return record

    def _check(self, spec: TaskSpec) -> None:
        check_text("name", spec.request.name)
        if spec.owner is not None:
            check_text("owner", spec.owner)
        check_size("arguments", spec.request.arguments_json, self._settings.max_payload_bytes)

    async def _create(self, new: NewTask, join_key: str | None, shield: bool) -> tuple[TaskRecord, bool]:
        """Have the store create a task, or join one, within a time limit."""
        if join_key is None and self._creates_at_once:
            with store_errors():
                return await self._store.create_task(new), True
        made = None
        operation = self._store.create_task if join_key is None else cast(TaskJoins, self._store).join_task
        try:
            with store_errors(), time_limit(operation, _CREATE_SECONDS, shield=shield):
                made = await self._created(new, join_key)
        except TimeoutError as error:
            raise StoreUnavailableError("The store did not answer in time") from error
        if made is None:
            raise StoreUnavailableError("The store did not answer in time")
        return made

    async def _created(self, new: NewTask, join_key: str | None) -> tuple[TaskRecord, bool]:
        if join_key is None:
            return await self._store.create_task(new), True
        store = cast(TaskJoins, self._store)
        task_id = new_task_id() if new.task_id is None else new.task_id
        new = replace(new, task_id=task_id)
        try:
            record, is_new = await store.join_task(new, key=join_key, ended_ms=self._settings.join_ended_ms)
        except (StoreUnavailableError, anyio.get_cancelled_exc_class()):
            self._note_unanswered(join_key, task_id)
            raise
        is_unanswered = record.task_id in self._unanswered.pop(join_key, ()) and record.task_id not in self._live
        return record, is_new or (is_unanswered and _is_as_made(record, new))

    def _note_unanswered(self, join_key: str, task_id: str) -> None:
        """Note a task that the store may have made for a call without an answer: nothing runs it.

        The same call, repeated, has it as a new one instead of joining it.
        """
        if join_key not in self._unanswered and len(self._unanswered) >= _MOST_UNANSWERED:
            del self._unanswered[next(iter(self._unanswered))]
        self._unanswered.setdefault(join_key, []).append(task_id)
        del self._unanswered[join_key][:-_MOST_TRIES]

    def forget(self, record: TaskRecord) -> None:
        """Stop counting a task as stored: it was deleted."""
        self._stored.discard(record.task_id)

    def _bounded(self, spec: TaskSpec, waits_ms: int | None, is_queued: bool) -> NewTask:
        settings = self._settings
        needs_lease = self._is_shared or spec.request.rerunnable
        worker = None if self._leases is None or not needs_lease else self._leases.worker
        return NewTask(
            ttl_ms=settings.clamp_ttl(settings.default_ttl_ms if spec.ttl_ms is None else spec.ttl_ms),
            poll_interval_ms=spec.poll_interval_ms or settings.poll_interval_ms or DEFAULT_POLL_INTERVAL_MS,
            task_id=spec.task_id,
            owner=spec.owner,
            retention_ms=settings.retention_ms,
            request=self._completed(spec.request),
            client_capabilities_json=spec.client_capabilities_json,
            worker=worker if waits_ms is None else "",
            lease_ms=settings.lease_ms if waits_ms is None else waits_ms,
            status_message=QUEUED if is_queued else None,
            max_live=self._max_live,
        )

    def _completed(self, request: TaskRequest) -> TaskRequest:
        """Return a request with the trace that it belongs to, and what keys its digests where values are sealed."""
        context = None if self._observer is None else self._observer.trace_context()
        if context:
            request = replace(request, caller_json=dump_json({**request.caller, **context}))
        return request.with_digest_key() if self._is_sealed else request


def _is_as_made(record: TaskRecord, new: NewTask) -> bool:
    """Return whether no work of a task that was made like this has begun: its first lease is as it was made."""
    if record.lease is None or new.worker is None:
        return record.lease is None and new.worker is None and record.outcome is None
    return record.lease.fence == Fence(new.worker, 1 if new.worker else 0)
