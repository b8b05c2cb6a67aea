"""Text that is Unicode: lone surrogates, as in undecodable file names, have no UTF-8 form and no store takes them."""

from __future__ import annotations

__all__ = ["check_text", "clean_text"]


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
