"""What the charts show, and where their bars stand. The templates draw them as inline SVG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import quantiles
from typing import Final

from mcp_task_runtime.core.transitions import TERMINAL_STATUSES
from mcp_task_runtime.core.types import TaskCounts, TaskRecord

__all__ = ["SPANS", "Bar", "Chart", "durations", "throughput", "waiting"]

SPANS: Final[Mapping[str, tuple[str, timedelta]]] = {
    "1h": ("the last hour", timedelta(hours=1)),
    "1d": ("the last day", timedelta(days=1)),
    "7d": ("the last 7 days", timedelta(days=7)),
}
_BUCKETS: Final = 24
_MOST_TOOLS: Final = 12


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart.

    Attributes:
        label: What it is of.
        parts: Its parts as kind and number, in the order of the chart's kinds.
        text: Its numbers, as people read them.
    """

    label: str
    parts: tuple[tuple[str, float], ...]
    text: str

    @property
    def total(self) -> float:
        """The length of the whole bar."""
        return sum(value for _, value in self.parts)


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars on one scale.

    Attributes:
        title: What it shows.
        summary: The same in a sentence, for those who do not see it.
        kinds: The kinds of parts, for the legend.
        bars: The bars.
    """

    title: str
    summary: str
    kinds: tuple[str, ...]
    bars: tuple[Bar, ...]

    def placed(self, size: float) -> list[tuple[Bar, list[tuple[str, float, float]]]]:
        """Return each bar with its parts as kind, offset and length, where the longest bar has this size."""
        longest = max((bar.total for bar in self.bars), default=0) or 1
        placed = []
        for bar in self.bars:
            offset, parts = 0.0, []
            for kind, value in bar.parts:
                length = size * value / longest
                if length > 0:
                    parts.append((kind, round(offset, 2), round(length, 2)))
                offset += length
            placed.append((bar, parts))
        return placed


def throughput(ended: Iterable[TaskRecord], now: datetime, span: timedelta, span_name: str) -> Chart:
    """Return how many tasks ended in each part of a span, by status."""
    kinds = ("completed", "failed", "cancelled")
    width = span / _BUCKETS
    counts: list[dict[str, int]] = [dict.fromkeys(kinds, 0) for _ in range(_BUCKETS)]
    total = 0
    for record in ended:
        age = now - record.task.last_updated_at
        if record.status in TERMINAL_STATUSES and age < span:
            counts[_BUCKETS - 1 - max(0, age // width)][record.status] += 1
            total += 1
    bars = []
    for index, by_status in enumerate(counts):
        begins = now - span + index * width
        label = f"{begins:%H:%M}" if span <= timedelta(days=1) else f"{begins:%a %H:%M}"
        text = ", ".join(f"{number} {status}" for status, number in by_status.items() if number) or "none"
        bars.append(Bar(label, tuple(by_status.items()), text))
    return Chart("Tasks that ended", f"{total} tasks ended in {span_name}.", kinds, tuple(bars))


def durations(ended: Iterable[TaskRecord]) -> Chart:
    """Return the median and the 95th percentile of the time from creation to completion, by tool."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for record in ended:
        if record.status == "completed":
            seconds[record.request.name].append((record.task.last_updated_at - record.task.created_at).total_seconds())
    bars = []
    for name, values in sorted(seconds.items(), key=lambda item: -len(item[1]))[:_MOST_TOOLS]:
        middle, high = _percentiles(values)
        text = f"median {_duration(middle)}, 95 % within {_duration(high)}, of {len(values)}"
        bars.append(Bar(name or "(no tool)", (("median", middle), ("95 %", high - middle)), text))
    summary = "; ".join(f"{bar.label}: {bar.text}" for bar in bars) or "No task has completed."
    return Chart("Time to completion", summary, ("median", "95 %"), tuple(bars))


def waiting(counts: TaskCounts) -> Chart:
    """Return how many tasks have not ended, by tool."""
    kinds = ("working", "input_required")
    numbers: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(kinds, 0))
    for (status, name), number in counts.by_status_and_name.items():
        if status in kinds and number:
            numbers[name][status] += number
    bars = []
    for name, by_status in sorted(numbers.items(), key=lambda item: -sum(item[1].values()))[:_MOST_TOOLS]:
        text = f"{by_status['working']} working, {by_status['input_required']} waiting for an answer"
        bars.append(Bar(name or "(no tool)", tuple(by_status.items()), text))
    summary = "; ".join(f"{bar.label}: {bar.text}" for bar in bars) or "No task is open."
    return Chart("Tasks that have not ended", summary, kinds, tuple(bars))


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    cuts = quantiles(values, n=20, method="inclusive")
    return cuts[9], cuts[18]


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
