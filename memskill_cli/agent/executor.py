"""The executor: one call of a frozen LLM reads a span and writes memory (section 3 of the method)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from memskill_cli.agent.designer_context import Style
from memskill_cli.agent.parsing import ParsedReply, check_actions, parse_reply
from memskill_cli.agent.prompts import Message, messages, numbered
from memskill_cli.config import MemoryConfig
from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.client import Gateway
from memskill_cli.llm.grammars import executor_grammar
from memskill_cli.llm.reasoning import ReplyText
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoder_pair import Spaces
from memskill_cli.skills.skill import Skill
from memskill_cli.types import Action, Execution, MemoryAction, Outcome, Provenance, Retrieved, Span

GRAMMAR_ACTIONS = 8
"""Most actions in one reply of the embedded model, which would rather repeat itself than stop."""


class Executor:
    """Turns (span, memories shown, skills chosen) into changes of a memory bank; ``style`` is what spans are about."""

    def __init__(self, gateway: Gateway, spaces: Spaces, config: MemoryConfig, style: Style = "conversational") -> None:
        self._gateway, self._style = gateway, style
        self._spaces = spaces
        self._config = config

    async def execute(
        self, bank: MemoryBank, span: Span, shown: Sequence[Retrieved], skills: Sequence[Skill]
    ) -> Execution:
        """Ask once (once more if the reply cannot be read) and apply what the reply may do.

        What is rejected is counted by reason; a reply that stays unreadable changes nothing and says so. Raises
        ModelError when the call itself fails: that is never "no memory written".
        """
        return await self.apply(bank, span, shown, skills, await self.propose(span, shown, skills))

    async def propose(self, span: Span, shown: Sequence[Retrieved], skills: Sequence[Skill]) -> Execution:
        """What the model wants done, nothing of it applied yet; raises as :meth:`execute` does."""
        allowed = {skill.action for skill in skills}
        try:
            reply = await self._gateway.ask(
                "executor",
                executor_messages(span, shown, skills, self._style),
                parse=_parse,
                grammar=executor_grammar(allowed, len(shown), min(GRAMMAR_ACTIONS, self._config.max_actions)),
            )
        except UnreadableReplyError:
            return Execution((), {}, unreadable=True)
        actions, rejected = check_actions(
            reply.value.actions,
            allowed=allowed,
            shown=len(shown),
            max_chars=self._config.max_chars,
            max_actions=self._config.max_actions,
        )
        return Execution(tuple(actions), _sum(reply.value.rejected, rejected), cut=reply.text.cut)

    async def apply(
        self,
        bank: MemoryBank,
        span: Span,
        shown: Sequence[Retrieved],
        skills: Sequence[Skill],
        proposed: Execution,
    ) -> Execution:
        """Make the proposed changes; those of memories that have gone since they were shown are rejected."""
        there = [action for action in proposed.applied if action.index is None or _item(shown, action) in bank]
        gone = len(proposed.applied) - len(there)
        provenance = Provenance(span.trace_id, span.index, tuple(skill.name for skill in skills), span.index)
        await self._apply(bank, there, shown, provenance)
        rejected = _sum(proposed.rejected, {Outcome.DUPLICATE: gone} if gone else {})
        return dataclasses.replace(proposed, applied=tuple(there), rejected=rejected)

    async def _apply(
        self, bank: MemoryBank, actions: Sequence[MemoryAction], shown: Sequence[Retrieved], provenance: Provenance
    ) -> None:
        writes = [action for action in actions if action.action in (Action.INSERT, Action.UPDATE)]
        state, retrieval = await self._spaces.embed([action.text for action in writes])
        vectors = dict(zip(map(id, writes), zip(state, retrieval, strict=True), strict=True))
        for action in actions:
            # Ids, not positions, are what is changed: an index means the memory that was shown there.
            item_id = _item(shown, action)
            match action.action:
                case Action.INSERT:
                    bank.insert(action.text, *vectors[id(action)], provenance)
                case Action.UPDATE:
                    bank.update(item_id, action.text, *vectors[id(action)], provenance)
                case Action.DELETE:
                    bank.delete(item_id, provenance)
                case Action.NOOP:
                    pass


def _item(shown: Sequence[Retrieved], action: MemoryAction) -> str:
    """The id of the memory that an action changes; "" of one that changes none."""
    return shown[action.index].item.item_id if action.index is not None else ""


def _sum(one: Mapping[Outcome, int], other: Mapping[Outcome, int]) -> dict[Outcome, int]:
    return {outcome: one.get(outcome, 0) + other.get(outcome, 0) for outcome in (*one, *other)}


def executor_messages(
    span: Span, shown: Sequence[Retrieved], skills: Sequence[Skill], style: Style = "conversational"
) -> list[Message]:
    """The prompt: skills first (they repeat), then the memories, then the span."""
    system = "executor_embodied" if style == "embodied" else "executor"
    described = "\n\n".join(f"### {s.name}\nAction type: {s.action.value.upper()}\n{s.body}" for s in skills)
    return messages(system, skills=described, memories=numbered(m.item.text for m in shown), span=span.text)


def _parse(text: ReplyText) -> ParsedReply:
    reply = parse_reply(text, cut=text.cut)
    if not reply.found:
        raise UnreadableReplyError("no memory action found; expected blocks that start with ACTION: INSERT (or NOOP)")
    return reply
