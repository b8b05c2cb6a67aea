"""The test kit: the laws that every backend keeps, and the tools to check code that uses one.

Needs `pip install mcp-task-runtime[testing]`, and no particular test runner. A backend's author writes

    check_task_store(lambda clock, location: MyTaskStore(location, clock=clock), capabilities=["listing"])

and is told with a sentence which law is broken, and how. What the store is able to do is declared: with
`leases`, what it implements of `TaskLeases` is checked, too. `check_task_message_queue` does the same for a
queue, `check_task_backend` for both together, and `check_task_store_machine` drives both through random
stories in lock-step with a model. For a test runner that wants a test for each check there are
`STORE_CHECKS`, `QUEUE_CHECKS` and `QUESTION_CHECKS`: `await check.run(factory)`.

For code above a backend there are the `FakeClock`, the `RecordingSession` of a client that answers by
script, the checkpoint canceller `check_cancellation`, the interleaving driver `check_interleavings`, wrappers
that make an in-memory backend yield like a remote one, and `strategies` for Hypothesis.
"""

from __future__ import annotations

from mcp_task_runtime.testing import strategies
from mcp_task_runtime.testing.checks.bench import BACKENDS, Bench, Capability, Check, CheckReport, Factory, Footprint
from mcp_task_runtime.testing.checks.questions import QUESTION_CHECKS, TaskBackend, check_task_backend
from mcp_task_runtime.testing.checks.queue import QUEUE_CHECKS, check_task_message_queue
from mcp_task_runtime.testing.checks.store import STORE_CHECKS, check_task_store
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.interleaving import (
    Interleaving,
    Race,
    check_interleavings,
    explore_interleavings,
)
from mcp_task_runtime.testing.concurrency.stepping import quiesce
from mcp_task_runtime.testing.machine.machine import PROFILES, TaskBackendMachine, check_task_store_machine
from mcp_task_runtime.testing.session import RecordingSession
from mcp_task_runtime.testing.yielding import YieldingTaskMessageQueue, YieldingTaskStore

__all__ = [
    "BACKENDS",
    "PROFILES",
    "QUESTION_CHECKS",
    "QUEUE_CHECKS",
    "STORE_CHECKS",
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
    "YieldingTaskMessageQueue",
    "YieldingTaskStore",
    "check_cancellation",
    "check_interleavings",
    "check_task_backend",
    "check_task_message_queue",
    "check_task_store",
    "check_task_store_machine",
    "explore_interleavings",
    "quiesce",
    "strategies",
]
