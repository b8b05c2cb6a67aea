"""What is sealed of a task, and what is shown of one whose key is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mcp_task_runtime.core.json import dump_json, load_json
from mcp_task_runtime.core.sealed import is_sealed
from mcp_task_runtime.core.types import NewTask, Outcome, Progress, TaskRecord, TaskRequest
from mcp_task_runtime.errors import SealedError
from mcp_task_runtime.stores.sealed._seal import Seal, TaskSeal

__all__ = ["UNREADABLE", "open_outcome", "open_record", "readable", "sealed_outcome", "sealed_progress", "sealed_task"]

UNREADABLE: Final = "This task is sealed with a key that is not here"
"""The status message of a task in a list, where it cannot be opened."""

_END_OF_HEAD: Final = "\0"
"""No JSON text has it."""


def sealed_task(seal: Seal, new: NewTask, task_id: str) -> NewTask:
    """Return the sealed form of a new task: what it is made of in one value, so that reading it opens one."""
    values = seal.of(task_id)
    request = new.request
    head = dump_json([new.owner, request.progress_token, request.caller_json, new.client_capabilities_json])
    sealed = values.json(_request_field(request), head + _END_OF_HEAD + request.arguments_json)
    return replace(
        new,
        task_id=task_id,
        owner=None if new.owner is None else seal.stored_owners(new.owner)[-1][1],
        request=replace(request, arguments_json=sealed, caller_json="{}", progress_token=None),
        client_capabilities_json="{}",
        status_message=None if new.status_message is None else values.status(new.status_message),
    )


def sealed_outcome(values: TaskSeal, outcome: Outcome) -> Outcome:
    """Return the sealed form of an outcome."""
    payload, message = outcome.payload_json, outcome.status_message
    return Outcome(
        outcome.status,
        None if payload is None else values.json(_outcome_field(outcome), payload, is_error=outcome.is_error),
        None if message is None else values.status(message),
    )


def sealed_progress(values: TaskSeal, progress: Progress) -> Progress:
    """Return the sealed form of progress: the numbers stay."""
    if progress.message is None:
        return progress
    return replace(progress, message=values.text("progress", progress.message))


def open_record(seal: Seal, record: TaskRecord) -> TaskRecord:
    """Return a task from its sealed form; what is not sealed stays as it is.

    Raises:
        SealedError: No key opens it, or a value belongs to another task or field.
    """
    values = seal.of(record.task_id)
    task, request, progress = record.task, record.request, record.progress
    owner, capabilities = record.owner, record.client_capabilities_json
    if is_sealed(record):
        text = values.open_json(_request_field(request), request.arguments_json)
        head, _, arguments = text.partition(_END_OF_HEAD)
        owner, token, caller, capabilities = load_json(head)
        request = replace(request, arguments_json=arguments, caller_json=caller, progress_token=token)
    if task.status_message is not None:
        task = replace(task, status_message=values.open_status(task.status_message))
    if progress is not None and progress.message is not None:
        progress = replace(progress, message=values.open_text("progress", progress.message))
    outcome = None if record.outcome is None else open_outcome(values, record.outcome)
    return replace(
        record,
        task=task,
        owner=owner,
        request=request,
        client_capabilities_json=capabilities,
        outcome=outcome,
        progress=progress,
    )


def readable(seal: Seal, record: TaskRecord) -> TaskRecord:
    """Return a task from its sealed form, or without its values where it cannot be opened."""
    try:
        return open_record(seal, record)
    except SealedError:
        outcome = None if record.outcome is None else Outcome(record.outcome.status, None, UNREADABLE)
        return replace(
            record,
            task=replace(record.task, status_message=UNREADABLE),
            request=replace(record.request, arguments_json="{}"),
            outcome=outcome,
            progress=None if record.progress is None else replace(record.progress, message=None),
        )


def open_outcome(values: TaskSeal, outcome: Outcome) -> Outcome:
    """Return an outcome from its sealed form.

    Raises:
        SealedError: No key opens it, or it belongs elsewhere.
    """
    payload, message = outcome.payload_json, outcome.status_message
    return Outcome(
        outcome.status,
        None if payload is None else values.open_json(_outcome_field(outcome), payload),
        None if message is None else values.open_status(message),
    )


def _request_field(request: TaskRequest) -> str:
    return f"request {request.method} {request.name}"


def _outcome_field(outcome: Outcome) -> str:
    return f"outcome {outcome.status}"
