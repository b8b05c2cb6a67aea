"""Hypothesis strategies from the protocol's JSON Schemas: messages that are valid, and the same with one fault."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from tests.mcp_v2.schemas import Schema, Wire, document

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=3,
)
_FORMATS: dict[str, st.SearchStrategy[Any]] = {
    "byte": st.sampled_from(["", "eHg="]),
    "uri": st.sampled_from(["https://example.org/x", "file:///x"]),
    "uri-template": st.sampled_from(["file:///{x}"]),
}


@lru_cache
def valid(schema: Schema, definition: str) -> st.SearchStrategy[Any]:
    """Return what matches a definition of a schema; each of its optional parts comes up now and then."""
    return _matching(schema, document(schema)["$defs"][definition])


def valid_params(schema: Schema, request: str) -> st.SearchStrategy[Wire]:
    """Return params that match those of a request."""
    definition = document(schema)["$defs"][request]
    bodies = [part for part in definition.get("allOf", [definition]) if "properties" in part]
    return _matching(schema, bodies[-1]["properties"]["params"])


def _matching(schema: Schema, node: Any) -> st.SearchStrategy[Any]:
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return st.deferred(lambda: valid(schema, name))
    if "const" in node:
        return st.just(node["const"])
    if "enum" in node:
        return st.sampled_from(node["enum"])
    for keyword in ("anyOf", "oneOf"):
        if keyword in node:
            return st.one_of([_matching(schema, option) for option in node[keyword]])
    if "allOf" in node:
        parts = st.tuples(*[_matching(schema, part) for part in node["allOf"]])
        return parts.map(lambda drawn: {name: value for part in drawn for name, value in part.items()})
    kinds = node.get("type")
    if isinstance(kinds, list):
        return st.one_of([_matching(schema, {**node, "type": kind}) for kind in kinds])
    if kinds == "object":
        return _object(schema, node)
    if kinds == "array":
        items = _matching(schema, node.get("items", {}))
        return st.lists(items, min_size=node.get("minItems", 0), max_size=max(node.get("minItems", 0), 2))
    if kinds == "integer":
        return st.integers(node.get("minimum", -(2**31)), node.get("maximum", 2**31))
    if kinds == "number":
        return st.floats(node.get("minimum", -1e9), node.get("maximum", 1e9))
    simple = {"string": _FORMATS.get(node.get("format"), st.text(max_size=8)), "boolean": st.booleans()}
    return simple.get(kinds, st.none() if kinds == "null" else _JSON)


def _object(schema: Schema, node: Wire) -> st.SearchStrategy[Wire]:
    properties = {name: _matching(schema, part) for name, part in node.get("properties", {}).items()}
    required = node.get("required", [])
    known = st.fixed_dictionaries({name: properties.pop(name, _JSON) for name in required if name}, optional=properties)
    more = node.get("additionalProperties")
    if not isinstance(more, dict):
        return known
    others = st.dictionaries(st.text(max_size=5), _matching(schema, more), max_size=2)
    return st.tuples(others, known).map(lambda drawn: {**drawn[0], **drawn[1]})


@st.composite
def with_a_fault(draw: st.DrawFn, instances: st.SearchStrategy[Any], junk: st.SearchStrategy[Any]) -> Any:
    """Return one of the instances with one part of it lost, replaced, wrapped, renamed, or with one too many."""
    instance = copy.deepcopy(draw(instances))
    places = list(_places(instance))
    container, key = places[draw(st.integers(0, len(places) - 1))]
    how = draw(st.sampled_from(["lost", "replaced", "wrapped", "too many", "renamed", "null", "text"]))
    if how == "lost":
        del container[key]
    elif how == "replaced":
        container[key] = draw(junk)
    elif how == "wrapped":
        container[key] = draw(st.sampled_from([[container[key]], {"x": container[key]}, [container[key]] * 2]))
    elif how == "null":
        container[key] = None
    elif how == "text":
        container[key] = str(container[key])
    elif isinstance(container, list):
        container.insert(key, draw(junk))
    elif how == "renamed":
        container[draw(st.sampled_from([key.upper(), f"{key} ", f"{key}s", "", key[:-1]]))] = container.pop(key)
    else:
        container[draw(st.sampled_from(["task", "taskId", "taskIds", "x", "", "__proto__", "_meta"]))] = draw(junk)
    return instance


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
