"""The templates: every value is escaped, so that all that a client put into it shows as text."""

from __future__ import annotations

from datetime import datetime
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mcp_task_runtime.core.ids import handle_of
from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.types import Progress, TaskRecord

__all__ = ["dom_id", "render"]

_LONGEST_VALUE: Final = 20_000


def dom_id(*parts: str) -> str:
    """Return an `id` for an element that belongs to something a client named."""
    return "x" + blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def render(name: str, **values: Any) -> Markup:
    """Return a rendered template."""
    return Markup(_environment.get_template(name).render(values))


def _shown(value: Any) -> Any:
    """Return text without what a browser obeys though it is escaped: control characters and changes of direction."""
    if isinstance(value, str) and not isinstance(value, Markup) and not value.isprintable():
        return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in value)
    return value


def _time(value: datetime) -> Markup:
    text = f"{value:%Y-%m-%d %H:%M:%S} UTC"
    return Markup('<time datetime="{}">{}</time>').format(value.isoformat(), text)


def _address(path: str, pairs: Any = ()) -> str:
    query = urlencode(list(pairs.items() if isinstance(pairs, dict) else pairs))
    return f"{path}?{query}" if query else path


def _task_address(base: str, record_or_id: TaskRecord | str, **more: str) -> str:
    task_id = record_or_id if isinstance(record_or_id, str) else record_or_id.task_id
    return _address(f"{base}/task", {"id": handle_of(task_id), **more})


def _json(value: Any) -> str:
    text = dump_json(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}… ({len(text)} characters)"


def _percent(progress: Progress) -> str:
    if not progress.total:
        return f"{progress.progress:g}"
    return f"{progress.progress:g} of {progress.total:g}"


_environment: Final = Environment(
    loader=PackageLoader("mcp_task_runtime.operations.web"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(time=_time, json=_json, percent=_percent)
_environment.globals.update(address=_address, task_address=_task_address, dom_id=dom_id)
