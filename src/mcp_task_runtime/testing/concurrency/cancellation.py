"""The checkpoint canceller: an operation is cancelled at each of its awaits in turn (law L6).

How the k-th await is hit on any event loop stands in `stepping`: the operation runs under a `Stepper`
inside a cancel scope, and the scope is cancelled just before the operation's k-th request goes to the
loop. So the cancellation is pending exactly while the operation waits there. An operation that awaits
nothing that yields cannot be cancelled, and is run once: to exercise code *above* a store that never
yields, put the store into a `YieldingTaskStore`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel

from mcp_task_runtime.testing.concurrency.stepping import Stepper

__all__ = ["Trial", "check_cancellation"]

_MOST_AWAITS = 10_000


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the operation under test, in a world of its own.

    Attributes:
        operation: The operation to cancel.
        observe: Returns the state the operation is about, comparable between runs: leave out what
            differs from run to run, such as random ids. What clean-up must restore belongs into it. Called
            once a world, at its end, so it may use the state up.
        meanwhile: Runs concurrently with the operation, for one that waits: makes come true what it waits for. It is
            cancelled when the operation has ended.
        leftovers: Counts waiters, tasks, open scopes; must give the same number afterwards.
        also: Further states that are right after a cancellation, besides those before and after.
    """

    operation: Callable[[], Awaitable[Any]]
    observe: Callable[[], Awaitable[Any]]
    meanwhile: Callable[[], Awaitable[Any]] | None = None
    leftovers: Callable[[], int] | None = None
    also: tuple[Any, ...] = ()


async def check_cancellation(setup: Callable[[], Awaitable[Trial]], *, patience: float = 30.0) -> int:
    """Cancel an operation at every await inside it, one run for each, and check what is left.

    The first run is not cancelled; it says what the state is before and after. Each further run must
    end, in the state before or the one after, with as many leftovers as it began with. It may end by
    being cancelled, by finishing all the same (a shielded operation does), or by the error that the
    first run ended in.

    Args:
        setup: Makes a fresh world and returns the trial in it; called once a run.
        patience: Seconds one run may take.

    Returns:
        At how many awaits the operation was cancelled.

    Raises:
        AssertionError: A run broke law L6; the message says at which await, and how.
    """
    before = await (await setup()).observe()
    trial = await setup()
    uncancelled = await _run(trial, None, patience)
    after = await trial.observe()
    if uncancelled.leftovers:
        raise AssertionError(f"the operation leaves {uncancelled.leftovers} waiter(s) behind without being cancelled")
    for k in range(1, _MOST_AWAITS):
        trial = await setup()
        run = await _run(trial, k, patience)
        state = await trial.observe()
        where = f"cancelled at its await number {k}, the operation"
        if run.error is not None and type(run.error) is not type(uncancelled.error):
            raise AssertionError(f"{where} raised {run.error!r}") from run.error
        if state not in (before, after, *trial.also):
            raise AssertionError(f"{where} left {state!r}, which is neither {before!r} nor {after!r}")
        if run.leftovers:
            raise AssertionError(f"{where} left {run.leftovers} waiter(s) behind")
        if run.yields < k:
            return k - 1
    raise AssertionError(f"the operation never ends: {_MOST_AWAITS} awaits")


async def _later(operation: Callable[[], Awaitable[Any]]) -> None:
    for _ in range(5):  # let the cancellation be first, where the operation waits for what this makes true
        await anyio.lowlevel.checkpoint()
    await operation()


@dataclass(slots=True)
class _Run:
    yields: int = 0
    leftovers: int = 0
    error: Exception | None = None


async def _run(trial: Trial, cancel_at: int | None, patience: float) -> _Run:
    run = _Run()
    counted = trial.leftovers() if trial.leftovers is not None else 0
    with anyio.move_on_after(patience) as limit:
        async with anyio.create_task_group() as group:
            if trial.meanwhile is not None:
                group.start_soon(_later, trial.meanwhile)
            with anyio.CancelScope() as scope:

                def on_yield(count: int) -> None:
                    if count == cancel_at:
                        scope.cancel()

                stepper = Stepper(trial.operation, on_yield=on_yield)
                try:
                    await stepper
                except Exception as error:
                    run.error = error
            run.yields = stepper.yields
            group.cancel_scope.cancel()
    if limit.cancelled_caught:
        at = "without a cancellation" if cancel_at is None else f"after a cancellation at its await number {cancel_at}"
        raise AssertionError(f"the operation did not end {at}")
    if trial.leftovers is not None:
        run.leftovers = trial.leftovers() - counted
    return run
