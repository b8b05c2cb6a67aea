"""The test kit: the laws that every backend keeps, and tools to check code that uses one.

Needs `pip install mcp-task-runtime[testing]`, and no particular test runner. The author of a store writes

    def test_my_store():
        check_task_store(
            lambda clock, location: MyTaskStore(location, clock=clock), capabilities=["listing", "durable"]
        )

and learns by a sentence which law is broken, and how. What a store is able to do is declared by `capabilities` (see
`Capability`), never guessed: without one, its checks are left out, and the report says so.

- `check_task_store` checks a `TaskStore`, and of its abilities those that are declared: `leases`, `fences`,
  `questions`, `owners`, `joins`, `quotas`, `journal`, `search`, `work`, `taking`, `watching`, `ends`,
  `connecting`, `diagnosis`, `sweeping`.
- `check_task_message_queue` does the same for a queue; `check_task_backend` for a store and a queue together.
- `check_task_store_machine` drives both through random stories, in lock-step with a model.

For a test runner that wants a test for each check there are lists: `await check.run(factory)` for each one of
`STORE_CHECKS`, `ABILITY_CHECKS`, `QUEUE_CHECKS` and `QUESTION_CHECKS`, whose `needs` are what is declared. Those of
one ability are `LEASE_CHECKS`, `UNHELD_LEASE_CHECKS`, `FENCE_CHECKS`, `QUESTION_STORE_CHECKS`, `JOURNAL_CHECKS` and
`SEARCH_CHECKS`, all of them in the first two lists; `STORE_VALUE_CHECKS` hold for any store.

For code above a backend there are the `FakeClock`, the `RecordingSession` of a client that answers by script, the
checkpoint canceller `check_cancellation`, the interleaving driver `check_interleavings`, wrappers that make an
in-memory backend yield as a remote one does, and `strategies` for Hypothesis.

`checks` holds the checks, a file for each part of the contract; `machine` the random stories and their model;
`concurrency` what drives a coroutine step by step. To add a law: a check that fails without it, and a mutant in
`tests/kit` that the check kills.
"""

from __future__ import annotations

from mcp_task_runtime.testing import strategies
from mcp_task_runtime.testing.checks.bench import BACKENDS, Bench, Capability, Check, CheckReport, Factory, Footprint
from mcp_task_runtime.testing.checks.fences import FENCE_CHECKS
from mcp_task_runtime.testing.checks.journal import JOURNAL_CHECKS
from mcp_task_runtime.testing.checks.leases import LEASE_CHECKS
from mcp_task_runtime.testing.checks.questions import QUESTION_CHECKS, TaskBackend, check_task_backend
from mcp_task_runtime.testing.checks.queue import QUEUE_CHECKS, check_task_message_queue
from mcp_task_runtime.testing.checks.search import SEARCH_CHECKS
from mcp_task_runtime.testing.checks.store import ABILITY_CHECKS, STORE_CHECKS, check_task_store
from mcp_task_runtime.testing.checks.store_questions import QUESTION_STORE_CHECKS
from mcp_task_runtime.testing.checks.store_values import STORE_VALUE_CHECKS
from mcp_task_runtime.testing.checks.unheld_leases import UNHELD_LEASE_CHECKS
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.interleaving import Interleaving, Race, check_interleavings
from mcp_task_runtime.testing.machine.machine import PROFILES, TaskBackendMachine, check_task_store_machine
from mcp_task_runtime.testing.session import RecordingSession
from mcp_task_runtime.testing.yielding import (
    YieldingBundledStore,
    YieldingQuestionStore,
    YieldingTaskMessageQueue,
    YieldingTaskStore,
)

__all__ = [
    "ABILITY_CHECKS",
    "BACKENDS",
    "FENCE_CHECKS",
    "JOURNAL_CHECKS",
    "LEASE_CHECKS",
    "PROFILES",
    "QUESTION_CHECKS",
    "QUESTION_STORE_CHECKS",
    "QUEUE_CHECKS",
    "SEARCH_CHECKS",
    "STORE_CHECKS",
    "STORE_VALUE_CHECKS",
    "UNHELD_LEASE_CHECKS",
    "Bench",
    "Capability",
    "Check",
    "CheckReport",
    "Factory",
    "FakeClock",
    "Footprint",
    "Interleaving",
    "Race",
    "RecordingSession",
    "TaskBackend",
    "TaskBackendMachine",
    "Trial",
    "YieldingBundledStore",
    "YieldingQuestionStore",
    "YieldingTaskMessageQueue",
    "YieldingTaskStore",
    "check_cancellation",
    "check_interleavings",
    "check_task_backend",
    "check_task_message_queue",
    "check_task_store",
    "check_task_store_machine",
    "strategies",
]
