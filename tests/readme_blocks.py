"""The Python blocks of the README, for the tests that run them."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
MCP_1 = "# mcp 1.x"
"""First line of a block for the 1.x line of the SDK."""


def python_blocks(*, mcp_1: bool) -> list[tuple[str, str]]:
    """Return each block for one line of the SDK, with the heading it stands under."""
    blocks = []
    heading = ""
    for match in re.finditer(r"^#+ ([^\n]+)$|^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL):
        if match[1] is not None:
            heading = match[1]
        elif match[2].startswith(MCP_1) == mcp_1:
            blocks.append((heading, match[2]))
    return blocks
