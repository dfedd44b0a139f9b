"""``memory.protect``: a memory is not lost to a careless reply of the executor, and not written twice.

Small models overwrite memories with texts about other things, delete what the span does not mention, and write one
sentence many times. These rules decide, before the bank changes, what is applied:

- An UPDATE to a text about something else than its memory becomes an INSERT (``update_to_insert``), also if no
  selected skill inserts.
- A DELETE without support from the span is refused (``unsupported_delete``), and so is each supported one after the
  first ``DELETES_PER_REPLY`` of a reply (``too_many_deletes``).
- An INSERT that says what a memory says already is that memory seen again (``seen_again``): no second one is made.

The thresholds were chosen with the encoder ``minilm`` on training data (docs/evaluation-and-scores.md). With an encoder
whose cosines are higher, fewer updates and deletes are stopped; memories that differ are still not merged, because that
also needs equal words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.lexical import Analyzer
from memskill_cli.types import Action, ActionStatus, MemoryAction, Vector

OTHER_SHARE, OTHER_COSINE = 0.5, 0.6
"""Two texts are about different things if their common share of content words and their cosine are both below these."""
SUPPORT_SHARE, SUPPORT_COSINE = 0.6, 0.55
"""A span supports the deletion of a memory if it has this share of its content words, or this cosine with it."""
DELETES_PER_REPLY = 2
SAME_SHARE, SAME_COSINE = 0.8, 0.95
"""A text repeats a memory if it adds no content word, has this share of its content words, and this cosine with it."""
NEIGHBOURS = 5
"""A new text is compared with this many memories, those with the highest cosines, besides those with equal words."""
# Numbers, symbols, dates, and words that turn a statement into another one; most of them are stop words. Numbers and
# symbols count in any language, words in English.
_DECISIVE = re.compile(
    r"(?-i:(?<=\w )A\b)|\d+(?:[.,:/]\d+)*|n['’]t\b|(?<!\w)-(?=\d)|(?<=\w)-(?!\w)|[^\w\s.,;:!?'\"‘’“”()\[\]…—–-]|\b(?:"
    r"no|not|never|none|neither|nor|without|cannot|hardly|former|formerly|stopped"
    r"|from|to|before|after|until|since|is|are|was|were|will|would|may|might|could|should"
    r"|for|against|on|off|in|out|up|down|over|under|above|below|with|by|at|more|less|all|some|any|each|both|only|own"
    r"|i|me|my|mine|you|yours?|he|him|his|she|hers?|it|its|we|us|ours?|they|them|theirs?|this|that|these|those"
    r"|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|first|second|third|once|twice"
    r"|january|february|march|april|june|july|august|september|october|november|december"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)day|yesterday|today|tomorrow)\b",
    re.IGNORECASE,
)


_WORD = re.compile(r"\w+")
_ARTICLES = frozenset({"a", "an", "the", "and"})

REFUSALS = frozenset({ActionStatus.UNSUPPORTED_DELETE, ActionStatus.TOO_MANY_DELETES})
"""The rules that reject an action. The others change it."""


class Decision(NamedTuple):
    """An action that is applied. ``item_id`` is the memory that it changes, or that an INSERT repeats; "" if none."""

    action: MemoryAction
    item_id: str = ""
    repeated: bool = False
    """An INSERT that makes no item: the item ``item_id`` says it, or, if that is "", another action of the reply."""


class Protected(NamedTuple):
    """The actions to apply, in their order, and how many were changed or refused, by rule."""

    decisions: tuple[Decision, ...]
    counts: dict[ActionStatus, int]


@dataclass(frozen=True)
class Protection:
    """The rules for one reply. They read the bank and do not change it."""

    bank: MemoryBank
    analyzer: Analyzer
    vectors: Mapping[str, Vector]
    """The retrieval vector (D,) of each text that the reply writes."""
    span_text: str = ""
    span_vector: Vector | None = None
    """The retrieval vector (D,) of the span; needed if the reply has a DELETE."""

    def decide(self, actions: Sequence[MemoryAction], targets: Sequence[str]) -> Protected:
        """Apply the rules to the actions of the reply. ``targets`` has the id of the item that each action changes, ""
        for an INSERT or NOOP. All of these items must be in the bank."""
        counts: Counter[ActionStatus] = Counter()
        kept: list[Decision] = []
        for action, item_id in zip(actions, targets, strict=True):
            rule = self._rule(action, item_id, kept)
            if rule is not None:
                counts[rule] += 1
            if rule is None:
                kept.append(Decision(action, item_id))
            elif rule is ActionStatus.UPDATE_TO_INSERT:
                kept.append(Decision(MemoryAction(Action.INSERT, action.text)))
        decisions = self._without_repetitions(kept)
        if seen := sum(decision.repeated for decision in decisions):
            counts[ActionStatus.SEEN_AGAIN] = seen
        return Protected(tuple(decisions), dict(counts))

    def _rule(self, action: MemoryAction, item_id: str, kept: Sequence[Decision]) -> ActionStatus | None:
        """The rule that stops an UPDATE or DELETE; None if it is applied."""
        if action.action is Action.UPDATE:
            old, cosine = self.bank.get(item_id).text, self._cosine(self.vectors[action.text], item_id)
            return ActionStatus.UPDATE_TO_INSERT if is_other(old, action.text, cosine, self.analyzer) else None
        if action.action is Action.DELETE:
            assert self.span_vector is not None
            old, cosine = self.bank.get(item_id).text, self._cosine(self.span_vector, item_id)
            if not is_supported(old, self.span_text, cosine, self.analyzer):
                return ActionStatus.UNSUPPORTED_DELETE
            deletes = sum(decision.action.action is Action.DELETE for decision in kept)
            return ActionStatus.TOO_MANY_DELETES if deletes >= DELETES_PER_REPLY else None
        return None

    def _without_repetitions(self, kept: Sequence[Decision]) -> list[Decision]:
        """``kept``, with those INSERTs marked that repeat a memory or an earlier text of the reply.

        A memory that the reply changes or deletes is not there afterwards, so an INSERT of its text is no repetition.
        """
        changed = {decision.item_id for decision in kept if decision.item_id}
        written = [decision.action.text for decision in kept if decision.action.action is Action.UPDATE]
        decisions = []
        for decision in kept:
            text = decision.action.text
            if decision.action.action is Action.INSERT:
                found = self._find_repeated(text, changed)
                if found or any(self._repeats(text, other) for other in written):
                    decision = Decision(decision.action, found, repeated=True)
                written.append(text)
            decisions.append(decision)
        return decisions

    def _find_repeated(self, text: str, changed: AbstractSet[str]) -> str:
        """The id of the item outside ``changed`` that ``text`` repeats, "" if there is none."""
        equal = [(item, 1.0) for item in self.bank.equal(text, _words)]
        near = self.bank.retrieve(self.vectors[text], NEIGHBOURS + len(changed), "retrieval")
        for item, cosine in (*equal, *near):
            if item.item_id not in changed and is_repetition(item.text, text, cosine, self.analyzer):
                return item.item_id
        return ""

    def _repeats(self, text: str, other: str) -> bool:
        return is_repetition(other, text, float(self.vectors[text] @ self.vectors[other]), self.analyzer)

    def _cosine(self, vector: Vector, item_id: str) -> float:
        return float(vector @ self.bank.vectors([item_id], "retrieval")[0])


def is_other(old: str, new: str, cosine: float, analyzer: Analyzer) -> bool:
    """Whether two texts with this cosine are about different things.

    Their common content words are counted as a share of those of the text that has fewer.
    """
    before, after = set(analyzer.terms(old)), set(analyzer.terms(new))
    share = len(before & after) / max(1, min(len(before), len(after)))
    return share < OTHER_SHARE and cosine < OTHER_COSINE


def is_supported(memory: str, span: str, cosine: float, analyzer: Analyzer) -> bool:
    """Whether a span with this cosine is about a memory, so that it can be the reason to delete it."""
    terms = set(analyzer.terms(memory))
    share = len(terms & set(analyzer.terms(span))) / max(1, len(terms))
    return share >= SUPPORT_SHARE or cosine >= SUPPORT_COSINE


def is_repetition(memory: str, text: str, cosine: float, analyzer: Analyzer) -> bool:
    """Whether ``text``, which has this cosine with ``memory``, says nothing that the memory does not say.

    True for equal words, whatever the case, punctuation and articles. Otherwise the content words of ``text`` must be
    those of the memory in the same order, with few left out. Numbers, dates and words such as "not" must be the same.
    """
    if _decisive(memory) != _decisive(text):
        return False
    if _words(memory) == _words(text):
        return True
    old, new = analyzer.terms(memory), analyzer.terms(text)
    rest = iter(old)
    in_order = all(term in rest for term in new)  # each search goes on behind the term found before
    return bool(new) and in_order and len(new) >= SAME_SHARE * len(old) and cosine >= SAME_COSINE


@lru_cache(maxsize=65536)
def _words(text: str) -> str:
    """The words of ``text`` in lower case without articles. An "A" within the text may be a grade, so it is kept."""
    kept = enumerate(_WORD.findall(text))
    return " ".join(w.lower() for i, w in kept if w.lower() not in _ARTICLES or (w == "A" and i > 0))


def _decisive(text: str) -> list[str]:
    return [match.lower().replace("n’t", "n't") for match in _DECISIVE.findall(text)]
