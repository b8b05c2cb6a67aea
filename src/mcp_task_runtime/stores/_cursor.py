"""List cursors: opaque, bound to their owner, and refused when this library did not make them."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from hmac import compare_digest

from mcp_task_runtime.errors import InvalidCursorError

__all__ = ["decode_cursor", "encode_cursor"]

_TAG_BYTES = 12


def _tag(position: bytes, owner: str | None) -> bytes:
    scope = b"-" if owner is None else b"+" + owner.encode("utf-8", "surrogatepass")
    return blake2b(position, digest_size=_TAG_BYTES, key=blake2b(scope, digest_size=32).digest()).digest()


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
