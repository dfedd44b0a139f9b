"""A rule-based actor for ALFWorld, and a parser of procedures and expert trajectories.

Without memories the actor can only search a room, and carry an object named in the goal to a place named in the goal.
From memories it learns, for example, that objects are cleaned in a sink. It follows the memory whose goal has the same
wording as its own goal except for names, replaces these names, and first searches where memories found such objects. A
memory may be a procedure (:attr:`Procedure.text`) or a raw trajectory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

IDLE = "look"
"""Command of the actor if no rule applies."""
_NUMBER = re.compile(r" \d+\b")
_WRITTEN = re.compile(r"Goal:\s*(?P<goal>[^\n]+?)\.?\s+Steps:\s*(?P<steps>[^\n]+)")
_RAW = re.compile(r"Goal:\s*(?P<goal>.+?)\.?\s+Environment:(?P<rest>.*?)(?=\bGoal:|\Z)", re.S)
_COMMAND = re.compile(r"\bAgent:\s*(.+?)\s*(?=Environment:|Agent:|\Z)", re.S)
_MOVE = re.compile(r"^> (?P<command>.+)\n?(?P<seen>(?:(?!> ).*\n?)*)", re.M)
_PASSING = ("go to ", "open ", "close ", "examine ", "look", "inventory", "help")
_SMALL = frozenset({"a", "an", "some", "the", "in", "on", "with", "to", "from", "it", "and", "them", "at", "under"})
_NO_NAMES = frozenset({"put", "find", "look", "examine", "clean", "heat", "hot", "cool", "two"})


class PlanStep(NamedTuple):
    """A command without numbers: verb, object and place ("" if the command names no place)."""

    verb: str
    thing: str
    place: str

    @classmethod
    def of(cls, command: str) -> PlanStep:
        verb, thing, *rest = [*_NUMBER.sub("", command.strip()).split(), ""]
        return cls(verb, thing, rest[-2] if len(rest) > 1 else "")

    def fulfils(self, wanted: PlanStep) -> bool:
        """Whether this step fulfils ``wanted``. An object may be taken from any place."""
        return self[:2] == wanted[:2] and (self.verb == "take" or wanted.place in ("", self.place))


class Procedure(NamedTuple):
    """A goal, and the commands that reached it, without numbers and without moves or inspections."""

    goal: str
    steps: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"Goal: {self.goal}. Steps: {'; '.join(self.steps)}."


class GameState(NamedTuple):
    """The actor's input: parts of the prompt."""

    goal: str
    history: str
    commands: tuple[str, ...]


def procedures(text: str) -> list[Procedure]:
    """The procedures in ``text``, written as procedures or as raw trajectories."""
    written = [
        Procedure(m["goal"], tuple(filter(None, (s.strip(" .") for s in m["steps"].split(";")))))
        for m in _WRITTEN.finditer(text)
    ]
    raw = [Procedure(" ".join(m["goal"].split()), _changing(_COMMAND.findall(m["rest"]))) for m in _RAW.finditer(text)]
    return [procedure for procedure in (*written, *raw) if procedure.steps]


def choose(observation: GameState, memories: Sequence[str]) -> str:
    """The next command: the next step of the plan if it is admissible, else a command that leads to it."""
    known = [procedure for memory in memories for procedure in procedures(memory)]
    steps = [PlanStep.of(step) for step in plan(observation.goal, known)] or _default_plan(observation.goal)
    moves = [(m["command"].strip(), m["seen"]) for m in _MOVE.finditer(observation.history)]
    played = [command for command, _ in moves]
    done = 0
    for command in played:
        done += done < len(steps) and PlanStep.of(command).fulfils(steps[done])
    if done == len(steps):
        return IDLE
    wanted = steps[done]
    gone = {command.partition(" from ")[0] for command in played if command.startswith("take ")}
    possible = [
        c for c in observation.commands if PlanStep.of(c).fulfils(wanted) and c.partition(" from ")[0] not in gone
    ]
    if possible:
        return max(possible, key=lambda c: c.rpartition(" to ")[2] in _targets(played))
    return _search(wanted, observation.commands, moves, _known_places(known, wanted))


def plan(goal: str, known: Sequence[Procedure]) -> tuple[str, ...]:
    """The steps of the procedure whose goal is most similar to ``goal``, with names replaced; empty if none fits."""
    matches = [(names, procedure) for procedure in known if (names := _replacements(procedure, goal)) is not None]
    if not matches:
        return ()
    names, procedure = min(matches, key=lambda pair: len(pair[0]))
    return tuple(" ".join(names.get(word, word) for word in step.split()) for step in procedure.steps)


def _replacements(procedure: Procedure, goal: str) -> dict[str, str] | None:
    """Names in the procedure's goal to those in ``goal``; None if the goals differ in other words."""
    ours, theirs = _words(goal), _words(procedure.goal)
    if len(ours) != len(theirs):
        return None
    differ = {their: our for their, our in zip(theirs, ours, strict=True) if their != our}
    named = {word for step in procedure.steps for word in step.split()[1:]}
    return differ if differ.keys() <= named else None


def _default_plan(goal: str) -> list[PlanStep]:
    """The plan without a matching memory: take the first object named in the goal to the last one."""
    names = [word for word in _words(goal) if word not in _NO_NAMES]
    return [PlanStep("take", names[0], ""), PlanStep("move", names[0], names[-1])] if names else []


def _search(wanted: PlanStep, commands: Sequence[str], moves: Sequence[tuple[str, str]], hints: set[str]) -> str:
    """Open the current place, else go to a place where ``wanted`` may be possible; :data:`IDLE` if all was searched."""
    played = [command for command, _ in moves]
    here = next((c.removeprefix("go to ") for c in reversed(played) if c.startswith("go to ")), "")
    if f"open {here}" in commands and (_relevant(here, wanted) or wanted.verb in ("take", "use")):
        return f"open {here}"
    visits = Counter(c.removeprefix("go to ") for c in played if c.startswith("go to "))
    seen = _sightings(moves, wanted.thing)
    ways = []
    for command in commands:
        place = command.removeprefix("go to ")
        if place == command:
            continue
        kind = _NUMBER.sub("", place)
        if wanted.verb in ("take", "use"):
            if visits[place] and place not in seen:
                continue
            rank: tuple[int, ...] = (place not in seen, visits[place], kind not in hints)
        elif kind == wanted.place:
            rank = (place not in _targets(played), visits[place])
        else:
            continue
        ways.append((rank, _natural(place), command))
    return min(ways)[2] if ways else IDLE


def _relevant(place: str, wanted: PlanStep) -> bool:
    return _NUMBER.sub("", place) == wanted.place


def _sightings(moves: Sequence[tuple[str, str]], thing: str) -> set[str]:
    """Places with a visible ``thing`` that was not taken."""
    taken = {c.partition(" from ")[0].removeprefix("take ") for c, _ in moves if c.startswith("take ")}
    return {
        re.sub(r"^(go to|open) ", "", command)
        for command, seen in moves
        if command.startswith(("go to ", "open ")) and set(re.findall(rf"\b{re.escape(thing)} \d+", seen)) - taken
    }


def _targets(played: Sequence[str]) -> set[str]:
    """Places where objects were put."""
    return {command.rpartition(" to ")[2] for command in played if command.startswith("move ")}


def _known_places(known: Sequence[Procedure], wanted: PlanStep) -> set[str]:
    """Kinds of places from which, in the known procedures, such an object was taken."""
    steps = [PlanStep.of(step) for procedure in known for step in procedure.steps]
    return {step.place for step in steps if step.verb == "take" and step.thing == wanted.thing}


def _changing(commands: Sequence[str]) -> tuple[str, ...]:
    """The commands that change something, without numbers."""
    return tuple(_NUMBER.sub("", command) for command in commands if not command.startswith(_PASSING))


def _words(goal: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", goal.lower()) if word not in _SMALL]


def _natural(place: str) -> tuple[str, int]:
    kind, _, number = place.rpartition(" ")
    return kind, int(number) if number.isdigit() else 0
