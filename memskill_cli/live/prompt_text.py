"""Memories and messages as a text for a prompt, within a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from memskill_cli.memory.retrieval import fitting
from memskill_cli.types import Retrieved
from memskill_cli.utils.tokens import count_tokens

_MEMORIES, _SAID = "What is known about the user:", "What was said earlier:"
_HEADINGS_TOKENS = 16


def prompt_text(memories: Sequence[Retrieved], said: Sequence[Retrieved], max_tokens: int, share: float) -> str:
    """The best memories and the best messages, each below a heading; "" if nothing is found or fits.

    At most ``max_tokens`` cl100k_base tokens. Memories get at most ``share`` of them if there are messages, and the
    messages get what is left, as in an evaluation.
    """
    room = max_tokens - _HEADINGS_TOKENS
    first = fitting(memories, int(share * room) if said else room)
    second = fitting(said, room - sum(count_tokens(found.item.described) for found in first)) if said else []
    while (text := _text(first, second)) and count_tokens(text) > max_tokens:
        (second or first).pop()
    return text


def _text(memories: Sequence[Retrieved], said: Sequence[Retrieved]) -> str:
    parts = ((_MEMORIES, memories), (_SAID, said))
    return "\n\n".join(
        "\n".join([heading, *(f"- {' '.join(found.item.described.split())}" for found in some)])
        for heading, some in parts
        if some
    )
