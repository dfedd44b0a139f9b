"""Prompts. Each template file (``*.md``) is the fixed part of a prompt, sent as its system message.

The variable parts (skills, memories, span, question) follow in the user message between tags, the least variable
first, so that prefix caching of the provider works. Text from conversations and models is never interpreted as a
template. It is inserted unchanged, except that text that looks like one of these tags or like the number of a memory
is escaped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources

Message = dict[str, str]
TASK_TAG = "task"
"""The part whose text is a template itself. It is not escaped, because it may name the other tags."""
_LIKE_NUMBER = re.compile(r"(?<=[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])(?=[ \t]*\[\d+\])")


@cache
def template(name: str) -> str:
    """The text of the template ``name``. A ``name`` with whitespace is the text itself (from a dataset plug-in)."""
    if len(name.split()) != 1:
        return name.strip()
    return resources.files(__package__).joinpath(f"{name}.md").read_text("utf-8").strip()


def digest(*, designer: bool) -> str:
    """A digest (12 hex digits) of the text of all templates, with or without those of the ``designer``."""
    folder = resources.files(__package__)
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".md"))
    wording = {
        name: template(name.removesuffix(".md")) for name in names if designer or not name.startswith("designer")
    }
    return hashlib.sha256(repr(sorted(wording.items())).encode()).hexdigest()[:12]


def messages(name: str, **parts: str) -> list[Message]:
    """System message from the template ``name``, and a user message of the non-empty ``parts``, each in its tag.

    Tags of this message inside a part are escaped (``&lt;span>``), so that a part cannot end its own tag.
    """
    like_tag = _tag(tuple(parts))
    escaped = {tag: text if tag == TASK_TAG else like_tag.sub("&lt;", text) for tag, text in parts.items() if text}
    body = "\n\n".join(f"<{tag}>\n{text}\n</{tag}>" for tag, text in escaped.items())
    return [{"role": "system", "content": template(name)}, {"role": "user", "content": body}]


def numbered(texts: Iterable[str]) -> str:
    """Memories as a list with the executor's indices: one line each, ``[i] text``."""
    return "\n".join(f"[{i}] {' '.join(text.split())}" for i, text in enumerate(texts)) or "(none)"


def blocks(texts: Iterable[str]) -> str:
    """Memories for the answer model: ``[i] text``, with their own line breaks.

    A line inside a memory that looks like the start of another one is written ``· [1] …``.
    """
    return "\n".join(f"[{i}] {_LIKE_NUMBER.sub('· ', text.strip())}" for i, text in enumerate(texts)) or "(none)"


@cache
def _tag(names: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the ``<`` of an opening or closing tag with one of these names, in any case and spacing."""
    return re.compile(rf"<(?=\s*(?:/\s*)?(?:{'|'.join(map(re.escape, names))})\s*(?:/\s*)?>)", re.IGNORECASE)
