"""Checks the links between the Markdown pages of the project: ``python tools/check_links.py``, as ``make lint`` does.

A relative link must lead to a file or folder of the project, and its ``#anchor`` to a heading of that page (named as
GitHub names headings). Links to other sites are not opened. Exit status 1 and one line for each wrong link.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = ("*.md", "docs/**/*.md", "examples/**/*.md", "data/*.md", "tests/*/*.md")
_HTML_ID = re.compile(r"""\b(?:id|name)=["']([^"']+)["']""")
_HTML_LINK = re.compile(r"""\b(?:href|src)=["']([^"']+)["']""")


def pages(root: Path) -> list[Path]:
    """The Markdown pages of the project."""
    return sorted({file for pattern in PAGES for file in root.glob(pattern)})


def problems(root: Path) -> list[str]:
    """One line for each link that leads nowhere."""
    found = []
    for page in pages(root):
        for line, target in links(page):
            if problem := _problem(root, page, target):
                found.append(f"{page.relative_to(root)}:{line}: {target}: {problem}")
    return found


def links(page: Path) -> Iterator[tuple[int, str]]:
    """The targets of links and images outside code, each with the line on which its block begins."""
    for token in _tokens(page):
        line = (token.map or [0])[0] + 1
        if token.type == "html_block":
            yield from ((line, target) for target in _HTML_LINK.findall(token.content))
        for child in token.children or ():
            if child.type == "html_inline":
                yield from ((line, target) for target in _HTML_LINK.findall(child.content))
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield line, str(target)


def anchors(page: Path) -> set[str]:
    """What ``#anchor`` may be on a page: its headings as GitHub names them, and ids in HTML."""
    found: set[str] = set()
    tokens = _tokens(page)
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and following is not None:
            found.add(_unused(_slug(_text(following)), found))
        if token.type == "html_block":
            found.update(_HTML_ID.findall(token.content))
        for child in token.children or ():
            if child.type == "html_inline":
                found.update(_HTML_ID.findall(child.content))
    return found


def _problem(root: Path, page: Path, target: str) -> str:
    """What is wrong with a link, or ""."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return ""
    if parts.path.startswith("/"):
        return "is not relative"
    file = (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()
    if not file.is_relative_to(root.resolve()):
        return "leads out of the project"
    if not file.exists():
        return "no such file"
    if parts.fragment and file.suffix == ".md" and unquote(parts.fragment) not in anchors(file):
        return "no such heading"
    return ""


@cache
def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))


def _text(heading: Token) -> str:
    """A heading without its marks."""
    return "".join(child.content for child in heading.children or () if child.type in ("text", "code_inline"))


def _slug(text: str) -> str:
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def _unused(slug: str, taken: set[str]) -> str:
    """The same heading once more on a page gets a number."""
    if slug not in taken:
        return slug
    number = next(n for n in range(1, len(taken) + 2) if f"{slug}-{n}" not in taken)
    return f"{slug}-{number}"


def main() -> int:
    found = problems(ROOT)
    print("\n".join(found) or f"links: {len(pages(ROOT))} pages are right")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
