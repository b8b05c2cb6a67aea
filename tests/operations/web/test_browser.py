"""The dashboard in a real browser."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_task_runtime import Outcome, TaskRequest
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.questions import ask_question
from mcp_task_runtime.core.types import NewTask, Progress
from mcp_task_runtime.operations.web import dashboard
from mcp_task_runtime.stores.url import BundledTaskStore
from tests.operations.web.browser import CHROMIUM, Browser, Page, running_browser
from tests.operations.web.visitor import QUESTION, make, some_tasks

uvicorn = pytest.importorskip("uvicorn", reason="the extra `web` is not installed")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
async def site(store: BundledTaskStore) -> AsyncIterator[str]:
    """Serve the store, and return the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(dashboard(store), log_level="warning", lifespan="off"))
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve, [listener])
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True  # live pages are open, and do not hold it up


async def test_a_person_finds_a_task_follows_it_and_cancels_it(
    browser: Browser, site: str, store: BundledTaskStore
) -> None:
    await some_tasks(store)
    page = await browser.page()
    await page.open(f"{site}/")
    await page.until_text("Live: this page follows the changes.")
    await make(store, "eee-new", "brand-new")
    await page.until_text("brand-new")  # without a reload
    await page.run("document.querySelector('form.search details').open = true")
    await page.run("document.querySelector('#tool').value = 'build'")
    await page.click("form.search input[value=working]")
    await page.click("form.search button")
    await page.until(
        "location.search.includes('status=working') && document.querySelectorAll('#tasks li').length === 1"
    )
    await page.click("#tasks a")
    await page.until_text("About this task")
    await page.until_text("1 of 2")
    await page.until_text("Live: this page follows the changes.")
    await store.update_task("aaa-build", status_message="<b>nearly</b>", progress=Progress(9, 10))
    await page.until_text("<b>nearly</b>")
    await page.until("document.querySelector('progress').position === 0.9")
    await page.click("#actions summary")
    await page.click("#actions button.danger")
    await page.until_text("The task was cancelled.")
    record = await store.get_task("aaa-build")
    assert record is not None
    assert record.status == "cancelled"
    await page.click("#actions button")
    await page.until_text("This is a new task")
    assert "working" in await page.text()


async def test_a_form_stays_as_it_was_filled_while_the_page_follows_the_task(
    browser: Browser, site: str, store: BundledTaskStore
) -> None:
    await make(store, "task", "ask")
    answers: dict[str, Any] = {}

    async def ask(question: QueuedMessage) -> None:
        answer = await ask_question(store, store.message_queue, "task", question)
        assert answer is not None
        answers[question.key or ""] = answer.unwrap()

    second = QueuedMessage.request("q2", "elicitation/create", {"message": "And then?", "requestedSchema": {}})
    page = await browser.page(dark=True)
    async with anyio.create_task_group() as group:
        group.start_soon(ask, QUESTION)
        await page.open(f"{site}/task?id=task")
        await page.until_text("Publish it?")  # asked before or after it was opened
        await page.run("document.querySelector('input[type=number]').focus()")
        await page.type("4")
        await page.click("#questions input[type=checkbox]")
        group.start_soon(ask, second)
        await store.update_task("task", status_message="on and on")
        await page.until_text("And then?")
        await page.until_text("on and on")
        assert await page.run("document.activeElement.value") == "4"
        await page.press("Enter")
        await page.until_text("The answer was taken.")
        assert answers == {"q1": {"action": "accept", "content": {"ok": True, "copies": 4}}}
        await page.click("#questions button[value=decline]")
        await page.until("document.querySelector('.badge').textContent === 'working'")
    assert answers["q2"] == {"action": "decline"}


async def test_the_keyboard_is_enough_on_a_narrow_screen(browser: Browser, site: str, store: BundledTaskStore) -> None:
    await some_tasks(store)
    page = await browser.page(width=360, height=740)
    await page.open(f"{site}/")
    await page.press("Tab")
    assert await page.run("document.activeElement.textContent") == "Skip to the content"
    await page.tab_to("e.textContent === 'Waiting'")
    assert await page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    await page.press("Enter")
    await page.until_text("Publish it?")
    await page.tab_to("e.type === 'checkbox'")
    await page.press("Space")
    await page.tab_to("e.type === 'number'")
    await page.type("2")
    await page.tab_to("e.value === 'accept'")
    await page.press("Enter")
    await page.until_text("The answer was taken.")
    await page.tab_to("e.textContent === 'Tasks'")
    await page.press("Enter")
    await page.until("location.pathname === '/'")
    await page.tab_to("e.textContent === 'build' && e.href.includes('aaa')")
    await page.press("Enter")
    await page.until_text("About this task")
    await page.tab_to("e.tagName === 'SUMMARY'")
    await page.press("Enter")
    await page.tab_to("e.textContent === 'Cancel this task'")
    await page.press("Enter")
    await page.until_text("The task was cancelled.")


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1024, False)])
async def test_every_page_fits_and_has_no_serious_fault_of_accessibility(
    browser: Browser, site: str, store: BundledTaskStore, width: int, dark: bool
) -> None:
    pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    axe = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    await some_tasks(store)
    await make(store, "a-long-identifier-" * 6, "a_tool_with_a_long_name_" * 6, "owner" * 30, x="y" * 500)
    await store.update_task("a-long-identifier-" * 6, status_message="long" * 99)
    page = await browser.page(width=width, dark=dark)
    paths = ["/", "/waiting", "/workers", "/statistics", "/task?id=bbb", "/task?id=ddd", "/task?values=1&id=a-long"]
    for path in paths:
        await page.open(f"{site}{path}")
        assert await page.run("document.documentElement.scrollWidth <= innerWidth"), f"{path} is too wide"
        await page.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        assert await serious_faults(page, axe) == [], path


async def serious_faults(page: Page, axe: str) -> list[Any]:
    """Return what axe finds."""
    await page.run(axe + "; 0")
    found = await page.run("axe.run().then(found => found.violations)")
    return [
        (fault["id"], [node["html"] for node in fault["nodes"]])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


async def test_no_script_of_a_client_runs(browser: Browser, site: str, store: BundledTaskStore) -> None:
    attack = "<img src=x onerror='document.title=`owned`'><svg onload='document.title=`owned`'>"
    await make(store, "task", attack, attack, attack=attack)
    form = {"type": "object", "properties": {attack: {"type": "string", "title": attack, "default": attack}}}
    question = QueuedMessage.request(attack, "elicitation/create", {"message": attack, "requestedSchema": form})
    await store.ask("task", question)  # type: ignore[attr-defined]
    page = await browser.page()
    for path in ("/", "/waiting", "/statistics", "/task?id=task&values=1"):
        await page.open(f"{site}{path}")
        await page.until_text("<img src=x")
        if path != "/statistics":
            await page.until_text("Live: this page follows the changes.")
    await store.update_task("task", status_message=f"later {attack}")
    await page.until_text("later <img")
    assert await page.run("document.title") != "owned"
    assert await page.run("document.querySelectorAll('main img').length") == 0
    # And if a value were not escaped, the policy of the page would still stop it.
    await page.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=`owned`\">')")
    await page.run("new Promise(done => setTimeout(done, 100))")
    assert await page.run("document.title") != "owned"


async def test_the_picture_for_the_readme(browser: Browser, site: str, store: BundledTaskStore, tmp_path: Path) -> None:
    """Written where `MCP_TASKS_PICTURE` says."""

    async def new(tool: str, owner: str) -> str:
        return (await store.create_task(NewTask(ttl_ms=3_600_000, owner=owner, request=TaskRequest(name=tool)))).task_id

    await store.finish_task(await new("send_mail", "bob"), Outcome.failed("No route to bob@example.invalid"))
    await store.finish_task(await new("build_report", "ada"), Outcome.completed({"content": []}))
    for tool, message, done in (
        ("index_documents", "Reading document 412", 412),
        ("train_model", "Epoch 3", 150),
        ("build_report", "Collecting sources", 40),
    ):
        task_id = await new(tool, "ada")
        await store.update_task(task_id, status_message=message, progress=Progress(done, 600))
    await store.ask(await new("release", "bob"), QUESTION)  # type: ignore[attr-defined]
    page = await browser.page(width=800, height=480)
    await page.call("Emulation.setScrollbarsHidden", hidden=True)
    await page.open(f"{site}/")
    await page.until_text("Live: this page follows the changes.")
    picture = await page.picture()
    assert picture.startswith(b"\x89PNG")
    await anyio.Path(os.environ.get("MCP_TASKS_PICTURE", tmp_path / "dashboard.png")).write_bytes(picture)
