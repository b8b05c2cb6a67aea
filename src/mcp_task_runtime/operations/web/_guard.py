"""Who may use the dashboard, and what a browser may do with its pages."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Access", "Guard", "csrf_token", "read_form"]

_CSRF_COOKIE: Final = "mcp_tasks_csrf"
_SCOPE_KEY: Final = "mcp_task_runtime.web"
_SESSION_SECONDS: Final = 12 * 60 * 60
_SHORTEST_TOKEN: Final = 16
_LARGEST_FORM: Final = 2 * 1024 * 1024
_MOST_FIELDS: Final = 1000
_PROXY_HEADERS: Final = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_OPEN_PATHS: Final = ("/login", "/static/", "/question")

_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with "no-referrer" a browser names no origin for a form either
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Access:
    """Who may use the dashboard, and the secrets that prove it."""

    def __init__(self, *, token: str | None, behind_auth: bool, origins: Iterable[str]) -> None:
        """Take the arguments of `dashboard`.

        Raises:
            ValueError: `token` is too short, given together with `behind_auth`, or an origin is malformed.
        """
        if token is not None and behind_auth:
            raise ValueError("give a token or behind_auth, not both")
        if token is not None and len(token) < _SHORTEST_TOKEN:
            raise ValueError(f"token must have at least {_SHORTEST_TOKEN} characters")
        if isinstance(origins, str):
            raise TypeError("origins must be a list of origins, not one text")
        self._token = token
        self._behind_auth = behind_auth
        # From the token where there is one, so that several processes behind one address know each other's forms.
        self._secret = (
            secrets.token_bytes(32) if token is None else sha256(b"mcp-tasks web\0" + token.encode()).digest()
        )
        self._origins = frozenset(map(_origin, origins))
        self._session_cookie = f"mcp_tasks_session_{sha256(self._secret).hexdigest()[:8]}"

    @property
    def has_login(self) -> bool:
        """Whether a person signs in with a token."""
        return self._token is not None

    def is_token(self, text: str) -> bool:
        """Return whether a text is the token; in the same time for each text."""
        return self._token is not None and hmac.compare_digest(text.encode(), self._token.encode())

    def refusal(self, scope: Scope, headers: Headers) -> str | None:
        """Return why a request may not come in at all, or `None`."""
        if self._token is not None or self._behind_auth:
            return None
        if any(name in headers for name in _PROXY_HEADERS):
            return "This page is for its own machine alone, and a proxy passed this request on."
        client = scope.get("client")
        if client is None or not _is_loopback(client[0]):
            return "This page is for its own machine alone."
        if not _is_loopback(_host_name(headers.get("host", ""))):  # a foreign name may lead to this machine, too
            return "This page is for its own machine alone, under the name localhost."
        return None

    def is_signed_in(self, cookies: Mapping[str, str]) -> bool:
        """Return whether the browser has signed in, where that is asked for."""
        if self._token is None:
            return True
        until, _, tag = cookies.get(self._session_cookie, "").partition(".")
        is_ours = hmac.compare_digest(tag.encode(), self._tag("session", until).encode())
        return is_ours and until.isdecimal() and int(until) > time.time()

    def sign_in(self, response: RedirectResponse, request: Request) -> None:
        """Remember in the browser that it has signed in."""
        until = str(int(time.time()) + _SESSION_SECONDS)
        response.set_cookie(
            self._session_cookie,
            f"{until}.{self._tag('session', until)}",
            max_age=_SESSION_SECONDS,
            path=request.scope.get("root_path") or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",
        )

    def sign_out(self, response: RedirectResponse, request: Request) -> None:
        """Forget that the browser has signed in."""
        response.delete_cookie(self._session_cookie, path=request.scope.get("root_path") or "/")

    def csrf_token(self, cookie: str) -> str:
        """Return what the forms of a browser with this cookie carry."""
        return self._tag("csrf", cookie)

    def is_from_here(self, headers: Headers) -> bool:
        """Return whether the browser says that a form comes from a page of this server."""
        origin = headers.get("origin")
        if origin is None:
            return False
        if origin in self._origins:
            return True
        host = headers.get("host", "").lower()
        return bool(host) and origin.lower() in (f"http://{host}", f"https://{host}")

    def _tag(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose}\0{text}".encode(), sha256).hexdigest()


class Guard:
    """The ASGI application around the pages: lets requests in or refuses them, and sets what browsers must obey."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        """Stand before an application."""
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookies = Request(scope).cookies
        cookie = cookies.get(_CSRF_COOKIE, "")
        is_new = re.fullmatch(r"[\w-]{32,64}", cookie, re.ASCII) is None
        if is_new:
            cookie = secrets.token_urlsafe(32)
        scope[_SCOPE_KEY] = self._access.csrf_token(cookie)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_file = path.startswith("/static/")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    answer[name] = value
                answer["Cache-Control"] = "no-cache" if is_file else "no-store"
                if is_new and not is_file:
                    root, secure = scope.get("root_path") or "/", "; Secure" if scope.get("scheme") == "https" else ""
                    answer.append("Set-Cookie", f"{_CSRF_COOKIE}={cookie}; Path={root}; HttpOnly; SameSite=Lax{secure}")
            await send(message)

        refusal = self._access.refusal(scope, headers)
        if refusal is None and scope["method"] not in ("GET", "HEAD") and not self._access.is_from_here(headers):
            refusal = "This form was not sent from a page of this server."
        if refusal is not None:
            await PlainTextResponse(refusal, status_code=403)(scope, receive, send_with_headers)
        elif not path.startswith(_OPEN_PATHS) and not self._access.is_signed_in(cookies):
            await self._ask_to_sign_in(scope, receive, send_with_headers, path)
        else:
            await self._app(scope, receive, send_with_headers)

    async def _ask_to_sign_in(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        if scope["method"] == "GET" and not path.startswith("/events/"):
            wanted = f"{path}?{scope['query_string'].decode('latin-1')}".removesuffix("?")
            query = "" if wanted == "/" else f"?{urlencode({'next': wanted})}"
            address = f"{scope.get('root_path', '')}/login{query}"
            await RedirectResponse(address, status_code=303)(scope, receive, send)
        else:
            await PlainTextResponse("Sign in first.", status_code=401)(scope, receive, send)


def csrf_token(request: Request) -> str:
    """Return what the forms on a page must carry."""
    token: str = request.scope[_SCOPE_KEY]
    return token


async def read_form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form that a page of the dashboard sent, each with its values.

    Raises:
        HTTPException: 403 if the form does not carry its token, 413 if it is too large, 415 if it is no form, 400 if
            it cannot be read.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Send a form.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_FORM:
            raise HTTPException(413, "This form is too large.")
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise HTTPException(400, "This form cannot be read.") from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    (token, *_) = fields.pop("csrf", [""])
    if not hmac.compare_digest(token.encode(), csrf_token(request).encode()):
        raise HTTPException(403, "This form is too old, or not from a page of this server. Go back and reload.")
    return fields


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query or parts.fragment:
        raise ValueError(f"an origin is like https://ops.example, not {text!r}")
    return text


def _host_name(host: str) -> str:
    """Return the name in a `Host` header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0][1:]
    return host.partition(":")[0]


def _is_loopback(name: str) -> bool:
    if name.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (address if mapped is None else mapped).is_loopback
