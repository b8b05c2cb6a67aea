"""List cursors: opaque, bound to their owner, and refused when this library did not make them."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from hmac import compare_digest

from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.types import TaskFilter
from mcp_task_runtime.errors import InvalidCursorError

__all__ = ["CursorKey", "decode_cursor", "encode_cursor", "owner_scope", "search_scope"]

_TAG_BYTES = 12


def _tag(position: bytes, owner: str | None) -> bytes:
    return blake2b(position, digest_size=_TAG_BYTES, key=blake2b(owner_scope(owner), digest_size=32).digest()).digest()


def encode_cursor(position: int, owner: str | None) -> str:
    """Return the cursor for a position in one owner's list.

    The tag keeps garbage, and cursors of other owners, from being accepted (wire rule B9). It is no
    secret: a forged cursor shows nothing but another position in the forger's own list.
    """
    raw = str(position).encode()
    return urlsafe_b64encode(_tag(raw, owner) + raw).decode()


def decode_cursor(cursor: str, owner: str | None) -> int:
    """Return the position a cursor stands for.

    Raises:
        InvalidCursorError: The cursor was not made by `encode_cursor` for this owner.
    """
    try:
        data = urlsafe_b64decode(cursor.encode("ascii"))
        tag, raw = data[:_TAG_BYTES], data[_TAG_BYTES:]
        position = int(raw)
    except (ValueError, binascii.Error):
        raise InvalidCursorError from None
    if not compare_digest(tag, _tag(raw, owner)) or encode_cursor(position, owner) != cursor:
        raise InvalidCursorError
    return position


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
