"""Work in other processes, by an engine that you run already.

How to choose:

- One process is enough: no dispatcher. Work runs where the call came in, and moves on when that process is lost.
- You want more machines and no engine: `Tasks(store, dispatcher=StoreDispatcher())`, on a shared store. The store wakes
  the workers; start as many as you like with `mcp-tasks worker package.module:tasks --concurrency 8 --tools a,b`.
- You run an engine, with its queues, dashboards and people who know it: `DocketDispatcher` (`docket`, on Redis),
  `ProcrastinateDispatcher` (`procrastinate`, on PostgreSQL), `CeleryDispatcher` (`celery`, with threads). Each is a
  module and an extra of that name. The first two have the same worker command as above; Celery has its own.

In each case the server makes a task in the store and answers its client at once; the engine carries the task's id.
State, questions, answers, outcome and cancellation pass through the store, so everything works as in one process. What
cannot travel runs in the server: closures (`tasks.run`), calls that are promoted while they run (`promote_after`), and
tools whose request resolves arguments (`Resolve`). `dispatch=True` refuses one of these when it is registered.

What a broker loses, delivers twice, or acknowledges too early costs time and no task. A task that the broker did not
take, because `submit` raised or took more than 5 s, is offered again: after 0.25 s, then less often, after 5 s at most,
and as soon as the broker takes another one. A task that no worker has started after `start_grace_ms` is submitted
again; one that was started is claimed, and a second message finds nothing to do. An engine's own retries never come: a
tool that fails has an outcome. For work that may run again write `rerunnable=True`.

At INFO an engine's log names tasks by their identifiers, which are secrets where tasks have no owner. `mcp-tasks
worker` shows only warnings of docket and procrastinate; in a program of your own that is
`logging.getLogger("docket").setLevel(logging.WARNING)`, and for the command of Celery `-l WARNING`.

In a worker, `ctx.request_context.lifespan_context` is the state of the worker's own lifespan, and `task.caller` tells
who called; see `Credentials` for tokens and headers.

Any other engine takes ten lines. `submit` has a worker call `tasks.execute(task_id)`, inside `tasks.worker()`:

    class MyDispatcher:
        start_grace_ms = 15_000

        async def submit(self, dispatch: Dispatch) -> None:
            await engine.enqueue("run_task", dispatch.task_id, job_id=dispatch.key, queue=dispatch.name)

        async def revoke(self, task_id: str) -> None:
            pass  # the worker finds nothing to do

    tasks = Tasks(store, dispatcher=MyDispatcher())

    async def worker_main() -> None:
        async with tasks.worker():
            await engine.run({"run_task": tasks.execute})

With DBOS, for one, which takes a workflow of one identifier once:

    class DBOSDispatcher:
        start_grace_ms = 15_000

        def __init__(self, url: str) -> None:
            self._client = DBOSClient(system_database_url=url)

        async def submit(self, dispatch: Dispatch) -> None:
            options = {"queue_name": "mcp-tasks", "workflow_name": "run_mcp_task", "workflow_id": dispatch.key}
            await self._client.enqueue_async(options, dispatch.task_id)

        async def revoke(self, task_id: str) -> None:
            await self._client.cancel_workflow_async(Dispatch.first_key(task_id))

    @DBOS.workflow(name="run_mcp_task")
    async def run_mcp_task(task_id: str) -> None:
        await tasks.execute(task_id)

Its worker calls `DBOS.launch()` inside `async with tasks.worker()`, registers the queue
(`DBOS.register_queue_async`), and awaits `tasks.wind_down()` before `DBOS.destroy()`. DBOS polls its queues, once a
second unless you say otherwise.

Acknowledge a message after `execute`, and do not cancel what runs when the worker stops: call `tasks.wind_down()`,
which gives it the grace period and hands over the rest.
"""

from mcp_task_runtime.core.dispatch import Dispatch, EngineDispatcher, StoreDispatcher, TaskDispatcher, TaskExecutor

__all__ = ["Dispatch", "EngineDispatcher", "StoreDispatcher", "TaskDispatcher", "TaskExecutor"]
