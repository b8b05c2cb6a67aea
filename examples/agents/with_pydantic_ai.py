"""pydantic-ai 2 calls task tools as plain calls; a question reaches its handler by multi-round-trip input.

pip install mcp-task-runtime 'pydantic-ai-slim[mcp]' && python examples/agents/with_pydantic_ai.py
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from fastmcp.client.transports import StdioTransport
from pydantic_ai.mcp import MCPToolset

SERVER = str(Path(__file__).with_name("server.py"))


async def ask_user(message: str, response_type: Any, params: Any, context: Any) -> Any:
    print(f"the server asks: {message}")
    return response_type(ok=True)


async def main() -> None:
    toolset: Any = MCPToolset(StdioTransport(sys.executable, [SERVER]), elicitation_handler=ask_user)
    async with toolset:  # Agent(..., toolsets=[toolset]) calls the same
        print(await toolset.direct_call_tool("build_report", {"topic": "Bees"}))


asyncio.run(main())
