"""The runtime itself, free of any SDK, database driver or wire format.

Laws. Each has a test that fails when it is broken, and comments cite it by its number. L1 to L8 hold for every
store and queue; `mcp_task_runtime.testing` checks them for yours.

- **L1** Status: a task moves between working and input_required and ends once; a refused step changes nothing.
- **L2** One ending: of all who try to end a task one wins, and status and outcome appear together.
- **L3** No lost wake-up: every waiter wakes, whether the change came before or after its wait began.
- **L4** Snapshots: a returned value never changes, and a value that could not be read back is refused.
- **L5** Questions: a task is input_required exactly while a question is open; the first answer wins, keys are never
  reused, and every end of a task releases its askers.
- **L6** Cancellation safety: a cancelled operation either happened or did not, and clean-up is shielded.
- **L7** Time: a task expires at created_at + ttl_ms for every caller at once, by the injected clock.
- **L8** Cost: every operation is O(log n) or better, listing is O(page), and nothing is kept for a task that is gone.
- **L9** Cancel means stop: cancelling ends the task and cancels its work in the process that runs it; a late outcome
  is dropped.
- **L10** Owners: a task is visible to its owner alone; for anyone else it does not exist.
- **L11** Errors: a protocol error reaches the client verbatim; any other exception reaches it as a plain call would
  show it, and is logged in full.
- **L12** Durability: no kill loses a task or a visible outcome, no healthy process loses its work to an outage, and
  lost work runs at most max_attempts times.
- **L13** Isolation: nothing that one client sends or one task's work does affects another task.
- **L14** A plain call stays plain: tasks change nothing for a call that does not become one.
- **L15** Questions reach the client wherever its protocol has a way, once at a time, and an answer counts however it
  arrives.
- **L16** Bounds: everything that a client can make grow is bounded for its owner, in number and bytes.
- **L17** Shared clocks: a shared store's own clock decides leases and expiry, so processes whose clocks disagree end
  no work.
- **L18** Anywhere: work finds its principal, capabilities and trace context wherever it runs.

Import law: `core` imports nothing of this library but `errors`, and from outside anyio and pydantic. `stores` and
`wire` import `core`; `adapters` import those. No circle of modules. No object touches another object's private names.

The rooms:

- Values: `types`, `views`, `settings`, `work_queue`, `backoff`, `reruns` and `inbox` are frozen; `json`, `text` and
  `ids` make and check what they hold. `transitions` is the only code that makes and changes records.
- Backends: `store`, `message_queue` and `clock` are their interfaces. `abilities` finds out what one can do,
  `store_calls` has what holds for each call of a store, `mirror` and `observed_store` stand in for one, and `sealed`
  tells sealed values from plain ones.
- Tasks: `task_maker` makes them, `endings` is the only code that ends one, `reader` reads them, also for their owners,
  and `followers` with `followed_task` is the only code that waits for their changes. `questions` asks and answers,
  `polls` says how often a client may look. `live_tasks`, `stored_tasks` and `rate_limit` bound what an owner has.
- Runs: `execution` is one run of work as a state table, `run_end` says what its end makes of the task. `workers` runs
  them in a `group` that nothing breaks, `slots` and `run_slots` say when, and `open_tasks` are those whose work does
  not run here. `context` is what the work sees of its task; `steps` and `step_results` record parts of it for its
  reruns.
- Leases: `worker_leases` are those of this process, which `lease_keeper` renews. `resumption` runs work by its tool's
  name: what was lost, what `postponed` has delayed, and what `doubtful_claims` finds claimed.
- Other processes: `dispatch` is the interface of an engine, to which `outbox` gives tasks, and `undelivered` again what
  it did not take. `claims` takes those that no process runs, and `work_loop` looks for them.
- Operators: `observer` hears of all that, through `run_observer`, `observed_store` and `backlog`, and `change_hook`
  tells a callback. `audit` and `status_messages` have the texts, `statistics` the numbers, `laws` the laws.
- Tools: `event_loop`, `signal`, `resolver`, `deadlines`, `functions`, `causes`, `web_server`.

`runtime` puts these together.

To add a field to a task: add it to `types.TaskRecord` (and `NewTask`), set it in `transitions`, and extend the record
codec of the stores, which must still read rows without it. To add an ability of a store: add a protocol to `store`,
never a member to `TaskStore`; use it behind `isinstance`; add its checks to the test kit; implement it in the bundled
stores.
"""

from __future__ import annotations

from mcp_task_runtime.core.clock import Clock, SystemClock
from mcp_task_runtime.core.deadlines import DeadlineHeap
from mcp_task_runtime.core.dispatch import Dispatch, StoreDispatcher, TaskDispatcher
from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json, load_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.sealed import event_excerpt
from mcp_task_runtime.core.store import (
    TaskConnecting,
    TaskDiagnosis,
    TaskEndWatching,
    TaskJoins,
    TaskJournal,
    TaskLeases,
    TaskOwners,
    TaskQuestions,
    TaskQuotas,
    TaskSealing,
    TaskSearch,
    TaskSharing,
    TaskStore,
    TaskSweeping,
    TaskTaking,
    TaskWatching,
    TaskWork,
)
from mcp_task_runtime.core.transitions import (
    EVENT_TEXT_LENGTH,
    EVENTS_KEPT,
    check_fence,
    check_room,
    claim_record,
    create_record,
    finish_record,
    is_expired,
    is_terminal,
    lapsed_lease,
    may_join,
    update_record,
)
from mcp_task_runtime.core.types import (
    COUNTED_AT_MOST,
    DEFAULT_POLL_INTERVAL_MS,
    LOOKED_AT_MOST,
    Fence,
    Finding,
    Lease,
    LiveStatus,
    NewTask,
    NewTaskFields,
    Outcome,
    Progress,
    Task,
    TaskCounts,
    TaskEvent,
    TaskEventKind,
    TaskFilter,
    TaskPage,
    TaskRecord,
    TaskRequest,
    TaskSpec,
    TaskStatus,
    TerminalStatus,
)
from mcp_task_runtime.core.views import TaskView

__all__ = [
    "COUNTED_AT_MOST",
    "DEFAULT_POLL_INTERVAL_MS",
    "EVENTS_KEPT",
    "EVENT_TEXT_LENGTH",
    "LOOKED_AT_MOST",
    "Answer",
    "Clock",
    "DeadlineHeap",
    "Dispatch",
    "Fence",
    "Finding",
    "JSONObject",
    "JSONValue",
    "Lease",
    "LiveStatus",
    "NewTask",
    "NewTaskFields",
    "Outcome",
    "Progress",
    "QueuedMessage",
    "StoreDispatcher",
    "SystemClock",
    "Task",
    "TaskConnecting",
    "TaskCounts",
    "TaskDiagnosis",
    "TaskDispatcher",
    "TaskEndWatching",
    "TaskEvent",
    "TaskEventKind",
    "TaskFilter",
    "TaskJoins",
    "TaskJournal",
    "TaskLeases",
    "TaskMessageQueue",
    "TaskOwners",
    "TaskPage",
    "TaskQuestions",
    "TaskQuotas",
    "TaskRecord",
    "TaskRequest",
    "TaskSealing",
    "TaskSearch",
    "TaskSharing",
    "TaskSpec",
    "TaskStatus",
    "TaskStore",
    "TaskSweeping",
    "TaskTaking",
    "TaskView",
    "TaskWatching",
    "TaskWork",
    "TerminalStatus",
    "check_fence",
    "check_room",
    "claim_record",
    "create_record",
    "dump_json",
    "event_excerpt",
    "finish_record",
    "is_expired",
    "is_terminal",
    "lapsed_lease",
    "load_json",
    "may_join",
    "new_task_id",
    "update_record",
]
