"""The page in a real browser, in front of a real swarm."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from p2pgrid.swarm.local_swarm import LocalSwarm, open_local_swarm
from tests.e2e.browser import browser_or_skip, open_browser
from tests.e2e.processes import gateway_to
from tests.real_model import NAME, real_store

pytestmark = [pytest.mark.e2e, pytest.mark.alone, pytest.mark.model, pytest.mark.timeout(240)]

VIEWS = ("chat", "swarm", "models", "node")
GONE_MS_MAX = 2000
HEALED_MS_MAX = 30_000
ANSWER_MS_MAX = 60_000
HOSTILE = """<img src="/x.png" onerror="document.title=1"><script>document.title=1</script>
[here](https://example.com) **bold**"""


def test_the_page_shows_a_swarm_as_it_lives() -> None:
    path = browser_or_skip()
    real_store()
    trio.run(_show, path)


async def _show(path: Path) -> None:
    async with open_local_swarm(NAME, 4, span_max=10) as swarm, gateway_to(swarm.bootstrap_addresses) as url:
        await swarm.wait_serving()
        await trio.to_thread.run_sync(_look, path, url, swarm)


def _look(path: Path, url: str, swarm: LocalSwarm) -> None:
    with open_browser(path) as browser:
        with _well_behaved(browser, url) as page:
            _chat_streams_and_stops(page)
            _the_map_shows_every_node(page, swarm)
            _a_killed_node_leaves_and_is_replaced(page, swarm)
            _nobody_is_shut_out(page)
        with _well_behaved(browser, url) as page:
            _text_of_a_model_is_only_text(page)
        _a_key_is_asked_for(browser, url)


@contextmanager
def _well_behaved(browser: Browser, url: str) -> Iterator[Page]:
    """A page on which nothing may go wrong unseen, and which may ask nobody but its gateway."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    complaints: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(url)
    yield page
    page.close()
    assert complaints == []
    assert hosts == {urlsplit(url).netloc}


def _ask(page: Page, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def _chat_streams_and_stops(page: Page) -> None:
    expect(page.locator("#verdict")).to_contain_text(NAME, timeout=ANSWER_MS_MAX)
    _ask(page, "Write a long story about a lighthouse keeper.")
    answer = page.locator(".message.assistant").last
    expect(answer.locator(".live")).to_contain_text("tokens/s", timeout=ANSWER_MS_MAX)
    before = len(answer.locator(".text").inner_text())
    while len(answer.locator(".text").inner_text()) <= before:
        expect(answer).to_have_class("message assistant growing")
        page.wait_for_timeout(20)
    page.click("#stop")
    expect(answer.locator("footer")).to_contain_text("You stopped this answer.")

    page.evaluate("document.getElementById('max-tokens').value = 24")
    page.click("#new-chat")
    _ask(page, "What is the capital of France?")
    way = page.locator(".message.assistant .way li")
    expect(way.last).to_be_visible(timeout=ANSWER_MS_MAX)
    layers = [stage.split("\n")[0] for stage in way.all_inner_texts()]
    assert [layers[0].split(":")[0], layers[-1].split(":")[1]] == ["0", "30"]
    assert all(a.split(":")[1] == b.split(":")[0] for a, b in pairwise(layers))
    expect(page.locator(".how")).to_contain_text("tokens/s")


def _the_map_shows_every_node(page: Page, swarm: LocalSwarm) -> None:
    page.click("nav >> text=Swarm")
    for node in swarm.nodes():
        assert node.layers is not None
        bar = page.locator(f'#map .bar[data-peer="{node.peer_id}"]')
        expect(bar.locator(".bar-span")).to_have_text(f"{node.layers[0]}:{node.layers[1]}")
        bar.locator("button").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#details")).to_contain_text(node.peer_id)
    page.click("text=Table")
    expect(page.locator("#swarm-table tbody tr")).to_have_count(len(swarm.nodes()))
    page.click("[data-shape=map]")


def _a_killed_node_leaves_and_is_replaced(page: Page, swarm: LocalSwarm) -> None:
    spans = [node.layers for node in swarm.nodes()]
    victim = next(node for node in swarm.nodes() if spans.count(node.layers) == 1)
    assert victim.layers is not None
    layers = f"{victim.layers[0]}:{victim.layers[1]}"
    os.kill(victim.pid, signal.SIGKILL)
    expect(page.locator(f'#map .bar[data-peer="{victim.peer_id}"]:not(.gone)')).to_have_count(0, timeout=GONE_MS_MAX)
    expect(page.locator("#map .gap")).to_contain_text(layers)
    expect(page.locator("#happened")).to_contain_text(f"{victim.peer_id[-6:]} is gone")
    heir = page.locator('#map .bar[data-state="serving"]:not(.gone)').filter(has_text=layers)
    expect(heir).to_have_count(1, timeout=HEALED_MS_MAX)
    expect(page.locator("#map .gap")).to_have_count(0)


def _nobody_is_shut_out(page: Page) -> None:
    """No serious fault for assistive technology in any view, light and dark, and nothing wider than a phone."""
    for theme, width in (("light", 1280), ("dark", 1280), ("light", 360)):
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 800})
        for view in VIEWS:
            page.click(f'nav a[href="#{view}"]')
            options = {"runOnly": ["color-contrast"]} if theme == "dark" else {}
            faults = Axe().run(page, options=options).response["violations"]
            serious = [(fault["id"], fault["nodes"][0]["html"]) for fault in faults if fault["impact"] != "minor"]
            assert serious == [], f"{view}, {theme}, {width} pixels"
            assert page.evaluate("document.documentElement.scrollWidth") == width, view


def _text_of_a_model_is_only_text(page: Page) -> None:
    chunks = [{"choices": [{"delta": {"content": HOSTILE}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    _ask(page, "Be nasty.")
    expect(page.locator(".message.assistant strong")).to_have_text("bold")
    expect(page.locator(".message.assistant .text")).to_contain_text('onerror="document.title=1"')
    assert page.locator(".message.assistant :is(img, script, a)").count() == 0
    assert page.title() == "p2pgrid"


def _a_key_is_asked_for(browser: Browser, url: str) -> None:
    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "an API key is needed"}})

    page = browser.new_page()
    page.route("**/p2pgrid/events", guard)
    page.route("**/v1/chat/completions", guard)
    page.goto(url)
    expect(page.locator("#ask-key")).to_be_visible()
    page.click("text=Not now")
    expect(page.locator("#verdict")).to_have_attribute("title", "This gateway wants an API key.")
    page.evaluate("document.getElementById('max-tokens').value = 8")
    _ask(page, "Hello.")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#ask-key")).to_contain_text("not accepted")
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_contain_text(NAME)
    expect(page.locator(".how")).to_be_visible(timeout=ANSWER_MS_MAX)
    page.close()
