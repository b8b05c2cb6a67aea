"""Bodies of tools that must answer alike with and without tasks (law L14), for every line of the SDK.

The test modules of a line give its names (`SDK`) and get the bodies, each a function as an author writes it for the
SDK alone: none knows of tasks.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any, TypeAlias

import anyio
import anyio.to_thread
from pydantic import BaseModel
from typing_extensions import TypedDict

Body: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class SDK:
    """What bodies need of an SDK line.

    Attributes:
        context: The class of the context.
        tool_error: The error whose text is meant for the client.
        protocol_error: Makes a JSON-RPC error of code, message and data.
        url_required: Makes the error that asks for a visit of a URL first.
        image: Makes an image of bytes.
        result: Makes a whole result of its JSON.
        prompt: Makes a message for the client's model.
    """

    context: type
    tool_error: type[Exception]
    protocol_error: Callable[[int, str, Any], Exception]
    url_required: Callable[[], Exception]
    image: Callable[[bytes], Any]
    result: Callable[[dict[str, Any]], Any]
    result_class: type
    prompt: Callable[[str], Any]


class Point(BaseModel):
    x: int
    y: int = 0


class Nested(BaseModel):
    points: list[Point]
    name: str | None = None


class Entry(TypedDict):
    name: str
    size: int


class Colour(Enum):
    RED = "red"


@dataclass
class Plain:
    x: int


class Choice(BaseModel):
    ok: bool


class Opaque:
    """What has no JSON form."""

    def __repr__(self) -> str:
        return "Opaque"


class Wordless(Exception):
    def __str__(self) -> str:
        return ""


def returning() -> list[Body]:
    """Return bodies that return values of every kind."""

    async def text() -> str:
        return "text"

    async def empty_text() -> str:
        return ""

    async def unicode_text() -> str:
        return "\u00e4\u20ac\U0001f41d\u2028\x00"

    async def integer() -> int:
        return 2**53 + 1

    async def number() -> float:
        return 0.1

    async def infinite() -> float:
        return float("inf")

    async def truth() -> bool:
        return True

    async def nothing() -> None:
        return None

    async def numbers() -> list[int]:
        return [1, 2]

    async def no_numbers() -> list[int]:
        return []

    async def mapping() -> dict[str, int]:
        return {"a": 1}

    async def mapping_with_numbers() -> dict[int, str]:
        return {1: "a"}

    async def model() -> Point:
        return Point(x=1)

    async def nested() -> Nested:
        return Nested(points=[Point(x=1), Point(x=2, y=3)])

    async def typed_dict() -> Entry:
        return {"name": "n", "size": 1}

    async def of_dataclass() -> Plain:
        return Plain(1)

    async def pair() -> tuple[int, str]:
        return (1, "a")

    async def optional() -> int | None:
        return None

    async def a_date() -> date:
        return date(2026, 7, 28)

    async def colour() -> Colour:
        return Colour.RED

    async def octets() -> bytes:
        return b"abc"

    async def untyped():  # type: ignore[no-untyped-def]
        return {"x": [1, None]}

    async def anything() -> Any:
        return ["a", 1, {"b": None}]

    async def lying() -> int:
        return "no number"  # type: ignore[return-value]

    async def lying_model() -> Point:
        return {"x": "no number"}  # type: ignore[return-value]

    async def without_json_form() -> Any:
        return Opaque()

    def plain_function() -> str:
        return "sync"

    async def blocking() -> str:
        time.sleep(0.01)  # noqa: ASYNC251  # as real servers do
        return "blocked"

    async def in_a_thread() -> str:
        return await anyio.to_thread.run_sync(lambda: "from a thread")

    async def with_arguments(a: int, b: str = "x", point: Point | None = None) -> str:
        return f"{a}{b}{point}"

    return [value for value in locals().values() if callable(value)]


def whole(sdk: SDK) -> list[Body]:
    """Return bodies that return content or whole results of the SDK."""

    async def picture() -> Any:
        return sdk.image(b"1")

    async def several() -> list[Any]:
        return ["a", 1, sdk.image(b"1")]

    async def whole_result() -> Any:
        text = {"type": "text", "text": "t"}
        return sdk.result({"content": [text], "structuredContent": {"x": 1}, "_meta": {"example.org/key": [1]}})

    async def whole_error() -> Any:
        return sdk.result({"content": [{"type": "text", "text": "bad"}], "isError": True})

    for each in (whole_result, whole_error):
        each.__annotations__["return"] = sdk.result_class
    return [picture, several, whole_result, whole_error]


def raising(sdk: SDK) -> list[Body]:
    """Return bodies that raise errors of every kind."""

    async def value_error() -> str:
        raise ValueError("no such paper")

    async def key_error() -> str:
        raise KeyError("key")

    async def wordless() -> str:
        raise Wordless

    async def timeout() -> str:
        raise TimeoutError("too late")

    async def chained() -> str:
        try:
            raise OSError("disk")
        except OSError as error:
            raise RuntimeError("outer") from error

    async def validation() -> str:
        Point.model_validate({"x": "no number"})
        return "unreachable"

    async def tool_error() -> str:
        raise sdk.tool_error("on purpose")

    async def protocol_error() -> str:
        raise sdk.protocol_error(-32099, "protocol", {"x": [1, None]})

    async def protocol_error_without_data() -> str:
        raise sdk.protocol_error(-32602, "protocol", None)

    async def url_required() -> str:
        raise sdk.url_required()

    async def group() -> str:
        async def fail() -> None:
            raise ValueError("in a group")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
        return "unreachable"

    async def group_of_protocol_error() -> str:
        async def fail() -> None:
            raise sdk.protocol_error(-32099, "protocol", {"a": 1})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
        return "unreachable"

    async def group_of_two() -> str:
        async def fail(text: str) -> None:
            await anyio.lowlevel.checkpoint()
            raise ValueError(text)

        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope(shield=True):
                tasks.start_soon(fail, "a")
                tasks.start_soon(fail, "b")
                await anyio.sleep(0.01)
        return "unreachable"

    async def stop_iteration() -> str:
        next(iter(()))
        return "unreachable"

    def plain_function_raises() -> str:
        raise LookupError("sync")

    return [value for value in locals().values() if callable(value)]


def speaking(sdk: SDK) -> list[Body]:
    """Return bodies that speak with the client while they run."""

    async def progress(ctx: Any) -> str:
        await ctx.report_progress(1, 2, "half")
        await ctx.report_progress(2, 2)
        return "done"

    async def logs(ctx: Any) -> str:
        await ctx.info("first")
        await ctx.warning("second")
        return "done"

    async def elicits(ctx: Any) -> str:
        answer = await ctx.elicit("Sure?", Choice)
        return f"{answer.action} {getattr(answer, 'data', None)}"

    async def speaks_around_a_question(ctx: Any) -> str:
        await ctx.info("first")
        await ctx.report_progress(1)
        answer = await ctx.elicit("Sure?", Choice)
        await ctx.report_progress(2, 5, "more")
        await ctx.info("second")
        return str(answer.action)

    async def elicits_twice(ctx: Any) -> str:
        first = await ctx.elicit("Sure?", Choice)
        second = await ctx.elicit("Sure?", Choice)
        return f"{first.action} {second.action}"

    async def elicits_in_a_group(ctx: Any) -> str:
        answers: list[str] = []

        async def ask() -> None:
            answers.append((await ctx.elicit("Sure?", Choice)).action)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
        return str(answers)

    async def elicits_url(ctx: Any) -> str:
        return str((await ctx.session.elicit_url("Log in", "https://example.org/", "e1")).action)

    async def samples(ctx: Any) -> str:
        message = await ctx.session.create_message([sdk.prompt("Write.")], max_tokens=5, temperature=0.5)
        return f"{message.model} {message.content.text}"

    async def roots(ctx: Any) -> str:
        return str([str(root.uri) for root in (await ctx.session.list_roots()).roots])

    bodies: list[Body] = [value for value in locals().values() if callable(value)]
    for body in bodies:
        body.__annotations__["ctx"] = sdk.context
    return bodies


def bodies(sdk: SDK) -> dict[str, Body]:
    """Return all bodies by name."""
    return {body.__name__: body for body in (*returning(), *whole(sdk), *raising(sdk), *speaking(sdk))}


ASKING = (
    "elicits",
    "speaks_around_a_question",
    "elicits_twice",
    "elicits_in_a_group",
    "elicits_url",
    "samples",
    "roots",
)
"""Bodies that ask the client."""

ARGUMENTS: tuple[dict[str, Any], ...] = ({}, {"a": 1}, {"a": "no number"}, {"a": 1, "point": {"x": 2}, "unknown": True})
"""What each body is called with: right for some, wrong for others."""

CAPABILITIES: dict[str, Any] = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}


async def accept_all(question: dict[str, Any]) -> dict[str, Any]:
    """Answer everything that the server asks."""
    if question["method"] == "roots/list":
        return {"result": {"roots": [{"uri": "file:///a"}]}}
    if question["method"] == "sampling/createMessage":
        text = {"type": "text", "text": "written"}
        return {"result": {"role": "assistant", "model": "m", "content": text, "stopReason": "endTurn"}}
    form = question["params"].get("mode", "form") == "form"
    return {"result": {"action": "accept", **({"content": {"ok": True}} if form else {})}}


async def refuse_all(question: dict[str, Any]) -> dict[str, Any]:
    """Refuse everything that the server asks."""
    return {"error": {"code": -1, "message": "user refused", "data": {"n": 1}}}


async def answer_nonsense(question: dict[str, Any]) -> dict[str, Any]:
    """Answer with what fits no question."""
    return {"result": {"action": "accept", "content": {"ok": "perhaps"}, "roots": [{"uri": "file:///b"}]}}


def heard(client: Any, reply: dict[str, Any]) -> dict[str, Any]:
    """Return what a client of protocol 2025-11-25 has got of a call: its end and what was said meanwhile."""
    end = {name: reply[name] for name in ("result", "error") if name in reply}
    result = end.get("result")
    if result is not None and "io.modelcontextprotocol/related-task" in result.get("_meta", {}):
        meta = {k: v for k, v in result["_meta"].items() if k != "io.modelcontextprotocol/related-task"}
        end["result"] = {**{k: v for k, v in result.items() if k != "_meta"}, **({"_meta": meta} if meta else {})}
    said = [
        (message["method"], {k: v for k, v in message["params"].items() if k != "_meta"})
        for message in client.notifications
        if message["method"] in ("notifications/progress", "notifications/message")
    ]
    asked = [
        (question["method"], {k: v for k, v in question.get("params", {}).items() if k != "_meta"})
        for question in client.questions
    ]
    return {"end": end, "said": said, "asked": asked}
