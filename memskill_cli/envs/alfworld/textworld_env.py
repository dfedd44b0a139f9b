"""Play an ALFWorld game in this process, with TextWorld's PDDL environment.

Only worker processes import this module. It needs the extra ``alfworld``, and native code of games must not run in a
process with API keys and memories.
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

from memskill_cli.envs.environment import Observation

# ``load`` and ``reset`` each translate a game twice, which takes nearly all the time of a start.
fast_downward.pddl2sas = functools.lru_cache(maxsize=2)(fast_downward.pddl2sas)

# Observations are derived from the game's grammar, whose texts and conditions repeat. Caching the parsed form makes a
# step three times faster. Derivations modify the symbols, so each gets a copy.
_parse = textgen._parse_and_convert
_parsed = functools.lru_cache(maxsize=4096)(lambda text: _parse(text, rule_name="symbols"))
textgen._parse_and_convert = lambda text, **_: copy.deepcopy(_parsed(text))
Rule.parse_conjunctive_query = staticmethod(functools.lru_cache(maxsize=4096)(Rule.parse_conjunctive_query))


class TextWorldEnv:
    """Loads games one after the other. For invalid files it raises any exception of TextWorld."""

    def __init__(self) -> None:
        self._pddl = PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True))
        self._env = AlfredDemangler(self._pddl)
        self._state: Any = None

    def start(self, file: Path) -> Observation:
        """Load a game and return its first observation."""
        self._env.load(str(file))
        self._state = self._env.reset()
        return self._observation()

    def play(self, command: str) -> Observation:
        """The observation after ``command``. An inadmissible command changes nothing; the observation says so."""
        self._state, _, _ = self._env.step(command)
        return self._observation()

    def walkthrough(self) -> list[str]:
        """The winning commands stored with the game; empty if there are none."""
        return list(self._pddl.walkthrough or [])

    def plan(self) -> list[str]:
        """Winning commands from the current state, found by the planner (seconds to minutes); else empty."""
        return list(self._pddl._pddl_state.replan(self._pddl._entity_infos))

    def _observation(self) -> Observation:
        state = self._state
        won, commands = bool(state["won"]), tuple(state["admissible_commands"])
        return Observation(state["feedback"].strip(), commands, self._inventory(), won, bool(won or state["lost"]))

    def _inventory(self) -> str:
        """The observation of the command ``inventory``, without playing it."""
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
    """Replaces TextWorld's ``eval`` of ``{o.name}`` in a game's grammar; supports names and text only.

    A game file is untrusted, so its code must not run.
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
    # Not a ValueError: TextWorld would treat it as an inadmissible command.
    raise RuntimeError(f"unsupported expression in the game file: {ast.unparse(node)[:80]}")


textgen.EvalSymbol.derive = _derive
