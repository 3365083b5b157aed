"""A headless Chromium of the machine's own, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
REQUIRED = "P2PGRID_TESTS_NEED_BROWSER"
"""Set in the environment where a missing browser is a failure, as in `.ci/run`."""


def find_browser() -> Path | None:
    found = (shutil.which(name) for name in NAMES)
    return next((Path(path) for path in found if path), None)


def browser_or_skip() -> Path:
    """The browser; without one the test is skipped, or fails where it must run."""
    path = find_browser()
    if path is None and os.environ.get(REQUIRED):
        pytest.fail(f"no {NAMES[0]} on this machine, and {REQUIRED} is set: install the package chromium")
    if path is None:
        pytest.skip("no Chromium on this machine: install it (apt-get install chromium) and run this test again")
    return path


@contextmanager
def open_browser(path: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS])
        try:
            yield browser
        finally:
            browser.close()
