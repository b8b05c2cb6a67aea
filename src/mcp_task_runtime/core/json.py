"""JSON as this library holds it: text.

Whatever comes from a client or from work is kept as JSON text and parsed anew for each reader. So
a value can be shared between snapshots without copying, nobody can change it under somebody else
(law L4), and every store keeps the same form.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic_core import from_json, to_json

__all__ = ["JSONObject", "JSONValue", "dump_json", "load_json", "to_json_value"]

JSONValue: TypeAlias = Any
"""Anything JSON can say: `None`, `bool`, `int`, `float`, `str`, and lists and objects of them."""

JSONObject: TypeAlias = dict[str, Any]
"""A JSON object."""


def to_json_value(value: object) -> JSONValue:
    """Return the wire form of a value: a pydantic model by its aliases and without `None` fields.

    Anything that is not a model is returned as it is.
    """
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True, mode="json", exclude_none=True)
    return value


def dump_json(value: object) -> str:
    """Serialise a value to compact JSON text.

    Raises:
        ValueError: The value has no JSON form.
    """
    if isinstance(value, BaseModel):
        return value.model_dump_json(by_alias=True, exclude_none=True)
    return to_json(value, inf_nan_mode="null").decode()


def load_json(text: str) -> JSONValue:
    """Parse JSON text into values that belong to the caller alone."""
    return from_json(text)
