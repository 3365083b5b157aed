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
SETTLED_MS = 900
"""Until what moves has come to rest."""
STORY = "Write a short story about a lighthouse keeper."


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
        _answer(page, "Explain gravity in two sentences.")
        _answer(page, "Why is the sky blue?")
        _save(page, "chat-light")
        _show(page, "Models")
        _save(page, "models-light")
        _show(page, "Chat")
        _begin(page, STORY)
        _show(page, "Swarm")
        _save(page, "swarm-light")
        page.close()

        page = _open(browser, url, "light", PHONE)
        _answer(page, "Why is the sky blue?")
        _save(page, "chat-phone")
        _begin(page, STORY)
        _show(page, "Swarm")
        _save(page, "swarm-phone")
        page.close()

        page = _open(browser, url, "dark", WIDE)
        _begin(page, STORY)
        _show(page, "Swarm")
        os.kill(_only_holder(swarm), signal.SIGKILL)
        expect(page.locator("#map .gap")).to_be_visible()
        page.wait_for_timeout(350)
        _save(page, "loss-dark", at_once=True)
        _show(page, "Chat")
        expect(page.locator(".recovered")).to_be_visible(timeout=LONG_MS)
        _save(page, "recovered-dark")
        page.close()


def _open(browser: Browser, url: str, theme: str, size: dict[str, int]) -> Page:
    page = browser.new_page(viewport=size, color_scheme=theme, device_scale_factor=1.5)  # type: ignore[arg-type]
    page.goto(url)
    expect(page.locator("#verdict")).to_contain_text(NAME, timeout=LONG_MS)
    page.click("text=Settings")
    page.fill("#temperature", "0")
    page.fill("#max-tokens", "200")
    page.click("text=Settings")
    return page


def _show(page: Page, view: str) -> None:
    page.click(f"nav >> text={view}")
    page.wait_for_timeout(SETTLED_MS)


def _answer(page: Page, question: str) -> None:
    _ask(page, question)
    expect(page.locator(".message").last.locator(".how")).to_be_visible(timeout=LONG_MS)


def _ask(page: Page, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def _begin(page: Page, question: str) -> None:
    _ask(page, question)
    expect(page.locator(".message").last.locator(".live")).to_contain_text("tokens/s", timeout=LONG_MS)


def _only_holder(swarm: LocalSwarm) -> int:
    spans = [node.layers for node in swarm.nodes()]
    return next(node.pid for node in swarm.nodes() if spans.count(node.layers) == 1)


def _save(page: Page, name: str, *, at_once: bool = False) -> None:
    if not at_once:
        page.wait_for_timeout(SETTLED_MS)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    target = GALLERY / f"{name}.png"
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    size = target.stat().st_size
    print(f"{target.name}: {size / 1000:.0f} kB")
    assert size <= BYTES_MAX


if __name__ == "__main__":
    trio.run(main)
