"""What models are asked, one template a file: the fixed part of a prompt, sent as its system message.

What changes (skills, memories, span, question) follows in the user message between tags, what repeats before what
changes, so that a provider's prefix caching pays. Text from conversations and models is never treated as a template,
and it is put between the tags as it is, but for what looks like one of these tags or like the number of a memory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources

Message = dict[str, str]
OURS = "task"
"""The part that is a template itself, and may speak of the others."""
_FALSE_NUMBER = re.compile(r"(?<=[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])(?=[ \t]*\[\d+\])")


@cache
def template(name: str) -> str:
    return resources.files(__package__).joinpath(f"{name}.md").read_text("utf-8").strip()


def digest(*, designer: bool) -> str:
    """12 hex digits that name the wording of all templates, with or without those of the ``designer``."""
    folder = resources.files(__package__)
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".md"))
    wording = {
        name: template(name.removesuffix(".md")) for name in names if designer or not name.startswith("designer")
    }
    return hashlib.sha256(repr(sorted(wording.items())).encode()).hexdigest()[:12]


def messages(name: str, **parts: str) -> list[Message]:
    """System message ``name`` and a user message of the ``parts`` that are not empty, each in its tag, in order.

    A part ends where its tag does: a tag of this message within a part is written ``&lt;span>``.
    """
    false_tag = _tag(tuple(parts))
    fenced = {tag: text if tag == OURS else false_tag.sub("&lt;", text) for tag, text in parts.items() if text}
    body = "\n\n".join(f"<{tag}>\n{text}\n</{tag}>" for tag, text in fenced.items())
    return [{"role": "system", "content": template(name)}, {"role": "user", "content": body}]


def numbered(texts: Iterable[str]) -> str:
    """Memories as the executor's indices mean them: one line each, ``[i] text``."""
    return "\n".join(f"[{i}] {' '.join(text.split())}" for i, text in enumerate(texts)) or "(none)"


def blocks(texts: Iterable[str]) -> str:
    """Memories as an answer is found in them: ``[i] text``, with their own line breaks.

    A line within one that begins like the next memory does is written ``· [1] …``.
    """
    return "\n".join(f"[{i}] {_FALSE_NUMBER.sub('· ', text.strip())}" for i, text in enumerate(texts)) or "(none)"


@cache
def _tag(names: tuple[str, ...]) -> re.Pattern[str]:
    """The beginning of an opening or closing tag of one of these names, however it is spaced or spelt."""
    return re.compile(rf"<(?=\s*(?:/\s*)?(?:{'|'.join(map(re.escape, names))})\s*(?:/\s*)?>)", re.IGNORECASE)
