"""The tools of the everything servers, written once for every SDK line.

Nothing here knows which SDK serves it: each function takes its arguments and the task's context.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
from pydantic import BaseModel

from mcp_task_runtime import InvalidTransitionError, ProtocolError, ServerTaskContext, TaskNotFoundError


def greet(name: str) -> str:
    """Greet a person: a plain tool that never runs as a task."""
    return f"Hello, {name}!"


async def slow_compute(seconds: float, task: ServerTaskContext, label: str = "") -> str:
    """Compute for some seconds and say how it goes."""
    steps = 4
    for step in range(steps):
        await task.report_progress(step, steps, f"Computing {label}".strip())
        await anyio.sleep(seconds / steps)
    return f"computed {label}"


async def failing_job(task: ServerTaskContext) -> str:
    """Fail the way tools fail: with a result whose isError is true."""
    await task.update_status("About to fail")
    raise RuntimeError("this text stays on the server")


async def protocol_error_job(task: ServerTaskContext) -> str:
    """Fail with a JSON-RPC error, which the client gets verbatim."""
    await task.update_status("About to fail")
    raise ProtocolError(-32050, "The quota is used up", {"retryAfterSeconds": 30})


class Confirmation(BaseModel):
    confirm: bool


async def confirm_delete(filename: str, task: ServerTaskContext) -> str:
    """Delete a file, if the user confirms it."""
    answer = await task.elicit(f"Delete {filename}?", Confirmation)
    return f"Deleted {filename}" if answer.action == "accept" and answer.data.confirm else f"Kept {filename}"


class Name(BaseModel):
    name: str


async def multi_input(task: ServerTaskContext) -> str:
    """Ask two questions at once and use both answers."""
    names: dict[str, str] = {}

    async def ask(role: str) -> None:
        answer = await task.elicit(f"Who is the {role}?", Name)
        names[role] = answer.data.name if answer.action == "accept" else "nobody"

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "author")
        group.start_soon(ask, "editor")
    return f"Written by {names['author']}, edited by {names['editor']}"


async def write_haiku(topic: str, task: ServerTaskContext) -> str:
    """Let the client's model write a haiku."""
    prompt = {"role": "user", "content": {"type": "text", "text": f"Write a haiku about {topic}."}}
    return (await task.create_message([prompt], max_tokens=200)).text


class OutsideSystem:
    """Stands for something outside the server that finishes a job a second later and knows only its id."""

    def __init__(self, complete: Callable[[str, str], Coroutine[Any, Any, None]]) -> None:
        self._complete = complete

    def submit(self, task_id: str, job_id: str) -> None:
        """Take a job; called on the event loop."""
        loop = anyio.lowlevel.current_token()

        def finish() -> None:
            # Meanwhile the task may have been cancelled or expired, or the server may have stopped.
            with suppress(InvalidTransitionError, TaskNotFoundError, RuntimeError, CancelledError):
                anyio.from_thread.run(self._complete, task_id, f"job {job_id} done", token=loop)

        timer = threading.Timer(1.0, finish)
        timer.daemon = True
        timer.start()


async def external_job(job_id: str, task: ServerTaskContext, outside: OutsideSystem) -> str:
    """Hand a job to the outside system, which completes the task by its id."""
    await task.update_status(f"Waiting for job {job_id}")
    task.detach()
    outside.submit(task.task_id, job_id)
    return "handed over"  # not seen: a detached task gets its result from outside
