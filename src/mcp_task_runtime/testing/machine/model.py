"""A model of store and queue in plain dictionaries: what each operation must do, and nothing else.

It shares no code with what it is compared with, the status table included.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.types import (
    Fence,
    Lease,
    LiveStatus,
    NewTask,
    Outcome,
    Progress,
    Task,
    TaskRecord,
    TaskRequest,
)

__all__ = [
    "AnswerAll",
    "AnswerOne",
    "Ask",
    "Claim",
    "Clear",
    "Create",
    "Delete",
    "Dequeue",
    "Drop",
    "Ending",
    "Enqueue",
    "Finish",
    "Model",
    "Operation",
    "Renew",
    "Step",
    "Update",
    "perform",
]


_NO_REQUEST = TaskRequest()


@dataclass(frozen=True)
class Create:
    """`create_task` with an identifier."""

    ttl_ms: int | None = None
    owner: str | None = None
    retention_ms: int = 0
    request: TaskRequest = _NO_REQUEST
    worker: str | None = None
    lease_ms: int = 30_000


@dataclass(frozen=True)
class Update:
    """`update_task`."""

    status: LiveStatus | None = None
    message: str | None = None
    if_revision: int | None = None
    fence: Fence | None = None
    progress: Progress | None = None
    ttl_ms: int | None = None


@dataclass(frozen=True)
class Finish:
    """`finish_task`."""

    outcome: Outcome
    fence: Fence | None = None


@dataclass(frozen=True)
class Ask:
    """`TaskQuestions.ask`."""

    question: QueuedMessage
    fence: Fence | None = None


@dataclass(frozen=True)
class AnswerAll:
    """`TaskQuestions.answer_all`."""

    answers: tuple[tuple[str, Answer], ...]


@dataclass(frozen=True)
class Claim:
    """`TaskLeases.claim_task`."""

    worker: str
    lease_ms: int


@dataclass(frozen=True)
class Renew:
    """`TaskLeases.renew_leases` for one task."""

    worker: str
    lease_ms: int


@dataclass(frozen=True)
class Drop:
    """`TaskLeases.drop_leases` for one task."""

    worker: str
    lapse: bool


@dataclass(frozen=True)
class Step:
    """`TaskJournal.record_step`."""

    key: str
    value_json: str
    fence: Fence


@dataclass(frozen=True)
class Delete:
    """`delete_task`."""


@dataclass(frozen=True)
class Enqueue:
    """`enqueue`."""

    message: QueuedMessage


@dataclass(frozen=True)
class Dequeue:
    """`dequeue`."""


@dataclass(frozen=True)
class AnswerOne:
    """`answer`."""

    key: str
    answer: Answer


@dataclass(frozen=True)
class Clear:
    """`clear`."""


Operation: TypeAlias = (
    Create
    | Update
    | Finish
    | Delete
    | Enqueue
    | Dequeue
    | AnswerOne
    | Clear
    | Ask
    | AnswerAll
    | Claim
    | Renew
    | Drop
    | Step
)

Ending: TypeAlias = "tuple[str, Any]"
"""`("returned", value)` or `("raised", name of the error)`."""


async def perform(store: Any, queue: TaskMessageQueue, task_id: str, operation: Operation) -> Ending:
    """Do an operation on a backend, which has the ability that it needs; return how it ended."""
    doing: Awaitable[Any]
    match operation:
        case Create(ttl_ms, owner, retention_ms, request, worker, lease_ms):
            doing = store.create_task(
                NewTask(
                    ttl_ms=ttl_ms,
                    task_id=task_id,
                    owner=owner,
                    retention_ms=retention_ms,
                    request=request,
                    worker=worker,
                    lease_ms=lease_ms,
                )
            )
        case Update(status, message, if_revision, fence, progress, ttl):
            doing = store.update_task(
                task_id,
                status=status,
                status_message=message,
                if_revision=if_revision,
                fence=fence,
                progress=progress,
                ttl_ms=ttl,
            )
        case Finish(outcome, fence):
            doing = store.finish_task(task_id, outcome, fence=fence)
        case Delete():
            doing = store.delete_task(task_id)
        case Enqueue(message_):
            doing = queue.enqueue(task_id, message_)
        case Dequeue():
            doing = queue.dequeue(task_id)
        case AnswerOne(key, answer):
            doing = queue.answer(task_id, key, answer)
        case Clear():
            doing = queue.clear(task_id)
        case Ask(question, fence):
            doing = store.ask(task_id, question, fence=fence)
        case AnswerAll(answers):
            doing = store.answer_all(task_id, dict(answers))
        case Claim(worker_, lease_ms):
            doing = store.claim_task(task_id, worker=worker_, lease_ms=lease_ms)
        case Renew(worker_, lease_ms):
            doing = store.renew_leases(worker_, [task_id], lease_ms=lease_ms)
        case Drop(worker_, lapse):
            doing = store.drop_leases(worker_, [task_id], lapse=lapse)
        case Step(key, value_json, fence_):
            doing = store.record_step(task_id, key, value_json, fence=fence_)
    try:
        return "returned", await doing
    except Exception as error:
        return "raised", type(error).__name__


class Model:
    """What a backend should hold: `tasks` and `mail`, each a plain dictionary by task identifier."""

    def __init__(self, *, mailbox_goes_with_task: bool, mailbox_goes_with_end: bool = False) -> None:
        """Make an empty model.

        Args:
            mailbox_goes_with_task: Whether deleting a task clears its mailbox.
            mailbox_goes_with_end: Whether finishing a task clears its mailbox.
        """
        self.tasks: dict[str, dict[str, Any]] = {}
        self.mail: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        self._mailbox_goes_with_task = mailbox_goes_with_task
        self._mailbox_goes_with_end = mailbox_goes_with_end

    def copy(self) -> Model:
        """Return a model that can be changed apart from this one."""
        twin = Model(
            mailbox_goes_with_task=self._mailbox_goes_with_task, mailbox_goes_with_end=self._mailbox_goes_with_end
        )
        twin.tasks = {task_id: {**task, "steps": dict(task["steps"])} for task_id, task in self.tasks.items()}
        twin.mail = {
            task_id: {name: type(part)(part) for name, part in box.items()} for task_id, box in self.mail.items()
        }
        twin.order = list(self.order)
        return twin

    def apply(self, task_id: str, operation: Operation, now: datetime) -> Ending:
        """Do an operation on the model; return how it must end."""
        match operation:
            case Create() as new:
                return self._create(task_id, new, now)
            case Update() as update:
                return self._update(task_id, update, now)
            case Finish(outcome, fence):
                return self._finish(task_id, outcome, fence, now)
            case Delete():
                return "returned", self.remove(task_id)
            case Enqueue(message_):
                return "returned", self._enqueue(task_id, message_)
            case Dequeue():
                queue = self.mail.get(task_id, {}).get("queue")
                return "returned", queue.pop(0) if queue else None
            case AnswerOne(key, answer):
                return "returned", self._answer(task_id, key, answer)
            case Clear():
                self.mail.pop(task_id, None)
                return "returned", None
            case Ask(question, fence):
                return self._ask(task_id, question, fence, now)
            case AnswerAll(answers):
                return "returned", self._answer_all(task_id, answers, now)
            case Claim(worker, lease_ms):
                return "returned", self._claim(task_id, worker, lease_ms, now)
            case Renew(worker, lease_ms):
                return "returned", self._renew(task_id, worker, lease_ms, now)
            case Drop(worker, lapse):
                self._drop(task_id, worker, lapse, now)
                return "returned", None
            case Step() as step:
                return self._step(task_id, step)

    def expire(self, now: datetime) -> list[str]:
        """Forget the tasks whose time has come, and return which they were."""
        due = [
            task_id
            for task_id, task in self.tasks.items()
            if task["ttl_ms"] is not None and now - task["created_at"] >= timedelta(milliseconds=task["ttl_ms"])
        ]
        for task_id in due:
            self.remove(task_id)
        return due

    def remove(self, task_id: str) -> bool:
        """Forget a task; return whether there was one."""
        if self.tasks.pop(task_id, None) is None:
            return False
        self.order.remove(task_id)
        if self._mailbox_goes_with_task:
            self.mail.pop(task_id, None)
        return True

    def state(self, task_id: str) -> tuple[Any, ...]:
        """Return what can be read of a task and its mailbox: record, outcome, questions, next message, answers."""
        record = self.record(task_id)
        box = self.mail.get(task_id, {"queue": [], "open": {}, "answers": {}})
        outcome = "gone" if record is None else record.outcome
        return (
            record,
            outcome,
            tuple(box["open"].values()),
            box["queue"][0] if box["queue"] else None,
            dict(box["answers"]),
        )

    def record(self, task_id: str) -> TaskRecord | None:
        """Return the record that the store should return."""
        task = self.tasks.get(task_id)
        if task is None:
            return None
        fields = ("status", "status_message", "created_at", "last_updated_at", "ttl_ms")
        return TaskRecord(
            Task(task_id, **{field: task[field] for field in fields}, poll_interval_ms=500),
            task["revision"],
            task["owner"],
            task["retention_ms"],
            task["request"],
            outcome=task["outcome"],
            lease=task["lease"],
            progress=task["progress"],
        )

    def steps(self, task_id: str) -> dict[str, str]:
        """Return the recorded steps of a live task."""
        task = self.tasks.get(task_id)
        return {} if task is None else dict(task["steps"])

    def refusal(self, task_id: str, fence: Fence | None) -> str | None:
        """Return the name of the error that a write to a task raises, if it raises one."""
        task = self.tasks.get(task_id)
        if task is None:
            return "TaskNotFoundError"
        if task["outcome"] is not None:
            return "InvalidTransitionError"
        lease = task["lease"]
        if fence is not None and (lease is None or (lease.worker, lease.attempt) != (fence.worker, fence.attempt)):
            return "LeaseLostError"
        return None

    def _create(self, task_id: str, new: Create, now: datetime) -> Ending:
        if task_id in self.tasks:
            return "raised", "TaskExistsError"
        self.tasks[task_id] = {
            "status": "working",
            "status_message": None,
            "created_at": now,
            "last_updated_at": now,
            "ttl_ms": new.ttl_ms,
            "revision": 1,
            "owner": new.owner,
            "retention_ms": new.retention_ms,
            "request": new.request,
            "outcome": None,
            "lease": None
            if new.worker is None
            else Lease(new.worker, now + timedelta(milliseconds=new.lease_ms), 1 if new.worker else 0),
            "progress": None,
            "steps": {},
        }
        self.order.append(task_id)
        return "returned", self.record(task_id)

    def _update(self, task_id: str, update: Update, now: datetime) -> Ending:
        refusal = self.refusal(task_id, update.fence)
        if refusal is not None:
            return "raised", refusal
        task = self.tasks[task_id]
        if update.if_revision is not None and update.if_revision != task["revision"]:
            return "raised", "RevisionConflictError"
        task["status"] = task["status"] if update.status is None else update.status
        task["status_message"] = task["status_message"] if update.message is None else update.message
        task["progress"] = task["progress"] if update.progress is None else update.progress
        task["ttl_ms"] = task["ttl_ms"] if update.ttl_ms is None else update.ttl_ms
        self._change(task, now)
        return "returned", self.record(task_id)

    def _finish(self, task_id: str, outcome: Outcome, fence: Fence | None, now: datetime) -> Ending:
        refusal = self.refusal(task_id, fence)
        if refusal is not None:
            return "raised", refusal
        task = self.tasks[task_id]
        task["status"], task["outcome"] = outcome.status, outcome
        task["lease"] = None
        if outcome.status_message is not None or outcome.status == "completed":
            task["status_message"] = outcome.status_message
        self._change(task, now)
        if task["ttl_ms"] is not None:
            lived = (task["last_updated_at"] - task["created_at"]) // timedelta(milliseconds=1)
            task["ttl_ms"] = max(task["ttl_ms"], lived + task["retention_ms"])
        if self._mailbox_goes_with_end:
            self.mail.pop(task_id, None)
        return "returned", self.record(task_id)

    @staticmethod
    def _change(task: dict[str, Any], now: datetime) -> None:
        task["last_updated_at"] = max(now, task["last_updated_at"])
        task["revision"] += 1

    def _ask(self, task_id: str, question: QueuedMessage, fence: Fence | None, now: datetime) -> Ending:
        refusal = self.refusal(task_id, fence)
        if refusal is not None:
            return "raised", refusal
        if not self._enqueue(task_id, question):
            return "returned", None
        task = self.tasks[task_id]
        task["status"] = "input_required"
        self._change(task, now)
        return "returned", self.record(task_id)

    def _answer_all(self, task_id: str, answers: tuple[tuple[str, Answer], ...], now: datetime) -> frozenset[str]:
        if self.refusal(task_id, None) is not None:
            return frozenset()
        taken = frozenset(key for key, answer in answers if self._answer(task_id, key, answer))
        if taken:
            task = self.tasks[task_id]
            task["status"] = "input_required" if self.mail[task_id]["open"] else "working"
            self._change(task, now)
        return taken

    def _claim(self, task_id: str, worker: str, lease_ms: int, now: datetime) -> TaskRecord | None:
        task = self.tasks.get(task_id)
        lease = None if task is None else task["lease"]
        if task is None or lease is None:
            return None
        lapsed = lease.expires_at <= now
        if not lapsed and not (worker and not lease.worker):
            return None
        attempt = lease.attempt + 1 if worker else lease.attempt
        task["lease"] = Lease(worker, now + timedelta(milliseconds=lease_ms), attempt, lease.handovers)
        self._change(task, now)
        return self.record(task_id)

    def _renew(self, task_id: str, worker: str, lease_ms: int, now: datetime) -> frozenset[str]:
        task = self.tasks.get(task_id)
        lease = None if task is None else task["lease"]
        if task is None or lease is None or lease.worker != worker:
            return frozenset()
        task["lease"] = replace(lease, expires_at=now + timedelta(milliseconds=lease_ms))
        return frozenset({task_id})

    def _drop(self, task_id: str, worker: str, lapse: bool, now: datetime) -> None:
        task = self.tasks.get(task_id)
        lease = None if task is None else task["lease"]
        if task is not None and lease is not None and lease.worker == worker:
            if not lapse:
                task["lease"] = None
            elif now < lease.expires_at:
                task["lease"] = Lease(worker, now, lease.attempt, lease.handovers + 1)

    def _step(self, task_id: str, step: Step) -> Ending:
        refusal = self.refusal(task_id, step.fence)
        if refusal is not None:
            return "raised", refusal
        recorded: str = self.tasks[task_id]["steps"].setdefault(step.key, step.value_json)
        return "returned", recorded

    def _enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        box = self.mail.setdefault(task_id, {"queue": [], "open": {}, "answers": {}})
        if message.key is not None:
            if message.key in box["open"] or message.key in box["answers"]:
                return False
            box["open"][message.key] = message
        box["queue"].append(message)
        return True

    def _answer(self, task_id: str, key: str, answer: Answer) -> bool:
        box = self.mail.get(task_id)
        if box is None or key not in box["open"]:
            return False
        question = box["open"].pop(key)
        box["queue"] = [message for message in box["queue"] if message is not question]
        box["answers"][key] = answer
        return True
