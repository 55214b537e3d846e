"""Chromium, the machine's own, driven by Playwright: for tests of what runs in a page.

A laptop without it skips; with `CI=true` that is a failure.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.servers import skip_or_fail

_ARGS = [
    "--no-sandbox",  # containers and CI run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_START_MS, STEP_MS = 120_000, 60_000


def needs(program: str, package: str) -> str:
    """Where a program is; skips, or fails in CI, where it is not."""
    found = shutil.which(program)
    if found is None:
        skip_or_fail(f"no {program} on PATH: apt-get install {package}")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for as long as the block lasts."""
    path = needs("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGS, timeout=_START_MS)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page whose complaints are kept: console errors, exceptions, requests that leave its origin."""

    def __init__(self, browser: Browser, url: str, *, path: str = "", **options: object) -> None:
        self.context = browser.new_context(**options)  # type: ignore[arg-type]
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(STEP_MS)
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda asked: self._look(asked.url, url))
        self.page.goto(url + path)

    def _look(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.foreign.append(asked)

    def close(self) -> None:
        """Close it, and what it kept."""
        self.context.close()
