"""What clients see of the error results of adopted tools under `mask_errors`."""

from __future__ import annotations

import pytest

from mcp_task_runtime import InMemoryTaskStore, TaskRuntime
from mcp_task_runtime.adapters._masking import masked_text
from mcp_task_runtime.adapters._unwinding_call import EndedCall

PREFIX = "Error executing tool fetch: "


@pytest.mark.parametrize(
    ("text", "is_high_level", "shown"),
    [
        (f"{PREFIX}a secret", True, f"{PREFIX}internal error"),
        (f"{PREFIX}2 validation errors for fetchArguments\nurl\n  Field required", True, None),
        ("what the tool itself says", True, None),
        ("a secret", False, "internal error"),
        ("Input validation error: 'x' is not of type 'integer'", False, None),
    ],
)
def test_what_an_exception_said_is_masked_and_what_models_correct_is_not(
    text: str, is_high_level: bool, shown: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    noted: list[Exception] = []
    call = EndedCall(TaskRuntime(InMemoryTaskStore()), "fetch", lambda: None, noted.append)
    assert masked_text(text, call, is_high_level=is_high_level) == shown
    assert [str(error) for error in noted] == ([] if shown is None else ["a secret"])
    assert caplog.record_tuples == [], "it is logged with the end of the task"
