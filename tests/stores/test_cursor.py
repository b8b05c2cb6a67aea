"""List cursors: opaque, stable, bound to their owner (wire rule B9)."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mcp_task_runtime import stores
from mcp_task_runtime.errors import InvalidCursorError
from mcp_task_runtime.stores._cursor import CursorKey, decode_cursor, encode_cursor, owner_scope

owners = st.none() | st.text(max_size=10)
positions = st.integers(0, 10**18)


def encoded(position: int, owner: str | None) -> str:
    return encode_cursor(b"%d" % position, owner_scope(owner))


def decoded(cursor: str, owner: str | None) -> int:
    return int(decode_cursor(cursor, owner_scope(owner)))


@given(positions, owners)
@example(0, None)
@example(1, "\ud800")
def test_a_cursor_stands_for_its_position(position: int, owner: str | None) -> None:
    assert decoded(encoded(position, owner), owner) == position


@given(positions, owners, owners)
@example(1, None, "")
@example(1, None, "-")
@example(1, "", "+")
def test_a_cursor_of_another_owner_is_refused(position: int, owner: str | None, other: str | None) -> None:
    """L10."""
    assume(owner != other)
    with pytest.raises(InvalidCursorError):
        decoded(encoded(position, owner), other)


@given(st.text(max_size=60))
@example("")
@example("é")
@example("\ud800")
@example("=")
@example("A" * 10_000)
def test_garbage_is_refused(cursor: str) -> None:
    """F13: the SDK's runtime took any text for a cursor."""
    with pytest.raises(InvalidCursorError):
        decoded(cursor, None)


@given(positions, st.data())
def test_a_cursor_changed_in_any_character_is_refused(position: int, data: st.DataObject) -> None:
    """F13."""
    cursor = encoded(position, "o")
    at = data.draw(st.integers(0, len(cursor) - 1))
    changed = cursor[:at] + data.draw(st.characters(codec="ascii")) + cursor[at + 1 :]
    assume(changed != cursor)
    with pytest.raises(InvalidCursorError):
        decoded(changed, "o")


@pytest.mark.parametrize("wrap", [" {}", "{}\n", "{}=", "{}A", "!{}"])
def test_a_cursor_with_something_added_is_refused(wrap: str) -> None:
    with pytest.raises(InvalidCursorError):
        decoded(wrap.format(encoded(7, None)), None)


def test_a_bare_position_is_no_cursor() -> None:
    with pytest.raises(InvalidCursorError):
        decoded(urlsafe_b64encode(b"x" * 12 + b"7").decode(), None)


KEY = CursorKey(b"secret")


@given(st.integers(0, 2**64 - 1), owners, owners)
@example(0, None, "")
def test_an_encrypted_cursor_stands_for_its_position_and_only_for_its_owner(
    position: int, owner: str | None, other: str | None
) -> None:
    cursor = KEY.encode(position, owner_scope(owner))
    assert KEY.decode(cursor, owner_scope(owner)) == position
    assume(owner != other)
    with pytest.raises(InvalidCursorError):
        KEY.decode(cursor, owner_scope(other))


@given(st.text(max_size=60))
@example("")
@example("é")
@example("A" * 28)
@example(encoded(7, None))
@example(CursorKey(b"another").encode(7, b"-"))
@example(KEY.encode(7, b"-") + "=")
def test_what_is_no_encrypted_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursorError):
        KEY.decode(cursor, b"-")


def test_encrypted_cursors_of_neighbours_have_nothing_in_common() -> None:
    """L10: a cursor does not show how many tasks others have made."""
    cursors = [urlsafe_b64decode(KEY.encode(position, b"-")) for position in range(200)]
    assert len({len(cursor) for cursor in cursors}) == 1
    for at in range(len(cursors[0])):
        assert len({cursor[at] for cursor in cursors}) > 50


def test_the_package_of_stores_exports_what_authors_need() -> None:
    key = stores.CursorKey(b"x" * 32)
    assert key.decode(key.encode(7, stores.owner_scope("ada")), stores.owner_scope("ada")) == 7
    with pytest.raises(ValueError, match="a name"):
        stores.check_text("a name", "\ud800")
