"""The quick check of messages agrees with `jsonschema`, whatever a message is."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mcp_v2.schema_strategies import valid, with_a_fault
from tests.mcp_v2.schemas import Schema, document, needs_schemas, quick, validator
from tests.support.quick_schema import QuickSchema

JUNK: st.SearchStrategy[Any]
JUNK = st.sampled_from([None, True, False, 0, 1, 1.0, 0.5, -1, "", "x", [], {}, [{}], {"x": 1}, 2**60])


@needs_schemas
@pytest.mark.parametrize("schema", get_args(Schema))
def test_it_finds_valid_what_jsonschema_does(schema: Schema) -> None:
    definitions = sorted(document(schema)["$defs"])

    @given(st.sampled_from(definitions).flatmap(lambda definition: messages(schema, definition)))
    @settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
    def agree(message: tuple[str, Any]) -> None:
        definition, value = message
        assert quick(schema).matches(definition)(value) == validator(schema, definition).is_valid(value)

    agree()


def messages(schema: Schema, definition: str) -> st.SearchStrategy[tuple[str, Any]]:
    """Return messages that match a definition, or do not quite, or not at all; with the definition."""
    instances = valid(schema, definition)
    whole = instances.filter(lambda instance: isinstance(instance, dict | list) and bool(instance))
    return st.tuples(st.just(definition), instances | with_a_fault(whole, JUNK) | JUNK)


@needs_schemas
@pytest.mark.parametrize("schema", get_args(Schema))
def test_it_knows_each_definition(schema: Schema) -> None:
    for definition in document(schema)["$defs"]:
        quick(schema).matches(definition)


def test_it_does_not_pass_over_a_keyword() -> None:
    with pytest.raises(KeyError, match="minLength"):
        QuickSchema({"Name": {"type": "string", "minLength": 1}}).matches("Name")
