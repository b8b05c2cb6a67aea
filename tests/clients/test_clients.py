"""Real clients do what they can on a server of each SDK line; the long profile drives those of others, too."""

from __future__ import annotations

import os
import re
import shutil
import sys

import pytest

from tests.clients.matrix import CELLS, CLIENTS, LINES, ROOT, row_of

# Which row of the README is about which clients.
ROWS = {
    "mcp-1": "`mcp` 1.30 `ClientSession`",
    "mcp-2": "`mcp` 2.3 `Client`",
    "tasks-client-1": "`TasksClient` (ours) on `mcp` 1.30 and 2.3",
    "tasks-client-2": "`TasksClient` (ours) on `mcp` 1.30 and 2.3",
    "typescript-1": "TypeScript SDK 1.32",
    "typescript-2": "TypeScript client 2.4, ext-tasks 0.2",
    "fastmcp-3": "fastmcp 3.4, `task=True`",
    "fastmcp-4": "fastmcp 4.2; pydantic-ai 2.68",
    "strands-1": "Strands 1.62, `tasks_config`",
    "strands-2": "Strands 1.62, `tasks_config`",
    "pydantic-ai": "fastmcp 4.2; pydantic-ai 2.68",
    "langchain": "langchain-mcp-adapters 0.3",
    "openai-agents": "openai-agents 0.24",
    "agent-framework": "Microsoft agent-framework 1.23",
}


def readme_rows() -> dict[str, list[str]]:
    """Return the cells of the README's matrix, by the first one of each row."""
    table = (ROOT / "README.md").read_text().split("(`python3 tests/clients/matrix.py`):\n\n")[1].split("\n\n")[0]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    for said, cell in zip(head[1:], CELLS, strict=True):
        assert set(re.findall(r"\w+", cell)) <= set(re.findall(r"\w+", said))
    return {title: cells for title, *cells in rows}


def test_the_readme_has_a_row_for_each_client() -> None:
    assert ROWS.keys() == CLIENTS.keys()
    assert len(CLIENTS) == 14, "the changelog says how many"
    assert set(ROWS.values()) == set(readme_rows())


def is_ready(suite: str) -> bool:
    """Whether `tests/run.py` has made the environment of a suite for this Python."""
    version = f"py{sys.version_info[0]}.{sys.version_info[1]}"
    return (ROOT / ".venvs" / f"{version}-{suite}" / "installed").is_file()


LONG = os.environ.get("MCP_TASK_RUNTIME_PROFILE") == "long"


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("name", CLIENTS)
def test_every_cell_works_or_names_the_limit_of_the_client(name: str, line: str) -> None:
    if not (LONG or CLIENTS[name].suite):
        pytest.skip("clients of others need an environment each: MCP_TASK_RUNTIME_PROFILE=long")
    if CLIENTS[name].npm and shutil.which("node") is None:
        pytest.skip("needs node")
    for suite in (line, CLIENTS[name].suite):
        if suite and not is_ready(suite):
            pytest.skip(f"the environment of {suite} is not there: python3 tests/run.py makes it")
    row = row_of(name, line)
    assert tuple(row) == CELLS
    assert not [cell for cell in row.values() if cell.startswith("FAULT")], row
    if CLIENTS[name].suite:  # of the versions that the README names; others are what was installed last
        for cell, said in zip(row.values(), readme_rows()[ROWS[name]], strict=True):
            assert (cell == "works") == (said == "yes") or " on " in said, (cell, said)
