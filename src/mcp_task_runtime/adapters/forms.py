"""Elicitation forms from pydantic models: flat objects of primitive fields, as both protocols ask."""

from __future__ import annotations

from functools import lru_cache

from pydantic import BaseModel, RootModel

from mcp_task_runtime.core.json import JSONObject, JSONValue

__all__ = ["form_schema"]

_PRIMITIVE_TYPES = frozenset({"string", "number", "integer", "boolean"})


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
