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
@given(data=st.data())
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_it_finds_valid_what_jsonschema_does(schema: Schema, data: st.DataObject) -> None:
    definition = data.draw(st.sampled_from(sorted(document(schema)["$defs"])))
    instances = valid(schema, definition)
    whole = instances.filter(lambda instance: isinstance(instance, dict | list) and bool(instance))
    message: Any = data.draw(instances | with_a_fault(whole, JUNK) | JUNK)
    assert quick(schema).matches(definition)(message) == validator(schema, definition).is_valid(message)


@needs_schemas
@pytest.mark.parametrize("schema", get_args(Schema))
def test_it_knows_each_definition(schema: Schema) -> None:
    for definition in document(schema)["$defs"]:
        quick(schema).matches(definition)


def test_it_does_not_pass_over_a_keyword() -> None:
    with pytest.raises(KeyError, match="minLength"):
        QuickSchema({"Name": {"type": "string", "minLength": 1}}).matches("Name")
