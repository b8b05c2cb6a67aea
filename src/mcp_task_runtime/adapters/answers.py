"""What a client answers, typed the same for every SDK line, so that work is written once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

__all__ = [
    "AcceptedElicitation",
    "AudioContent",
    "CancelledElicitation",
    "CreateMessageResult",
    "DeclinedElicitation",
    "ElicitResult",
    "Elicitation",
    "ImageContent",
    "SamplingContent",
    "TextContent",
    "ToolUseContent",
]

ModelT_co = TypeVar("ModelT_co", bound=BaseModel, covariant=True)
ModelT = TypeVar("ModelT", bound=BaseModel)


class _Message(BaseModel):
    """Fields are snake_case here and camelCase on the wire; unknown ones are kept."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="allow", defer_build=True
    )


class ElicitResult(_Message):
    """A client's answer to an elicitation.

    Attributes:
        action: What the user did: `accept`, `decline` or `cancel`.
        content: The filled form when it was accepted.
    """

    action: Literal["accept", "decline", "cancel"]
    content: dict[str, str | int | float | bool | list[str] | None] | None = None


@dataclass(frozen=True, slots=True)
class AcceptedElicitation(Generic[ModelT_co]):
    """The user sent the form; `data` is its content, validated."""

    data: ModelT_co
    action: Literal["accept"] = "accept"


@dataclass(frozen=True, slots=True)
class DeclinedElicitation:
    """The user declined to answer."""

    data: None = None
    action: Literal["decline"] = "decline"


@dataclass(frozen=True, slots=True)
class CancelledElicitation:
    """The user closed the form without a decision."""

    data: None = None
    action: Literal["cancel"] = "cancel"


Elicitation: TypeAlias = AcceptedElicitation[ModelT] | DeclinedElicitation | CancelledElicitation
"""A typed answer: where `action` is `accept`, `data` is the model that was asked for."""


class TextContent(_Message):
    """Text."""

    type: Literal["text"]
    text: str


class ImageContent(_Message):
    """An image: `data` is base64."""

    type: Literal["image"]
    data: str
    mime_type: str


class AudioContent(_Message):
    """A sound: `data` is base64."""

    type: Literal["audio"]
    data: str
    mime_type: str


class ToolUseContent(_Message):
    """The model wants a tool called; answer with a `tool_result` block that has this `id`."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


SamplingContent: TypeAlias = Annotated[
    TextContent | ImageContent | AudioContent | ToolUseContent, Field(discriminator="type")
]
"""One block of what a model wrote."""


class CreateMessageResult(_Message):
    """A client's answer to a sampling request.

    Attributes:
        role: Who speaks, usually `assistant`.
        content: What the model wrote; a list when tools were offered.
        model: Name of the model that wrote it.
        stop_reason: Why it stopped, such as `endTurn`, `maxTokens` or `toolUse`.
    """

    role: Literal["user", "assistant"]
    content: SamplingContent | list[SamplingContent]
    model: str
    stop_reason: str | None = None

    @property
    def text(self) -> str:
        """All text of the answer."""
        blocks = self.content if isinstance(self.content, list) else [self.content]
        return "".join(block.text for block in blocks if isinstance(block, TextContent))
