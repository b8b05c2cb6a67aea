"""Real clients do what they can on a server of each SDK line; the long profile drives those of others, too."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from tests.clients.matrix import CELLS, CLIENTS, LINES, ROOT, row_of


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
