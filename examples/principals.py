"""Who makes a request: functions for `Tasks(principal=...)`. Each works over HTTP, over stdio and in tests.

A task belongs to the principal that this names, and is hidden from all others. `None` means that the caller is unknown:
the task's id is its secret then.
"""

from __future__ import annotations

import getpass
import json
from typing import Any

from mcp.server.auth.middleware.auth_context import get_access_token


def user_of_this_process(ctx: Any) -> str:
    """Return the user that runs the server, for one over stdio: its tasks are found again after a restart."""
    return getpass.getuser()


def user_of_the_gateway(ctx: Any) -> str | None:
    """Return whom the gateway in front of the server let in.

    The gateway must remove the header from what comes from outside. Over stdio and in tests there are no headers.
    """
    headers = getattr(ctx.request, "headers", {})
    user: str | None = headers.get("x-user")
    return user


def user_of_the_token(ctx: Any) -> str | None:
    """Return the issuer and the subject of the caller's token.

    Not its client: one that registers again gets a new `client_id`, and finds its user's tasks again by this. The
    default of `Tasks` counts the client in. Without a subject the caller is unknown.
    """
    token = get_access_token()
    if token is None or token.subject is None:
        return None
    return json.dumps([(token.claims or {}).get("iss"), token.subject])
