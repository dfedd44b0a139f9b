"""One ALFWorld game in this process, by TextWorld's PDDL environment.

Imported only by the worker: it needs the extra ``alfworld``, and a game's native code is best kept away from whoever
holds keys, money and memories.
"""

from __future__ import annotations

import ast
import copy
import functools
from pathlib import Path
from typing import Any

import fast_downward
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.envs.pddl import PddlEnv, textgen
from textworld.logic import Rule

# A game is translated twice by ``load`` and twice more by ``reset``; that is nearly all the time of a start.
fast_downward.pddl2sas = functools.lru_cache(maxsize=2)(fast_downward.pddl2sas)

# Every sentence a game says is derived from its grammar, whose texts and conditions are the same again and again; what
# is parsed once makes a step three times faster. Derivations change the symbols they are given, so each gets a copy.
_parse = textgen._parse_and_convert
_parsed = functools.lru_cache(maxsize=4096)(lambda text: _parse(text, rule_name="symbols"))
textgen._parse_and_convert = lambda text, **_: copy.deepcopy(_parsed(text))
Rule.parse_conjunctive_query = staticmethod(functools.lru_cache(maxsize=4096)(Rule.parse_conjunctive_query))


class Engine:
    """Loads games one after the other. Raises whatever TextWorld raises on files that are no game."""

    def __init__(self) -> None:
        self._pddl = PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True))
        self._env = AlfredDemangler(self._pddl)
        self._state: Any = None

    def start(self, file: Path) -> dict[str, Any]:
        """The scene at the beginning of a game; whatever was played before is over."""
        self._env.load(str(file))
        self._state = self._env.reset()
        return self._scene()

    def play(self, command: str) -> dict[str, Any]:
        """The scene after ``command``. One that is not admissible changes nothing, and the game says so."""
        self._state, _, _ = self._env.step(command)
        return self._scene()

    def walkthrough(self) -> list[str]:
        """The commands that are stored with the game as winning it; none if it has none."""
        return list(self._pddl.walkthrough or [])

    def plan(self) -> list[str]:
        """Commands that win from here, found by the planner: seconds to minutes. None if it finds none."""
        return list(self._pddl._pddl_state.replan(self._pddl._entity_infos))

    def _scene(self) -> dict[str, Any]:
        state = self._state
        return {
            "observation": state["feedback"].strip(),
            "commands": state["admissible_commands"],
            "inventory": self._inventory(),
            "won": bool(state["won"]),
            "done": bool(state["won"] or state["lost"]),
        }

    def _inventory(self) -> str:
        """What the command ``inventory`` would say, without playing it."""
        facts = list(self._pddl._pddl_state.facts)
        context = {
            "state": self._pddl._pddl_state,
            "facts": facts,
            "variables": {},
            "mapping": {},
            "entity_infos": self._pddl._entity_infos,
        }
        return str(self._pddl._logic.grammar.derive("#inventory.feedback#", context)).strip()


def _derive(self: Any, context: dict[str, Any] | None = None) -> list[Any]:
    """What TextWorld does with ``{o.name}`` in a game's grammar by ``eval``, for names and text only.

    A game is a file from elsewhere; no code in it is run.
    """
    variables = (context or self.context)["variables"]
    return [textgen.TerminalSymbol(_value(ast.parse(self.expression.strip(), mode="eval").body, variables))]


def _value(node: ast.expr, variables: dict[str, Any]) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name):
            return str(variables[name])
        case ast.Attribute(value=ast.Name(id=name), attr="id" | "name" | "definite" | "indefinite" as attribute):
            return str(getattr(variables[name], attribute))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left, variables) + _value(right, variables)
        case ast.BoolOp(op=ast.Or(), values=values):
            return next(filter(None, (_value(value, variables) for value in values)), "")
    # Not a ValueError, which TextWorld takes for a command that is not admissible.
    raise RuntimeError(f"an expression that no ALFWorld game has: {ast.unparse(node)[:80]}")


textgen.EvalSymbol.derive = _derive
