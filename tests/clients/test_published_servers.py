"""Servers that others published run their tools as tasks, by the lines that the README has (the long profile)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.clients.matrix import ROOT, environment

PROGRAM = Path(__file__).resolve().parent / "published_server.py"
SERVERS = {
    "time": ("mcp-server-time", "mcp<2"),
    "git": ("mcp-server-git", "mcp<2"),
    "arxiv": ("arxiv-mcp-server", "mcp<2"),
    "cli": ("cli-mcp-server", "mcp<2"),
    "fetch": ("mcp-server-fetch", "mcp>=2"),
    "excel": ("excel-mcp-server", "mcp>=2"),
    "markitdown": ("markitdown-mcp", "mcp>=2"),
    "motherduck": ("mcp-server-motherduck", "fastmcp>=4"),
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_tool_of_a_published_server_runs_as_a_task(name: str) -> None:
    if os.environ.get("MCP_TASK_RUNTIME_PROFILE") != "long":
        pytest.skip("servers of others need an environment each: MCP_TASK_RUNTIME_PROFILE=long")
    python = environment(f"server-{name}", "--editable", str(ROOT), *SERVERS[name])
    done = subprocess.run([python, PROGRAM, "call", name], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
