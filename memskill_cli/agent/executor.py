"""The executor: one call of a frozen LLM reads a span and writes memory (section 3 of docs/method.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from memskill_cli.agent.designer_context import Style
from memskill_cli.agent.parsing import ParsedReply, check_actions, parse_reply
from memskill_cli.agent.prompts import Message, messages, numbered
from memskill_cli.agent.protection import REFUSALS, Decision, Protected, Protection
from memskill_cli.config import MemoryConfig
from memskill_cli.errors import RejectedPromptError, UnreadableReplyError
from memskill_cli.llm.client import LLMClient
from memskill_cli.llm.grammars import executor_grammar
from memskill_cli.llm.reasoning import ReplyText
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.lexical import analyzer
from memskill_cli.memory.stored_bank import SPACES
from memskill_cli.skills.skill import Skill
from memskill_cli.types import (
    Action,
    ActionStatus,
    CallUsage,
    ExecutorResult,
    MemoryAction,
    MemoryChange,
    Provenance,
    Retrieved,
    Span,
    Vector,
)
from memskill_cli.utils.relative_dates import resolve_dates, short_date

GRAMMAR_ACTIONS = 8
"""Most actions in one reply of the embedded model. Without a limit it tends to repeat itself."""
Vectors = Mapping[str, tuple[Vector, Vector]]
"""The state and the retrieval vector of each text that a reply writes."""


class Executor:
    """Turns (span, retrieved memories, selected skills) into changes of a memory bank. ``style`` selects the prompt."""

    def __init__(
        self, llm: LLMClient, encoders: EncoderPair, config: MemoryConfig, style: Style = "conversational"
    ) -> None:
        self._llm, self._style = llm, style
        self._encoders = encoders
        self._config = config

    async def execute(
        self, bank: MemoryBank, span: Span, shown: Sequence[Retrieved], skills: Sequence[Skill]
    ) -> ExecutorResult:
        """Call the model once (again if the reply cannot be read) and apply the valid actions.

        Rejected actions are counted by reason. If the second reply cannot be read either, nothing changes and the
        result has ``unreadable=True``. Raises ModelError if the call fails.
        """
        return await self.apply(bank, span, shown, skills, await self.propose(span, shown, skills))

    async def propose(self, span: Span, shown: Sequence[Retrieved], skills: Sequence[Skill]) -> ExecutorResult:
        """The model's validated actions, not applied yet. None if the prompt is refused (``refused`` says
        why). Raises ModelError if the call fails."""
        allowed = {skill.action for skill in skills}
        if self._config.resolve_dates:
            span = dataclasses.replace(span, text=resolve_dates(span.text, span.date))
        try:
            reply = await self._llm.ask(
                "executor",
                executor_messages(span, shown, skills, self._style),
                parse=_parse,
                grammar=executor_grammar(allowed, len(shown), min(GRAMMAR_ACTIONS, self._config.max_actions)),
            )
        except UnreadableReplyError as error:
            usage = CallUsage(error.prompt_tokens, error.completion_tokens, error.seconds)
            return ExecutorResult((), {}, unreadable=True, usage=usage)
        except RejectedPromptError as error:
            return ExecutorResult((), {}, refused=error.message)
        actions, rejected = check_actions(
            reply.value.actions,
            allowed=allowed,
            shown=len(shown),
            max_chars=self._config.max_chars,
            max_actions=self._config.max_actions,
        )
        counts = _sum(reply.value.rejected, rejected)
        return ExecutorResult(tuple(actions), counts, cut=reply.text.cut, usage=reply.usage)

    async def apply(
        self,
        bank: MemoryBank,
        span: Span,
        shown: Sequence[Retrieved],
        skills: Sequence[Skill],
        proposed: ExecutorResult,
    ) -> ExecutorResult:
        """Apply the proposed actions; those on memories that were deleted in the meantime are rejected.

        With ``memory.protect`` the rules of :mod:`.protection` change or refuse some. ``applied`` of the result has
        the actions after that, refused ones are in ``rejected``.
        """
        applicable = [action for action in proposed.applied if action.index is None or _item_id(shown, action) in bank]
        gone = len(proposed.applied) - len(applicable)
        provenance = self._provenance(span, skills)
        vectors = await self._embed(applicable)
        protected = await self._protect(bank, span, shown, applicable, vectors)
        changes = [_change(bank, decision, vectors, provenance) for decision in protected.decisions]
        refused = {rule: count for rule, count in protected.counts.items() if rule in REFUSALS}
        return dataclasses.replace(
            proposed,
            applied=tuple(decision.action for decision in protected.decisions),
            rejected=_sum(proposed.rejected, ({ActionStatus.DUPLICATE: gone} if gone else {}) | refused),
            changes=tuple(changes),
            protected=protected.counts,
        )

    def _provenance(self, span: Span, skills: Sequence[Skill]) -> Provenance:
        names = tuple(skill.name for skill in skills)
        if not self._config.sources:
            return Provenance(span.trace_id, span.index, names, span.index)
        speakers = tuple(dict.fromkeys(source.speaker for source in span.sources if source.speaker))
        return Provenance(span.trace_id, span.index, names, span.index, short_date(span.date), speakers)

    async def _embed(self, actions: Sequence[MemoryAction]) -> Vectors:
        texts = list(
            dict.fromkeys(action.text for action in actions if action.action in (Action.INSERT, Action.UPDATE))
        )
        return dict(zip(texts, zip(*await self._encoders.embed(texts), strict=True), strict=True))

    async def _protect(
        self,
        bank: MemoryBank,
        span: Span,
        shown: Sequence[Retrieved],
        actions: Sequence[MemoryAction],
        vectors: Vectors,
    ) -> Protected:
        # An index is a position in the prompt. The bank may have changed since, so changes are made by item id.
        targets = [_item_id(shown, action) for action in actions]
        if not self._config.protect:
            return Protected(tuple(map(Decision, actions, targets)), {})
        span_vector = None
        if any(action.action is Action.DELETE for action in actions):
            span_vector = (await self._encoders.retrieval.aencode([span.text]))[0]
        written = {text: retrieval for text, (_, retrieval) in vectors.items()}
        rules = Protection(bank, analyzer(self._config.language), written, span.text, span_vector)
        return rules.decide(actions, targets)


def _change(bank: MemoryBank, decision: Decision, vectors: Vectors, provenance: Provenance) -> MemoryChange:
    """Apply one action to the bank."""
    action, item_id = decision.action, decision.item_id
    if decision.repeated:
        return _repeat(bank, decision, provenance)
    before = bank.get(item_id).text if item_id else ""
    match action.action:
        case Action.INSERT:
            item = bank.insert(action.text, *vectors[action.text], provenance)
            return MemoryChange(action.action, item.item_id, item.text)
        case Action.UPDATE:
            item = bank.update(item_id, action.text, *vectors[action.text], provenance)
            return MemoryChange(action.action, item_id, item.text, before)
        case Action.DELETE:
            bank.delete(item_id, provenance)
            return MemoryChange(action.action, item_id, "", before)
        case Action.NOOP:
            return MemoryChange(action.action)


def _repeat(bank: MemoryBank, decision: Decision, provenance: Provenance) -> MemoryChange:
    """Note in the history of an item that a later span says the same: it derives from that span too."""
    text = decision.action.text
    if not decision.item_id:
        return MemoryChange(Action.INSERT, "", text, text)
    item = bank.get(decision.item_id)
    if all(version.provenance.span_index != provenance.span_index for version in item.history):
        state, retrieval = (bank.vectors([item.item_id], space)[0] for space in SPACES)
        bank.update(item.item_id, item.text, state, retrieval, provenance)
    return MemoryChange(Action.INSERT, item.item_id, item.text, item.text)


def _item_id(shown: Sequence[Retrieved], action: MemoryAction) -> str:
    """The id of the memory that an action changes; "" for an action without an index."""
    return shown[action.index].item.item_id if action.index is not None else ""


def _sum(one: Mapping[ActionStatus, int], other: Mapping[ActionStatus, int]) -> dict[ActionStatus, int]:
    return {outcome: one.get(outcome, 0) + other.get(outcome, 0) for outcome in (*one, *other)}


def executor_messages(
    span: Span, shown: Sequence[Retrieved], skills: Sequence[Skill], style: Style = "conversational"
) -> list[Message]:
    """The prompt: skills first (they repeat, for prefix caching), then the memories, then the span."""
    system = "executor_embodied" if style == "embodied" else "executor"
    described = "\n\n".join(f"### {s.name}\nAction type: {s.action.value.upper()}\n{s.body}" for s in skills)
    return messages(system, skills=described, memories=numbered(m.item.described for m in shown), span=span.text)


def _parse(text: ReplyText) -> ParsedReply:
    reply = parse_reply(text, cut=text.cut)
    if not reply.found:
        raise UnreadableReplyError("no memory action found; expected blocks that start with ACTION: INSERT (or NOOP)")
    return reply
