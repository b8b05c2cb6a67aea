"""The dashboard, asked as a browser without JavaScript asks it."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from mcp_task_runtime import InMemoryTaskStore, Outcome, StoreUnavailableError, TaskRequest
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.questions import ask_question
from mcp_task_runtime.core.types import NewTask, Progress
from mcp_task_runtime.operations.web import dashboard
from mcp_task_runtime.stores.sqlite import _search as sqlite_search
from mcp_task_runtime.stores.url import BundledTaskStore
from tests.operations.web.visitor import QUESTION, Visitor, csrf_of, following, make, some_tasks
from tests.support.patience import PATIENCE

TOKEN = "a token that is long enough"


def shown(html: str) -> str:
    """Return what a person reads of a page."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", html)))


@pytest.fixture
async def visitor(store: BundledTaskStore) -> Visitor:
    return Visitor(dashboard(store))


# -- what the pages show


async def test_the_list_shows_the_tasks_of_all_owners_the_newest_first(
    store: BundledTaskStore, visitor: Visitor
) -> None:
    await some_tasks(store)
    page = await visitor.get("/")
    assert page.status_code == 200
    ids = re.findall(r'<code class="id">([^<]+)</code>', page.text)
    assert ids == ["ddd-broken", "ccc-done", "bbb-ask", "aaa-build"]
    text = shown(page.text)
    assert "1 working" in text
    assert "1 input required" in text
    assert "1 of 2" in text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("status=working&status=failed", ["ddd-broken", "aaa-build"]),
        ("tool=build&order=oldest", ["aaa-build", "ccc-done"]),
        ("owner=bob", ["bbb-ask"]),
        ("id=cc", ["ccc-done"]),
        ("text=HAL", ["aaa-build"]),
        ("older=1h", []),
        ("newer=1h&status=completed", ["ccc-done"]),
        ("status=nonsense&newer=nonsense&order=nonsense", ["ddd-broken", "ccc-done", "bbb-ask", "aaa-build"]),
    ],
)
async def test_the_list_filters(store: BundledTaskStore, visitor: Visitor, query: str, found: list[str]) -> None:
    await some_tasks(store)
    page = await visitor.get(f"/?{query}")
    assert page.status_code == 200
    assert re.findall(r'<code class="id">([^<]+)</code>', page.text) == found
    if not found:
        assert "No task matches." in page.text


async def test_a_result_that_is_an_error_is_shown_found_and_counted(store: BundledTaskStore, visitor: Visitor) -> None:
    await some_tasks(store)
    await make(store, "eee-wrong", "build")
    await store.finish_task("eee-wrong", Outcome.completed({"content": [], "isError": True}))
    page = await visitor.get("/")
    assert "completed (error)" in page.text
    assert "1 of them with an error" in shown(page.text)
    assert 'href="/?errors=1"' in page.text
    found = await visitor.get("/?errors=1")
    assert re.findall(r'<code class="id">([^<]+)</code>', found.text) == ["eee-wrong"]
    assert 'name="errors" value="1" checked' in found.text
    assert "completed (error)" in (await visitor.get("/task?id=eee-wrong")).text


async def test_a_page_that_stopped_looking_leads_on(
    store: BundledTaskStore, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_search, "LOOKED_AT_MOST", 2)
    for number in range(60):
        await make(store, f"task-{number}", "build")
    await store.update_task("task-0", status_message="needle")
    first = await visitor.get("/?text=needle")
    assert "None of the tasks looked at matches." in first.text
    more = re.search(r'href="([^"]+)" rel="next">Look at more tasks', first.text)
    assert more is not None
    second = await visitor.get(unescape(more[1]))
    assert re.findall(r'<code class="id">([^<]+)</code>', second.text) == ["task-0"]


async def test_the_search_form_keeps_what_was_searched(store: BundledTaskStore, visitor: Visitor) -> None:
    page = await visitor.get("/?status=failed&tool=bui&owner=ada&id=a&text=t&newer=1h&older=15m&order=oldest")
    assert 'value="failed" checked' in page.text
    assert len(re.findall(r' value="(?:bui|ada|a|t)"', page.text)) == 4
    assert re.findall(r'value="([^"]*)" selected', page.text) == ["1h", "15m", "oldest"]


async def test_every_task_is_on_one_page_of_the_list(store: BundledTaskStore, visitor: Visitor) -> None:
    for number in range(120):
        await make(store, f"task-{number:03}", "build")
    address: str | None = "/?tool=build"
    ids: list[str] = []
    while address is not None:
        page = await visitor.get(address)
        ids += re.findall(r'<code class="id">([^<]+)</code>', page.text)
        following_page = re.search(r'href="([^"]+)" rel="next"', page.text)
        address = None if following_page is None else unescape(following_page[1])
    assert ids == [f"task-{number:03}" for number in reversed(range(120))]
    assert (await visitor.get("/?cursor=nonsense")).status_code == 400


async def test_a_task_is_shown_with_what_happened_to_it(store: BundledTaskStore, visitor: Visitor) -> None:
    await store.create_task(
        NewTask(ttl_ms=60_000, task_id="t", owner="ada", request=TaskRequest(name="build"), worker="w1")
    )
    await store.update_task("t", status_message="half", progress=Progress(1, 2))
    text = shown((await visitor.get("/task?id=t")).text)
    for part in ("build", "ada", "w1, attempt 1", "half", "1 of 2", "created", "status"):
        assert part in text
    await store.finish_task("t", Outcome.failed("no paper"))
    text = shown((await visitor.get("/task?id=t")).text)
    assert "no paper (code -32603)" in text
    assert "failed" in text


async def test_values_are_masked_until_they_are_asked_for(store: BundledTaskStore, visitor: Visitor) -> None:
    await some_tasks(store)
    for task in ("aaa-build", "ccc-done", "ddd-broken"):
        masked = await visitor.get(f"/task?id={task}")
        assert "s3cret" not in masked.text
        toggle = re.search(r'<a href="([^"]+)">Show arguments', masked.text)
        assert toggle is not None
        assert "s3cret" in (await visitor.get(unescape(toggle[1]))).text


async def test_an_address_holds_the_beginning_of_a_secret_identifier(store: BundledTaskStore, visitor: Visitor) -> None:
    record = await store.create_task(NewTask(ttl_ms=60_000, request=TaskRequest(name="build")))
    page = await visitor.get("/")
    (address,) = re.findall(r'href="(/task[^"]*)"', page.text)
    assert address == f"/task?id={record.task_id[:16]}"
    opened = await visitor.get(address)
    assert record.task_id in opened.text
    done = await visitor.send("/cancel", {"task": record.task_id})
    assert record.task_id not in done.headers["location"]


@pytest.mark.parametrize("task_id", ["a/b", "..", "a?b#c", "%2e%2e", "ä ö", '"><b>', "a&b=c"])
async def test_an_identifier_may_have_any_characters(store: BundledTaskStore, visitor: Visitor, task_id: str) -> None:
    await make(store, task_id, "build")
    await make(store, f"{task_id}-2", "other")
    page = await visitor.get("/")
    address = unescape(re.findall(r'href="(/task[^"]*)">build', page.text)[0])
    assert "<h1>build" in (await visitor.get(address)).text


async def test_an_ambiguous_beginning_leads_to_the_list(store: BundledTaskStore, visitor: Visitor) -> None:
    await make(store, "twin-1", "build")
    await make(store, "twin-2", "build")
    assert (await visitor.get("/task?id=twin")).headers["location"] == "/?id=twin"
    for unknown in ("/task?id=nothing", "/task", "/events/task?id=nothing"):
        assert (await visitor.get(unknown)).status_code == 404


async def test_workers_and_statistics_show_who_runs_what(store: BundledTaskStore, visitor: Visitor) -> None:
    request = TaskRequest(name="build")
    for worker, lease_ms in (("w1", 60_000), ("w1", 60_000), ("lost", 1), ("", 60_000)):
        await store.create_task(NewTask(ttl_ms=60_000, request=request, worker=worker, lease_ms=lease_ms))
    await some_tasks(store)
    page = await visitor.get("/workers")
    assert re.findall(r"<strong>([^<]+)</strong>", page.text)[0] == "w1"
    assert {"w1", "lost", "Waiting for a worker"} == set(re.findall(r"<strong>([^<]+)</strong>", page.text))
    assert "build 2" in shown(page.text)
    statistics = await visitor.get("/statistics?span=1d")
    text = shown(statistics.text)
    assert "2 tasks ended in the last day." in text
    assert "build: median" in text
    assert "build: 5 working, 0 waiting for an answer" in text
    assert statistics.text.count("<svg") >= 3
    assert (await visitor.get("/statistics?span=nonsense")).status_code == 200


async def test_an_empty_store_shows_empty_pages(store: BundledTaskStore, visitor: Visitor) -> None:
    for path, text in (
        ("/", "No tasks."),
        ("/waiting", "No question is open."),
        ("/workers", "No process runs a task."),
        ("/statistics", "No task has completed."),
    ):
        page = await visitor.get(path)
        assert (page.status_code, text in page.text) == (200, True)


# -- what a person can do


async def test_a_task_is_cancelled(store: BundledTaskStore, visitor: Visitor) -> None:
    await some_tasks(store)
    done = await visitor.send("/cancel", {"task": "aaa-build"})
    assert (done.status_code, done.headers["location"]) == (303, "/task?id=aaa-build&said=cancelled")
    assert "The task was cancelled." in (await visitor.get(done.headers["location"])).text
    record = await store.get_task("aaa-build")
    assert record is not None
    assert record.status == "cancelled"
    again = await visitor.send("/cancel", {"task": "aaa-build"})
    assert again.status_code == 409
    assert "cannot" in shown(again.text)
    assert (await visitor.send("/cancel", {"task": "nothing"})).status_code == 404
    assert (await visitor.send("/cancel", {})).status_code == 400


async def test_a_retry_leads_to_the_new_task(store: BundledTaskStore, visitor: Visitor) -> None:
    await some_tasks(store)
    done = await visitor.send("/retry", {"task": "ddd-broken"})
    assert done.status_code == 303
    page = await visitor.get(done.headers["location"])
    assert "This is a new task" in page.text
    assert "<h1>mail" in page.text
    assert "ddd-broken" not in page.text
    refused = await visitor.send("/retry", {"task": "aaa-build"})
    assert refused.status_code == 409
    assert "has not ended" in refused.text


async def test_a_question_is_answered_by_its_form(store: BundledTaskStore, visitor: Visitor) -> None:
    await make(store, "task", "ask")
    answers: list[Any] = []
    async with anyio.create_task_group() as group:

        async def ask() -> None:
            answers.append(await ask_question(store, store.message_queue, "task", QUESTION))

        group.start_soon(ask)
        await until_it_asks(store, "task")
        for path in ("/task?id=task", "/waiting"):
            page = await visitor.get(path)
            assert "Publish it?" in page.text
            assert 'name="field.copies" type="number"' in page.text
        form = {"task": "task", "key": "q1", "action": "accept", "field.ok": "true", "field.note": "for <all>"}
        refused = await visitor.send("/answer", {**form, "field.copies": "77"})
        assert refused.status_code == 422
        assert "content.copies must be at most 5" in refused.text
        assert 'value="77"' in refused.text  # what was filled in is still there
        assert 'value="for &lt;all&gt;"' in refused.text
        assert 'value="true" checked' in refused.text
        unread = await visitor.send("/answer", {**form, "field.copies": "many"})
        assert (unread.status_code, "copies is not a number." in unread.text) == (422, True)
        done = await visitor.send("/answer", {**form, "field.copies": "3"})
        assert done.headers["location"] == "/task?id=task&said=answered"
    assert answers[0].unwrap() == {"action": "accept", "content": {"ok": True, "copies": 3, "note": "for <all>"}}
    late = await visitor.send("/answer", {**form, "field.copies": "3"})
    assert late.headers["location"] == "/task?id=task&said=late"


async def test_a_question_that_waits_for_a_person_says_so(store: BundledTaskStore, visitor: Visitor) -> None:
    await make(store, "task", "ask")
    key = QueuedMessage.key_for_person("q")
    question = QueuedMessage.request(key, "elicitation/create", {"message": "Approve?", "requestedSchema": {}})
    await store.ask("task", question)  # type: ignore[attr-defined]
    assert "Its client cannot be asked" in (await visitor.get("/waiting")).text
    done = await visitor.send("/answer", {"task": "task", "key": key, "action": "decline"})
    assert done.headers["location"] == "/task?id=task&said=answered"


async def until_it_asks(store: BundledTaskStore, task_id: str) -> None:
    """Wait until a task has an open question."""
    record = await store.get_task(task_id)
    assert record is not None
    while record.status != "input_required":
        record = await store.wait_for_update(task_id, after=record.revision)


async def test_a_message_and_any_other_request_can_be_answered(store: BundledTaskStore, visitor: Visitor) -> None:
    questions = [
        QueuedMessage.request("s", "sampling/createMessage", {"messages": [], "maxTokens": 10}),
        QueuedMessage.request("r", "roots/list", {}),
    ]
    answers: dict[str, Any] = {}
    await make(store, "task", "ask")

    async def ask(question: QueuedMessage) -> None:
        answer = await ask_question(store, store.message_queue, "task", question)
        assert answer is not None
        answers[question.key or ""] = answer.unwrap()

    async with anyio.create_task_group() as group:
        for question in questions:
            group.start_soon(ask, question)
        while len(await store.message_queue.outstanding("task")) < 2:
            await anyio.lowlevel.checkpoint()
        common = {"task": "task", "action": "accept"}
        assert (await visitor.send("/answer", {**common, "key": "r", "field.json": "{"})).status_code == 422
        assert (await visitor.send("/answer", {**common, "key": "r", "field.json": '{"roots": []}'})).status_code == 303
        assert (await visitor.send("/answer", {**common, "key": "s", "field.text": "Hello"})).status_code == 303
    assert answers["r"] == {"roots": []}
    assert answers["s"]["content"] == {"type": "text", "text": "Hello"}


# -- what is refused


async def test_a_page_is_for_its_own_machine_alone_unless_told_otherwise(store: BundledTaskStore) -> None:
    app = dashboard(store)
    for here in ("http://127.0.0.1:8321", "http://localhost:8321", "http://[::1]:8321", "http://127.8.8.8"):
        assert (await Visitor(app, origin=here).get("/")).status_code == 200
    assert (await Visitor(app, client="::ffff:127.0.0.1").get("/")).status_code == 200
    assert (await Visitor(app, client="192.0.2.7").get("/")).status_code == 403
    # A name that an attacker's DNS server leads to this machine.
    assert (await Visitor(app, origin="http://evil.example").get("/")).status_code == 403
    for header in ("x-forwarded-for", "forwarded", "via", "x-real-ip"):
        assert (await Visitor(app).get("/", **{header: "192.0.2.7"})).status_code == 403


async def test_a_form_without_its_token_or_from_elsewhere_is_refused(store: BundledTaskStore) -> None:
    await some_tasks(store)
    app = dashboard(store)
    visitor = Visitor(app)
    token = csrf_of((await visitor.get("/task?id=aaa-build")).text)
    assert token
    cancel = {"task": "aaa-build"}
    refused = [
        await visitor.send("/cancel", cancel, csrf="x"),
        await visitor.send("/cancel", cancel, csrf=token, origin="http://evil.example"),
        await visitor.send("/cancel", cancel, csrf=token, origin="null"),
        await visitor.send("/cancel", cancel, csrf=token, origin=None),
        await visitor.send("/cancel", cancel, csrf=token, origin="http://127.0.0.1:9999"),
        await Visitor(app).send("/cancel", cancel, csrf=token),  # without the cookie that the token belongs to
        await Visitor(dashboard(store)).send("/cancel", cancel, csrf=token),
    ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert (await visitor.send("/cancel", cancel, csrf=token, **{"Content-Type": "text/plain"})).status_code == 415
    assert (await visitor.send("/cancel", {"task": "x" * 3_000_000}, csrf=token)).status_code == 413
    assert (await visitor.get("/cancel")).status_code == 405
    record = await store.get_task("aaa-build")
    assert record is not None
    assert record.status == "working"
    assert (await visitor.send("/cancel", cancel, csrf=token)).status_code == 303


async def test_a_token_is_asked_for(store: BundledTaskStore) -> None:
    await some_tasks(store)
    app = dashboard(store, token=TOKEN)
    visitor = Visitor(app, origin="https://ops.example", client="192.0.2.7")
    assert (await visitor.get("/")).headers["location"] == "/login"
    assert (await visitor.get("/events/task?id=aaa-build")).status_code == 401
    assert (await visitor.send("/cancel", {"task": "aaa-build"})).status_code == 401
    wrong = await visitor.send("/login", {"token": TOKEN[:-1], "next": "/"})
    assert (wrong.status_code, "This is not the token." in wrong.text) == (401, True)
    assert (await visitor.get("/")).status_code == 303
    assert (
        await visitor.send("/login", {"token": TOKEN, "next": "/"}, origin="https://evil.example")
    ).status_code == 403
    right = await visitor.send("/login", {"token": TOKEN, "next": "/"})
    assert (right.status_code, right.headers["location"]) == (303, "/")
    (cookie,) = right.headers.get_list("set-cookie")
    assert TOKEN not in cookie
    for attribute in ("HttpOnly", "Secure", "SameSite=lax"):
        assert attribute in cookie
    assert (await visitor.get("/task?id=aaa-build")).status_code == 200
    assert (await visitor.send("/cancel", {"task": "aaa-build"})).status_code == 303
    name, _, value = cookie.partition(";")[0].partition("=")
    until, _, tag = value.partition(".")
    for forged in (f"{int(until) + 1}.{tag}", f"{until}.{'0' * 64}", until, "", "."):
        other = Visitor(app, origin="https://ops.example")
        other.http.cookies.set(name, forged)
        assert (await other.get("/")).status_code == 303
    assert (await visitor.send("/logout", {})).headers["location"] == "/login"
    assert (await visitor.get("/")).status_code == 303


async def test_signing_in_leads_to_the_page_that_was_wanted_and_nowhere_else(store: BundledTaskStore) -> None:
    await some_tasks(store)
    visitor = Visitor(dashboard(store, token=TOKEN))
    asked = await visitor.get("/task?id=aaa-build&values=1")
    login = await visitor.get(asked.headers["location"])
    assert 'name="next" value="/task?id=aaa-build&amp;values=1"' in login.text
    for wanted, reached in (
        ("/task?id=aaa-build&values=1", "/task?id=aaa-build&values=1"),
        ("//evil.example", "/"),
        ("https://evil.example/task", "/"),
        ("/\\evil.example", "/"),
        ("/task?\r\nSet-Cookie: x=y", "/"),
        ("/logout", "/"),
    ):
        done = await visitor.send("/login", {"token": TOKEN, "next": wanted})
        assert (done.status_code, done.headers["location"]) == (303, reached)


async def test_a_session_ends_after_hours(store: BundledTaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = Visitor(dashboard(store, token=TOKEN))
    await visitor.send("/login", {"token": TOKEN, "next": "/"})
    assert (await visitor.get("/")).status_code == 200
    now = 10**10
    monkeypatch.setattr("mcp_task_runtime.operations.web._guard.time.time", lambda: now)
    assert (await visitor.get("/")).status_code == 303


async def test_an_application_with_its_own_authentication_mounts_it(store: BundledTaskStore) -> None:
    await some_tasks(store)
    app = Starlette(routes=[Mount("/ops", dashboard(store, behind_auth=True, origins=["https://ops.example"]))])
    visitor = Visitor(app, origin="http://inside", client="192.0.2.7", base="/ops")
    page = await visitor.get("/")
    assert page.status_code == 200
    addresses = re.findall(r'(?:href|action|src|data-live)="([^"]+)"', page.text)
    assert len(addresses) > 8
    assert [address for address in addresses if not address.startswith(("/ops/", "#main"))] == []
    assert (await visitor.get("/static/page.css")).status_code == 200
    # The proxy before it calls it by another name than browsers do.
    done = await visitor.send("/cancel", {"task": "aaa-build"}, origin="https://ops.example")
    assert done.headers["location"] == "/ops/task?id=aaa-build&said=cancelled"
    cookie = page.headers["set-cookie"]
    assert "Path=/ops;" in cookie
    assert (await visitor.get("/login")).status_code == 404


async def test_wrong_arguments_are_refused(store: BundledTaskStore) -> None:
    with pytest.raises(ValueError, match="at least 16 characters"):
        dashboard(store, token="short")
    with pytest.raises(ValueError, match="not both"):
        dashboard(store, token=TOKEN, behind_auth=True)
    with pytest.raises(ValueError, match="an origin is like"):
        dashboard(store, behind_auth=True, origins=["ops.example"])
    with pytest.raises(TypeError, match="list of origins"):
        dashboard(store, behind_auth=True, origins="https://ops.example")


@pytest.mark.parametrize("path", ["/", "/task?id=aaa-build", "/waiting", "/statistics", "/nothing", "/static/page.js"])
async def test_every_page_forbids_what_it_does_not_need(store: BundledTaskStore, visitor: Visitor, path: str) -> None:
    await some_tasks(store)
    page = await visitor.get(path)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == ("no-cache" if "static" in path else "no-store")
    if "static" not in path:
        assert re.search(r"<script(?! src=)|<style|\son\w+=|\sstyle=|javascript:", page.text) is None


HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(1)</script>{{71333*3}}\u202e\x00\x1b[2J</textarea></title>"


async def test_what_a_client_put_into_a_task_is_text(store: BundledTaskStore, visitor: Visitor) -> None:
    text = HOSTILE.replace("\x00", "")  # which PostgreSQL does not store
    form = {
        "type": "object",
        "properties": {
            text: {"type": "string", "title": text, "description": text, "default": text, "maxLength": 999},
            "choice": {"type": "string", "enum": [text], "enumNames": [text]},
            "many": {"type": "array", "title": text, "items": {"type": "string", "enum": [text]}},
            "number": {"type": "integer", "title": text, "default": text, "minimum": text},
        },
        "required": [text],
    }
    await store.create_task(
        NewTask(
            ttl_ms=60_000,
            task_id=text,
            owner=text,
            request=TaskRequest(name=text, arguments_json="{}"),
            worker=text,
        )
    )
    await store.update_task(text, status_message=text, progress=Progress(1, 2, text))
    for key, method, params in (
        (text, "elicitation/create", {"message": text, "requestedSchema": form}),
        ("u", "elicitation/create", {"mode": "url", "message": text, "url": "javascript:alert(1)"}),
        ("v", "elicitation/create", {"mode": "url", "message": text, "url": f"https://x.example/{text}"}),
        ("s", "sampling/createMessage", {"messages": [text], "systemPrompt": text}),
        ("o", text, {"x": text}),
    ):
        await store.ask(text, QueuedMessage.request(key, method, params))  # type: ignore[attr-defined]
    ended = await store.create_task(NewTask(ttl_ms=60_000, request=TaskRequest(name=text)))
    await store.finish_task(ended.task_id, Outcome.failed(text, data={"x": text}))
    pages = [
        await visitor.get(path, **{"accept-language": "x"})
        for path in ("/", "/waiting", "/workers", "/statistics", f"/task?id={ended.task_id}&values=1")
    ]
    params = {"id": text, "values": "1", "tool": text, "owner": text, "text": text, "said": text, "span": text}
    pages += [await visitor.http.get(path, params=params) for path in ("/task", "/", "/statistics")]
    pages.append(
        await visitor.send("/answer", {"task": text, "key": text, "action": text, f"field.{text}": text, "x": text})
    )
    pages.append(await visitor.send("/cancel", {"task": ended.task_id}))
    for page in pages:
        assert page.status_code in (200, 409, 422), page.text
        assert "<img" not in page.text
        assert "<script>" not in page.text
        assert 'href="javascript' not in page.text
        assert "213999" not in page.text
        assert not {"\u202e", "\x1b"} & set(page.text)
    assert "&lt;img src=x onerror=alert(1)&gt;" in pages[0].text


async def test_a_store_that_is_down_is_an_error_page() -> None:
    class Down(InMemoryTaskStore):
        async def count_tasks(self) -> Any:
            raise StoreUnavailableError("it is down")

    page = await Visitor(dashboard(Down())).get("/")
    assert page.status_code == 503
    assert "The store cannot be used now: it is down" in page.text
    assert page.headers["content-security-policy"]


# -- the live part


both_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


@both_loops
async def test_a_task_is_followed_until_it_ends(anyio_backend: str) -> None:
    async with InMemoryTaskStore() as store:
        await store.create_task(NewTask(ttl_ms=60_000, task_id="task", request=TaskRequest(name="build")))
        app = dashboard(store)
        visitor = Visitor(app)
        page = await visitor.get("/task?id=task")
        cookies = "; ".join(f"{name}={value}" for name, value in visitor.http.cookies.items())
        async with following(app, "/events/task", "id=task", cookies) as stream:
            first = await stream.until("regions")
            assert set(first) == {"state", "actions", "questions", "facts", "history"}
            for _, digest, html in (item for items in first.values() for item in items):
                assert f'data-hash="{digest}"' in html
                assert html in page.text  # so that a browser keeps what it has
            await store.update_task("task", status_message="nearly <b>", progress=Progress(9, 10))
            changed = await stream.until("regions", "nearly")
            assert "actions" not in changed  # it is the same as before
            ((_, _, html),) = changed["state"]
            assert "nearly &lt;b&gt;" in html
            await store.finish_task("task", Outcome.failed("no paper"))
            await stream.until("regions", "no paper")
            await stream.until("end")
            with anyio.fail_after(PATIENCE):
                await stream.ended.wait()


@both_loops
async def test_a_live_page_ends_when_the_browser_leaves_or_the_server_stops(anyio_backend: str) -> None:
    async with InMemoryTaskStore() as store:
        await store.create_task(NewTask(ttl_ms=60_000, task_id="task"))
        app = dashboard(store)
        for path, query in (("/events/", ""), ("/events/task", "id=task"), ("/events/workers", "")):
            async with following(app, path, query) as stream:
                await stream.until("regions")
            async with following(app, path, query) as stream:
                await stream.until("regions")
                await store.update_task("task", status_message="more")
                app.state.streams.close()
                with anyio.fail_after(PATIENCE):
                    await stream.ended.wait()
            async with following(app, path, query) as stream:
                with anyio.fail_after(PATIENCE):
                    await stream.ended.wait()
                assert stream.status == 503
            app = dashboard(store)


async def test_a_live_page_tells_that_its_task_is_gone() -> None:
    async with InMemoryTaskStore() as store:
        await store.create_task(NewTask(ttl_ms=60_000, task_id="task"))
        async with following(dashboard(store), "/events/task", "id=task") as stream:
            await stream.until("regions")
            await store.delete_task("task")
            await stream.until("gone")


async def test_the_number_of_live_pages_is_bounded() -> None:
    async with InMemoryTaskStore() as store:
        app = dashboard(store)
        async with anyio.create_task_group() as group:
            opened = 0
            is_open = anyio.Event()

            async def follow() -> None:
                nonlocal opened
                async with following(app, "/events/workers") as stream:
                    await stream.until("regions")
                    opened += 1
                    if opened == 100:
                        is_open.set()
                    await anyio.sleep_forever()

            for _ in range(100):
                group.start_soon(follow)
            with anyio.fail_after(PATIENCE):
                await is_open.wait()
            async with following(app, "/events/workers") as stream:
                with anyio.fail_after(PATIENCE):
                    await stream.ended.wait()
                assert stream.status == 503
            group.cancel_scope.cancel()
