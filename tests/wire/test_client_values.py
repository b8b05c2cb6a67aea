"""What clients send and a task keeps."""

from __future__ import annotations

import json

import pytest

from mcp_task_runtime import ProtocolError
from mcp_task_runtime.core.json import MAX_DEPTH, MAX_DIGITS
from mcp_task_runtime.wire.client_values import client_json, parse_progress_token


@pytest.mark.parametrize(
    "value",
    [
        {"x": "\ud800"},
        {"\ud800": 1},
        {"x": json.loads("[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH)},
        {"x": json.loads("[" * 600 + "]" * 600)},
        {"x": 10**MAX_DIGITS},
    ],
    ids=["text", "name", "deep", "very deep", "long"],
)
def test_a_value_that_no_store_takes_is_refused_by_its_name(value: object) -> None:
    with pytest.raises(
        ProtocolError, match=r"^Invalid arguments: text must be Unicode, lists .* 200 levels deep, .* 4300 digits"
    ) as refused:
        client_json("arguments", value)
    assert refused.value.code == -32602


def test_another_value_becomes_its_json_text() -> None:
    assert client_json("arguments", {"x": ["\0", "ü", None]}) == '{"x":["\\u0000","ü",null]}'


@pytest.mark.parametrize("token", ["", "a", "ü\0", 0, 2**70, "x" * 1024])
def test_a_progress_token_is_kept_as_it_is(token: str | int) -> None:
    assert parse_progress_token({"progressToken": token}) == token


@pytest.mark.parametrize(
    "meta", [None, {}, [], {"progressToken": None}, {"progressToken": [1]}, {"progressToken": 0.5}]
)
def test_what_is_no_progress_token_is_none(meta: object) -> None:
    assert parse_progress_token(meta) is None


@pytest.mark.parametrize("token", ["\ud800", "x" * 1025], ids=["surrogate", "long"])
def test_a_progress_token_that_no_task_keeps_is_refused(token: str) -> None:
    with pytest.raises(ProtocolError, match=r"^Invalid progressToken: ") as refused:
        parse_progress_token({"progressToken": token})
    assert refused.value.code == -32602
