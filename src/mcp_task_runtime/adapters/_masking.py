"""What `mask_errors` makes of the results that an SDK makes of exceptions: those of adopted tools come as results."""

from __future__ import annotations

import logging
import re
from typing import Final

from mcp_task_runtime.adapters._tool_calls import ToolCall

__all__ = ["MASKED", "masked_text"]

logger: logging.Logger = logging.getLogger(__name__)

MASKED: Final = "internal error"

_WRONG_ARGUMENTS: Final = re.compile(r"\d+ validation errors? for \w*Arguments\n")
"""What a high-level server says of arguments: it names the model that it has made of the tool's parameters."""

_WRONG_INPUT: Final = "Input validation error: "
"""What a low-level server says of arguments."""


def masked_text(text: str, call: ToolCall, *, is_high_level: bool) -> str | None:
    """Return the text in place of that of an error result, or `None` where clients may read it.

    What is wrong with the arguments stays: models correct it.

    Args:
        text: The text of the result.
        call: The call of the tool.
        is_high_level: Whether the SDK's high-level server has made the result; it begins with the tool then.
    """
    prefix = f"Error executing tool {call.name}: " if is_high_level else ""
    detail = text.removeprefix(prefix)
    if not text.startswith(prefix) or _WRONG_ARGUMENTS.match(detail) or detail.startswith(_WRONG_INPUT):
        return None
    if not call.note_failure(RuntimeError(detail)):
        logger.error("The tool %r raised an exception: %s", call.name, detail)
    return f"{prefix}{MASKED}"
