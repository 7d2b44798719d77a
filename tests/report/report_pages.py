"""Reading the pages and the Markdown that the report writes."""

import re
from html.parser import HTMLParser

HOSTILE = "</script><script>alert(1)</script>\u2028<img src=x onerror=alert(2)>|`*_\"'&{{ 7*7 }}\n"


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of its tables' cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif self._open and self._open[-1] != "style":
            self.text.append(data)


def check_self_contained(html: str) -> None:
    """Nothing in the page asks for another file, and its policy admits nothing else."""
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "img", "base")
        assert "src" not in attributes
        assert "style" not in attributes, "the policy admits no style attributes"
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(found for tag, found in page.elements if "http-equiv" in found)["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def table(markdown: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    part = markdown.split(f"## {heading}", 1)[1]
    lines = []
    for line in part.splitlines()[1:]:
        if line.startswith("|"):
            lines.append(line)
        elif lines:
            break
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
