"""What is kept of the trace context that a client sends."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_task_runtime.wire.trace_context import trace_context

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.mark.parametrize(
    ("meta", "kept"),
    [
        ({"traceparent": PARENT, "tracestate": "a=b", "other": 1}, {"traceparent": PARENT, "tracestate": "a=b"}),
        ({"traceparent": PARENT}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "tracestate": "a" * 513}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "tracestate": "ü"}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "tracestate": ["a"]}, {"traceparent": PARENT}),
        ({"traceparent": PARENT + "\n", "tracestate": "a=b"}, {}),
        ({"traceparent": PARENT.upper()}, {}),
        ({"traceparent": 7}, {}),
        ({"tracestate": "a=b"}, {}),
        (None, {}),
        ([PARENT], {}),
    ],
)
def test_what_is_well_formed_and_short_is_kept(meta: Any, kept: dict[str, str]) -> None:
    assert trace_context(meta) == kept
