"""A model of store and queue in plain dictionaries: what each operation must do, and nothing else.

It shares no code with what it is compared with, the status table included.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import LiveStatus, NewTask, Outcome, Task, TaskRecord, TaskRequest

__all__ = [
    "AnswerOne",
    "Clear",
    "Create",
    "Delete",
    "Dequeue",
    "Ending",
    "Enqueue",
    "Finish",
    "Model",
    "Operation",
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


@dataclass(frozen=True)
class Update:
    """`update_task`."""

    status: LiveStatus | None = None
    message: str | None = None
    if_revision: int | None = None


@dataclass(frozen=True)
class Finish:
    """`finish_task`."""

    outcome: Outcome


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


Operation: TypeAlias = "Create | Update | Finish | Delete | Enqueue | Dequeue | AnswerOne | Clear"

Ending: TypeAlias = "tuple[str, Any]"
"""`("returned", value)` or `("raised", name of the error)`."""


async def perform(store: TaskStore, queue: TaskMessageQueue, task_id: str, operation: Operation) -> Ending:
    """Do an operation on a backend; return how it ended."""
    doing: Awaitable[Any]
    match operation:
        case Create(ttl_ms, owner, retention_ms, request):
            doing = store.create_task(
                NewTask(ttl_ms=ttl_ms, task_id=task_id, owner=owner, retention_ms=retention_ms, request=request)
            )
        case Update(status, message, if_revision):
            doing = store.update_task(task_id, status=status, status_message=message, if_revision=if_revision)
        case Finish(outcome):
            doing = store.finish_task(task_id, outcome)
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
    try:
        return "returned", await doing
    except Exception as error:
        return "raised", type(error).__name__


class Model:
    """What a backend should hold: `tasks` and `mail`, each a plain dictionary by task identifier."""

    def __init__(self, *, mailbox_goes_with_task: bool) -> None:
        """Make an empty model.

        Args:
            mailbox_goes_with_task: Whether deleting a task clears its mailbox.
        """
        self.tasks: dict[str, dict[str, Any]] = {}
        self.mail: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        self._mailbox_goes_with_task = mailbox_goes_with_task

    def copy(self) -> Model:
        """Return a model that can be changed apart from this one."""
        twin = Model(mailbox_goes_with_task=self._mailbox_goes_with_task)
        twin.tasks = {task_id: dict(task) for task_id, task in self.tasks.items()}
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
            case Update(status, message, if_revision):
                return self._update(task_id, status, message, if_revision, now)
            case Finish(outcome):
                return self._finish(task_id, outcome, now)
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
        )

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
        }
        self.order.append(task_id)
        return "returned", self.record(task_id)

    def _update(
        self, task_id: str, status: str | None, message: str | None, if_revision: int | None, now: datetime
    ) -> Ending:
        task = self.tasks.get(task_id)
        if task is None:
            return "raised", "TaskNotFoundError"
        if task["outcome"] is not None:
            return "raised", "InvalidTransitionError"
        if if_revision is not None and if_revision != task["revision"]:
            return "raised", "RevisionConflictError"
        task["status"] = task["status"] if status is None else status
        task["status_message"] = task["status_message"] if message is None else message
        task["last_updated_at"] = max(now, task["last_updated_at"])
        task["revision"] += 1
        return "returned", self.record(task_id)

    def _finish(self, task_id: str, outcome: Outcome, now: datetime) -> Ending:
        task = self.tasks.get(task_id)
        if task is None:
            return "raised", "TaskNotFoundError"
        if task["outcome"] is not None:
            return "raised", "InvalidTransitionError"
        task["status"], task["outcome"] = outcome.status, outcome
        if outcome.status_message is not None or outcome.status == "completed":
            task["status_message"] = outcome.status_message
        task["last_updated_at"] = max(now, task["last_updated_at"])
        task["revision"] += 1
        if task["ttl_ms"] is not None:
            lived = (task["last_updated_at"] - task["created_at"]) // timedelta(milliseconds=1)
            task["ttl_ms"] = max(task["ttl_ms"], lived + task["retention_ms"])
        return "returned", self.record(task_id)

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
