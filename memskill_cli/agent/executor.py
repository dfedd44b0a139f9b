"""The executor: one call of a frozen LLM reads a span and writes memory (section 3 of docs/method.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from memskill_cli.agent.designer_context import Style
from memskill_cli.agent.parsing import ParsedReply, check_actions, parse_reply
from memskill_cli.agent.prompts import Message, messages, numbered
from memskill_cli.config import MemoryConfig
from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.client import LLMClient
from memskill_cli.llm.grammars import executor_grammar
from memskill_cli.llm.reasoning import ReplyText
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.skills.skill import Skill
from memskill_cli.types import Action, ActionStatus, ExecutorResult, MemoryAction, Provenance, Retrieved, Span

GRAMMAR_ACTIONS = 8
"""Most actions in one reply of the embedded model. Without a limit it tends to repeat itself."""


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
        """The model's validated actions, not applied yet. Raises ModelError if the call fails."""
        allowed = {skill.action for skill in skills}
        try:
            reply = await self._llm.ask(
                "executor",
                executor_messages(span, shown, skills, self._style),
                parse=_parse,
                grammar=executor_grammar(allowed, len(shown), min(GRAMMAR_ACTIONS, self._config.max_actions)),
            )
        except UnreadableReplyError:
            return ExecutorResult((), {}, unreadable=True)
        actions, rejected = check_actions(
            reply.value.actions,
            allowed=allowed,
            shown=len(shown),
            max_chars=self._config.max_chars,
            max_actions=self._config.max_actions,
        )
        return ExecutorResult(tuple(actions), _sum(reply.value.rejected, rejected), cut=reply.text.cut)

    async def apply(
        self,
        bank: MemoryBank,
        span: Span,
        shown: Sequence[Retrieved],
        skills: Sequence[Skill],
        proposed: ExecutorResult,
    ) -> ExecutorResult:
        """Apply the proposed actions; those on memories that were deleted in the meantime are rejected."""
        applicable = [action for action in proposed.applied if action.index is None or _item_id(shown, action) in bank]
        gone = len(proposed.applied) - len(applicable)
        provenance = Provenance(span.trace_id, span.index, tuple(skill.name for skill in skills), span.index)
        await self._apply(bank, applicable, shown, provenance)
        rejected = _sum(proposed.rejected, {ActionStatus.DUPLICATE: gone} if gone else {})
        return dataclasses.replace(proposed, applied=tuple(applicable), rejected=rejected)

    async def _apply(
        self, bank: MemoryBank, actions: Sequence[MemoryAction], shown: Sequence[Retrieved], provenance: Provenance
    ) -> None:
        writes = [action for action in actions if action.action in (Action.INSERT, Action.UPDATE)]
        state, retrieval = await self._encoders.embed([action.text for action in writes])
        vectors = dict(zip(map(id, writes), zip(state, retrieval, strict=True), strict=True))
        for action in actions:
            # An index is a position in the prompt. The bank may have changed since, so changes are made by item id.
            item_id = _item_id(shown, action)
            match action.action:
                case Action.INSERT:
                    bank.insert(action.text, *vectors[id(action)], provenance)
                case Action.UPDATE:
                    bank.update(item_id, action.text, *vectors[id(action)], provenance)
                case Action.DELETE:
                    bank.delete(item_id, provenance)
                case Action.NOOP:
                    pass


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
    return messages(system, skills=described, memories=numbered(m.item.text for m in shown), span=span.text)


def _parse(text: ReplyText) -> ParsedReply:
    reply = parse_reply(text, cut=text.cut)
    if not reply.found:
        raise UnreadableReplyError("no memory action found; expected blocks that start with ACTION: INSERT (or NOOP)")
    return reply
