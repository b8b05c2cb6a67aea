"""`Credentials`: the access token and headers of a caller, sealed, for work that runs without its request (law L18).

Needs the extra `credentials`. Without it, or without `Tasks(credentials=...)`, none of them is stored.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mcp_task_runtime.core.json import JSONObject, dump_json, load_json
from mcp_task_runtime.core.types import TaskRecord, TaskSpec
from mcp_task_runtime.errors import INTERNAL_ERROR, ProtocolError

__all__ = ["CallerCredentials", "Credentials"]

logger: logging.Logger = logging.getLogger(__name__)

_UNREADABLE: Final = "The caller's credentials cannot be used where the work runs"


@dataclass(frozen=True, slots=True)
class CallerCredentials:
    """What was kept of a caller.

    Attributes:
        token: The SDK's access token as JSON; `None` where the call had none.
        headers: The chosen headers of its HTTP request, by lower-case name.
    """

    token: JSONObject | None
    headers: Mapping[str, str]


class Credentials:
    """Seals what is kept of callers, and opens it in a worker or a rerun.

    There, `get_access_token()` returns the token and the SDK's context has the headers. A token may have expired by
    then. What is sealed belongs to one owner, tool and arguments, and goes when the task is gone.

    Without `Credentials`, or with keys that do not open it, a task that has credentials fails, and its work does not
    begin.
    """

    def __init__(self, keys: Sequence[str | bytes], *, token: bool = True, headers: Collection[str] = ()) -> None:
        """Choose what is kept.

        Args:
            keys: Keys as `cryptography.fernet.Fernet.generate_key()` makes them, the same for all processes. The first
                one seals, every one opens: to rotate, put a new one at the end everywhere, then at the front, and
                drop the old one when its tasks are gone.
            token: Whether the access token is kept.
            headers: Names of HTTP headers that are kept, where a request has them.

        Raises:
            ImportError: The extra is not installed.
            ValueError: There is no key, or one is malformed.
        """
        try:
            from cryptography.fernet import Fernet, InvalidToken, MultiFernet
        except ImportError as error:
            raise ImportError("Credentials need: pip install 'mcp-task-runtime[credentials]'") from error
        if isinstance(keys, str | bytes) or not keys:
            raise ValueError("keys must be a list of at least one key")
        try:
            ring = [Fernet(key) for key in keys]
        except (ValueError, TypeError):  # its text may show the key
            raise ValueError("keys must be made by cryptography.fernet.Fernet.generate_key()") from None
        self._ring = MultiFernet(ring)
        self._invalid: type[Exception] = InvalidToken
        self._keeps_token = token
        self._headers = tuple(sorted({name.lower() for name in headers}))

    def seal(self, spec: TaskSpec, token: JSONObject | None, headers: Mapping[str, str] | None) -> TaskSpec:
        """Return what a task is made with, and what is kept of its caller.

        Args:
            spec: What the task is made with.
            token: The caller's access token.
            headers: The headers of its request.
        """
        kept = {name: value for name in self._headers if (value := (headers or {}).get(name)) is not None}
        token = token if self._keeps_token else None
        if token is None and not kept:
            return spec
        text = dump_json({"for": _binding(spec), "token": token, "headers": kept})
        sealed = self._ring.encrypt(text.encode()).decode()
        return replace(spec, request=replace(spec.request, sealed_credentials=sealed))

    def open(self, record: TaskRecord) -> CallerCredentials:
        """Return what a task keeps of its caller.

        Raises:
            ProtocolError: It cannot be opened, or belongs to another task. It has no secret.
        """
        sealed = record.request.sealed_credentials
        if sealed is None:
            return CallerCredentials(None, {})
        try:
            kept: JSONObject = load_json(self._ring.decrypt(sealed.encode()).decode())
        except (self._invalid, ValueError):
            kept = {}
        if kept.get("for") != _binding(record):
            raise refusal("no key opens them, or they belong to another task")
        return CallerCredentials(kept["token"], kept["headers"])


def opened(credentials: Credentials | None, record: TaskRecord) -> CallerCredentials:
    """Return what a task keeps of its caller, if anything.

    Raises:
        ProtocolError: It has credentials, and they cannot be opened here.
    """
    if credentials is not None:
        return credentials.open(record)
    if record.request.sealed_credentials is not None:
        raise refusal("these Tasks have no credentials=")
    return CallerCredentials(None, {})


def refusal(reason: str) -> ProtocolError:
    """Return the error that ends a task whose credentials cannot be opened; the reason is only logged."""
    logger.error("The credentials of a task cannot be opened: %s", reason)
    return ProtocolError(INTERNAL_ERROR, _UNREADABLE)


def _binding(task: TaskSpec | TaskRecord) -> str:
    request = task.request
    parts = dump_json([task.owner, request.name, request.arguments_json])
    return hashlib.sha256(parts.encode()).hexdigest()
