"""What importing the adapter of `mcp` 2.x adds to `import mcp`, in processor time, with compiled modules at hand."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from tests.benchmarks.measuring import row

PROCESSES = 15

PROGRAM = """
import time
import mcp
began = time.process_time()
import mcp_task_runtime.server
print(time.process_time() - began)
"""


def seconds_of_import(environment: dict[str, str]) -> float:
    """Return the processor time of the import in a new process, in seconds."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        seconds_of_import(environment)  # compiles
        best = min(seconds_of_import(environment) for _ in range(PROCESSES))
    row("Importing the adapter, in addition to `import mcp`: processor time", "≤ 60 ms", f"{1e3 * best:.0f} ms")


if __name__ == "__main__":
    main()
