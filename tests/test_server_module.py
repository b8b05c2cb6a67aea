"""`mcp_task_runtime.server`: the `Tasks` of the SDK line that is installed."""

from __future__ import annotations

import subprocess
import sys

import mcp_task_runtime.adapters.mcp_v2
import mcp_task_runtime.server


def test_it_gives_the_class_of_the_installed_line() -> None:
    assert mcp_task_runtime.server.Tasks is mcp_task_runtime.adapters.mcp_v2.Tasks


def test_without_an_sdk_one_sentence_says_what_to_install() -> None:
    """In a fresh interpreter that cannot find the SDK."""
    code = """
import sys

finders = list(sys.meta_path)

class WithoutSDK:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mcp", "mcp_types"):
            return None
        for finder in finders:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None

sys.meta_path[:] = [WithoutSDK()]
import mcp_task_runtime.server
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: mcp_task_runtime.server needs the MCP SDK: pip install 'mcp-task-runtime[mcp]'"
