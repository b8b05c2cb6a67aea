"""The examples for agents that others wrote run as their heads say (the long profile)."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.clients.matrix import ROOT, environment

AGENTS = {
    "langchain": ("langchain-mcp-adapters", "Bees: published"),
    "pydantic_ai": ("pydantic-ai-slim[mcp]", "Bees: published"),
    "strands": ("strands-agents", "Bees: published"),
    "openai_agents": ("openai-agents", "text='3'"),
}


@pytest.mark.parametrize("name", AGENTS)
def test_the_example_for_an_agent_gets_the_result_of_a_task_tool(name: str) -> None:
    if os.environ.get("MCP_TASK_RUNTIME_PROFILE") != "long":
        pytest.skip("agents of others need an environment each: MCP_TASK_RUNTIME_PROFILE=long")
    requirement, wanted = AGENTS[name]
    python = environment(f"agent-{name}", "--editable", str(ROOT), requirement)
    program = ROOT / "examples" / "agents" / f"with_{name}.py"
    done = subprocess.run([python, program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert wanted in done.stdout
