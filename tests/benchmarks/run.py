"""The benchmarks: one command that sets up what it needs and prints a Markdown table.

    python3 tests/benchmarks/run.py

Each figure is a ratio of two rates, or a size, measured in one process in one run: the rivals run beside
us on the same machine, in turns, and the medians count. Absolute rates are shown for orientation only.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Benchmark -> the environment of tests/run.py it runs in: the SDK's own task runtime is only in mcp 1.x.
BENCHMARKS = {
    "bench_memory_store.py": "mcp1",
    "bench_runtime.py": "mcp1",
    "bench_calls.py": "mcp2",
    "bench_client.py": "mcp2",
    "bench_push.py": "mcp2",
    "bench_waiting_tasks.py": "mcp2",
    "bench_durable_stores.py": "mcp2",
}


def environment(suite: str) -> str:
    """Return the Python of one of the test environments, made if need be."""
    command = [sys.executable, str(HERE.parent / "run.py"), "--suite", suite, "--python"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1]


def main() -> int:
    print("| what | bound | measured |\n| --- | --- | --- |", flush=True)
    failed = 0
    for benchmark, suite in BENCHMARKS.items():
        if (HERE / benchmark).exists():
            module = f"tests.benchmarks.{benchmark.removesuffix('.py')}"
            failed |= subprocess.run([environment(suite), "-W", "ignore", "-m", module], cwd=ROOT).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
