"""Elicitation forms: flat objects of primitive fields, as both protocols ask, and what clients fill in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, RootModel, ValidationError

from mcp_task_runtime.adapters.answers import (
    AcceptedElicitation,
    CancelledElicitation,
    DeclinedElicitation,
    Elicitation,
    ElicitResult,
)
from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.errors import INVALID_PARAMS, ProtocolError

__all__ = ["form_params", "form_schema", "read_answer", "read_elicitation"]

ModelT = TypeVar("ModelT", bound=BaseModel)

_PRIMITIVE_TYPES = frozenset({"string", "number", "integer", "boolean"})


def form_params(message: str, form: type[BaseModel] | Mapping[str, Any]) -> JSONObject:
    """Return the params of a question that asks to fill a form.

    Args:
        message: What to tell the user.
        form: A pydantic model class, or a JSON Schema.

    Raises:
        TypeError: It is neither, or the model is not a flat form; see `form_schema`.
    """
    if not (issubclass(form, BaseModel) if isinstance(form, type) else isinstance(form, Mapping)):
        raise TypeError("requested_schema must be a pydantic model class, or the JSON Schema of a form")
    return {"message": message, "requestedSchema": form_schema(form) if isinstance(form, type) else form}


def read_answer(model: type[ModelT], answer: JSONObject) -> ModelT:
    """Return a client's answer as a model.

    Raises:
        ProtocolError: The answer is malformed.
    """
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise ProtocolError(INVALID_PARAMS, "The client's answer is malformed") from error


def read_elicitation(answer: JSONObject, form: type[BaseModel] | Mapping[str, Any]) -> Elicitation[Any] | ElicitResult:
    """Return the answer to a form: for a model class with its content as a model, for a schema as it is.

    Raises:
        ProtocolError: The answer is malformed.
    """
    result = read_answer(ElicitResult, answer)
    if not isinstance(form, type):
        return result
    if result.action == "accept":
        return AcceptedElicitation(read_answer(form, {} if result.content is None else result.content))
    return DeclinedElicitation() if result.action == "decline" else CancelledElicitation()


@lru_cache(maxsize=256)
def form_schema(model: type[BaseModel]) -> JSONObject:
    """Return the `requestedSchema` for a form that collects this model.

    An optional field becomes one that is not required; references to enumerations are inlined. The
    returned object is shared: do not change it.

    Raises:
        TypeError: The model is recursive or no object, or a field is not a string, number, boolean,
            enumeration of strings, or list of one.
    """
    schema = model.model_json_schema()
    if issubclass(model, RootModel) or schema.get("type") != "object":
        raise TypeError(f"{model.__name__}: a form is a flat object with fields")
    definitions = schema.get("$defs", {})
    properties = {
        name: _field_schema(model, name, field, definitions) for name, field in schema.get("properties", {}).items()
    }
    form: JSONObject = {"type": "object", "properties": properties}
    if required := schema.get("required"):
        form["required"] = required
    return form


def _field_schema(model: type[BaseModel], name: str, field: JSONObject, definitions: JSONObject) -> JSONObject:
    flat = _inline(field, definitions)
    if isinstance(options := flat.get("anyOf"), list):
        kept = [option for option in (_inline(option, definitions) for option in options) if option != {"type": "null"}]
        if len(kept) == 1:  # `X | None`: the field is simply not required
            flat = {**{key: value for key, value in flat.items() if key != "anyOf"}, **kept[0]}
    if flat.get("default", ...) is None:
        del flat["default"]
    if isinstance(items := flat.get("items"), dict):
        flat = {**flat, "items": _inline(items, definitions)}
    if flat.get("type") not in _PRIMITIVE_TYPES and not _is_choice_list(flat):
        raise TypeError(f"{model.__name__}.{name}: a form has only strings, numbers, booleans and choices")
    return flat


def _inline(schema: JSONObject, definitions: JSONObject) -> JSONObject:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return dict(schema)
    target: JSONValue = definitions.get(reference.rpartition("/")[2], {})
    return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}


def _is_choice_list(schema: JSONObject) -> bool:
    items = schema.get("items")
    return schema.get("type") == "array" and isinstance(items, dict) and "enum" in items
