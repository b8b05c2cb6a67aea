"""`Seal`: the keys, and what they seal and open of one task."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mcp_task_runtime.core.sealed import EXCERPT_END, SEALED_JSON, SEALED_TEXT
from mcp_task_runtime.core.transitions import EVENT_TEXT_LENGTH
from mcp_task_runtime.errors import SealedError

__all__ = ["Seal", "TaskSeal"]

_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_DIGEST_BYTES: Final = 18
_JSON_END: Final = '"}'
_ERROR_END: Final = '","isError":true}'
_NO_KEY: Final = "The task is sealed with a key that is not here"
_REFUSED: Final = "A sealed value of the task was changed, or belongs to another task or field"


@dataclass(frozen=True, slots=True)
class _Key:
    secret: bytes
    id: bytes

    def derive(self, purpose: str, text: str) -> bytes:
        return hmac.digest(self.secret, f"{purpose}\0{text}".encode("utf-8", "surrogatepass"), "sha256")


class Seal:
    """Seals with the first of its keys, and opens with each of them."""

    def __init__(self, keys: Sequence[str | bytes]) -> None:
        """Take the keys.

        Args:
            keys: Keys as `cryptography.fernet.Fernet.generate_key()` makes them.

        Raises:
            ImportError: The extra is not installed.
            ValueError: There is no key, or one is malformed.
        """
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ImportError("A seal needs: pip install 'mcp-task-runtime[credentials]'") from error
        if isinstance(keys, str | bytes) or not keys:
            raise ValueError("seal must be a list of at least one key")
        self.keys: tuple[_Key, ...] = tuple(_key(each) for each in keys)
        self.by_id: dict[bytes, _Key] = {key.id: key for key in self.keys}
        self.cipher: type[Any] = AESGCM
        self.invalid: type[Exception] = InvalidTag

    def of(self, task_id: str) -> TaskSeal:
        """Return what seals and opens the values of one task."""
        return TaskSeal(self, task_id)

    def digest(self, purpose: str, text: str) -> str:
        """Return a digest that needs the first key."""
        return _digest(self.keys[0], purpose, text)

    def stored_owners(self, owner: str) -> list[tuple[str, str]]:
        """Return the names under which an owner's tasks may be stored, each with a short name; the oldest come first.

        The last one is what new tasks are made with.
        """
        names = [(key.id.hex(), SEALED_TEXT + _digest(key, "owner", owner)) for key in reversed(self.keys)]
        return names if owner.startswith(SEALED_TEXT) else [("plain", owner), *names]


class TaskSeal:
    """Seals and opens the values of one task, each bound to a field."""

    __slots__ = ("_ciphers", "_seal", "_task_id")

    def __init__(self, seal: Seal, task_id: str) -> None:
        self._seal = seal
        self._task_id = task_id
        self._ciphers: dict[bytes, Any] = {}

    def text(self, field: str, text: str) -> str:
        """Return the sealed form of a text."""
        return SEALED_TEXT + self._encrypt(field, text)

    def json(self, field: str, text: str, *, is_error: bool = False) -> str:
        """Return the sealed form of a text as a JSON object; `is_error` shows in it, as in a result."""
        return SEALED_JSON + self._encrypt(field, text) + (_ERROR_END if is_error else _JSON_END)

    def status(self, text: str) -> str:
        """Return the sealed form of a status message, from which `core.sealed.event_excerpt` takes what events keep."""
        sealed = self._encrypt("status", text)
        if len(text) <= EVENT_TEXT_LENGTH:
            return SEALED_TEXT + sealed
        return self.text("excerpt", text[:EVENT_TEXT_LENGTH]) + EXCERPT_END + sealed

    def open_text(self, field: str, stored: str) -> str:
        """Return a text from its sealed form; one that is not sealed comes back as it is.

        Raises:
            SealedError: No key opens it, or it belongs elsewhere.
        """
        return self._decrypt(field, stored.removeprefix(SEALED_TEXT)) if stored.startswith(SEALED_TEXT) else stored

    def open_json(self, field: str, stored: str) -> str:
        """Return a text from its sealed form as a JSON object; JSON text that is not sealed comes back as it is.

        Raises:
            SealedError: No key opens it, or it belongs elsewhere.
        """
        if not stored.startswith(SEALED_JSON):
            return stored
        return self._decrypt(field, stored.removeprefix(SEALED_JSON).partition('"')[0])

    def open_status(self, stored: str) -> str:
        """Return a status message from its sealed form; one that is not sealed comes back as it is.

        Raises:
            SealedError: No key opens it, or it belongs elsewhere.
        """
        if not stored.startswith(SEALED_TEXT):
            return stored
        return self._decrypt("status", stored.removeprefix(SEALED_TEXT).rpartition(EXCERPT_END)[2])

    def open_event(self, stored: str) -> str:
        """Return the text of an event from its sealed form; one that is not sealed comes back as it is.

        Raises:
            SealedError: No key opens it, or it belongs elsewhere.
        """
        if stored.startswith(SEALED_TEXT) and stored.endswith(EXCERPT_END):
            return self.open_text("excerpt", stored.removesuffix(EXCERPT_END))
        return self.open_text("status", stored)

    def _encrypt(self, field: str, text: str) -> str:
        key = self._seal.keys[0]
        nonce = secrets.token_bytes(_NONCE_BYTES)
        data = self._cipher(key).encrypt(nonce, text.encode(), _bytes(field))
        return _to_base64(key.id + nonce + data)

    def _decrypt(self, field: str, sealed: str) -> str:
        try:
            raw = _from_base64(sealed)
            key = self._seal.by_id.get(raw[:_ID_BYTES])
            if key is None:
                raise SealedError(_NO_KEY)
            nonce, data = raw[_ID_BYTES : _ID_BYTES + _NONCE_BYTES], raw[_ID_BYTES + _NONCE_BYTES :]
            text: str = self._cipher(key).decrypt(nonce, data, _bytes(field)).decode()
        except (self._seal.invalid, ValueError) as error:
            raise SealedError(_REFUSED) from error
        return text

    def _cipher(self, key: _Key) -> Any:
        cipher = self._ciphers.get(key.id)
        if cipher is None:
            cipher = self._ciphers[key.id] = self._seal.cipher(key.derive("task", self._task_id))
        return cipher


def _key(key: object) -> _Key:
    try:
        if not isinstance(key, str | bytes):
            raise ValueError
        raw = base64.urlsafe_b64decode(key)
        if len(raw) != 32:
            raise ValueError
    except ValueError:  # its text may show the key
        raise ValueError("seal must be keys made by cryptography.fernet.Fernet.generate_key()") from None
    secret = hmac.digest(raw, b"mcp-task-runtime seal", "sha256")  # the same key may seal credentials, too
    return _Key(secret, hmac.digest(secret, b"id", "sha256")[:_ID_BYTES])


def _digest(key: _Key, purpose: str, text: str) -> str:
    return _to_base64(key.derive(purpose, text)[:_DIGEST_BYTES])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _to_base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _from_base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
