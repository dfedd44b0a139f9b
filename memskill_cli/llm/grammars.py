"""GBNF grammars that constrain the replies of the embedded model.

Small models leave the required format, refer to memories that do not exist, and use actions that no selected skill has.
A grammar built for each call excludes such tokens. llama.cpp documents the notation (grammars/README.md).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import lru_cache

from memskill_cli.types import Action

MAX_CHARS = 200
"""Maximum length of a memory text, in characters. It stops small models that repeat themselves."""
_MAX_EXPLANATION = 150
_TEXT = rf"text ::= [^\x00-\x20\x7F] [^\x00-\x1F\x7F]{{0,{MAX_CHARS - 1}}}"
_JUDGE = rf"""
root ::= "{{\"explanation\": \"" char{{1,{_MAX_EXPLANATION}}} "\", \"score\": " ("0" | "0.5" | "1") "}}"
char ::= [^"\\\x00-\x1F\x7F] | "\\" ["\\/bfnrt]
""".lstrip()


def executor_grammar(actions: Collection[Action], memories: int, max_actions: int = 8) -> str:
    """Grammar of the executor's text format, without free text around it.

    It allows one to ``max_actions`` blocks with the given ``actions`` (those of the selected skills), or a single
    ``ACTION: NOOP``. NOOP is excluded when INSERT is allowed and no selected skill has NOOP: small models prefer NOOP,
    and almost every span contains something to store. INDEX is 0 … ``memories`` − 1, so UPDATE and DELETE are not
    allowed without memories. MEMORY is one line of at most :data:`MAX_CHARS` characters.
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
    allow_noop = Action.NOOP in actions or Action.INSERT not in actions
    noop = '"ACTION: NOOP" | ' if allow_noop else ""
    rules = [
        f"root ::= {noop}" + rf'block ("\n\n" block){{0,{max_actions - 1}}}',
        f"block ::= {' | '.join(blocks)}",
    ]
    if actions & {Action.INSERT, Action.UPDATE}:
        rules.append(_TEXT)
    if memories:
        rules.append("index ::= " + " | ".join(f'"{index}"' for index in range(memories)))
    return "\n".join(rules) + "\n"


def judge_grammar() -> str:
    """Grammar of the judge's JSON: a short explanation, then a score of 0, 0.5 or 1."""
    return _JUDGE


def command_grammar(commands: Sequence[str]) -> str:
    """Grammar that allows exactly one of ``commands``."""
    quoted = (json.dumps(command, ensure_ascii=False) for command in commands)
    return f"root ::= {' | '.join(quoted)}\n"
