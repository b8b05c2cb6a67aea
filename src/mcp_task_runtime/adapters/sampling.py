"""Rules for sampling requests that use tools, checked before a question is asked (SEP-1577)."""

from __future__ import annotations

from collections.abc import Sequence

from mcp_task_runtime.core.json import JSONObject, JSONValue

__all__ = ["check_tool_messages"]


def _blocks(message: JSONObject) -> list[JSONObject]:
    content: JSONValue = message.get("content")
    return content if isinstance(content, list) else [content]


def check_tool_messages(messages: Sequence[JSONObject]) -> None:
    """Check that tool results answer the tool uses right before them.

    Raises:
        ValueError: Tool results stand beside other content, or do not match the tool uses.
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
