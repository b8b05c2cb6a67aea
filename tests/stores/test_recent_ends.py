"""The ends that a process remembers, for watches that begin after them (L3, L8)."""

from __future__ import annotations

from mcp_task_runtime.stores._recent_ends import RecentEnds


def listening() -> RecentEnds[str]:
    ends = RecentEnds[str]()
    ends.begin()
    return ends


def test_what_was_made_while_it_listened_has_ended_or_has_not() -> None:
    ends = listening()
    for task in ("over", "on"):
        ends.made(task, ends.mark)
    ends.ended("over")
    assert (ends.find("over"), ends.find("on"), ends.find("of another process")) == (True, False, None)


def test_what_was_made_while_it_did_not_listen_is_not_known_to_go_on() -> None:
    ends = RecentEnds[str]()
    early = ends.mark
    ends.begin()
    ends.made("early", early)
    ends.made("late", ends.mark)
    assert (ends.find("early"), ends.find("late")) == (None, False)
    before = ends.mark
    ends.made("forgotten", before)
    ends.stop()
    ends.made("deaf", ends.mark)
    assert ends.find("deaf") is None
    ends.begin()
    ends.made("between", before)
    assert (ends.find("forgotten"), ends.find("between")) == (None, None)


def test_the_end_of_a_task_with_the_same_name_that_was_made_before_does_not_count() -> None:
    ends = listening()
    ends.ended("a")
    ends.made("a", ends.mark)
    assert ends.find("a") is False


def test_a_task_that_may_end_without_notice_is_not_known_to_go_on() -> None:
    ends = listening()
    ends.made("a", ends.mark)
    ends.forget("a")
    assert ends.find("a") is None


def test_many_ends_that_nothing_waits_for_are_forgotten() -> None:
    ends = listening()
    mark = ends.mark
    for number in range(1_001):
        ends.ended(str(number))
    for task in ("0", "1000", "none"):
        ends.made(task, mark)
    assert (ends.find("0"), ends.find("1000"), ends.find("none")) == (None, True, None)
    for number in range(1_001):
        ends.made(f"made {number}", ends.mark)
    assert (ends.find("made 0"), ends.find("made 1000")) == (None, False)
