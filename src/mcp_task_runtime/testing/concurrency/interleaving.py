"""The interleaving driver: operations that overlap, in every order of their awaits.

Each operation runs in a task of its own under a `Stepper` that holds it before each step, a step being
what it does between two moments at which it yields to the event loop. A scheduler lets exactly one
operation make one step, waits until everything is still, and picks the next. The sequence of picks *is*
the order of awaits, so an order can be run again, and all of them can be enumerated: first those in
which no operation interrupts another, then those with one interruption, then with two, and so on, up to
a limit; most faults need no more than one or two. Beyond the limit, orders are drawn at random.

Only the operation's own task is stepped; tasks that it starts run freely. With operations that wait for
threads or sockets the picks do not decide everything; the driver is then a seeded stress test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from random import Random
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel

from mcp_task_runtime.testing.concurrency.stepping import Stepper, quiesce

__all__ = ["Interleaving", "Race", "check_interleavings", "explore_interleavings"]

Ending: TypeAlias = tuple[str, Any]
"""How an operation ended: `("returned", value)` or `("raised", name of the error's class)`."""


@dataclass(frozen=True, slots=True)
class Race:
    """Operations that overlap, in a world of their own.

    Attributes:
        operations: What is run. Results are compared between runs: leave out what differs from run to
            run, such as random ids.
        observe: Returns the state the operations leave, comparable in the same way.
    """

    operations: Sequence[Callable[[], Awaitable[Any]]]
    observe: Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Interleaving:
    """What came of one order.

    Attributes:
        steps: Which operation made each step, by its index.
        endings: How each operation ended: `("returned", value)` or `("raised", name of the error)`.
        state: What `Race.observe` returned at the end.
    """

    steps: tuple[int, ...]
    endings: tuple[Ending, ...]
    state: Any


async def explore_interleavings(
    setup: Callable[[], Awaitable[Race]], *, limit: int = 60, seed: int = 0, patience: float = 30.0
) -> list[Interleaving]:
    """Run the operations in different orders of their awaits; return what came of each.

    Args:
        setup: Makes a fresh world and returns the race in it; called once an order.
        limit: Most orders to run: all there are if they are no more, otherwise a quarter is drawn at random.
        seed: Where the random draws begin.
        patience: Seconds to wait for operations that do not get on.

    Raises:
        AssertionError: Some operations never end in one of the orders; the message says which.
    """
    found: list[Interleaving] = []
    random = Random(seed)
    todo: deque[dict[int, int]] = deque([{}])
    while todo and len(found) < max(1, limit * 3 // 4):
        schedule = _Schedule(todo.popleft(), None)
        found.append(await _run(await setup(), schedule, patience))
        further = schedule.with_one_more_interruption()
        random.shuffle(further)  # so that a limit cuts off no particular part of the operations
        todo.extend(further)
    while todo and len(found) < limit:
        found.append(await _run(await setup(), _Schedule({}, random), patience))
    return found


async def check_interleavings(
    setup: Callable[[], Awaitable[Race]], *, limit: int = 60, seed: int = 0, patience: float = 30.0
) -> int:
    """Check that overlapping operations have an effect that some sequential order has, too.

    Each operation must end without help, in every order: use `explore_interleavings` for one
    that waits for another.

    Args:
        setup: Makes a fresh world and returns the race in it; called once an order.
        limit: Most orders to run; see `explore_interleavings`.
        seed: Where the random draws begin.
        patience: Seconds to wait for operations that do not get on.

    Returns:
        How many orders were run.

    Raises:
        AssertionError: An order had another effect; the message names the order.
    """
    allowed: list[tuple[tuple[Ending, ...], Any]] = []
    race = await setup()
    for order in permutations(range(len(race.operations))):
        race = await setup()
        endings: dict[int, Ending] = {}
        for index in order:
            with anyio.move_on_after(patience) as scope:
                endings[index] = await _ending(race.operations[index])
            if scope.cancelled_caught:
                raise AssertionError(f"operation {index} does not end in the order {order}")
        effect = (tuple(endings[index] for index in sorted(endings)), await race.observe())
        if effect not in allowed:
            allowed.append(effect)
    found = await explore_interleavings(setup, limit=limit, seed=seed, patience=patience)
    for interleaving in found:
        if (interleaving.endings, interleaving.state) not in allowed:
            raise AssertionError(
                f"no sequential order ends as the steps {list(interleaving.steps)} do: "
                f"{list(interleaving.endings)} leaving {interleaving.state!r}"
            )
    return len(found)


class _Schedule:
    """The picks of one run: the first choice, but where an interruption is given or drawn at random."""

    def __init__(self, interruptions: dict[int, int], random: Random | None) -> None:
        self._interruptions = interruptions
        self._random = random
        self._choices: list[int] = []

    def pick(self, choices: int) -> int:
        """Return one of `range(choices)`, where 0 is to go on with the operation that made the last step."""
        at = len(self._choices)
        self._choices.append(choices)
        if self._random is not None:
            return self._random.randrange(choices) if self._random.random() < 0.4 else 0
        # Beyond a backend's control a rerun may offer fewer choices than the run it repeats.
        return min(self._interruptions.get(at, 0), choices - 1)

    def with_one_more_interruption(self) -> list[dict[int, int]]:
        """Return the runs that differ from this one by one interruption after its last one."""
        begin = max(self._interruptions, default=-1) + 1
        return [
            {**self._interruptions, at: choice}
            for at in range(begin, len(self._choices))
            for choice in range(1, self._choices[at])
        ]


class _Lane:
    """One operation: held before each step until `turn` is set."""

    def __init__(self) -> None:
        self.turn: anyio.Event | None = None
        self.ending: Ending | None = None


async def _ending(operation: Callable[[], Awaitable[Any]]) -> Ending:
    try:
        return "returned", await operation()
    except Exception as error:
        return "raised", type(error).__name__


async def _run(race: Race, schedule: _Schedule, patience: float) -> Interleaving:
    lanes = [_Lane() for _ in race.operations]
    steps: list[int] = []
    waiting: list[int] = []
    arrived = anyio.Event()
    given_up = False

    async def held(lane: _Lane) -> None:
        if given_up:
            return
        lane.turn = anyio.Event()
        arrived.set()
        await lane.turn.wait()

    async def drive(lane: _Lane, operation: Callable[[], Awaitable[Any]]) -> None:
        stepper = Stepper(operation, before_resume=partial(held, lane))

        async def stepped() -> Any:
            return await stepper

        lane.ending = await _ending(stepped)
        arrived.set()

    async with anyio.create_task_group() as group:
        for lane, operation in zip(lanes, race.operations, strict=True):
            group.start_soon(drive, lane, operation)
        try:
            while True:
                await _still(lanes)
                if all(lane.ending is not None for lane in lanes):
                    break
                ready = [index for index, lane in enumerate(lanes) if lane.turn is not None]
                if not ready:
                    arrived = anyio.Event()
                    with anyio.move_on_after(patience) as scope:
                        await arrived.wait()
                    if scope.cancelled_caught:
                        waiting = [index for index, lane in enumerate(lanes) if lane.ending is None]
                        group.cancel_scope.cancel()
                        break
                    continue
                ready.sort(key=lambda index: index != (steps[-1] if steps else 0))
                index = ready[schedule.pick(len(ready))]
                steps.append(index)
                _give_turn(lanes[index])
        finally:  # an operation that is held must be able to end
            given_up = True
            for lane in lanes:
                _give_turn(lane)
    endings = tuple(lane.ending for lane in lanes if lane.ending is not None)
    if waiting:
        raise AssertionError(f"operations {waiting} still wait after the steps {steps}")
    return Interleaving(tuple(steps), endings, await race.observe())


def _give_turn(lane: _Lane) -> None:
    if lane.turn is not None:
        lane.turn.set()
        lane.turn = None


async def _still(lanes: list[_Lane]) -> None:
    """Return when no operation is under way: each has ended, is held, or waits for something."""
    for _ in range(6):
        await anyio.lowlevel.checkpoint()
        if all(lane.turn is not None or lane.ending is not None for lane in lanes):
            return
    await quiesce()
