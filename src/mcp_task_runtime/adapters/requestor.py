"""Who makes a request of protocol revision 2025-11-25, and whether its connection carries questions."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["JSON_RESPONSES", "NO_SESSION", "UNCHECKED_ANSWERS", "ConnectionScopes", "Requestor", "http_manager"]

NO_SESSION: Final = "The client cannot be asked: the server keeps no sessions (stateless HTTP)"
JSON_RESPONSES: Final = "The client cannot be asked: the server answers with JSON, which carries no requests"
UNCHECKED_ANSWERS: Final = (
    "The client cannot be asked: principal= says who makes a request, and nothing checks who answers on this connection"
)

_DEEPEST_MIDDLEWARE: Final = 16


@dataclass(frozen=True, slots=True)
class Requestor:
    """Who makes a request.

    Attributes:
        owner: What the requestor's tasks belong to: its principal, otherwise its session; `None` where
            there is neither, and the task's id is the secret (law L10).
    """

    owner: str | None

    @property
    def can_list(self) -> bool:
        """Whether this requestor can be told apart from others (wire rule B1)."""
        return self.owner is not None


class ConnectionScopes:
    """A secret for each connection without a principal, for as long as it lives (law L10)."""

    def __init__(self) -> None:
        self._scopes: dict[int, str] = {}

    def of(self, anchor: object) -> str:
        """Return the scope of a connection.

        Args:
            anchor: An object that belongs to this connection only, and lives as long.
        """
        key = id(anchor)
        scope = self._scopes.get(key)
        if scope is None:
            scope = self._scopes[key] = f"session:{secrets.token_urlsafe(24)}"
            weakref.finalize(anchor, self._scopes.pop, key, None)
        return scope


def http_manager(request: object) -> Any:
    """Return the SDK's manager of Streamable HTTP sessions that a request came through, or `None`.

    Nothing else shows a handler its public `stateless` and `json_response`. It is behind the endpoint that
    Starlette noted: under middleware, or as the owner of a method.
    """
    scope = getattr(request, "scope", None)
    if not isinstance(scope, Mapping):
        return None
    application: Any = scope.get("endpoint")
    for _ in range(_DEEPEST_MIDDLEWARE):
        if application is None:
            break
        if isinstance(getattr(application, "json_response", None), bool):
            return application
        inner = (getattr(application, name, None) for name in ("session_manager", "__self__", "app"))
        application = next((each for each in inner if each is not None), None)
    return None
