"""The promises page names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "promises.md").read_text("utf-8")


def named() -> list[tuple[str, str]]:
    """(file, test) of every test on the page; ``::name`` alone is of the file named before it; "" is a whole file."""
    found, file = [], ""
    for path, test in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", PAGE):
        file = path or file
        if path or test:
            found.append((file, test))
    return found


def test_the_page_names_tests() -> None:
    assert len(named()) > 50


@pytest.mark.parametrize(("file", "test"), sorted(set(named())))
def test_a_named_test_exists(file: str, test: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    assert re.search(rf"^def {test}\(", text, re.MULTILINE) if test else "def test_" in text
