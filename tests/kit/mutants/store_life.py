"""Stores with one fault each: status, endings, waiting, snapshots, cancellation."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import anyio
import anyio.lowlevel
from typing_extensions import Unpack

from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import (
    Fence,
    LiveStatus,
    NewTask,
    NewTaskFields,
    Outcome,
    TaskRecord,
)
from mcp_task_runtime.errors import (
    InvalidTransitionError,
    RevisionConflictError,
    TaskNotFoundError,
)
from mcp_task_runtime.stores.memory import InMemoryTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.kit.mutants.registry import (
    live,
    store_mutant,
)

# --- store: status and endings ------------------------------------------------------------------------


@store_mutant("a_refused_step_raises_and_changes_nothing")
class AnEndedTaskCanBeUpdated(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        entry = live(self, task_id)
        record = entry.record
        if record.outcome is None:
            return await super().update_task(task_id, **changes)
        entry.record = replace(record, revision=record.revision + 1)
        return entry.record


@store_mutant("a_refused_step_raises_and_changes_nothing")
class ARefusedUpdateAddsToTheRevision(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        entry = live(self, task_id)
        try:
            return await super().update_task(task_id, **changes)
        except InvalidTransitionError:
            entry.record = replace(entry.record, revision=entry.record.revision + 1)
            raise


@store_mutant("a_conditional_update_happens_at_its_revision_only")
class ARefusedUpdateStampsTheTask(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        entry = live(self, task_id)
        try:
            return await super().update_task(task_id, **changes)
        except RevisionConflictError:
            task = replace(entry.record.task, last_updated_at=self._clock.now())
            entry.record = replace(entry.record, task=task)
            raise


@store_mutant("a_refused_step_raises_and_changes_nothing")
class AnUpdateCanEndATask(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        entry = live(self, task_id)
        if changes.get("status") in ("completed", "failed", "cancelled") and entry.record.outcome is None:
            task = replace(entry.record.task, status=changes["status"])
            entry.record = replace(entry.record, task=task, revision=entry.record.revision + 1)
            return entry.record
        return await super().update_task(task_id, **changes)


@store_mutant("a_conditional_update_happens_at_its_revision_only")
class TheExpectedRevisionIsIgnored(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        changes.pop("if_revision", None)
        return await super().update_task(task_id, **changes)


@store_mutant("a_conditional_update_happens_at_its_revision_only")
class TheExpectedRevisionIsCheckedTooEarly(InMemoryTaskStore):
    async def update_task(self, task_id: str, *, if_revision: int | None = None, **changes: Any) -> TaskRecord:
        record = live(self, task_id).record
        if if_revision is not None and record.revision != if_revision:
            raise RevisionConflictError(task_id, expected=if_revision, current=record.revision)
        await anyio.lowlevel.checkpoint()
        return await super().update_task(task_id, **changes)


@store_mutant("a_created_task_is_working_at_revision_1_and_keeps_what_it_was_given")
class TheProgressTokenIsDropped(InMemoryTaskStore):
    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        return await super().create_task(replace(new, request=replace(new.request, progress_token=None)))


@store_mutant("every_allowed_step_is_made_and_adds_one_to_the_revision")
class AnUpdateWithoutAMessageDropsTheMessage(InMemoryTaskStore):
    async def update_task(self, task_id: str, *, status_message: str | None = None, **changes: Any) -> TaskRecord:
        record = await super().update_task(task_id, status_message=status_message, **changes)
        entry = live(self, task_id)
        entry.record = replace(record, task=replace(record.task, status_message=status_message))
        return entry.record


@store_mutant("a_taken_identifier_is_refused_and_changes_nothing")
class CreatingOverwrites(InMemoryTaskStore):
    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        if new.task_id in self._entries:
            await self.delete_task(new.task_id or "")
        return await super().create_task(new)


@store_mutant("last_updated_at_never_goes_back")
class LastUpdatedAtGoesBack(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        record = await super().update_task(task_id, **changes)
        entry = live(self, task_id)
        entry.record = replace(record, task=replace(record.task, last_updated_at=self._clock.now()))
        return entry.record


@store_mutant("of_many_that_finish_a_task_exactly_one_wins", "changes_that_overlap_have_the_effect_of_some_sequence")
class EveryFinisherThatLookedInTimeWins(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        before = live(self, task_id).record
        await anyio.lowlevel.checkpoint()
        entry = live(self, task_id)
        if before.outcome is None:
            entry.record = replace(before, revision=entry.record.revision)
        return await super().finish_task(task_id, outcome)


@store_mutant("nobody_sees_an_end_without_its_outcome", "a_cancelled_change_happened_in_full_or_not_at_all", fault=8)
class TheResultIsWrittenBeforeTheStatus(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        entry = live(self, task_id)
        if not is_terminal(entry.record.status):
            entry.record = replace(entry.record, outcome=outcome)
        await anyio.lowlevel.checkpoint()
        return await super().finish_task(task_id, outcome)


@store_mutant("nobody_sees_an_end_without_its_outcome", "a_cancelled_change_happened_in_full_or_not_at_all", fault=8)
class TheStatusIsWrittenBeforeTheResult(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        record = await super().finish_task(task_id, outcome)
        entry = live(self, task_id)
        entry.record = replace(record, outcome=None)
        await anyio.lowlevel.checkpoint()
        entry.record = record
        return record


# --- store: waiting -----------------------------------------------------------------------------------


@store_mutant("every_waiter_wakes_when_the_task_changes", fault=1)
class OnlyTheLastWaiterWakes(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        if live(self, task_id).record.revision <= after:
            live(self, task_id).changed = None  # the new event takes the place of the one others wait for
        return await super().wait_for_update(task_id, after=after)


@store_mutant("a_change_before_the_wait_counts", fault=2)
class AChangeBeforeTheWaitIsLost(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        return await super().wait_for_update(task_id, after=live(self, task_id).record.revision)


@store_mutant("every_waiter_wakes_when_the_task_changes")
class TheEndWakesNobody(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        entry = live(self, task_id)
        entry.changed, waited_for = None, entry.changed
        try:
            return await super().finish_task(task_id, outcome)
        finally:
            entry.changed = waited_for


@store_mutant("every_waiter_wakes_when_the_task_changes")
class WaitingReturnsAtOnce(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        await anyio.lowlevel.checkpoint()
        return live(self, task_id).record


@store_mutant("a_waiter_is_woken_by_deletion")
class DeletionWakesNobody(InMemoryTaskStore):
    async def delete_task(self, task_id: str) -> bool:
        entry = self._entries.get(task_id)
        if entry is not None:
            entry.changed = None
        return await super().delete_task(task_id)


@store_mutant("a_waiter_is_woken_by_expiry", fault=20)
class ExpiryWakesNobody(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        while True:
            entry = live(self, task_id)
            if entry.record.revision > after:
                return entry.record
            entry.changed = entry.changed or Signal()
            await entry.changed.wait()


@store_mutant("a_waiter_outlasts_a_deadline_that_moved")
class AWaiterKeepsTheFirstDeadline(InMemoryTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._first: dict[str, datetime | None] = {}

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        record = await super().create_task(new)
        self._first[record.task_id] = record.task.expires_at
        return record

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        with self._clock.move_on_at(self._first.get(task_id)):
            return await super().wait_for_update(task_id, after=after)
        raise TaskNotFoundError(task_id)


@store_mutant("a_waiter_is_woken_when_the_store_is_closed")
class ClosingWakesNobody(InMemoryTaskStore):
    async def aclose(self) -> None:
        for entry in self._entries.values():
            entry.changed = None
        await super().aclose()


@store_mutant("a_cancelled_waiter_takes_nobody_with_it")
class ACancelledWaiterTakesTheEventWithIt(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        try:
            return await super().wait_for_update(task_id, after=after)
        finally:
            entry = self._entries.get(task_id)
            if entry is not None:
                entry.changed = None


# --- store: snapshots and cancellation ----------------------------------------------------------------


@store_mutant("what_a_store_returned_never_changes")
class LiveReferencesAreReturned(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        held = live(self, task_id).record
        changed = await super().update_task(task_id, **changes)
        object.__setattr__(held, "task", changed.task)
        object.__setattr__(held, "revision", changed.revision)
        live(self, task_id).record = held
        return held


class _SharedOutcome(Outcome):
    __slots__ = ("parsed",)

    @property
    def result(self) -> dict[str, Any] | None:
        if not hasattr(self, "parsed"):
            object.__setattr__(self, "parsed", self._payload())
        shared: dict[str, Any] | None = self.parsed  # type: ignore[attr-defined]
        return shared

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and self.payload_json == other.payload_json

    __hash__ = Outcome.__hash__


@store_mutant("changing_what_a_store_returned_changes_nothing")
class OneResultIsSharedByAllReaders(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        shared = _SharedOutcome(outcome.status, outcome.payload_json, outcome.status_message)
        return await super().finish_task(task_id, shared)


@store_mutant("a_cancelled_change_happened_in_full_or_not_at_all")
class AnUpdateIsWrittenInTwoSteps(InMemoryTaskStore):
    async def update_task(
        self,
        task_id: str,
        *,
        status: LiveStatus | None = None,
        status_message: str | None = None,
        if_revision: int | None = None,
        **changes: Any,
    ) -> TaskRecord:
        if status is not None and status_message is not None:
            record = await super().update_task(task_id, status=status, if_revision=if_revision, **changes)
            await anyio.lowlevel.checkpoint()
            entry = live(self, task_id)
            entry.record = replace(record, task=replace(record.task, status_message=status_message))
            return entry.record
        return await super().update_task(
            task_id, status=status, status_message=status_message, if_revision=if_revision, **changes
        )


@store_mutant("a_cancelled_operation_leaves_the_store_usable")
class ACancelledReadKeepsTheLock(InMemoryTaskStore):
    _released: anyio.Event | None = None

    async def get_task(self, task_id: str) -> TaskRecord | None:
        while self._released is not None:
            await self._released.wait()  # without a turn of the loop: virtual time hardly passes in those
        self._released = anyio.Event()
        await anyio.lowlevel.checkpoint()
        self._released.set()
        self._released = None
        return await super().get_task(task_id)


@store_mutant("a_cancelled_wait_leaves_nothing_behind")
class ACancelledWaitLeavesItsTimer(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        clock = self._clock
        assert isinstance(clock, FakeClock)
        scope = anyio.CancelScope()
        clock._deadlines[scope] = datetime(9999, 1, 1, tzinfo=timezone.utc)
        record = await super().wait_for_update(task_id, after=after)
        del clock._deadlines[scope]
        return record
