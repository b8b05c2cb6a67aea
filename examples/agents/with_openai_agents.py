"""openai-agents calls task tools as plain calls. It has no callback for questions: give it tools that ask nothing.

pip install mcp-task-runtime openai-agents && python examples/agents/with_openai_agents.py
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agents.mcp import MCPServerStdio

SERVER = str(Path(__file__).with_name("server.py"))


async def main() -> None:
    # The default of 5 seconds is short for work that takes its time.
    async with MCPServerStdio(
        {"command": sys.executable, "args": [SERVER]}, client_session_timeout_seconds=600
    ) as server:  # Agent(..., mcp_servers=[server]) calls the same
        print((await server.call_tool("count_words", {"text": "bees make honey"})).content)


asyncio.run(main())
