"""GBNF grammars that bind the embedded model to the reply forms it may use.

Small models drop out of a format, point at memories that are not there and use actions that no chosen skill has. A
grammar made for each call leaves them no such words. llama.cpp describes the notation (grammars/README.md).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import lru_cache

from memskill_cli.types import Action

MAX_CHARS = 200
"""Longest memory text, in characters: a small model that repeats itself is stopped there."""
_MAX_EXPLANATION = 150
_TEXT = rf"text ::= [^\x00-\x20\x7F] [^\x00-\x1F\x7F]{{0,{MAX_CHARS - 1}}}"
_JUDGE = rf"""
root ::= "{{\"explanation\": \"" char{{1,{_MAX_EXPLANATION}}} "\", \"score\": " ("0" | "0.5" | "1") "}}"
char ::= [^"\\\x00-\x1F\x7F] | "\\" ["\\/bfnrt]
""".lstrip()


def executor_grammar(actions: Collection[Action], memories: int, max_actions: int = 8) -> str:
    """The executor's text format with no word too many.

    One to ``max_actions`` blocks of the given ``actions`` (those of the chosen skills), or a lone ``ACTION: NOOP``.
    That is left out when an INSERT is possible and no chosen skill is for doing nothing: a small model would rather do
    nothing than read on, and a span nearly always holds something. INDEX is one of 0 … ``memories`` − 1, so that
    UPDATE and DELETE are impossible without memories; MEMORY is one line of at most :data:`MAX_CHARS` characters.
    """
    return _executor_grammar(frozenset(actions), memories, max_actions)


@lru_cache(maxsize=256)
def _executor_grammar(actions: frozenset[Action], memories: int, max_actions: int) -> str:
    forms = {
        Action.INSERT: r'"ACTION: INSERT\nMEMORY: " text',
        Action.UPDATE: r'"ACTION: UPDATE\nINDEX: " index "\nMEMORY: " text',
        Action.DELETE: r'"ACTION: DELETE\nINDEX: " index',
    }
    usable = {Action.INSERT, Action.UPDATE, Action.DELETE} if memories else {Action.INSERT}
    blocks = [form for action, form in forms.items() if action in actions & usable]
    if not blocks:
        return 'root ::= "ACTION: NOOP"\n'
    idle = Action.NOOP in actions or Action.INSERT not in actions
    nothing = '"ACTION: NOOP" | ' if idle else ""
    rules = [
        f"root ::= {nothing}" + rf'block ("\n\n" block){{0,{max_actions - 1}}}',
        f"block ::= {' | '.join(blocks)}",
    ]
    if actions & {Action.INSERT, Action.UPDATE}:
        rules.append(_TEXT)
    if memories:
        rules.append("index ::= " + " | ".join(f'"{index}"' for index in range(memories)))
    return "\n".join(rules) + "\n"


def judge_grammar() -> str:
    """The judge's JSON: a short explanation, then a score of 0, 0.5 or 1."""
    return _JUDGE


def command_grammar(commands: Sequence[str]) -> str:
    """One of ``commands``, as it is."""
    quoted = (json.dumps(command, ensure_ascii=False) for command in commands)
    return f"root ::= {' | '.join(quoted)}\n"
