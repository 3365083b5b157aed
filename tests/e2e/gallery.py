"""`make gallery`: screenshots of the page in front of a real swarm, into docs/gallery."""

import io
import os
import signal
from pathlib import Path

import trio
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from p2pgrid.swarm.local_swarm import LocalSwarm, open_local_swarm
from tests.e2e.browser import find_browser, open_browser
from tests.e2e.processes import gateway_to
from tests.real_model import NAME

GALLERY = Path(__file__).resolve().parents[2] / "docs" / "gallery"
BYTES_MAX = 200_000
COLOURS = 200
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 780}
LONG_MS = 120_000


async def main() -> None:
    path = find_browser()
    if path is None:
        raise SystemExit("the gallery needs a Chromium: install the package chromium and try again")
    GALLERY.mkdir(exist_ok=True)
    async with open_local_swarm(NAME, 5, span_max=10) as swarm, gateway_to(swarm.bootstrap_addresses) as url:
        await swarm.wait_serving()
        await trio.to_thread.run_sync(_take_all, path, url, swarm)


def _take_all(path: Path, url: str, swarm: LocalSwarm) -> None:
    with open_browser(path) as browser:
        page = _open(browser, url, "light", WIDE)
        _answer(page, "What is the capital of France?")
        _answer(page, "Name three rivers of Europe.")
        _save(page, "chat-light")
        page.click("nav >> text=Models")
        _save(page, "models-light")
        page.click("nav >> text=Chat")
        page.click("#new-chat")
        _begin(page, "Write a long story about a lighthouse keeper.")
        page.click("nav >> text=Swarm")
        _save(page, "swarm-light")
        page.click("nav >> text=Chat")
        page.click("#stop")
        page.close()

        page = _open(browser, url, "dark", WIDE)
        _begin(page, "Write a long story about a lighthouse keeper.")
        page.click("nav >> text=Swarm")
        victim = _only_holder(swarm)
        os.kill(victim, signal.SIGKILL)
        expect(page.locator("#map .gap")).to_be_visible()
        page.wait_for_timeout(150)
        _save(page, "loss-dark")
        page.click("nav >> text=Chat")
        expect(page.locator(".recovered")).to_be_visible(timeout=LONG_MS)
        _save(page, "recovered-dark")
        page.close()

        page = _open(browser, url, "light", PHONE)
        _answer(page, "What is the capital of France?")
        _save(page, "chat-phone")
        page.click("nav >> text=Swarm")
        page.wait_for_timeout(700)
        _save(page, "swarm-phone")
        page.close()


def _open(browser: Browser, url: str, theme: str, size: dict[str, int]) -> Page:
    page = browser.new_page(viewport=size, color_scheme=theme, device_scale_factor=1.5)  # type: ignore[arg-type]
    page.goto(url)
    expect(page.locator("#verdict")).to_contain_text(NAME, timeout=LONG_MS)
    return page


def _answer(page: Page, question: str) -> None:
    _ask(page, question)
    expect(page.locator(".message").last.locator(".how")).to_be_visible(timeout=LONG_MS)
    page.wait_for_timeout(800)


def _ask(page: Page, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def _begin(page: Page, question: str) -> None:
    _ask(page, question)
    expect(page.locator(".message").last.locator(".live")).to_contain_text("tokens/s", timeout=LONG_MS)
    page.wait_for_timeout(1500)


def _only_holder(swarm: LocalSwarm) -> int:
    spans = [node.layers for node in swarm.nodes()]
    return next(node.pid for node in swarm.nodes() if spans.count(node.layers) == 1)


def _save(page: Page, name: str) -> None:
    page.wait_for_timeout(300)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    target = GALLERY / f"{name}.png"
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    size = target.stat().st_size
    print(f"{target.name}: {size / 1000:.0f} kB")
    assert size <= BYTES_MAX


if __name__ == "__main__":
    trio.run(main)
