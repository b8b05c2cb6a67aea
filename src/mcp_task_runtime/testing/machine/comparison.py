"""What holds after each step of a story: waiters have woken, and all that can be read is what the model says."""

from __future__ import annotations

from typing import Any

from hypothesis.stateful import invariant

from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import TaskNotFoundError
from mcp_task_runtime.testing.checks.bench import require
from mcp_task_runtime.testing.machine.stage import Stage, Waiter

__all__ = ["Comparison"]


class Comparison(Stage):
    """A state machine that compares its backend with its model after each step."""

    @invariant()
    def compare(self) -> None:
        """Waiters are woken and everything that can be read is as the model says."""
        self._call(self._compare)

    async def _compare(self) -> None:
        for task, _ in list(self.askers):  # of a store and a queue apart, the deleter clears the mailbox
            if task not in self.model.tasks and task in self.model.mail:
                await self._clear(task)
        await self._release_askers()
        for task, _ in list(self.askers):  # the code that ends a task clears its mailbox, as the runtime does
            if task in self.model.tasks and self.model.tasks[task]["outcome"] is not None:
                await self._clear(task)
        await self._release_askers()
        await self._release_waiters()
        for _, backend in self.processes:
            await self._compare_stores(backend.store)
        for task in self.known:
            expected = self.model.state(task)
            for _, backend in self.processes:
                state = await self._state(backend, task)
                await self._compare_abilities(backend.store, task)
                for name, seen, wanted in zip(
                    ("get_task", "get_result", "outstanding", "peek", "wait_for_answer"), state, expected, strict=True
                ):
                    require(seen == wanted, f"{name} of {task} is {seen} and must be {wanted}")

    async def _clear(self, task: str) -> None:
        await self.backend.queue.clear(task)
        self.model.mail.pop(task, None)

    async def _compare_abilities(self, store: Any, task: str) -> None:
        record = self.model.record(task)
        is_live = record is None or record.outcome is None  # of an ended task the mailbox may not be cleared yet
        if "questions" in self.capabilities and is_live:
            view = await store.get_view(task)
            questions = tuple(self.model.mail.get(task, {}).get("open", {}).values())
            wanted = None if record is None else TaskView(record, questions)
            require(view == wanted, f"get_view of {task} is {view} and must be {wanted}")
        if "owners" in self.capabilities:
            for owner in ("ada", None):
                view = await store.get_owned(task, owner=owner)
                shown = None if record is None or record.owner != owner else record
                seen = None if view is None else view.record
                require(seen == shown, f"get_owned of {task} for {owner!r} is {seen} and must be {shown}")
        if "journal" in self.capabilities and self.model.refusal(task, None) is None:
            steps = await store.read_steps(task)
            require(
                list(steps.items()) == list(self.model.steps(task).items()),
                f"the steps of {task} are {steps} and must be {self.model.steps(task)}",
            )

    async def _compare_stores(self, store: Any) -> None:
        if "leases" in self.capabilities:
            now = self.clock.now()
            held = {task: its["lease"].expires_at for task, its in self.model.tasks.items() if its["lease"] is not None}
            wanted = {task: when for task, when in held.items() if when <= now}
            lapsed = [record.task_id for record in await store.list_lapsed()]
            require(set(lapsed) == set(wanted), f"list_lapsed shows {lapsed} and must show {sorted(wanted)}")
            times = [wanted[task] for task in lapsed]
            require(times == sorted(times), "list_lapsed does not show the longest lapsed first")
        if "search" in self.capabilities:
            counts: dict[tuple[str, str], int] = {}
            for its in self.model.tasks.values():
                key = (its["status"], its["request"].name)
                counts[key] = counts.get(key, 0) + 1
            counted = (await store.count_tasks()).by_status_and_name
            for key in {*counts, *counted}:  # expired tasks may still be counted
                require(counted.get(key, 0) >= counts.get(key, 0), f"count_tasks says {counted} and must say {counts}")

    async def _release_waiters(self) -> None:
        still: list[tuple[Waiter, int]] = []
        for waiter, after in self.waiters:
            held = self.model.tasks.get(waiter.task_id)
            if held is None:
                ending = await waiter.wait(self.patience)
                require(
                    type(ending) is TaskNotFoundError, f"a waiter of {waiter.task_id}, which is gone, got {ending!r}"
                )
            elif held["revision"] > after:
                ending = await waiter.wait(self.patience)
                revision = getattr(ending, "revision", None)
                require(
                    revision is not None and after < revision <= held["revision"],
                    f"a waiter of {waiter.task_id} after revision {after} got {ending!r}",
                )
            else:
                require(not waiter.ended, f"a waiter of {waiter.task_id} was woken by nothing, with {waiter.ending!r}")
                still.append((waiter, after))
        self.waiters = still
        listening: list[Waiter] = []
        for listener in self.listeners:
            if self.model.mail.get(listener.task_id, {}).get("queue"):
                ending = await listener.wait(self.patience)
                require(
                    ending is None or type(ending) is TaskNotFoundError,  # cleared first, in a race
                    f"who waited for a message of {listener.task_id} got {ending!r}",
                )
            elif not listener.ended:
                listening.append(listener)
        self.listeners = listening
