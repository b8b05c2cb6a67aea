"""What the checks of this kit stand on: named checks, the bench each one runs on, and the report.

A check is a coroutine function that gets a `Bench` and raises `AssertionError` with a sentence. It knows
the backend by its protocol alone, never assumes that an operation yields or does not, takes all time
from the bench's `FakeClock`, and waits for what must happen with real patience.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, get_args

import anyio
from anyio.abc import TaskGroup

from mcp_task_runtime.core.laws import LAWS
from mcp_task_runtime.core.resolver import Resolver
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.concurrency.cost import measured_memory
from mcp_task_runtime.testing.concurrency.stepping import quiesce

__all__ = [
    "BACKENDS",
    "LISTING",
    "Bench",
    "Capability",
    "Check",
    "CheckReport",
    "Factory",
    "Footprint",
    "check_capabilities",
    "require",
    "require_raises",
    "run_checks",
    "start",
]

T = TypeVar("T")
V = TypeVar("V")
E = TypeVar("E", bound=BaseException)

BACKENDS = ("asyncio", "trio")
"""The event loops that checks run on, by their anyio names."""

Capability: TypeAlias = Literal[
    "connecting",
    "diagnosis",
    "durable",
    "ends",
    "fences",
    "joins",
    "journal",
    "leases",
    "listing",
    "mailbox",
    "owners",
    "questions",
    "quotas",
    "search",
    "shared",
    "sweeping",
    "taking",
    "watching",
    "work",
]
"""What a backend may or may not be able to do; its author declares it.

- `durable`: what is opened again at a location finds what was kept there before.
- `shared`: two opened at one location at the same time work on the same state, as two processes would.
- `listing`: `list_tasks` works.
- `mailbox`: when the store removes a task, its queue drops the task's mailbox.
- `leases`: it implements `TaskLeases`, so that lost processes are noticed.
- `fences`: a write with a `fence` is refused once the run has lost its lease; needs `leases`.
- `questions`: it implements `TaskQuestions`: a task and its mailbox change in one write.
- `owners`: it implements `TaskOwners`.
- `joins`: it implements `TaskJoins`.
- `quotas`: it implements `TaskQuotas`.
- `journal`: it implements `TaskJournal`; needs `leases`.
- `search`: it implements `TaskSearch`.
- `work`: it implements `TaskWork`; needs `leases`.
- `sweeping`: it implements `TaskSweeping`; needs `leases`.
- `taking`: it implements `TaskTaking`; needs `work`.
- `watching`: it implements `TaskWatching`.
- `ends`: it implements `TaskEndWatching`.
- `connecting`: it implements `TaskConnecting`.
- `diagnosis`: it implements `TaskDiagnosis`.
"""

_NEEDED: Final[dict[Capability, Capability]] = {
    "fences": "leases",
    "journal": "leases",
    "work": "leases",
    "sweeping": "leases",
    "taking": "work",
}
"""Capabilities whose checks need another one."""

LISTING: Final[tuple[Capability, ...]] = ("listing",)
"""What a store is able to do unless its author says otherwise."""

_LEAK_ROUNDS: Final = 3  # what leaks grows in each; what else goes on in the process may grow once

Factory: TypeAlias = Callable[[FakeClock, str], AbstractAsyncContextManager[T]]
"""Opens what is to be checked: takes the clock to use and a location, and closes it on leaving.

A location is a short identifier such as `kit_5f0c…`: a file's name, a key prefix, a schema's name. One
that was never used is empty. A backend that is neither durable nor shared may ignore it.
"""

Footprint: TypeAlias = Callable[[T], Awaitable[int]]
"""Counts everything that a backend keeps at its location, for example rows or keys."""


def check_capabilities(capabilities: Collection[str]) -> None:
    """Refuse a declaration that would leave out checks without a word.

    Raises:
        ValueError: One is unknown, or needs another that is not declared.
    """
    known: tuple[Capability, ...] = get_args(Capability)
    unknown = sorted(set(capabilities).difference(known))
    if unknown:
        raise ValueError(f"capabilities has the unknown {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    for capability, needed in _NEEDED.items():
        if capability in capabilities and needed not in capabilities:
            raise ValueError(f"capabilities has {capability!r} without {needed!r}, which its checks need")


def require(condition: object, sentence: str) -> None:
    """Raise `AssertionError` with the sentence unless the condition holds."""
    if not condition:
        raise AssertionError(sentence)


async def require_raises(error: type[E], operation: Awaitable[Any], what: str) -> E:
    """Await an operation that must raise this class of error, and return the error."""
    try:
        value = await operation
    except error as raised:
        return raised
    except AssertionError:
        raise
    except Exception as raised:
        raise AssertionError(f"{what} raised {type(raised).__name__} and not {error.__name__}") from raised
    raise AssertionError(f"{what} returned {value!r} and did not raise {error.__name__}")


@dataclass(frozen=True)
class Bench(Generic[T]):
    """Where one check runs: something opened at a fresh location, its clock, and ways to wait.

    Attributes:
        subject: The store, queue, or both, under test.
        clock: The clock it was opened with.
        patience: Seconds that something which must happen may take.
        footprint: Counts what the backend keeps, if its author can say.
    """

    subject: T
    clock: FakeClock
    patience: float
    footprint: Footprint[T] | None
    _open: Callable[[], AbstractAsyncContextManager[T]]

    async def require_nothing_kept(self, live_and_die: Callable[[int], Awaitable[None]], what: str) -> None:
        """Require that further lives leave nothing behind (law L8), be it removed at once or a few lives later.

        Args:
            live_and_die: Makes something and has it go, with a number that no other call gets.
            what: What comes and goes, in the plural.
        """
        # Few lives tell where items are counted; many are needed where memory is measured.
        lives, every, unit, allowed = (120, 20, "bytes", 5_000) if self.footprint is None else (50, 1, "items", 5)
        with self._measure() as measure:

            async def least_kept(first: int) -> int:
                """Return the least that was kept in the second half of some lives."""
                counts: list[int] = []
                for number in range(lives):
                    await live_and_die(first + number)
                    if number >= lives // 2 and number % every == 0:
                        counts.append(await measure())
                return min(counts)

            await measure()  # the first measurement fills caches of its own
            kept = await least_kept(0)
            for attempt in range(1, _LEAK_ROUNDS + 1):
                before, kept = kept, await least_kept(attempt * lives)
                if kept - before <= allowed:
                    return
        raise AssertionError(f"{kept - before} {unit} more are kept after {lives} further {what} came and went")

    @contextmanager
    def _measure(self) -> Iterator[Callable[[], Awaitable[int]]]:
        """Yield what measures how much is kept: the footprint, or else this process's memory."""
        if self.footprint is not None:
            yield partial(self.footprint, self.subject)
            return
        with measured_memory() as memory:

            async def measure() -> int:
                return memory()

            yield measure

    def open_again(self) -> AbstractAsyncContextManager[T]:
        """Open another one at the same location and with the same clock."""
        return self._open()

    async def within(self, operation: Awaitable[V], otherwise: str) -> V:
        """Return what an operation returns; fail with a sentence when it does not end in time."""
        with anyio.move_on_after(self.patience):
            return await operation
        raise AssertionError(otherwise)

    @asynccontextmanager
    async def waiting(self, *operations: Callable[[], Awaitable[V]]) -> AsyncIterator[list[Resolver[V]]]:
        """Have operations wait in the background during a block; they are cancelled when it ends.

        The block begins when they had every chance to begin waiting. How each ends stands in its
        resolver: pass `resolver.wait()` to `within`.
        """
        async with anyio.create_task_group() as group:
            resolvers = [start(group, operation) for operation in operations]
            await quiesce()
            yield resolvers
            group.cancel_scope.cancel()

    async def race(self, *operations: Callable[[], Awaitable[V]]) -> list[V | Exception]:
        """Run operations at the same time; return for each its result or the exception it raised."""
        endings: list[V | Exception] = []
        async with self.waiting(*operations) as racers:
            for number, racer in enumerate(racers):
                try:
                    endings.append(await self.within(racer.wait(), f"racer {number} of {len(racers)} did not end"))
                except AssertionError:
                    raise
                except Exception as error:
                    endings.append(error)
        return endings


def start(group: TaskGroup, operation: Callable[[], Awaitable[V]]) -> Resolver[V]:
    """Start an operation in a task group; how it ends goes into the resolver."""
    resolver: Resolver[V] = Resolver()

    async def run() -> None:
        try:
            value = await operation()
        except Exception as error:
            resolver.set_exception(error)
        else:
            resolver.set_result(value)

    group.start_soon(run)
    return resolver


@dataclass(frozen=True)
class Check(Generic[T]):
    """One law, or a part of one, that is checked on its own.

    Attributes:
        name: What holds when the check passes.
        laws: The laws of the design that it checks.
        needs: The capabilities without which it says nothing.
    """

    name: str
    laws: tuple[str, ...]
    needs: frozenset[Capability]
    _body: Callable[[Bench[T]], Awaitable[None]] = field(repr=False)

    def __str__(self) -> str:
        return self.name

    async def run(self, factory: Factory[T], *, patience: float = 30.0, footprint: Footprint[T] | None = None) -> None:
        """Run the check once, on a fresh location.

        Args:
            factory: Opens what is to be checked.
            patience: Seconds that something which must happen may take.
            footprint: Counts what the backend keeps; without it this process's memory is measured.

        Raises:
            AssertionError: The law is broken; the message says which and how.
        """
        clock = FakeClock()
        opener = partial(factory, clock, f"kit_{secrets.token_hex(8)}")
        seconds = 30 * patience
        try:
            with anyio.move_on_after(seconds) as limit:
                async with opener() as subject:
                    await self._body(Bench(subject, clock, patience, footprint, opener))
            require(not limit.cancelled_caught, f"an operation has not returned, and {seconds:g} seconds have passed")
        except Exception as error:
            cause: BaseException = error
            while isinstance(inner := getattr(cause, "exceptions", None), tuple) and inner:
                cause = inner[0]
            how = str(cause) if isinstance(cause, AssertionError) else f"it raised {cause!r}"
            raise AssertionError(
                f"{' and '.join(self.laws)} broken ({self.name}): {how}\n{_sentences(self.laws)}"
            ) from cause
        if clock.waiting:
            left = f"{clock.waiting} scope(s) of the clock were left open"
            raise AssertionError(f"L6 broken ({self.name}): {left}\n{_sentences(['L6'])}")


def _sentences(laws: Iterable[str]) -> str:
    """Return what the laws say, a line for each."""
    return "\n".join(f"  {law} {LAWS[law]}" for law in laws)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was checked, and what was not.

    Attributes:
        passed: Names of the checks that ran, each with the event loop it ran on.
        left_out: Name of each check that did not run, with the capabilities it needs.
    """

    passed: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, tuple[Capability, ...]], ...]

    def __str__(self) -> str:
        lines = [f"{len(self.passed)} checks passed, {len(self.left_out)} left out"]
        lines += [f"left out: {name} (needs {', '.join(needs)})" for name, needs in self.left_out]
        return "\n".join(lines)


def run_checks(
    checks: Iterable[Check[T]],
    factory: Factory[T],
    *,
    capabilities: Collection[Capability],
    backends: Collection[str] = BACKENDS,
    patience: float = 30.0,
    footprint: Footprint[T] | None = None,
) -> CheckReport:
    """Run checks on each event loop, each on a fresh location.

    Raises:
        AssertionError: Some failed; the message has a sentence for each.
        ValueError: The capabilities make no sense; see `check_capabilities`.
    """
    check_capabilities(capabilities)
    passed: list[tuple[str, str]] = []
    left_out: list[tuple[str, tuple[Capability, ...]]] = []
    broken: list[str] = []
    for check in checks:
        missing = sorted(check.needs.difference(capabilities))
        if missing:
            left_out.append((check.name, tuple(missing)))
            continue
        for backend in backends:
            try:
                anyio.run(partial(check.run, factory, patience=patience, footprint=footprint), backend=backend)
            except AssertionError as error:
                broken.append(f"on {backend}: {error}")
            else:
                passed.append((check.name, backend))
    if broken:
        raise AssertionError("\n".join(broken))
    return CheckReport(tuple(passed), tuple(left_out))


def checks_into(
    checks: list[Check[T]],
) -> Callable[..., Callable[[Callable[[Bench[T]], Awaitable[None]]], Callable[[Bench[T]], Awaitable[None]]]]:
    """Return a decorator that makes checks of coroutine functions, named after them, and collects them."""

    def check(
        *laws: str, needs: Collection[Capability] = ()
    ) -> Callable[[Callable[[Bench[T]], Awaitable[None]]], Callable[[Bench[T]], Awaitable[None]]]:
        def register(body: Callable[[Bench[T]], Awaitable[None]]) -> Callable[[Bench[T]], Awaitable[None]]:
            name: str = getattr(body, "__name__", repr(body))
            checks.append(Check(name, laws, frozenset(needs), body))
            return body

        return register

    return check
