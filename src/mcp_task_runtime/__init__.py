"""Background tasks for MCP servers: durable, cancellable, able to ask their client.

A server imports `Tasks` from `mcp_task_runtime.server`, a client `TasksClient` from `mcp_task_runtime.client`: each is
the class for the SDK line that is installed. `open_store` returns a store by its URL; its class is in a package of its
own, such as `mcp_task_runtime.stores.sqlite`. This package has the rest of what tools and their servers use, and
importing it imports no SDK and no driver.

Durations: a name that ends in `_ms` holds milliseconds, as the protocol has them; any other number is in seconds, as
in the standard library. Two arguments keep the names and units that the SDK has given them: `read_timeout_seconds` of
a client, and `ttl` of `elicit_as_task` and `create_message_as_task`, in milliseconds.
"""

from __future__ import annotations

from mcp_task_runtime.adapters._caller import TaskCaller
from mcp_task_runtime.adapters.answers import (
    AcceptedElicitation,
    CancelledElicitation,
    CreateMessageResult,
    DeclinedElicitation,
    Elicitation,
    ElicitResult,
)
from mcp_task_runtime.adapters.credentials import Credentials
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.core.clock import Clock, SystemClock
from mcp_task_runtime.core.context import TaskContext, task_execution
from mcp_task_runtime.core.dispatch import Dispatch, StoreDispatcher, TaskDispatcher
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.inbox import Inbox
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.observer import TaskChange, TaskObserver
from mcp_task_runtime.core.reruns import Rerun
from mcp_task_runtime.core.resolver import Resolver
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.store import TaskLeases, TaskStore
from mcp_task_runtime.core.types import Lease, Outcome, Task, TaskPage, TaskRecord, TaskRequest, TaskSpec, TaskStatus
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.core.work_queue import WorkQueue
from mcp_task_runtime.errors import (
    CapabilityError,
    InvalidCursorError,
    InvalidTransitionError,
    LeaseLostError,
    LimitExceededError,
    ProtocolError,
    QuestionTimeoutError,
    RevisionConflictError,
    SchemaVersionError,
    SealedError,
    StepChangedError,
    StepResultError,
    StoreClosedError,
    StoreError,
    StoreUnavailableError,
    TaskExistsError,
    TaskNotFoundError,
    TaskRuntimeError,
)
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue, InMemoryTaskStore
from mcp_task_runtime.stores.url import open_store

__all__ = [
    "AcceptedElicitation",
    "Answer",
    "Backoff",
    "CancelledElicitation",
    "CapabilityError",
    "Clock",
    "CreateMessageResult",
    "Credentials",
    "DeclinedElicitation",
    "Dispatch",
    "ElicitResult",
    "Elicitation",
    "Execution",
    "InMemoryTaskMessageQueue",
    "InMemoryTaskStore",
    "Inbox",
    "InvalidCursorError",
    "InvalidTransitionError",
    "Lease",
    "LeaseLostError",
    "LimitExceededError",
    "Outcome",
    "ProtocolError",
    "QuestionTimeoutError",
    "QueuedMessage",
    "Rerun",
    "Resolver",
    "RevisionConflictError",
    "SchemaVersionError",
    "SealedError",
    "ServerTaskContext",
    "StepChangedError",
    "StepResultError",
    "StoreClosedError",
    "StoreDispatcher",
    "StoreError",
    "StoreUnavailableError",
    "SystemClock",
    "Task",
    "TaskCaller",
    "TaskChange",
    "TaskContext",
    "TaskDispatcher",
    "TaskExistsError",
    "TaskLeases",
    "TaskMessageQueue",
    "TaskNotFoundError",
    "TaskObserver",
    "TaskPage",
    "TaskRecord",
    "TaskRequest",
    "TaskResultHandler",
    "TaskRuntime",
    "TaskRuntimeError",
    "TaskSession",
    "TaskSettings",
    "TaskSpec",
    "TaskStatus",
    "TaskStore",
    "TaskView",
    "WorkQueue",
    "open_store",
    "task_execution",
]
