"""One session of Claude Code: its messages in order of time, without the branches that the user went back from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from memskill_cli.datasets.conversations import Conversation, Message, Skipped
from memskill_cli.datasets.importers.records import OWNER
from memskill_cli.datasets.message_content import epoch


class Entry(NamedTuple):
    """A message with its id and that of the line before it; both may be ""."""

    uuid: str
    parent: str
    message: Message


@dataclass
class Session:
    """The messages of one session, in the order of the file."""

    name: str
    file: str
    title: str = ""
    project: str = ""
    by_machine: bool = False
    """The first prompt came from a program that uses the SDK, or from ``claude -p``."""
    entries: list[Entry] = field(default_factory=list)
    _parents: dict[str, str] = field(default_factory=dict)

    def link(self, uuid: str, parent: str) -> bool:
        """Note the parent of a line, also of one that is left out. False if there was a line with this id before."""
        if uuid and uuid in self._parents:
            return False
        if uuid:
            self._parents[uuid] = parent
        return True

    def add(self, entry: Entry, by_machine: bool) -> None:
        if not self.entries:
            self.by_machine = by_machine
        self.entries.append(entry)

    def conversation(self, skipped: Skipped) -> Conversation:
        entries = self._in_order()
        left = self._with_descendants(self._taken_back(entries))
        kept = [entry.message for entry in entries if entry.uuid not in left]
        if len(kept) < len(entries):
            skipped["messages of other branches"] += len(entries) - len(kept)
        metadata = {"id": self.name, "title": self.title, "project": self.project}
        return Conversation(
            OWNER, self.name, tuple(kept), {name: value for name, value in metadata.items() if value}, self.file
        )

    def _in_order(self) -> list[Entry]:
        """By time. A message without a time stays behind the one before it in the file."""
        clock, timed = 0.0, []
        for index, entry in enumerate(self.entries):
            time = entry.message.timestamp
            clock = epoch(time) if time else clock
            timed.append((clock, index, entry))
        return [entry for _, _, entry in sorted(timed)]

    def _taken_back(self, entries: list[Entry]) -> set[str]:
        """Prompts instead of which the user wrote another one: all but the last of those with one parent."""
        prompts = defaultdict(list)
        for entry in entries:
            if entry.message.role == "user" and entry.parent:
                prompts[entry.parent].append(entry.uuid)
        return {uuid for siblings in prompts.values() for uuid in siblings[:-1] if uuid}

    def _with_descendants(self, starts: set[str]) -> set[str]:
        """The ids of ``starts`` and of all lines after them."""
        if not starts:
            return starts
        children = defaultdict(list)
        for uuid, parent in self._parents.items():
            children[parent].append(uuid)
        found, waiting = set(starts), list(starts)
        while waiting:
            new = [uuid for uuid in children[waiting.pop()] if uuid not in found]
            found.update(new)
            waiting += new
        return found
