"""`Inbox`: the place where a question waits for a person when the client of its task cannot be asked."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from datetime import datetime, timezone
from hashlib import sha256
from urllib.parse import urlencode, urlsplit

from mcp_task_runtime.core.ids import handle_of
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.settings import check_duration

__all__ = ["Inbox", "check_secret", "is_page_token", "page_token", "question_of_page"]

_SHORTEST_SECRET = 16


@dataclass(frozen=True, slots=True)
class Inbox:
    """The operators' inbox, and the page that the user of a client may open for one question.

    Attributes:
        seconds: How long a question waits for a person.
        url: Address of the dashboard, such as `https://ops.example/tasks`. Then a client that can have its user open
            addresses (elicitation by URL) gets the address of a page for this one question. Anyone who has it may
            answer there, until the question is answered or withdrawn, or `seconds` have passed.
            `None`: only operators answer.
        secret: Signs these addresses, at least 16 characters; give `dashboard(..., inbox_secret=)` the same one.
            Required with `url`.
    """

    seconds: float
    url: str | None = None
    secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_duration("inbox", self.seconds)
        if (self.url is None) is not (self.secret is None):
            raise ValueError("url and secret of an inbox belong together")
        if self.secret is not None:
            check_secret(self.secret)
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
                raise ValueError("url must be the address of a dashboard, such as https://ops.example/tasks")

    @classmethod
    def of(cls, value: float | Inbox | None) -> Inbox | None:
        """Return the inbox that a number of seconds stands for, or the one that is given.

        Raises:
            ValueError: It is not a number of seconds, or out of range.
        """
        return value if value is None or isinstance(value, Inbox) else cls(value)

    def address_of(self, task_id: str, key: str, until: datetime) -> str | None:
        """Return the address of the page for a question, or `None` where there is no page.

        Args:
            task_id: The task that asks.
            key: What its key begins with; see `question_of_page`.
            until: When the address expires.
        """
        if self.url is None or self.secret is None:
            return None
        handle, ends = handle_of(task_id), int(until.timestamp())
        token = page_token(self.secret, handle, key, ends)
        query = urlencode({"id": handle, "key": key, "until": ends, "token": token})
        return f"{self.url.rstrip('/')}/question?{query}"


def check_secret(secret: str) -> None:
    """Check the secret of an inbox.

    Raises:
        ValueError: It is too short.
    """
    if len(secret) < _SHORTEST_SECRET:
        raise ValueError(f"the secret of an inbox must have at least {_SHORTEST_SECRET} characters")


def page_token(secret: str, handle: str, key: str, until: int) -> str:
    """Return the signature of the address of a question's page: it covers all that the address names."""
    text = f"mcp-tasks question\0{len(handle)}\0{handle}\0{key}\0{until}"
    return hmac.new(secret.encode("utf-8", "surrogatepass"), text.encode("utf-8", "surrogatepass"), sha256).hexdigest()


def is_page_token(secret: str, handle: str, key: str, until: str, token: str, *, now: datetime) -> bool:
    """Return whether an address of a question's page is one of ours, and has not expired; it reads no store."""
    if not (until.isascii() and until.isdecimal() and len(until) < 16):
        return False
    wanted = page_token(secret, handle, key, int(until))
    is_ours = hmac.compare_digest(token.encode("utf-8", "surrogatepass"), wanted.encode())
    return is_ours and now.astimezone(timezone.utc).timestamp() < int(until)


def question_of_page(questions: tuple[QueuedMessage, ...], key: str) -> QueuedMessage | None:
    """Return the open question that a page is for: the newest that waits for a person and whose key begins so."""
    prefix = QueuedMessage.key_for_person(key) + "."
    found = [one for one in questions if one.is_for_person and (one.key or "").startswith(prefix)]
    return found[-1] if found else None
