"""The laws in one sentence each, for messages of the test kit; `core.__doc__` contains the same sentences."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["LAWS"]

LAWS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "L1": "Status: a task moves between working and input_required and ends once; a refused step changes nothing.",
        "L2": "One ending: of all who try to end a task one wins, and status and outcome appear together.",
        "L3": "No lost wake-up: every waiter wakes, whether the change came before or after its wait began.",
        "L4": "Snapshots: a returned value never changes, and a value that could not be read back is refused.",
        "L5": "Questions: a task is input_required exactly while a question is open; the first answer wins, keys are "
        "never reused, and every end of a task releases its askers.",
        "L6": "Cancellation safety: a cancelled operation either happened or did not, and clean-up is shielded.",
        "L7": "Time: a task expires at created_at + ttl_ms for every caller at once, by the injected clock.",
        "L8": "Cost: every operation is O(log n) or better, listing is O(page), and nothing is kept for a task "
        "that is gone.",
        "L9": "Cancel means stop: cancelling ends the task and cancels its work in the process that runs it; a late "
        "outcome is dropped.",
        "L10": "Owners: a task is visible to its owner alone; for anyone else it does not exist.",
        "L11": "Errors: a protocol error reaches the client verbatim; any other exception reaches it as a plain call "
        "would show it, and is logged in full.",
        "L12": "Durability: no kill loses a task or a visible outcome, no healthy process loses its work to an outage, "
        "and lost work runs at most max_attempts times.",
        "L13": "Isolation: nothing that one client sends or one task's work does affects another task.",
        "L14": "A plain call stays plain: tasks change nothing for a call that does not become one.",
        "L15": "Questions reach the client wherever its protocol has a way, once at a time, and an answer counts "
        "however it arrives.",
        "L16": "Bounds: everything that a client can make grow is bounded for its owner, in number and bytes.",
        "L17": "Shared clocks: a shared store's own clock decides leases and expiry, so processes whose clocks "
        "disagree end no work.",
        "L18": "Anywhere: work finds its principal, capabilities and trace context wherever it runs.",
    }
)
"""Each law's number with its sentence."""
