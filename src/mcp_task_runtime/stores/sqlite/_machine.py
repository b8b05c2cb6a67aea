"""The machine's own time, the same for all its processes. Everything that depends on the operating system is here.

Linux and macOS tell one boot from another. Elsewhere a new boot is noticed when the time since boot has gone back.
Windows has no public clock that stands still while the machine sleeps: there, `asleep` is always 0. Only Linux has
been tried.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

__all__ = ["asleep", "boot_id", "uptime"]


def uptime() -> int:
    """Return the microseconds since the machine started, sleep included."""
    if sys.platform == "linux":
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000
    if sys.platform == "darwin":  # there, it goes on while the machine sleeps, and `time.monotonic` does not
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
    return time.monotonic_ns() // 1_000


def asleep() -> int:
    """Return how many microseconds of the uptime the machine slept, to within some microseconds."""
    return max(0, uptime() - time.monotonic_ns() // 1_000)


def boot_id() -> str:
    """Return what this boot of the machine is called; empty if that is unknown."""
    try:
        if sys.platform == "linux":
            return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        if sys.platform == "darwin":
            return _boot_session()
    except (OSError, ValueError, AttributeError):
        pass
    return ""


def _boot_session() -> str:
    buffer = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(buffer))
    if ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", buffer, ctypes.byref(size), None, 0):
        return ""
    return buffer.value.decode("ascii")
