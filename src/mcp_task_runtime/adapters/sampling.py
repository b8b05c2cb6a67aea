"""The params of sampling requests, and the rules for those that use tools, checked before one is sent (SEP-1577)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mcp_task_runtime.core.json import JSONObject, JSONValue, to_json_value

__all__ = ["check_tool_messages", "sampling_params", "to_messages"]


def sampling_params(
    messages: Any,
    *,
    max_tokens: int,
    system_prompt: str | None,
    include_context: str | None,
    temperature: float | None,
    stop_sequences: Sequence[str] | None,
    metadata: Mapping[str, Any] | None,
    model_preferences: Any,
    tools: Sequence[Any] | None,
    tool_choice: Any,
) -> JSONObject:
    """Return the params of `sampling/createMessage`; what is `None` is left out.

    Raises:
        TypeError: As for `to_messages`.
        ValueError: As for `to_messages`.
    """
    conversation = to_messages(messages)
    optional = {
        "systemPrompt": system_prompt,
        "includeContext": include_context,
        "temperature": temperature,
        "stopSequences": None if stop_sequences is None else list(stop_sequences),
        "metadata": metadata,
        "modelPreferences": to_json_value(model_preferences),
        "tools": None if tools is None else [to_json_value(tool) for tool in tools],
        "toolChoice": to_json_value(tool_choice),
    }
    return {
        "messages": conversation,
        "maxTokens": max_tokens,
        **{name: value for name, value in optional.items() if value is not None},
    }


def to_messages(messages: Any) -> list[JSONObject]:
    """Return a conversation as JSON: messages as JSON objects, or the SDK's own types.

    Raises:
        TypeError: A message is not an object, or `messages` not a sequence.
        ValueError: A message is malformed, or its tool uses and tool results do not match.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TypeError("messages must be JSON objects or the SDK's own messages, in a list")
    conversation: list[JSONValue] = [to_json_value(message) for message in messages]
    for index, message in enumerate(conversation):
        if not isinstance(message, Mapping):
            raise TypeError("messages must be JSON objects or the SDK's own messages, in a list")
        if message.get("role") not in ("user", "assistant"):
            raise ValueError(f"messages[{index}].role must be 'user' or 'assistant'")
        if not all(isinstance(block, Mapping) and isinstance(block.get("type"), str) for block in _blocks(message)):
            raise ValueError(f"messages[{index}].content must be a content block, or a list of them")
    check_tool_messages(conversation)
    return conversation


def _blocks(message: Mapping[str, JSONValue]) -> list[JSONValue]:
    content: JSONValue = message.get("content")
    return content if isinstance(content, list) else [content]


def check_tool_messages(messages: Sequence[JSONObject]) -> None:
    """Check that tool results answer the tool uses right before them.

    Raises:
        ValueError: Tool results are mixed with other content, or do not match the tool uses.
    """
    if not messages:
        return
    last = _blocks(messages[-1])
    previous = _blocks(messages[-2]) if len(messages) > 1 else []
    uses = {block.get("id") for block in previous if block.get("type") == "tool_use"}
    results = {block.get("toolUseId") for block in last if block.get("type") == "tool_result"}
    if results:
        if any(block.get("type") != "tool_result" for block in last):
            raise ValueError("The last message must contain only tool_result content if any is present")
        if len(messages) < 2:
            raise ValueError("tool_result requires a previous message containing tool_use")
        if not uses:
            raise ValueError("tool_result blocks do not match any tool_use in the previous message")
    if uses and uses != results:
        raise ValueError("ids of tool_result blocks and tool_use blocks from previous message do not match")
