"""Text that is Unicode: lone surrogates, as in undecodable file names, have no UTF-8 form and no store takes them."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from mcp_task_runtime.errors import LimitExceededError

__all__ = ["ascii_lower", "check_size", "check_text", "clean_text", "shared_text", "text_bytes"]


_MOST_BYTES: Final = 4
"""Bytes that a character may take in UTF-8."""

_SHARED: Final = 128
_LONGEST_SHARED: Final = 4096
"""Characters of the longest text that is shared: what clients send must not fill the memory (law L16)."""

_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def ascii_lower(text: str) -> str:
    """Return the text with A to Z in lower case, and nothing else: what all stores can compare by."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


def clean_text(text: str) -> str:
    """Return the text with U+FFFD in place of each lone surrogate; for text that people read."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def check_text(name: str, text: str) -> str:
    """Return the text unchanged; for identifiers, names and owners, which must not be altered.

    Args:
        name: What the text is, for the error.
        text: The text.

    Raises:
        ValueError: It contains a lone surrogate.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} is not Unicode text: it contains a lone surrogate") from error
    return text


def shared_text(text: str) -> str:
    """Return the object that stands for this text in other tasks already, if it was asked for lately.

    For what the clients of many tasks declare alike. `sys.intern` is not for that: what Python 3.12 has interned is
    never freed.
    """
    return text if len(text) > _LONGEST_SHARED else _shared(text)


@lru_cache(maxsize=_SHARED)
def _shared(text: str) -> str:
    return text


def text_bytes(text: str) -> int:
    """Return how many bytes a text takes as UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def check_size(what: str, text: str | None, most: int | None) -> None:
    """Check that a text is not larger than the settings allow (law L16).

    Args:
        what: What the text is, in the plural, for the error: "results".
        text: The text; `None` is as large as nothing.
        most: Bytes that it may have; `None` for no limit.

    Raises:
        LimitExceededError: It is larger.
    """
    if most is None or text is None or _MOST_BYTES * len(text) <= most:  # most texts need not be counted
        return
    if text_bytes(text) > most:
        raise LimitExceededError(f"bytes of {what}", most)
