"""Elicitation forms from pydantic models: flat objects, as both protocols ask."""

from __future__ import annotations

from datetime import date
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal

import mcp_types
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import AnyUrl, BaseModel, Field, RootModel

from mcp_task_runtime.adapters.forms import form_schema
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.wire.answers import check_answer


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Inner(BaseModel):
    x: int


class Full(BaseModel):
    """Every kind of field a form may have."""

    text: str
    short: Annotated[str, Field(min_length=1, max_length=3, description="a short one", title="Short")]
    count: int
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    agree: bool
    color: Color
    favourite: Color = Color.RED
    size: Literal["s", "m"] = "m"
    colors: list[Color]
    few: Annotated[list[Literal["a", "b"]], Field(min_length=1, max_length=2)] = ["a"]
    maybe: str | None = None
    perhaps: Color | None = None
    several: list[Color] | None = None
    day: date | None = None
    link: AnyUrl | None = None


def test_every_kind_of_field_becomes_what_the_protocol_allows() -> None:
    schema = form_schema(Full)
    fields = schema["properties"]
    assert schema["type"] == "object"
    assert schema["required"] == ["text", "short", "count", "agree", "color", "colors"]
    assert set(schema) == {"type", "properties", "required"}, "no definitions: everything is inlined"
    assert "$ref" not in repr(schema)
    assert "anyOf" not in repr(schema)
    assert fields["short"] == {
        "type": "string", "minLength": 1, "maxLength": 3, "description": "a short one", "title": "Short"
    }  # fmt: skip
    assert (fields["ratio"]["minimum"], fields["ratio"]["maximum"], fields["ratio"]["default"]) == (0, 1, 0.5)
    assert fields["color"]["enum"] == ["red", "blue"]
    assert fields["favourite"]["default"] == "red"
    assert fields["colors"]["items"]["enum"] == ["red", "blue"]
    assert fields["several"]["items"]["enum"] == ["red", "blue"]
    assert (fields["maybe"]["type"], fields["perhaps"]["type"]) == ("string", "string")
    assert (fields["day"]["format"], fields["link"]["format"]) == ("date", "uri")
    assert all("default" not in fields[name] for name in ("maybe", "perhaps", "several", "day", "link"))
    Draft202012Validator.check_schema(schema)


def test_a_form_is_one_that_the_sdk_takes() -> None:
    params = mcp_types.ElicitRequestFormParams(message="?", requested_schema=form_schema(Full))
    assert params.requested_schema["type"] == "object"


def test_a_form_without_fields_or_without_required_ones_has_no_empty_lists() -> None:
    class Empty(BaseModel):
        pass

    class Optional(BaseModel):
        x: int = 1

    assert form_schema(Empty) == {"type": "object", "properties": {}}
    assert "required" not in form_schema(Optional)


def test_a_nullable_field_without_default_stays_required_because_the_model_requires_it() -> None:
    class Nullable(BaseModel):
        x: int | None

    assert form_schema(Nullable)["required"] == ["x"]
    assert form_schema(Nullable)["properties"]["x"]["type"] == "integer"


def test_fields_go_by_their_aliases_as_the_answer_will() -> None:
    class Aliased(BaseModel):
        first_name: Annotated[str, Field(alias="firstName")]

    assert list(form_schema(Aliased)["properties"]) == ["firstName"]
    assert Aliased.model_validate({"firstName": "x"}).first_name == "x"


@pytest.mark.parametrize(
    "annotation",
    [
        Inner,
        Inner | None,
        dict[str, int],
        list[str],
        list[int],
        list[Inner],
        int | str,
        Any,
        tuple[int, int],
        bytes | int,
    ],
    ids=str,
)
def test_a_field_that_no_form_has_is_refused_with_its_name(annotation: Any) -> None:
    bad = type("Bad", (BaseModel,), {"__annotations__": {"fine": int, "field": annotation}})
    with pytest.raises(TypeError, match=r"Bad\.field"):
        form_schema(bad)


class Tree(BaseModel):
    name: str
    child: Tree | None = None


class Choice(RootModel[str]):
    pass


class Pairs(RootModel[dict[str, int]]):
    pass


@pytest.mark.parametrize("model", [Tree, Choice, Pairs])
def test_a_model_that_is_no_flat_object_is_refused_and_gives_no_empty_form(model: type[BaseModel]) -> None:
    with pytest.raises(TypeError, match=model.__name__):
        form_schema(model)


def test_an_enumeration_of_integers_keeps_its_numbers() -> None:
    class Leveled(BaseModel):
        level: Level

    assert form_schema(Leveled)["properties"]["level"]["enum"] == [1, 2]


class Checked(BaseModel):
    text: Annotated[str, Field(min_length=1, max_length=3)]
    count: Annotated[int, Field(ge=0, le=5)]
    ratio: Annotated[float, Field(ge=0.5)] = 1.0
    agree: bool = False
    size: Literal["s", "m"] = "m"
    colors: Annotated[list[Color], Field(max_length=2)] = []
    maybe: str | None = None


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 6),
    st.floats(-1, 6),
    st.sampled_from(["", "s", "m", "red", "long text", "éé"]),
    st.lists(st.sampled_from(["red", "blue", "green"]), max_size=3),
)
contents = st.fixed_dictionaries(
    {"text": st.sampled_from(["a", "éé🌍"]) | values, "count": st.integers(0, 5) | values},
    optional={
        "ratio": st.floats(0.5, 2) | values,
        "agree": st.booleans() | values,
        "size": st.sampled_from(["s", "m"]) | values,
        "colors": st.lists(st.sampled_from(["red", "blue"]), max_size=2) | values,
        "maybe": st.text(max_size=3) | values,
    },
)


@given(contents)
def test_what_the_form_accepts_the_model_reads(content: dict[str, Any]) -> None:
    """A question whose answer was accepted must not fail in the asker for a rule that the form states."""
    schema = form_schema(Checked)
    if Draft202012Validator(schema).is_valid(content):
        Checked.model_validate(content)
        question = QueuedMessage.request("q", "elicitation/create", {"requestedSchema": schema})
        check_answer(question, {"action": "accept", "content": content}, max_bytes=1000)
