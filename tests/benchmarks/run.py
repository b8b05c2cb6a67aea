"""The benchmarks: one command that sets up what it needs and prints a Markdown table.

    python3 tests/benchmarks/run.py                       all of them
    python3 tests/benchmarks/run.py bench_client          those that are named
    python3 tests/benchmarks/run.py --chart TABLE.md      only the chart, of a table that was printed before

The chart, `.github/benchmarks.svg`, shows each figure that has a bound as a multiple of that bound.

Each figure is a ratio of two rates, or a size, measured in one process in one run: the rivals run next to
us on the same machine, in turns, and the medians count. Absolute rates are shown for orientation only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHART = ROOT / ".github" / "benchmarks.svg"

# Benchmark -> the environment of tests/run.py it runs in: the SDK's own task runtime is only in mcp 1.x.
BENCHMARKS = {
    "bench_memory_store.py": "mcp1",
    "bench_runtime.py": "mcp1",
    "bench_v1_tasks.py": "mcp1",
    "bench_pollers.py": "mcp1",
    "bench_start.py": "mcp2",
    "bench_calls.py": "mcp2",
    "bench_client.py": "mcp2",
    "bench_push.py": "mcp2",
    "bench_waiting_tasks.py": "mcp2",
    "bench_scale.py": "mcp2",
    "bench_durable_stores.py": "mcp2",
    "bench_operators.py": "mcp2",
    "bench_processes.py": "mcp2",
    "bench_workers.py": "engines",
    "capacity.py": "mcp2",
}


def environment(suite: str) -> str:
    """Return the Python of one of the test environments, made if need be."""
    command = [sys.executable, str(HERE.parent / "run.py"), "--suite", suite, "--python"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1]


def chart(table: str) -> str:
    """Return an SVG of the rows of a table that have a bound: how much of it is used; beyond the line it is missed."""
    bars = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        bound = re.match("([≤≥]) ([0-9.,]+)", cells[1]) if len(cells) == 3 else None
        found = re.match("[0-9.,]+", cells[2]) if bound else None
        if bound and found:
            limit, value = (float(text.replace(",", "").rstrip(".")) for text in (bound[2], found[0]))
            bars.append((cells[0].replace("`", ""), f"{cells[2]}, bound {cells[1]}", _used(bound[1], limit, value)))
    height = 18 * len(bars) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{height}"',
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="900" height="{height}" fill="white"/>',
        '<text x="10" y="18" font-weight="bold">Part of the bound that is used; right of the line it is missed</text>',
    ]
    for number, (what, figures, used) in enumerate(bars):
        y = 30 + 18 * number
        width, colour = min(used, 2.2) * 300, "#ade3c4" if used <= 1 else "#f4b8a0"
        parts.append(f'<rect x="10" y="{y}" width="{width:.0f}" height="16" fill="{colour}"/>')
        parts.append(f'<text x="14" y="{y + 12}">{escape(what)}: {escape(figures)}</text>')
    parts.append(f'<line x1="310" y1="30" x2="310" y2="{height}" stroke="#444" stroke-dasharray="3"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _used(sign: str, limit: float, value: float) -> float:
    return value / limit if sign == "≤" else limit / max(value, 1e-9)


def main() -> int:
    if sys.argv[1:2] == ["--chart"]:
        CHART.write_text(chart(Path(sys.argv[2]).read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    wanted = sys.argv[1:]
    lines = ["| what | bound | measured |", "| --- | --- | --- |"]
    print("\n".join(lines), flush=True)
    failed = 0
    for benchmark, suite in BENCHMARKS.items():
        name = benchmark.removesuffix(".py")
        if wanted and name not in wanted:
            continue
        command = [environment(suite), "-W", "ignore", "-m", f"tests.benchmarks.{name}"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line.rstrip())
        failed |= process.returncode
    CHART.write_text(chart("\n".join(lines)), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
