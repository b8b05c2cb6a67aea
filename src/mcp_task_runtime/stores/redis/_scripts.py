"""The scripts that run inside Redis: each change of a task or a mailbox is one script, atomic and one round trip.

Their source stands in `lua/`. They apply the rules of `core.transitions` where the data is, except for the
status table: `FOLLOWS` is derived from it and passed to the scripts as an argument. Time is the
server's, or an injected clock's, which comes as an argument (laws L7, L17).

Scripts about one task get its eight keys (`_form`), on a single server also that of the index of leases, and
the arguments now, operation, channel and margin before their own. There they also reach the keys of other indexes,
which they compute; on a cluster these are in other slots, and the store calls scripts for them afterwards. The
operation names one call, so a call that is sent again because its reply was lost is recognised and has its effect
once. Nothing from a client is ever part of a script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files
from typing import Final

from mcp_task_runtime.core.sealed import SEALED_JSON
from mcp_task_runtime.core.transitions import EVENTS_KEPT, TERMINAL_STATUSES, TRANSITIONS
from mcp_task_runtime.stores.redis._form import FIELDS, HEAD, SCHEMA_VERSION, WAITS

__all__ = ["FOLLOWS", "LIVE", "SCRIPTS", "UPDATES", "Script"]

FOLLOWS: Final[Mapping[str, bytes]] = {
    status: f" {' '.join(sorted(s for s, following in TRANSITIONS.items() if status in following))} ".encode()
    for status in TRANSITIONS
}
"""For each status those it may follow, in the form that the scripts look them up in."""

UPDATES: Final[Mapping[str | None, bytes]] = {
    None: f" {' '.join(sorted(s for s, following in TRANSITIONS.items() if s in following))} ".encode(),
    **{status: b" " if status in TERMINAL_STATUSES else follows for status, follows in FOLLOWS.items()},
}
"""The same for updates, which end no task; `None` is for an update that leaves the status as it is."""

LIVE: Final = UPDATES[None]
"""The statuses of tasks that have not ended."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script, and the digest by which Redis knows it once it was loaded."""

    source: bytes
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", sha1(self.source, usedforsecurity=False).hexdigest().encode())


def _names(fields: tuple[str, ...]) -> str:
    return ", ".join(f"'{name}'" for name in fields)


_CONSTANTS: Final = {
    "SEALED": f"'{SEALED_JSON}'",
    "WAITS": f"{WAITS}",
    "SCHEMA": f"{SCHEMA_VERSION}",
    "EVENTS": f"{EVENTS_KEPT}",
    "HEAD": f"{{{_names(HEAD)}}}",
    "STATUSES": f"{{{_names(tuple(TRANSITIONS))}}}",
}


_NOISE: Final = re.compile(r"^ +|^ *--.*\n", re.MULTILINE)


def _script(*parts: str) -> Script:
    """Return the script that consists of these files of `lua/`, one after the other, without comments.

    What they use of `_CONSTANTS` is defined in front of them, and the names of all fields stand in their text.
    """
    folder = files("mcp_task_runtime.stores.redis") / "lua"
    source = "".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts)
    source = _NOISE.sub("", source).replace("unpack(FIELDS)", _names(FIELDS))
    used = [f"local {name} = {value}\n" for name, value in _CONSTANTS.items() if name in source]
    return Script("".join([*used, source]).encode())


_TASK: Final = ("time", "sets", "task")
_EXISTING: Final = (*_TASK, "existing")
_FILED: Final = ("time", "sets", "indexes", "filing", "task", "refiling", "existing")

SCRIPTS: Final[Mapping[str, Script]] = {
    "create": _script("time", "sets", "indexes", "filing", "task", "create"),
    **{name: _script("time", "read", "found", name) for name in ("get", "view", "history", "steps")},
    "own": _script("time", "read", "owned", "found", "view"),
    **{name: _script(*_FILED, name) for name in ("update", "finish", "delete", "ask", "answer_all")},
    **{name: _script(*_EXISTING, name) for name in ("purge", "renew", "drop", "record_step")},
    "claim": _script(*_EXISTING, "sealed", "claim"),
    **{name: _script("time", "read", "in_box", name) for name in ("peek", "outstanding", "answer_of", "length")},
    **{name: _script(*_TASK, "box", name) for name in ("enqueue", "dequeue", "answer", "look")},
    **{name: _script("time", "indexes", name) for name in ("index", "lease", "unindex", "extend")},
    **{name: _script("time", "sets", "filing", name) for name in ("file", "unfile", "search", "count")},
    "wait": _script("time", "sets", "wait"),
    "take": _script("time", "sealed", "take"),
    **{name: _script("time", name) for name in ("page", "now", "join", "live", "waiting")},
    **{name: _script(name) for name in ("clear", "correct", "ended", "leave")},
}
"""All scripts, by name."""
