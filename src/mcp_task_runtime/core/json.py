"""JSON as this library holds it: text.

Values of clients and of work are kept as JSON text and parsed for each reader. So snapshots share a value
without copying, no reader can change it for another (law L4), and every store keeps the same form.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from pydantic import BaseModel
from pydantic_core import from_json, to_json

__all__ = ["MAX_DEPTH", "MAX_DIGITS", "JSONObject", "JSONValue", "dump_json", "load_json", "to_json_value"]

JSONValue: TypeAlias = Any
"""Anything JSON can say: `None`, `bool`, `int`, `float`, `str`, and lists and objects of them."""

JSONObject: TypeAlias = dict[str, Any]
"""A JSON object."""

MAX_DEPTH: Final = 200
"""Nested lists and objects that a JSON text may have: the limit of pydantic's parser."""

MAX_DIGITS: Final = 4_300
"""Digits that an integer may have: the limit of pydantic's parser, and Python's default."""


def to_json_value(value: object) -> JSONValue:
    """Return the wire form of a value: a pydantic model by its aliases and without `None` fields.

    Anything that is not a model is returned as it is.
    """
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True, mode="json", exclude_none=True)
    return value


def dump_json(value: object) -> str:
    """Serialise a value to compact JSON text that `load_json` can read back (law L4).

    `NaN` and infinities become `null`, as pydantic has it.

    Raises:
        ValueError: The value has no JSON form, or one that `load_json` refuses: text with lone surrogates,
            more than `MAX_DEPTH` nested lists and objects, or an integer of more than 4,300 digits.
    """
    try:
        if isinstance(value, BaseModel):
            text = value.model_dump_json(by_alias=True, exclude_none=True)
        else:
            text = to_json(value, inf_nan_mode="null").decode()
    except RecursionError as error:
        raise ValueError("The value is nested too deeply for JSON") from error
    if len(text) > MAX_DIGITS or text.count("[") + text.count("{") > MAX_DEPTH:  # it may be too deep, or too long
        try:
            from_json(text)
        except ValueError as error:
            raise ValueError(
                f"The value could not be read back: it is nested more than {MAX_DEPTH} levels, "
                f"or has a number of more than {MAX_DIGITS} digits"
            ) from error
    return text


def load_json(text: str) -> JSONValue:
    """Parse JSON text into new values that only the caller has."""
    return from_json(text)
