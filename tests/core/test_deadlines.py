"""`DeadlineHeap` against a plain dictionary (law L8)."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from mcp_task_runtime.core.deadlines import DeadlineHeap

START = datetime(2026, 1, 1, tzinfo=timezone.utc)

names = st.sampled_from("abcdef")
offsets = st.integers(0, 6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), names, offsets),
        st.tuples(st.just("forget"), names, st.just(0)),
        st.tuples(st.just("discard"), names, st.just(0)),
        st.tuples(st.just("pop"), st.just(""), offsets),
    ),
    max_size=200,
)


def at(offset: int) -> datetime:
    return START + timedelta(seconds=offset)


@given(steps)
def test_the_heap_does_what_a_dictionary_searched_from_end_to_end_would(steps: list[tuple[str, str, int]]) -> None:
    """The earliest comes first, names break ties, and no replaced time ever comes back."""
    heap = DeadlineHeap()
    model: dict[str, datetime] = {}
    for action, name, offset in steps:
        if action == "set":
            heap.set(name, at(offset))
            model[name] = at(offset)
        elif action == "forget":
            heap.set(name, None)
            model.pop(name, None)
        elif action == "discard":
            heap.discard(name)
            model.pop(name, None)
        else:
            due = [(when, each) for each, when in model.items() if when <= at(offset)]
            expected = min(due)[1] if due else None
            assert heap.pop_due(at(offset)) == expected
            if expected is not None:
                del model[expected]
        assert len(heap) == len(model)
        assert heap.next_due() == min(model.values(), default=None)


def test_a_name_is_due_exactly_at_its_time() -> None:
    heap = DeadlineHeap()
    heap.set("a", at(1))
    before = at(1) - timedelta(microseconds=1)
    assert (heap.is_due(before), heap.pop_due(before)) == (False, None)
    assert (heap.is_due(at(1)), heap.pop_due(at(1))) == (True, "a")
    assert not heap.is_due(at(1))
    assert heap.pop_due(at(1)) is None


def test_memory_stays_proportional_to_the_names_however_often_times_change() -> None:
    """L8: nothing is kept for what was replaced or forgotten."""
    heap = DeadlineHeap()
    for n in range(10_000):
        heap.set(f"name-{n % 10}", at(n))
    assert len(heap._heap) < 200
    for n in range(10_000):
        heap.set(f"other-{n}", at(n))
        heap.discard(f"other-{n}")
    assert len(heap) == 10
    assert len(heap._heap) < 200
