"""JSON text: what is accepted for writing can be read back (L4)."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from mcp_task_runtime.core.json import MAX_DEPTH, dump_json, load_json
from mcp_task_runtime.core.text import check_text, clean_text


class Model(BaseModel):
    """A model that takes anything."""

    value: Any


def nested(levels: int, *, as_list: bool = False) -> Any:
    value: Any = "leaf"
    for _ in range(levels):
        value = [value] if as_list else {"a": value}
    return value


@pytest.mark.parametrize("as_list", [False, True])
def test_the_deepest_value_that_is_accepted_can_be_read_back_and_one_level_more_is_refused(as_list: bool) -> None:
    deepest = nested(MAX_DEPTH, as_list=as_list)
    assert load_json(dump_json(deepest)) == deepest
    for levels in (MAX_DEPTH + 1, 230, 300, 100_000):
        with pytest.raises(ValueError, match=r"nested|JSON"):
            dump_json(nested(levels, as_list=as_list))
    with pytest.raises(ValueError, match="nested"):
        dump_json(Model(value=nested(MAX_DEPTH, as_list=as_list)))


def test_a_wide_value_is_not_taken_for_a_deep_one() -> None:
    wide = [{"a": [1]} for _ in range(5_000)]
    assert load_json(dump_json(wide)) == wide


def test_brackets_in_text_do_not_count() -> None:
    assert load_json(dump_json("[{" * 1_000)) == "[{" * 1_000


@pytest.mark.parametrize("number", [10**4_299, -(10**4_298)], ids=["positive", "negative"])
def test_the_longest_integers_can_be_read_back(number: int) -> None:
    assert load_json(dump_json({"n": number})) == {"n": number}


@pytest.mark.parametrize("digits", [4_301, 10_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_integer_that_could_not_be_read_back_is_refused(digits: int, sign: int) -> None:
    with pytest.raises(ValueError, match="digits"):
        dump_json({"n": sign * 10 ** (digits - 1)})


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, ["a\udc80b"], Model(value="\ud800")])
def test_lone_surrogates_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump_json(value)


def test_nan_and_infinities_become_null() -> None:
    assert dump_json([float("nan"), float("inf"), float("-inf")]) == "[null,null,null]"


def test_cleaned_text_is_unicode_and_otherwise_unchanged() -> None:
    assert clean_text("caf\udce9.txt") == "caf\ufffd.txt"
    assert clean_text("\ud83d") == "\ufffd"
    for text in ("", "plain", "é € 😀 \0"):
        assert clean_text(text) is text


def test_identifiers_with_lone_surrogates_are_refused_by_name() -> None:
    assert check_text("owner", "é 😀") == "é 😀"
    with pytest.raises(ValueError, match="owner is not Unicode"):
        check_text("owner", "a\ud800")
