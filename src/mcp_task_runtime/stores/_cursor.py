"""List cursors: opaque, bound to their owner, and refused when this library did not make them."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from hmac import compare_digest

from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.types import TaskFilter
from mcp_task_runtime.errors import InvalidCursorError

__all__ = ["CursorKey", "decode_cursor", "encode_cursor", "owner_scope", "search_scope"]

_TAG_BYTES = 12


def encode_cursor(place: bytes, scope: bytes) -> str:
    """Return the cursor for a place in the list that `scope` names.

    The tag keeps garbage, and cursors of other lists, from being accepted (wire rule B9). It is no secret: a forged
    cursor shows nothing but another place in the same list.
    """
    key = blake2b(scope, digest_size=32).digest()
    return urlsafe_b64encode(blake2b(place, digest_size=_TAG_BYTES, key=key).digest() + place).decode()


def decode_cursor(cursor: str, scope: bytes) -> bytes:
    """Return the place that a cursor stands for.

    Raises:
        InvalidCursorError: The cursor was not made by `encode_cursor` for this list.
    """
    try:
        place = urlsafe_b64decode(cursor.encode("ascii"))[_TAG_BYTES:]
    except ValueError:
        raise InvalidCursorError from None
    if not compare_digest(encode_cursor(place, scope).encode(), cursor.encode()):
        raise InvalidCursorError
    return place


class CursorKey:
    """Makes cursors that show nothing: with a secret of the store, a position is encrypted and authenticated.

    A position counts the tasks of all owners, so a client that could read it would learn how many tasks others made.
    """

    def __init__(self, secret: bytes) -> None:
        """Take a secret of at most 64 bytes, the same in all processes that use the store."""
        self._secret = secret

    def encode(self, position: int, scope: bytes) -> str:
        """Return the cursor for a position in the list that `scope` names.

        Args:
            position: From 0 to 2**64 - 1.
            scope: Names the list; `owner_scope` makes it for an owner's.
        """
        tag = self._digest(b"t" + position.to_bytes(8, "big") + scope, 13)
        return urlsafe_b64encode(tag + self._crypt(position, tag).to_bytes(8, "big")).decode()

    def decode(self, cursor: str, scope: bytes) -> int:
        """Return the position that a cursor stands for.

        Raises:
            InvalidCursorError: The cursor was not made by `encode` with this secret and scope.
        """
        try:
            data = urlsafe_b64decode(cursor.encode("ascii"))
        except ValueError:
            raise InvalidCursorError from None
        position = self._crypt(int.from_bytes(data[13:21], "big"), data[:13])
        if not compare_digest(self.encode(position, scope).encode(), cursor.encode()):
            raise InvalidCursorError
        return position

    def _crypt(self, number: int, tag: bytes) -> int:
        return number ^ int.from_bytes(self._digest(b"m" + tag, 8), "big")

    def _digest(self, data: bytes, size: int) -> bytes:
        return blake2b(data, digest_size=size, key=self._secret).digest()


def owner_scope(owner: str | None) -> bytes:
    """Return the scope of an owner's list."""
    return b"-" if owner is None else b"+" + owner.encode("utf-8", "surrogatepass")


def search_scope(wanted: TaskFilter, *, newest_first: bool) -> bytes:
    """Return the scope of a search: the same for equal filters and order, and no owner's."""
    parts = [
        None if wanted.statuses is None else sorted(wanted.statuses),
        None if wanted.names is None else sorted(wanted.names),
        None if wanted.owners is None else sorted([owner is not None, owner or ""] for owner in wanted.owners),
        wanted.id_prefix,
        wanted.text,
        None if wanted.created_after is None else wanted.created_after.timestamp(),
        None if wanted.created_before is None else wanted.created_before.timestamp(),
        newest_first,
        *([True] if wanted.errors_only else []),
    ]
    return b"?" + dump_json(parts).encode()
