"""Values sealed at rest, in any store: who reads the backend learns nothing of what clients and tools put there.

    tasks = Tasks(open_store(url), seal=[os.environ["REPORTS_SEAL_KEY"]])

Needs the extra `credentials`. Keys are made by `cryptography.fernet.Fernet.generate_key()` and are the same for all
processes that use the store. `mcp-tasks` takes them from MCP_TASKS_SEAL_KEYS, separated by commas. Code that uses a
store without `Tasks` wraps it by `seal_store`, and a queue apart from the store by `seal_queue`.

**Sealed** are arguments, results and errors, questions and answers, status and progress messages, the history, the
results of steps, the owner, and what is known of the caller. **Plain** are what the store finds tasks by and what
operators without a key need: task id, status, `isError`, times, numbers, methods, the names of tools and steps, and the
keys of questions and steps. Those keys, the stored name of an owner and the key of a joined call are digests that no
process without a seal key can repeat. Lengths can be seen.

**Bound.** AES-256-GCM, with a key of its own for each task. A sealed value opens for its task, field and tool alone, so
one that was changed or moved is refused with `SealedError`. Who can write to the store can still delete a value, or
put an older one, or one without a seal, in its place.

**Rotated.** The first key seals, every one opens. Put a new key at the end in all processes, then at the front, and
drop the old one when its tasks are gone. While processes disagree about the first key, a repeated call may not find
its task (`join`), and the live tasks of an owner are counted for each key apart.

**In place.** Tasks from before are read as they are, and sealed by and by. A process without keys refuses sealed tasks;
so give the keys to all of them. A task whose key is missing shows in lists with a sentence instead of its values;
reading it raises `SealedError`, and no process without the key takes its work. `mcp-tasks doctor` counts these.

A search by text opens the status messages one by one, `LOOKED_AT_MOST` of them a page.
"""

from __future__ import annotations

from mcp_task_runtime.stores.sealed.queue import seal_queue
from mcp_task_runtime.stores.sealed.store import seal_store

__all__ = ["seal_queue", "seal_store"]
