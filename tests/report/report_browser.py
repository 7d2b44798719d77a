"""A page in a browser, and what went wrong in it."""

import os
import shutil
from typing import Any

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


def executable() -> str | None:
    named = os.environ.get("CHROMIUM")
    for name in (named, "chromium", "chromium-browser", "google-chrome"):
        if name and (found := shutil.which(name)):
            return found
    return None


class Tab:
    """A page with what went wrong in it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append("dialog"), dialog.dismiss()))
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready]", state="attached")
        self.page.wait_for_selector("#heat canvas")
        self.settle()

    def settle(self) -> None:
        """Wait until what is due has been drawn."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def pixels(self, selector: str, index: int = 0) -> dict[str, Any]:
        """Number of colours on a canvas, and a checksum of it."""
        found: dict[str, Any] = (
            self.page.locator(selector)
            .nth(index)
            .evaluate(
                """(canvas) => {
              const { width, height } = canvas;
              // A copy: reading the page's own canvas back would slow it down, and it would say so.
              const context = new OffscreenCanvas(width, height).getContext("2d");
              context.drawImage(canvas, 0, 0);
              const { data } = context.getImageData(0, 0, width, height);
              const colors = new Set();
              let sum = 0;
              for (let at = 0; at < data.length; at += 4) {
                const color = (data[at] << 16) | (data[at + 1] << 8) | data[at + 2];
                if (data[at + 3]) colors.add(color);
                sum = (sum * 31 + color + data[at + 3]) % 1000000007;
              }
              return { colors: colors.size, sum };
            }"""
            )
        )
        return found

    def go(self, selector: str) -> None:
        """Scroll to an element and wait until it has been drawn."""
        self.page.locator(selector).first.evaluate("(element) => element.scrollIntoView()")
        self.settle()
        self.settle()

    def box(self, selector: str) -> dict[str, float]:
        """Where the first of these elements is in the window."""
        found: dict[str, float] = self.page.locator(selector).first.bounding_box()
        return found

    def view(self) -> list[float]:
        """The first and the last step that the pictures show."""
        self.settle()
        found: list[float] = self.page.evaluate("GW.view.now()")
        return found

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        width: int = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return width
