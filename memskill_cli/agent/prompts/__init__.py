"""What models are asked, one template a file: the fixed part of a prompt, sent as its system message.

What changes (skills, memories, span, question) follows in the user message between tags, what repeats before what
changes, so that a provider's prefix caching pays. Text from conversations and models is put between the tags as it
is and is never treated as a template.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources

Message = dict[str, str]


@cache
def template(name: str) -> str:
    return resources.files(__package__).joinpath(f"{name}.md").read_text("utf-8").strip()


def messages(name: str, **parts: str) -> list[Message]:
    """System message ``name`` and a user message of the ``parts`` that are not empty, each in its tag, in order."""
    body = "\n\n".join(f"<{tag}>\n{text}\n</{tag}>" for tag, text in parts.items() if text)
    return [{"role": "system", "content": template(name)}, {"role": "user", "content": body}]


def numbered(texts: Iterable[str]) -> str:
    """Memories as the executor's indices mean them: one line each, ``[i] text``."""
    return "\n".join(f"[{i}] {' '.join(text.split())}" for i, text in enumerate(texts)) or "(none)"


def blocks(texts: Iterable[str]) -> str:
    """Memories as an answer is found in them: ``[i] text``, with their own line breaks."""
    return "\n".join(f"[{i}] {text.strip()}" for i, text in enumerate(texts)) or "(none)"
