"""Rules that act in ALFWorld: a reader of procedures, and a writer of them from expert trajectories.

The actor knows how to search a room and how to carry a thing named in the goal to a place named in the goal, no more:
that things are cleaned in a sink or looked at under a lamp it knows only from memories. It follows the memory whose
goal is worded like its own, with the names exchanged, and looks first where memories say that such things were found.
A memory may be a procedure as :func:`procedures` writes it or a raw trajectory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

IDLE = "look"
"""What the actor does when it knows no better."""
_NUMBER = re.compile(r" \d+\b")
_TOLD = re.compile(r"Goal:\s*(?P<goal>[^\n]+?)\.?\s+Steps:\s*(?P<steps>[^\n]+)")
_RAW = re.compile(r"Goal:\s*(?P<goal>.+?)\.?\s+Environment:(?P<rest>.*?)(?=\bGoal:|\Z)", re.S)
_COMMAND = re.compile(r"\bAgent:\s*(.+?)\s*(?=Environment:|Agent:|\Z)", re.S)
_MOVE = re.compile(r"^> (?P<command>.+)\n?(?P<seen>(?:(?!> ).*\n?)*)", re.M)
_PASSING = ("go to ", "open ", "close ", "examine ", "look", "inventory", "help")
_SMALL = frozenset({"a", "an", "some", "the", "in", "on", "with", "to", "from", "it", "and", "them", "at", "under"})
_NO_NAMES = frozenset({"put", "find", "look", "examine", "clean", "heat", "hot", "cool", "two"})


class Step(NamedTuple):
    """A command without numbers: what is done, with what, and where ("" if the command names no place)."""

    verb: str
    thing: str
    place: str

    @classmethod
    def of(cls, command: str) -> Step:
        verb, thing, *rest = [*_NUMBER.sub("", command.strip()).split(), ""]
        return cls(verb, thing, rest[-2] if len(rest) > 1 else "")

    def meets(self, wanted: Step) -> bool:
        """Whether doing this is doing what is ``wanted``; a thing may be taken from anywhere."""
        return self[:2] == wanted[:2] and (self.verb == "take" or wanted.place in ("", self.place))


class Tip(NamedTuple):
    """A procedure: the goal it reached, and the commands that mattered, without numbers."""

    goal: str
    steps: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"Goal: {self.goal}. Steps: {'; '.join(self.steps)}."


class Scene(NamedTuple):
    """What the actor is shown."""

    goal: str
    history: str
    commands: tuple[str, ...]


def procedures(text: str) -> list[Tip]:
    """The procedures in ``text``, told as such or as trajectories."""
    told = [
        Tip(m["goal"], tuple(filter(None, (s.strip(" .") for s in m["steps"].split(";")))))
        for m in _TOLD.finditer(text)
    ]
    raw = [Tip(" ".join(m["goal"].split()), _essence(_COMMAND.findall(m["rest"]))) for m in _RAW.finditer(text)]
    return [tip for tip in (*told, *raw) if tip.steps]


def choose(scene: Scene, memories: Sequence[str]) -> str:
    """The next command: the next step of the plan if it is possible here, else a step on the way to it."""
    tips = [tip for memory in memories for tip in procedures(memory)]
    steps = [Step.of(step) for step in plan(scene.goal, tips)] or _carry(scene.goal)
    moves = [(m["command"].strip(), m["seen"]) for m in _MOVE.finditer(scene.history)]
    played = [command for command, _ in moves]
    done = 0
    for command in played:
        done += done < len(steps) and Step.of(command).meets(steps[done])
    if done == len(steps):
        return IDLE
    wanted = steps[done]
    gone = {command.partition(" from ")[0] for command in played if command.startswith("take ")}
    possible = [c for c in scene.commands if Step.of(c).meets(wanted) and c.partition(" from ")[0] not in gone]
    if possible:
        return max(possible, key=lambda c: c.rpartition(" to ")[2] in _targets(played))
    return _on_the_way(wanted, scene.commands, moves, _found(tips, wanted))


def plan(goal: str, tips: Sequence[Tip]) -> tuple[str, ...]:
    """The steps of the tip whose goal is worded most like ``goal``, with the names exchanged; none if none is."""
    exchanged = [(names, tip) for tip in tips if (names := _exchanged(tip, goal)) is not None]
    if not exchanged:
        return ()
    names, tip = min(exchanged, key=lambda pair: len(pair[0]))
    return tuple(" ".join(names.get(word, word) for word in step.split()) for step in tip.steps)


def _exchanged(tip: Tip, goal: str) -> dict[str, str] | None:
    """Which names of the tip's goal stand for which of ``goal``; None if the goals differ in more than names."""
    ours, theirs = _words(goal), _words(tip.goal)
    if len(ours) != len(theirs):
        return None
    differ = {their: our for their, our in zip(theirs, ours, strict=True) if their != our}
    named = {word for step in tip.steps for word in step.split()[1:]}
    return differ if differ.keys() <= named else None


def _carry(goal: str) -> list[Step]:
    """What one does without advice: take what the goal names first to what it names last."""
    names = [word for word in _words(goal) if word not in _NO_NAMES]
    return [Step("take", names[0], ""), Step("move", names[0], names[-1])] if names else []


def _on_the_way(wanted: Step, commands: Sequence[str], moves: Sequence[tuple[str, str]], hints: set[str]) -> str:
    """Open what one has just come to, else go where the step may be possible; :data:`IDLE` when all was searched."""
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


def _relevant(place: str, wanted: Step) -> bool:
    return _NUMBER.sub("", place) == wanted.place


def _sightings(moves: Sequence[tuple[str, str]], thing: str) -> set[str]:
    """Places where a ``thing`` was seen that has not been taken."""
    taken = {c.partition(" from ")[0].removeprefix("take ") for c, _ in moves if c.startswith("take ")}
    return {
        re.sub(r"^(go to|open) ", "", command)
        for command, seen in moves
        if command.startswith(("go to ", "open ")) and set(re.findall(rf"\b{re.escape(thing)} \d+", seen)) - taken
    }


def _targets(played: Sequence[str]) -> set[str]:
    """Where things were put."""
    return {command.rpartition(" to ")[2] for command in played if command.startswith("move ")}


def _found(tips: Sequence[Tip], wanted: Step) -> set[str]:
    """Kinds of places where, by the memories, such a thing was taken from."""
    steps = [Step.of(step) for tip in tips for step in tip.steps]
    return {step.place for step in steps if step.verb == "take" and step.thing == wanted.thing}


def _essence(commands: Sequence[str]) -> tuple[str, ...]:
    """Commands that change something, without numbers."""
    return tuple(_NUMBER.sub("", command) for command in commands if not command.startswith(_PASSING))


def _words(goal: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", goal.lower()) if word not in _SMALL]


def _natural(place: str) -> tuple[str, int]:
    kind, _, number = place.rpartition(" ")
    return kind, int(number) if number.isdigit() else 0
