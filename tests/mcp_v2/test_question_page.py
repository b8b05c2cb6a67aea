"""The page for one question, which the user of a client opens where the client cannot show a form."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import anyio
import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("jinja2", reason="the extra `web` is not installed")

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount

from mcp_task_runtime import Inbox, InMemoryTaskStore
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.types import NewTask, TaskFilter, TaskPage, TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import StoreUnavailableError
from mcp_task_runtime.operations.web import dashboard
from tests.mcp_v2.in_process import connect_2025, memory_client
from tests.mcp_v2.raw_client import EXTENSION_ID, RawClient, accept
from tests.mcp_v2.schemas import Wire
from tests.mcp_v2.test_inbox import Office, text_of
from tests.operations.web.visitor import Visitor, csrf_of
from tests.support.patience import PATIENCE

SECRET = "a secret that is long enough"
PAGE = Inbox(3600, url="http://127.0.0.1:8321/tasks", secret=SECRET)
OPENS_PAGES: Wire = {"extensions": {EXTENSION_ID: {}}, "elicitation": {"url": {}}}


class Browser:
    """The browser of a client's user, in front of a dashboard that is mounted at /tasks."""

    def __init__(self, office: Office, **options: Any) -> None:
        app = Starlette(routes=[Mount("/tasks", dashboard(office.store, **{"inbox_secret": SECRET, **options}))])
        self.visitor = Visitor(app, base="")

    async def open(self, url: str) -> httpx.Response:
        """Open an address, and follow where it leads."""
        page = await self.visitor.get(url.removeprefix("http://127.0.0.1:8321"))
        while page.is_redirect:
            page = await self.visitor.get(page.headers["location"])
        return page

    async def send(self, page: httpx.Response, **fields: str) -> httpx.Response:
        """Send the form on a page."""
        action = re.search(r'<form method="post" action="([^"]+)"', page.text)
        assert action is not None
        return await self.visitor.send(unescape(action[1]), fields, csrf=csrf_of(page.text))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def address_of(client: RawClient, task_id: str) -> tuple[str, str]:
    """Wait until the client is to open an address; return the question's key and the address."""
    ((key, request),) = (await client.asked(task_id)).items()
    assert request["params"]["mode"] == "url"
    assert request["params"]["message"] == "Publish it?"
    return key, request["params"]["url"]


@pytest.mark.parametrize("tool", ["asks", "asks_by_itself"])
async def test_a_client_that_opens_addresses_gets_that_of_a_page_for_the_question(tool: str) -> None:
    office = Office(inbox=PAGE)
    browser = Browser(office)
    async with memory_client(office.mcp) as client:
        task_id = await client.start(tool, capabilities=OPENS_PAGES)
        key, address = await address_of(client, task_id)
        assert task_id not in address
        await client.update(task_id, {key: {"action": "accept"}})
        page = await browser.open(address)
        assert page.status_code == 200
        assert "Publish it?" in page.text
        assert not re.findall(r'href="/tasks/(?!static)', page.text)  # it leads nowhere else
        done = await browser.send(page, action="accept", **{"field.ok": "true"})
        assert "the answer was taken" in (await browser.open(done.headers["location"])).text
        assert await text_of(client, task_id) == "accept True"
        assert (await browser.open(address)).status_code == 404


async def test_a_page_needs_no_sign_in_and_opens_nothing_else() -> None:
    office = Office(inbox=PAGE)
    browser = Browser(office, token="a token that is long enough")
    async with memory_client(office.mcp) as client:
        task_id = await client.start("asks", capabilities=OPENS_PAGES)
        _, address = await address_of(client, task_id)
        assert "Publish it?" in (await browser.open(address)).text
        assert "Sign in" in (await browser.open("/tasks/waiting")).text


async def test_an_answer_of_an_operator_closes_the_question_of_the_client() -> None:
    office = Office(inbox=PAGE)
    async with memory_client(office.mcp) as client:
        task_id = await client.start("asks", capabilities=OPENS_PAGES)
        await address_of(client, task_id)
        (question,) = [each for each in await office.person.questions(task_id) if each.is_for_person]
        assert await office.person.answer(task_id, question.key or "", accept(ok=True))
        assert await text_of(client, task_id) == "accept True"


async def test_a_user_who_does_not_want_to_declines() -> None:
    office = Office(inbox=PAGE)
    async with memory_client(office.mcp) as client:
        task_id = await client.start("asks", capabilities=OPENS_PAGES)
        key, _ = await address_of(client, task_id)
        await client.update(task_id, {key: {"action": "decline"}})
        assert await text_of(client, task_id) == "decline None"


async def test_an_address_is_offered_through_an_outage_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    office = Office(inbox=PAGE)
    get_view = office.store.get_view
    failures = 0

    async def fail_once(*args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise StoreUnavailableError("The connection was lost")
        return await get_view(*args, **kwargs)

    monkeypatch.setattr(office.store, "get_view", fail_once)
    async with memory_client(office.mcp) as client:
        task_id = await client.start("asks", capabilities=OPENS_PAGES)
        await address_of(client, task_id)
        assert failures > 0


async def test_a_user_declines_through_an_outage_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    office = Office(inbox=PAGE)
    async with memory_client(office.mcp) as client:
        task_id = await client.start("asks", capabilities=OPENS_PAGES)
        key, _ = await address_of(client, task_id)
        outstanding = office.store.message_queue.outstanding
        is_lost = False

        async def fail_once(*args: Any) -> Any:
            nonlocal is_lost
            if not is_lost:
                is_lost = True
                raise StoreUnavailableError("The connection was lost")
            return await outstanding(*args)

        monkeypatch.setattr(office.store.message_queue, "outstanding", fail_once)
        await client.update(task_id, {key: {"action": "decline"}})
        assert await text_of(client, task_id) == "decline None"
        assert is_lost


async def test_only_an_address_of_the_server_shows_the_question_and_only_its_page_answers() -> None:
    office = Office(inbox=PAGE)
    browser = Browser(office)
    async with memory_client(office.mcp) as client:
        task_id = await client.start("asks", capabilities=OPENS_PAGES)
        _, address = await address_of(client, task_id)
        query = dict(parse_qsl(urlsplit(address).query))
        other = await client.start("asks", capabilities=OPENS_PAGES)
        wrong = [
            {**query, "token": "0" * 64},
            {**query, "token": ""},
            {**query, "token": "ü"},
            {**query, "until": str(int(query["until"]) + 1)},
            {**query, "until": "-1"},
            {**query, "id": other[:16]},
            {**query, "id": "nothing"},
            {**query, "key": "0" * 24},
            {name: value for name, value in query.items() if name != "key"},
        ]
        for changed in wrong:
            page = await browser.open(f"/tasks/question?{urlencode(changed)}")
            assert (page.status_code, "Publish it?" in page.text) == (404, False)
        assert (await Browser(office, inbox_secret="another secret, as long").open(address)).status_code == 404
        assert (await Browser(office, inbox_secret=None).open(address)).status_code == 404
        page = await browser.open(address)
        path = address.removeprefix("http://127.0.0.1:8321")
        fields = {"action": "accept", "field.ok": "true"}
        refused = [
            await browser.visitor.send(path, fields, csrf="wrong"),
            await browser.visitor.send(path, fields, csrf=csrf_of(page.text), origin="https://evil.example"),
            await browser.visitor.send(path, fields, csrf=csrf_of(page.text), origin=None),
        ]
        assert [reply.status_code for reply in refused] == [403, 403, 403]
        wrong_form = await browser.send(page, action="nonsense")
        assert (wrong_form.status_code, "Publish it?" in wrong_form.text) == (422, True)
        assert (await client.get(task_id))["status"] == "input_required"


async def test_an_address_is_good_until_its_time_has_passed() -> None:
    office = Office(inbox=PAGE)
    browser = Browser(office)
    async with memory_client(office.mcp) as client:
        task_id = await client.start("asks", capabilities=OPENS_PAGES)
        _, address = await address_of(client, task_id)
        key = dict(parse_qsl(urlsplit(address).query))["key"]
        now = office.store.clock.now()
        for ends, code in ((now + timedelta(hours=1), 200), (now - timedelta(seconds=1), 404)):
            made = PAGE.address_of(task_id, key, ends)
            assert made is not None
            assert (await browser.open(made)).status_code == code


class Backend(InMemoryTaskStore):
    """A store that counts what is read, and can be down."""

    reads = 0
    is_down = False

    def _look(self) -> None:
        self.reads += 1
        if self.is_down:
            raise StoreUnavailableError("db.internal:5432 cannot be reached")

    async def get_task(self, task_id: str) -> TaskRecord | None:
        self._look()
        return await super().get_task(task_id)

    async def get_view(self, task_id: str) -> TaskView | None:
        self._look()
        return await super().get_view(task_id)

    async def search_tasks(self, wanted: TaskFilter, **options: Any) -> TaskPage:
        self._look()
        return await super().search_tasks(wanted, **options)


async def asked_for_a_person(store: InMemoryTaskStore) -> str:
    """Make a task that asks, and return the address of the page for its question."""
    record = await store.create_task(NewTask(ttl_ms=60_000))
    key = f"{QueuedMessage.key_for_person('k')}.1"
    await store.ask(record.task_id, QueuedMessage.request(key, "elicitation/create", {"message": "Publish it?"}))
    address = PAGE.address_of(record.task_id, "k", store.clock.now() + timedelta(hours=1))
    assert address is not None
    return address.removeprefix("http://127.0.0.1:8321/tasks")


async def test_an_address_that_the_server_did_not_make_costs_no_read() -> None:
    async with Backend() as store:
        address = await asked_for_a_person(store)
        visitor = Visitor(dashboard(store, inbox_secret=SECRET))
        store.reads = 0
        for wrong in (address.replace("id=", "id=0"), address[:-1], address.replace("key=k", "key=l")):
            assert (await visitor.get(wrong)).status_code == 404
        assert store.reads == 0
        assert (await visitor.get(address)).status_code == 200
        assert store.reads > 0


async def test_a_page_says_that_the_store_is_down_and_not_where_it_is() -> None:
    async with Backend() as store:
        address = await asked_for_a_person(store)
        visitor = Visitor(dashboard(store, inbox_secret=SECRET))
        csrf = csrf_of((await visitor.get(address)).text)
        store.is_down = True
        for page in (await visitor.get(address), await visitor.send(address, {"action": "decline"}, csrf=csrf)):
            assert page.status_code == 503
            assert "Try again later" in page.text
            assert "db.internal" not in page.text
        store.is_down = False
        assert (await visitor.send(address, {"action": "decline"}, csrf=csrf)).is_redirect


async def test_a_client_of_2025_is_told_to_open_the_page_and_lists_work_that_waits_for_a_person_as_working() -> None:
    office = Office(inbox=PAGE)
    browser = Browser(office)
    opened: list[str] = []

    is_opened = anyio.Event()

    async def open_page(request: Wire) -> Wire:
        opened.append(request["params"]["url"])
        is_opened.set()
        return {"result": {"action": "accept"}}

    async with office.tasks, connect_2025(office.mcp, open_page, capabilities={"elicitation": {"url": {}}}) as client:
        task_id = await client.start("asks")
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        with anyio.fail_after(PATIENCE):
            await is_opened.wait()
            record = await office.store.get_task(task_id)
            assert record is not None
            while len(await office.person.questions(task_id)) > 1:  # until the client's answer is there
                record = await office.store.wait_for_update(task_id, after=record.revision)
        (listed,) = (await client.result("tasks/list", {}))["tasks"]
        assert (listed["status"], listed["statusMessage"]) == ("working", "Waiting for a person to answer")
        page = await browser.open(opened[0])
        await browser.send(page, action="accept", **{"field.ok": "true"})
        assert (await client.response(waiting))["result"]["content"][0]["text"] == "accept True"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "https://ops.example"}, "belong together"),
        ({"secret": SECRET}, "belong together"),
        ({"url": "https://ops.example", "secret": "short"}, "at least 16 characters"),
        ({"url": "ops.example/tasks", "secret": SECRET}, "address of a dashboard"),
        ({"url": "https://ops.example/?a=1", "secret": SECRET}, "address of a dashboard"),
        ({"url": "https://ops.example/#a", "secret": SECRET}, "address of a dashboard"),
        ({"url": "https:///tasks", "secret": SECRET}, "address of a dashboard"),
    ],
)
async def test_the_address_and_the_secret_are_checked(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Inbox(60, **options)
    with pytest.raises(ValueError, match="at least 16 characters"):
        dashboard(InMemoryTaskStore(), inbox_secret="short")
    assert SECRET not in repr(PAGE)
