"""Checks of values before they are stored: what could not be read back is refused when it is written (law L4).

Every bundled store refuses the same: text that is not Unicode, JSON that cannot be parsed, numbers that no backend
keeps, and times that no calendar has.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from pydantic_core import from_json

from mcp_task_runtime.core import text as text_core
from mcp_task_runtime.core.json import dump_json, load_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import NewTask, Outcome, Progress

__all__ = [
    "check_answer",
    "check_duration",
    "check_json",
    "check_message",
    "check_new_task",
    "check_object",
    "check_outcome",
    "check_progress",
    "check_text",
]

_LONGEST_DURATION: Final = 250 * 365 * 24 * 60 * 60 * 1000
_CONSTANTS: Final = frozenset({"{}", "null"})
_SHORT: Final = 1_000


def check_text(name: str, text: object) -> None:
    """Refuse text that is not Unicode.

    Args:
        name: What the text is, for the error.
        text: The text; `None` passes.

    Raises:
        ValueError: It contains a lone surrogate, or is not text.
    """
    if text is None:
        return
    if not isinstance(text, str):
        raise ValueError(f"{name} must be text")
    if not text.isascii():
        text_core.check_text(name, text)


def check_json(name: str, text: str) -> None:
    """Refuse JSON text that `load_json` cannot read.

    Raises:
        ValueError: It is no JSON, nested too deeply, or has a number that is too long.
    """
    if text in _CONSTANTS:
        return
    _parse(name, text)


def check_object(name: str, text: str) -> None:
    """Refuse text that is not a JSON object that `load_json` can read.

    Raises:
        ValueError: It is not, is nested too deeply, or has a number that is too long.
    """
    if text != "{}" and not isinstance(_parse(name, text), dict):
        raise ValueError(f"{name} must be a JSON object")


def _check_usual_object(name: str, text: str) -> None:
    """Refuse what `check_object` refuses, of a text that many tasks share: what a client says of itself."""
    if type(text) is not str or len(text) > _SHORT or not _is_object(text):
        check_object(name, text)


@lru_cache(maxsize=256)
def _is_object(text: str) -> bool:
    try:
        check_object("", text)
    except ValueError:
        return False
    return True


def _parse(name: str, text: str) -> object:
    check_text(name, text)
    try:
        return from_json(text, allow_inf_nan=False)  # JSON knows neither NaN nor Infinity
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} could not be read back") from error


def check_integer(name: str, number: object) -> None:
    """Refuse what is not a whole number of at most 64 bits with its sign.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(number, int) or abs(number) >= 2**63:
        raise ValueError(f"{name} must be a whole number of at most 64 bits")


def check_duration(name: str, milliseconds: object) -> None:
    """Refuse a duration that leads out of the calendar.

    Args:
        name: What it is, for the error.
        milliseconds: The duration; `None` passes.

    Raises:
        ValueError: It is not a whole number, or longer than 250 years.
    """
    if milliseconds is not None and (not isinstance(milliseconds, int) or abs(milliseconds) > _LONGEST_DURATION):
        raise ValueError(f"{name} must be a whole number of milliseconds, at most 250 years")


def check_new_task(new: NewTask) -> None:
    """Refuse a new task that could not be read back.

    Raises:
        ValueError: The message names what could not.
    """
    request = new.request
    # What is usual is passed here, without a call for each field: every task of a server comes this way.
    for name, milliseconds in (
        ("ttl_ms", new.ttl_ms),
        ("retention_ms", new.retention_ms),
        ("lease_ms", new.lease_ms),
    ):
        if type(milliseconds) is not int or not 0 <= milliseconds <= _LONGEST_DURATION:
            check_duration(name, milliseconds)
    check_integer("poll_interval_ms", new.poll_interval_ms)
    if new.max_live is not None:
        check_integer("max_live", new.max_live)
    check_integer("max_attempts", request.max_attempts)
    for name, text in (
        ("method", request.method),
        ("name", request.name),
        ("task_id", new.task_id),
        ("owner", new.owner),
        ("worker", new.worker),
        ("status_message", new.status_message),
        ("sealed_credentials", request.sealed_credentials),
    ):
        if text is not None and not (type(text) is str and text.isascii()):
            check_text(name, text)
    check_object("arguments_json", request.arguments_json)
    _check_usual_object("caller_json", request.caller_json)
    _check_usual_object("client_capabilities_json", new.client_capabilities_json)
    if request.progress_token is not None:
        check_json("progress_token", dump_json(request.progress_token))


def check_progress(progress: Progress | None) -> None:
    """Refuse progress that JSON cannot say.

    Raises:
        ValueError: A number is not finite, or the message is not Unicode.
    """
    if progress is None:
        return
    check_text("progress.message", progress.message)
    values = [progress.progress, progress.total]
    if load_json(dump_json(values)) != values:
        raise ValueError("progress must be finite numbers")


def check_outcome(outcome: Outcome) -> None:
    """Refuse an outcome that could not be read back.

    Raises:
        ValueError: The message names what could not.
    """
    check_text("status_message", outcome.status_message)
    if outcome.payload_json is not None:
        check_object("outcome", outcome.payload_json)


def check_message(message: QueuedMessage) -> None:
    """Refuse a message that could not be read back.

    Raises:
        ValueError: The message names what could not.
    """
    check_text("method", message.method)
    check_text("key", message.key)
    check_object("params_json", message.params_json)


def check_answer(answer: Answer) -> None:
    """Refuse an answer that could not be read back.

    Raises:
        ValueError: It could not.
    """
    (check_json if answer.type == "withdrawn" else check_object)("answer", answer.payload_json)
